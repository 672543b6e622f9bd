"""Sending one notice. Returns when the other side has it, or raises SinkError; nothing is queued here."""

from __future__ import annotations

import smtplib
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final, Protocol

from exeat.appliance.ledger_config import safe_url
from exeat.appliance.notify import notices
from exeat.appliance.notify_config import mail_server
from exeat.appliance.stream.post import PATIENCE_S, Poster, SinkError, tls_context
from exeat.appliance.stream.sinks import read_key, signature
from exeat.ledger.records import printable
from exeat.policy.addresses import parse_address

if TYPE_CHECKING:
    from exeat.appliance.notify.notices import Notice
    from exeat.appliance.notify_config import Notify

_JSON: Final = {"Content-Type": "application/json", "User-Agent": "exeat"}


class Sender(Protocol):
    """May get the same notice again after a SinkError or a restart: its id tells."""

    def send(self, notice: Notice) -> None: ...


def sender_of(notify: Notify) -> Sender:
    """Raises SinkError if its secret cannot be read."""
    if notify.to.startswith("mailto:"):
        return Mail(notify)
    return Slack(notify) if notify.to == "slack" else Webhook(notify)


class Webhook:
    """JSON, signed where there is a secret (docs/monitoring.md)."""

    def __init__(self, notify: Notify) -> None:
        self._secret = read_key(notify.secret) if notify.secret is not None else b""
        self._poster = Poster(notify.to, notify.proxy, notify.ca)

    def send(self, notice: Notice) -> None:
        body = notices.webhook(notice)
        headers = {**_JSON, "Exeat-Notice": notice.id}
        if self._secret:
            headers["Exeat-Signature"] = signature(self._secret, int(time.time()), body)
        self._poster.post(body, headers)


class Slack:
    """What Slack's incoming webhooks take, and what imitates them."""

    def __init__(self, notify: Notify) -> None:
        if notify.secret is None:
            raise SinkError("slack: no secret")  # the configuration sees to it
        try:
            url = safe_url(read_key(notify.secret).decode("utf-8", "replace").strip())
        except ValueError:
            raise SinkError(f"{notify.secret}: does not hold https://HOST/PATH") from None
        self._poster = Poster(url, notify.proxy, notify.ca, said="slack")

    def send(self, notice: Notice) -> None:
        self._poster.post(notices.slack(notice), _JSON)


class Mail:
    """One connection for each mail, with STARTTLS (RFC 3207) and the server's name checked."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._address, self._port, self._name = mail_server(notify.smtp)
        self._login: tuple[str, str] | None = None
        if notify.credentials is not None:
            name, colon, password = read_key(notify.credentials).decode("utf-8", "replace").partition(":")
            if not colon:
                raise SinkError(f"{notify.credentials}: is not NAME:PASSWORD")
            self._login = name, password

    def send(self, notice: Notice) -> None:
        sender, to = str(self._notify.sender), self._notify.to.removeprefix("mailto:")
        message = notices.mail(notice, sender, to)
        try:
            with _Server(self._address, self._port, self._name) as server:
                if self._name:
                    server.starttls(context=tls_context(self._notify.ca))
                if self._login is not None:
                    server.login(*self._login)
                server.send_message(message, sender, [to])
        except (OSError, smtplib.SMTPException, ssl.SSLError, ValueError) as error:
            # A refused login comes with what the server said; the password never stands in it.
            raise SinkError(f"{self._notify.smtp}: {printable(str(error), 300)}") from None


class _Server(smtplib.SMTP):
    """Connects to an address, and expects a certificate of a name; nothing is looked up."""

    def __init__(self, address: str, port: int, name: str) -> None:
        super().__init__(local_hostname="exeat.invalid", timeout=PATIENCE_S)
        code, said = self.connect(address, port)
        if code != 220:
            self.close()
            raise smtplib.SMTPConnectError(code, said)
        self._host = name or address  # what STARTTLS checks the certificate against

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        """To an address, as the configuration has it: nothing is asked for a name."""
        sock = socket.socket(socket.AF_INET if parse_address(host).family == 4 else socket.AF_INET6)
        try:
            sock.settimeout(timeout)
            sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        return sock
