"""One destination of a UDP association: judged, recorded and counted as a tunnel is (RFC 1928 section 7).

    decide -> resolve -> [QUIC hello on a TLS port] -> open durable -> pass on -> close

A datagram passes whole or not at all, and none before `open` is durable: the first few are held.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from exeat.ledger.reactor import EPOLLIN
from exeat.policy.model import Address, Decision, Request, Sni, Speech, Verdict, permits
from exeat.policy.tariff import Wire
from exeat.proxy import refusal, tcpinfo
from exeat.proxy.account import Account
from exeat.proxy.client_hello import HelloError
from exeat.proxy.evidence import Evidence
from exeat.proxy.first_bytes import TLS_PORTS
from exeat.proxy.guard_client import NoAddress
from exeat.proxy.quic_initial import QuicWatch
from exeat.proxy.tunnel import CLOSE_TRIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.proxy.client_hello import ClientHello
    from exeat.proxy.gateway import Gateway
    from exeat.proxy.guard_client import Answer
    from exeat.proxy.jails import Jail

IDLE_S: Final = 60.0
MAX_HELD: Final = 16  # datagrams; a hello of 32 KiB does not fit, one of 16 KiB does
MAX_HELD_BYTES: Final = 32 * 1024
BATCH: Final = 64  # datagrams of one turn
MAX_DATAGRAM: Final = 65_535
# As a full queue on the way would: the client sends again if it matters, and smaller.
_DROPPED: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE})
_UNDECIDED: Final = Decision(Verdict.DENY, "")


class UdpFlow:
    """`reply` sends a payload back to the client; `on_end` is called once, at the very end."""

    __slots__ = (
        "_account",
        "_activity",
        "_cancel",
        "_held",
        "_in",
        "_live",
        "_on_end",
        "_out",
        "_reply",
        "_request",
        "_sock",
        "_timeout_code",
        "_watch",
        "closed",
        "deadline",
        "ended",
        "evidence",
        "gateway",
        "jail",
    )

    def __init__(
        self,
        gateway: Gateway,
        jail: Jail,
        request: Request,
        src: str,
        reply: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        self.gateway = gateway
        self.jail = jail
        self.evidence = Evidence(
            gateway.flow_id(),
            jail.subject,
            src,
            "socks5",
            request.host,
            request.port,
            "udp",
            tariff=gateway.settings.tariff,
        )
        self.deadline = gateway.reactor.now() + gateway.settings.dial_timeout_s
        self.ended = ""  # why, once it has
        self.closed = False
        self._timeout_code = "dns.unavailable"
        self._request = request
        self._reply = reply
        self._on_end = on_end
        self._cancel: Callable[[], None] | None = None  # of the question to the guard
        self._sock: socket.socket | None = None
        self._watch: QuicWatch | None = None
        self._account: Account | None = None
        self._live = False
        self._held: deque[bytes] = deque()
        self._out = self._in = 0
        self._activity = gateway.reactor.now()

    # -- what the gateway's tables know a flow by

    @property
    def flow(self) -> UdpFlow:
        return self

    @property
    def decision(self) -> Decision:
        return self.evidence.decision or _UNDECIDED

    @property
    def lease(self) -> str:
        return self.decision.lease

    # -- the client's datagrams

    def send(self, payload: bytes) -> None:
        """A datagram of the client; before the flow is live, one of the few that are held."""
        if self.ended or (self._watch is not None and not self._look(payload)):
            return
        if self._live:
            self._pass_on(payload)
        elif len(self._held) < MAX_HELD and sum(map(len, self._held)) + len(payload) <= MAX_HELD_BYTES:
            self._held.append(payload)

    def _look(self, payload: bytes) -> bool:
        """Whether a datagram to a QUIC port may pass, as far as it says."""
        watch = self._watch
        try:
            hello = watch.client(payload) if watch is not None else None
        except HelloError as error:
            self.end(error.code)
            return False
        if hello is not None:
            self._held.append(payload)  # it is among the first: nothing is live yet
            self._judge(hello)
            return False
        return True

    def _pass_on(self, payload: bytes) -> None:
        account, sock = self._account, self._sock
        if account is None or sock is None or not account.fits(len(payload)):
            return
        try:
            sock.send(payload)
        except OSError as error:
            if error.errno not in _DROPPED:
                self.end("dial.refused")
            return
        account.gate.take(len(payload))
        self._out += len(payload)
        self._activity = self.gateway.reactor.now()

    # -- decision, addresses, hello

    def begin(self) -> None:
        decision = self.gateway.judge(self.evidence, self._request)
        if not decision.allowed:
            self.end(decision.reason)
        elif not self.gateway.ledger.available:
            self.end("ledger.unavailable")
        elif isinstance(self._request.host, Address):
            self._resolved((self._request.host,))
        else:
            question = (self._request.subject, self._request.host, self._request.port, decision.lease)
            self._cancel = self.gateway.guard.resolve(question, self._resolved, "udp")

    def _resolved(self, answer: Answer) -> None:
        self._cancel = None
        if isinstance(answer, NoAddress):
            self.end(answer.reason)
            return
        self._request = dataclasses.replace(self._request, resolved=answer)
        decision = self.gateway.judge(self.evidence, self._request)
        if not decision.allowed:
            self.end(decision.reason)
            return
        code = self._connect(answer)
        if code:
            self.end(code)
        elif self._request.port not in TLS_PORTS:
            self._open()
        elif permits(decision, Speech.RAW):
            self.evidence.speech = Speech.RAW
            self._open()
        else:
            self._expect_hello()

    def _connect(self, addresses: tuple[Address, ...]) -> str:
        """Have a socket to the first address that there is a route to; nothing is sent. Else why not."""
        for address in addresses:
            family = socket.AF_INET if address.family == 4 else socket.AF_INET6
            sock = self.gateway.datagram_socket(family)
            if sock is None:
                return "limit.descriptors"
            try:
                sock.connect((socket.inet_ntop(family, address.packed()), self._request.port))
            except OSError:
                sock.close()
                continue
            self.evidence.address = address
            self._sock = sock
            return ""
        return "dial.unreachable"

    def _expect_hello(self) -> None:
        self._watch = QuicWatch()
        self._until(self.gateway.settings.hello_timeout_s, "tls.timeout")
        held, self._held = self._held, deque()
        for payload in held:
            self.send(payload)

    def _judge(self, hello: ClientHello) -> None:
        # Real or greased cannot be told apart. The outer server name is judged like any other.
        if hello.ech:
            self.evidence.speech = Speech.ECH
        self.evidence.sni = hello.sni or Sni.ABSENT
        self._request = dataclasses.replace(self._request, sni=self.evidence.sni)
        decision = self.gateway.judge(self.evidence, self._request)
        if not decision.allowed:
            self.end(decision.reason)
        elif not permits(decision, self.evidence.speech):
            self.end("tls.ech")
        else:
            self._open()

    def _open(self) -> None:
        sock = self._sock
        if sock is None:
            return
        self._until(self.gateway.settings.dial_timeout_s, "ledger.unavailable")
        account = Account(self.gateway, self.evidence, self._request, self.decision, self)
        first = len(self._held[0]) if self._held else 0  # the others find room or are dropped
        code = account.open(first, tcpinfo.cookie(sock), self._opened)
        if code:
            self.end(code)
        else:
            self._account = account

    def _opened(self, durable: bool) -> None:
        if self.ended or self._sock is None:
            return
        if not durable:
            self.end("ledger.unavailable")
            return
        self.deadline = float("inf")
        self._live = True
        self.gateway.promote(self)
        self.gateway.live(self)
        self.gateway.reactor.add(self._sock.fileno(), EPOLLIN, self._on_upstream)
        if self._account is not None:
            self._account.confirm()
        while self._held and not self.ended:
            self._pass_on(self._held.popleft())

    def _until(self, seconds: float, code: str) -> None:
        self.deadline = self.gateway.reactor.now() + seconds
        self._timeout_code = code

    # -- what comes back

    def _on_upstream(self, _events: int) -> None:
        for _ in range(BATCH):
            if self.ended or self._sock is None:
                return
            try:
                payload = self._sock.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error has come back
                self.end("dial.refused")
                return
            self._come_back(payload)

    def _come_back(self, payload: bytes) -> None:
        account = self._account
        if account is None or not account.fits(len(payload)):
            return
        if self._watch is not None:
            self._watch.server(payload)
        account.gate.take(len(payload))
        self._reply(payload)
        self._in += len(payload)
        self._activity = self.gateway.reactor.now()

    # -- what the account and the gateway's sweeps ask

    def counts(self) -> tuple[int, int]:
        return self._out, self._in

    def segments(self) -> tuple[int, int]:
        return 0, 0

    def granted(self) -> None:
        """What found no room is gone; what comes now finds some."""

    def sweep(self, now: float) -> None:
        account = self._account
        if account is None or self.ended:
            return
        account.charge()
        if now - self._activity > IDLE_S:
            self.end("idle")
        elif account.overspent:
            self.end("budget.exceeded")
        else:
            account.progress(now)

    def resume(self) -> bytes:
        reserved = self._account.gate.reserved if self._account is not None else 0
        return self.evidence.resume(reserved, *self.counts())

    def recheck(self) -> None:
        if self._account is not None:
            self._account.recheck()

    def settle(self) -> bool:
        """Datagrams are acknowledged by nobody: there is nothing to wait for."""
        return True

    # -- the end

    def expire(self) -> None:
        self.end(self._timeout_code)

    def leave(self) -> None:
        """The client has gone."""
        self.end("eof" if self._live else "client.gone")

    def cut(self, reason: str) -> None:
        self.end(reason)

    def end(self, reason: str) -> None:
        if self.ended:
            return
        self.ended = reason
        if self._cancel is not None:
            self._cancel()
        if self._sock is not None:
            self.gateway.reactor.remove(self._sock.fileno())
            self._sock.close()
        if self._account is None:
            why = refusal.from_code(reason, self._request.host, self._request.port)
            self.gateway.refused(self, why)
        else:
            self._settle_account(self._account, reason)
        self._held.clear()
        self._on_end()
        self.gateway.closed(self)

    def _settle_account(self, account: Account, reason: str) -> None:
        account.stop()
        if self._live:
            self.gateway.settling(self)
            if reason.startswith(("tls.", "quic.")):
                self.gateway.denied_in_tunnel(self, reason)
        record = self.evidence.close(reason, account.gate.reserved, self.counts(), None, None)
        # Not live, nobody knows whether the ledger has the open: then it may refuse the close.
        self.gateway.append_close(self, record, CLOSE_TRIES if self._live else 1)
        account.leave(Wire(*self.counts()))
