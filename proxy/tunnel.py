"""An admitted flow: its evidence, its reservation, its relay, and its end in two books.

    open durable -> relay (reserve, progress) -> settle -> close durable

The ledger hears of bytes before they pass (Gate), and at the end both our own count and the
kernel's. An orderly end waits, without blocking, until the peers' kernels have acknowledged
everything, at most SETTLE_S; a cut or a reset does not wait.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final

from exeat.policy.tariff import Wire
from exeat.proxy import refusal, stream, tcpinfo
from exeat.proxy.account import Account
from exeat.proxy.exchange import Before, Exchange
from exeat.proxy.first_bytes import FirstBytes, FirstBytesJudge, TunnelError
from exeat.proxy.relay import Relay
from exeat.proxy.relaying import DOWN, UP, StopRelay
from exeat.proxy.tcpinfo import KernelCount
from exeat.proxy.tunnel_requests import TunnelRequests

if TYPE_CHECKING:
    from exeat.policy.model import Decision, Request
    from exeat.proxy.ends import End
    from exeat.proxy.flow import Flow
    from exeat.proxy.relaying import Relaying

SETTLE_S: Final = 2.0
NEVER: Final = float("inf")  # reactor time
FIRST_SETTLE_WAIT_S: Final = 0.01
MAX_SETTLE_WAIT_S: Final = 0.1
CLOSE_TRIES: Final = 30


class _JudgeIntake:
    """The client's first bytes on a port that is not TLS by rule: the server may speak first."""

    __slots__ = ("_judge", "_relay", "_tunnel", "done")
    over = False

    def __init__(self, judge: FirstBytesJudge, tunnel: Tunnel, relay: Relay) -> None:
        self._judge, self._relay = judge, relay
        self._tunnel = tunnel
        self.done = False

    def take(self, data: memoryview) -> bytes:
        try:
            first = self._judge.feed(bytes(data))
        except TunnelError as error:
            raise StopRelay(error.code) from None
        if first is None:
            self._tunnel.expect_rest()
            return b""
        code = self._tunnel.flow.judge_first_bytes(first, self._tunnel.account)
        if code:
            raise StopRelay(code)
        passing = self._pass(first)
        self._tunnel.first_bytes_judged()
        if first.requests is not None:
            stream.watch(first.requests, self._relay)
        self.done = True
        return passing

    @staticmethod
    def _pass(first: FirstBytes) -> bytes:
        try:
            return first.passing()
        except TunnelError as error:
            raise StopRelay(error.code) from None

    def end(self) -> None:
        if self._judge.incomplete:
            raise StopRelay(self._judge.incomplete)


class Tunnel:
    """Created by a Flow that policy has allowed; owns both ends once `open` is durable."""

    __slots__ = (
        "_consumed",
        "_final",
        "_first_bytes_until",
        "_gateway",
        "_idle_s",
        "_near",
        "_settle_until",
        "_settle_wait",
        "_upstream",
        "_watch",
        "account",
        "decision",
        "ended",
        "flow",
        "relay",
    )

    def __init__(
        self,
        flow: Flow,
        upstream: End,
        request: Request,
        decision: Decision,
        watch: FirstBytesJudge | TunnelRequests | Exchange | None,
        consumed: int,
    ) -> None:
        self.flow = flow
        self.decision = decision
        self.account = Account(flow.gateway, flow.evidence, request, decision, self)
        self.relay: Relaying | None = None
        self._idle_s = flow.gateway.settings.idle_timeout_s
        self._gateway = flow.gateway
        self._upstream = upstream
        self._watch = watch
        self._consumed = consumed  # bytes of the client that were its request for the tunnel
        self.ended = ""  # why, once it has
        self._settle_until = 0.0
        self._settle_wait = FIRST_SETTLE_WAIT_S
        self._first_bytes_until = NEVER
        self._final: tuple[KernelCount | None, KernelCount | None] = (None, None)
        self._near: KernelCount | None = None  # the client's side, once the client has moved on

    @property
    def lease(self) -> str:
        return self.decision.lease

    # -- opening

    def open(self, first: bytes) -> None:
        """Ask the ledger; `first` goes out, ahead of everything else, once it has answered."""
        cookie = tcpinfo.cookie(self._upstream.sock)
        code = self.account.open(len(first), cookie, partial(self._opened, first))
        if code:
            self.ended = code
            self.flow.refuse_opening(code)

    def forget(self) -> None:
        """The flow gave up before the ledger answered. Its open may be stored all the same."""
        self._append_close("abandoned")

    def _opened(self, first: bytes, durable: bool) -> None:
        if self.ended:
            return
        if not durable:
            self._append_close("ledger.unavailable")
            self.flow.refuse_opening("ledger.unavailable")
            return
        gateway = self._gateway
        ends = self.flow.client, self._upstream
        if self._watch is None:
            self.relay = gateway.relays.relay(*ends, self.account.gate, self._relay_ended)
        else:
            relay = gateway.relays.watchable(*ends, self.account.gate, self._relay_ended)
            self.relay = relay
            self._watch_client(relay)
        gateway.live(self)
        self.flow.opened()
        self.account.confirm()
        if not self.ended:
            self.relay.start(first)

    def _watch_client(self, relay: Relay) -> None:
        if isinstance(self._watch, FirstBytesJudge):
            relay.watch(UP, _JudgeIntake(self._watch, self, relay))
            if self._watch.incomplete:
                self.expect_rest()
        elif isinstance(self._watch, TunnelRequests):
            stream.watch(self._watch, relay)
        elif self._watch is not None:
            self._watch.watch(relay)

    def expect_rest(self) -> None:
        """The client has begun something that must be complete within the hello time limit."""
        if self._first_bytes_until == NEVER:
            self._first_bytes_until = self._gateway.reactor.woke + self._gateway.settings.hello_timeout_s

    def first_bytes_judged(self) -> None:
        self._first_bytes_until = NEVER
        self._gateway.reactor.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        """Once nobody looks at the bytes any more; tried again for one that is busy."""
        if isinstance(self.relay, Relay) and isinstance(self._watch, FirstBytesJudge):
            self.relay = self._gateway.relays.settled(self.relay, self.account.gate, self._relay_ended)

    # -- what the account asks

    def counts(self) -> tuple[int, int]:
        """Payload bytes (out, in) delivered so far."""
        relay = self.relay
        return relay.counts() if relay else (0, 0)

    def segments(self) -> tuple[int, int]:
        return tcpinfo.segments(self._upstream.sock)

    def granted(self) -> None:
        if self.relay is not None:
            self.relay.kick()

    # -- what the gateway's sweeps ask

    def sweep(self, now: float) -> None:
        """Once a second: idle and first-byte limits, budgets, progress records."""
        relay = self.relay
        if relay is None or self.ended:
            return
        self.account.charge()
        self._hand_over()
        if now - relay.activity > self._idle_s:
            self.end("idle")
        elif now > self._first_bytes_until:
            self.end("tls.timeout")
        elif self.account.overspent:
            self.end("budget.exceeded")
        else:
            self.account.progress(now)

    def resume(self) -> bytes:
        return self.account.resume()

    def recheck(self) -> None:
        self.account.recheck()

    # -- the end

    def end(self, reason: str) -> None:
        """Cut: both sides at once, with RST, also what only the kernel still has of them."""
        relay = self.relay
        if relay is None or self.flow.closed:
            return
        if not relay.ended:
            relay.end(reason)
        else:  # it settles
            self.ended = reason
            self._abort()

    def _abort(self) -> None:
        self._final = self._kernel()
        self._upstream.abort()
        if self._near is None:
            self.flow.client.abort()
        self._finish()

    def _relay_ended(self, reason: str) -> None:
        self.ended = reason
        if isinstance(self._watch, Exchange):
            self._watch.relay = None
        self.account.stop()
        self._gateway.settling(self)
        if reason == "eof":
            self._settle_until = self._gateway.reactor.woke + SETTLE_S
            if isinstance(self._watch, Exchange) and not self._watch.answer.switched:
                self._leave_client(self._watch, stays=self._watch.reusable)
            self.settle()
            return
        if reason.startswith(("tls.", "sni.", "http.")) or self.flow.evidence.decision != self.decision:
            self._gateway.denied_in_tunnel(self.flow, reason)
        self._final = self._kernel()
        self._upstream.abort()
        self._answer_late(reason)
        if self._near is None:
            self.flow.client.abort()
        self._finish()

    def _answer_late(self, reason: str) -> None:
        """A client that has heard nothing yet can still be told why."""
        watch, client = self._watch, self.flow.client.sock
        if isinstance(watch, FirstBytesJudge) and watch.tls and not sum(self.counts()):
            with contextlib.suppress(OSError):
                client.send(refusal.tls_alert(reason))
        elif isinstance(watch, Exchange) and not watch.answer.begun:
            code = "http.no_answer" if reason == "reset" else reason
            if code.startswith("http."):
                evidence = self.flow.evidence
                why = refusal.from_code(code, evidence.host, evidence.port)
                with contextlib.suppress(OSError):
                    sent = client.send(refusal.http_answer(why, body=watch.asked.method != b"HEAD"))
                    self.flow.handshake_out += sent
                self._leave_client(watch, stays=False)

    def _leave_client(self, exchange: Exchange, *, stays: bool) -> None:
        """The client's end belongs to its next request from here, or to the wait for its goodbye."""
        relay = self.relay
        if relay is None:
            return
        self._near = self._client_count() or KernelCount()  # as of now: the next request moves it on
        flow, early = self.flow, bytes(exchange.next)
        ends = not stays or (relay.up_ended and not early)
        left = Before(
            flow.handshake_out + relay.counts()[DOWN], flow.heard + exchange.taken, early, ends=ends
        )
        self._gateway.follow(flow, left)

    def settle(self) -> bool:
        """True when both peers have acknowledged all (or time is up) and the close is written."""
        self._final = self._kernel()
        open_ends = any(count is not None and count.unacked for count in self._final)
        if open_ends and self._gateway.reactor.woke < self._settle_until:
            # Most have acknowledged by now or do so within a delayed ACK; asking costs as much as a flow.
            self._gateway.settle_later(self, self._settle_wait)
            self._settle_wait = min(2 * self._settle_wait, MAX_SETTLE_WAIT_S)
            return False
        self._upstream.close()
        if self._near is None:
            self.flow.client.close()
        self._finish()
        return True

    def _kernel(self) -> tuple[KernelCount | None, KernelCount | None]:
        relay = self.relay
        if relay is None:
            return None, None
        upstream = tcpinfo.kernel_count(
            self._upstream.sock,
            connected=True,
            fin_sent=relay.up_told,
            fin_received=relay.down_ended,
        )
        # What we read and did not pass on was not delivered: neither book counts it.
        if upstream is not None:
            withheld = self._watch.withheld if isinstance(self._watch, Exchange) else 0
            end = self._upstream
            upstream = upstream.without(end.lead_out, end.lead_in + relay.undelivered(DOWN) + withheld)
        return upstream, self._near or self._client_count()

    def _client_count(self) -> KernelCount | None:
        relay = self.relay
        if relay is None:
            return None
        client = tcpinfo.kernel_count(
            self.flow.client.sock,
            connected=False,
            fin_sent=relay.down_told,
            fin_received=relay.up_ended,
        )
        if client is None:
            return None
        ahead = len(self._watch.next) if isinstance(self._watch, Exchange) else 0
        return client.without(self.flow.handshake_out, self._consumed + ahead + relay.undelivered(UP))

    def _finish(self) -> None:
        self._append_close(self.ended)
        self._gateway.closed(self)

    def _append_close(self, reason: str) -> None:
        self.ended = reason
        self.account.stop()
        counts, upstream = self.counts(), self._final[0] or KernelCount()
        record = self.flow.evidence.close(reason, self.account.gate.reserved, counts, *self._final)
        # Without a relay nobody knows whether the ledger has the open: then it may refuse the close.
        self._gateway.append_close(self, record, CLOSE_TRIES if self.relay is not None else 1)
        self.account.leave(Wire(*counts, upstream.segs_out, upstream.segs_in))
