"""Through another proxy: CONNECT to the corporate proxy that is the only way out (RFC 9110 section 9.3.6).

What the flow may reach has been decided before. The upstream is asked for a vetted address, unless
it is configured to resolve names itself; its answer is read to the last byte of its head and no
further, because what follows is the destination's.
"""

from __future__ import annotations

import os
import socket
import stat
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from exeat.policy.addresses import format_address
from exeat.policy.model import Address
from exeat.proxy.answer import AnswerHead
from exeat.proxy.dial import MAX_ADDRESSES, Dialer
from exeat.proxy.fields import MAX_HEAD, HttpError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exeat.ledger.reactor import Reactor
    from exeat.policy.scopes import Scope
    from exeat.proxy.ends import End

MAX_CREDENTIALS: Final = 1024  # bytes
_SWITCHING: Final = 101
_AUTHENTICATE: Final = 407


@dataclass(frozen=True, slots=True)
class Upstream:
    """`authorization` is the value of Proxy-Authorization, b"" for none; `direct` goes around it.

    `resolves`: it gets names, and the guard is not asked for addresses.
    """

    address: Address
    port: int
    authorization: bytes = field(default=b"", repr=False)
    resolves: bool = False
    direct: tuple[Scope, ...] = ()

    def takes(self, host: str | Address, addresses: Sequence[Address] = ()) -> bool:
        """Whether the way to `host` leads through here."""
        targets = (host, *addresses[:1])
        return not any(scope.reaches(target) for scope in self.direct for target in targets)

    def request(self, host: str | Address, port: int) -> bytes:
        text = host if isinstance(host, str) else format_address(host)
        place = f"[{text}]:{port}" if isinstance(host, Address) and host.family == 6 else f"{text}:{port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        head = "\r\n".join(lines).encode("ascii") + b"\r\n"
        if self.authorization:
            head += b"Proxy-Authorization: " + self.authorization + b"\r\n"
        return head + b"\r\n"


def authorization(path: Path) -> bytes:
    """The value of Proxy-Authorization (RFC 7617) for a file with one line, NAME:PASSWORD.

    Raises ValueError, also for a file that others could read, and OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        ours = status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o027
        if not stat.S_ISREG(status.st_mode) or not ours:
            raise ValueError("must be a file of root's or of the gateway's, mode 0640 or less")
        said = file.read(MAX_CREDENTIALS).removesuffix(b"\n")
    if b":" not in said or b"\n" in said:
        raise ValueError("must hold one line, NAME:PASSWORD")
    return b"Basic " + b64encode(said)


class ChainDialer:
    """As Dialer, by way of `upstream`: `on_done(end, address)`, None for a name that it resolved.

    `targets` are tried in order, the next one when the upstream cannot reach the one before.
    """

    __slots__ = (
        "_dial",
        "_end",
        "_left",
        "_on_done",
        "_on_failed",
        "_port",
        "_reactor",
        "_target",
        "_upstream",
    )

    def __init__(
        self,
        reactor: Reactor,
        upstream: Upstream,
        targets: Sequence[str | Address],
        port: int,
        on_done: Callable[[End, Address | None], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._upstream = upstream
        self._left = list(targets[:MAX_ADDRESSES])
        self._target: str | Address = ""
        self._port = port
        self._on_done = on_done
        self._on_failed = on_failed
        self._end: End | None = None
        self._dial: Dialer | None = None
        self._next()

    def cancel(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._end is not None:
            self._end.abort()
            self._end = None

    def _next(self) -> None:
        self._target = self._left.pop(0)
        upstream = self._upstream
        self._dial = Dialer(
            self._reactor, (upstream.address,), upstream.port, self._reached, self._not_reached
        )

    def _not_reached(self, _code: str) -> None:
        self._dial = None
        self._on_failed("upstream.unavailable")

    def _reached(self, end: End, _address: Address) -> None:
        self._dial = None
        self._end = end
        request = self._upstream.request(self._target, self._port)
        try:
            end.lead_out = end.sock.send(request)
        except OSError:
            end.lead_out = 0
        if end.lead_out < len(request):
            self._fail("upstream.unavailable")
            return
        end.heard_by(self._event)

    def _event(self, events: int) -> None:
        end = self._end
        if end is None:
            return
        end.note(events)
        try:
            while (status := self._status(end)) is not None:
                if status == _SWITCHING or status >= 200:
                    self._answered(end, status)
                    return
        except HttpError:
            self._fail("upstream.malformed")
        except OSError:
            self._fail("upstream.unavailable")

    @staticmethod
    def _status(end: End) -> int | None:
        """The status of the next head, which is then read; None while it is not complete."""
        try:
            data = end.sock.recv(MAX_HEAD, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        head = AnswerHead()
        if not data or not head.feed(data):
            if not data or end.hangup:
                raise HttpError("http.no_answer")
            return None
        end.lead_in += len(end.sock.recv(head.size))
        return head.status

    def _answered(self, end: End, status: int) -> None:
        if 200 <= status < 300:
            self._end = None
            end.readable = True  # the destination may have spoken already
            end.heard_by(end.note)
            self._on_done(end, self._target if isinstance(self._target, Address) else None)
        elif status == _AUTHENTICATE:
            self._fail("upstream.credentials")
        elif status == _SWITCHING:
            self._fail("upstream.malformed")
        elif status >= 500 and self._left:
            self.cancel()
            self._next()
        else:
            self._fail("upstream.unreachable" if status >= 500 else "upstream.refused")

    def _fail(self, code: str) -> None:
        self.cancel()
        self._on_failed(code)
