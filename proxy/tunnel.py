"""An admitted flow: its evidence, its reservation, its relay, and its end in two books.

    open durable -> relay (reserve, progress) -> settle -> close durable

The ledger hears of bytes before they pass (Gate), and at the end both our own count and the
kernel's. An orderly end waits, without blocking, until the peers' kernels have acknowledged
everything, at most SETTLE_S; a cut or a reset does not wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.policy.model import Decision, Request, Verdict
from exeat.proxy import refusal, tcpinfo
from exeat.proxy.body import BodyFramer
from exeat.proxy.fields import HttpError
from exeat.proxy.first_bytes import FirstBytesJudge, TunnelError
from exeat.proxy.gate import FIRST_STEP, Gate
from exeat.proxy.relay import Relay, StopRelay

if TYPE_CHECKING:
    from exeat.proxy.ends import End
    from exeat.proxy.flow import Flow
    from exeat.proxy.tcpinfo import KernelCount

SETTLE_S: Final = 2.0
FIRST_SETTLE_WAIT_S: Final = 0.01
MAX_SETTLE_WAIT_S: Final = 0.1
PROGRESS_S: Final = 60.0
RETRY_S: Final = 0.25
CLOSE_TRIES: Final = 30
SECOND_REQUEST_S: Final = 2.0  # idle time left to a client that sends more than one request


class _JudgeIntake:
    """The client's first bytes on a port that is not TLS by rule: the server may speak first."""

    def __init__(self, judge: FirstBytesJudge, tunnel: Tunnel) -> None:
        self._judge = judge
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
        code = self._tunnel.flow.judge_first_bytes(first)
        if code:
            raise StopRelay(code)
        self.done = True
        self._tunnel.first_bytes_judged()
        return first.data

    def end(self) -> None:
        if self._judge.incomplete:
            raise StopRelay(self._judge.incomplete)


class _BodyIntake:
    """The body of the one request that was judged; what follows it is dropped."""

    done = False

    def __init__(self, framer: BodyFramer, tunnel: Tunnel) -> None:
        self._framer = framer
        self._tunnel = tunnel

    def take(self, data: memoryview) -> memoryview:
        try:
            used = self._framer.take(data)
        except HttpError as error:
            raise StopRelay(error.code) from None
        if used < len(data):
            self._tunnel.second_request()
        return data[:used]

    def end(self) -> None:
        if not self._framer.done:
            raise StopRelay("http.body")


class Tunnel:
    """Created by a Flow that policy has allowed; owns both ends once `open` is durable."""

    __slots__ = (
        "_ceiling",
        "_charged",
        "_consumed",
        "_final",
        "_first_bytes_until",
        "_forgotten",
        "_gateway",
        "_held",
        "_idle_s",
        "_progressed",
        "_request",
        "_second_request",
        "_settle_until",
        "_settle_wait",
        "_upstream",
        "_watch",
        "decision",
        "ended",
        "flow",
        "gate",
        "relay",
    )

    def __init__(
        self,
        flow: Flow,
        upstream: End,
        request: Request,
        decision: Decision,
        watch: FirstBytesJudge | BodyFramer | None,
        consumed: int,
    ) -> None:
        self.flow = flow
        self.decision = decision
        self.gate = Gate(self._reserve)
        self.relay: Relay | None = None
        self._idle_s = flow.gateway.settings.idle_timeout_s
        self._second_request = False
        self._gateway = flow.gateway
        self._upstream = upstream
        self._request = request
        self._watch = watch
        self._consumed = consumed  # bytes of the client that were its request for the tunnel
        self._forgotten = False
        self.ended = ""  # why, once it has
        self._charged = (0, 0)
        self._ceiling = 0  # as promised; the gate's own follows when it is durable
        self._held = 0
        self._progressed = 0.0
        self._settle_until = 0.0
        self._settle_wait = FIRST_SETTLE_WAIT_S
        self._first_bytes_until = float("inf")
        self._final: tuple[KernelCount | None, KernelCount | None] = (None, None)

    @property
    def project(self) -> str:
        return self._request.subject.project

    @property
    def lease(self) -> str:
        return self.decision.lease

    # -- opening

    def open(self, first: bytes) -> None:
        """Ask the ledger; `first` goes out, ahead of everything else, once it has answered."""
        spending = self._gateway.spending
        spending.charge_open(self.project, self.decision)
        ceiling = self._affordable(self.gate.first_ceiling(len(first)))
        if ceiling < len(first) or not ceiling:
            self._forgotten = True
            self.flow.refuse_opening(self._exhausted_reason())
            return
        self._promise(ceiling)
        record = self.flow.evidence.opening(ceiling, tcpinfo.cookie(self._upstream.sock))
        self._gateway.ledger.append([record], lambda durable: self._opened(durable, ceiling, first))

    def forget(self) -> None:
        """The flow gave up before the ledger answered. Its open may be stored all the same."""
        self._forgotten = True
        self._promise(0)
        self._append_close("abandoned")

    def _opened(self, durable: bool, ceiling: int, first: bytes) -> None:
        if self._forgotten:
            return
        if not durable:
            self._forgotten = True
            self._promise(0)
            self._append_close("ledger.unavailable")
            self.flow.refuse_opening("ledger.unavailable")
            return
        gateway = self._gateway
        self.relay = Relay(
            gateway.reactor, gateway.pipes, self.flow.client, self._upstream, self.gate, self._relay_ended
        )
        self._progressed = gateway.reactor.now()
        gateway.live(self)
        self.flow.opened()
        self.gate.grant(ceiling)
        self._watch_client(self.relay)
        self.relay.start(first)

    def _watch_client(self, relay: Relay) -> None:
        if isinstance(self._watch, FirstBytesJudge):
            relay.up.intake = _JudgeIntake(self._watch, self)
            if self._watch.incomplete:
                self.expect_rest()
        elif isinstance(self._watch, BodyFramer):
            relay.up.intake = _BodyIntake(self._watch, self)

    def expect_rest(self) -> None:
        """The client has begun something that must be complete within the hello time limit."""
        if self._first_bytes_until == float("inf"):
            self._first_bytes_until = self._gateway.reactor.now() + self._gateway.settings.hello_timeout_s

    def second_request(self) -> None:
        """The client believes in keep-alive: let the answer it is getting end, then close."""
        self._second_request = True
        self._idle_s = min(self._idle_s, SECOND_REQUEST_S)

    def first_bytes_judged(self) -> None:
        self._first_bytes_until = float("inf")

    # -- reservations and budgets

    def counts(self) -> tuple[int, int]:
        """Payload bytes (out, in) delivered so far."""
        relay = self.relay
        return (relay.up.count, relay.down.count) if relay else (0, 0)

    def charge(self) -> None:
        """Charge what has passed since the last time."""
        out, back = self.counts()
        up, down = out - self._charged[0], back - self._charged[1]
        if up or down:
            self._charged = (out, back)
            self._gateway.spending.charge_bytes(self.project, self.decision, up, down)
            self._promise(self._ceiling)

    def _promise(self, ceiling: int) -> None:
        """Tell the others how much of `ceiling` (0: it is over) is held here and not used yet."""
        self._ceiling = ceiling
        held = max(0, ceiling - sum(self._charged))
        self._gateway.spending.promise(self.project, self.decision, held - self._held)
        self._held = held

    def _affordable(self, ceiling: int) -> int:
        """The part of a wished ceiling that leases and budgets allow now."""
        found = self._gateway.spending.allowance(self._request.subject, self.decision)
        if found is None:
            return ceiling
        # Near a limit, take a share only: others may be running on the same lease.
        share = min(found.free, max(FIRST_STEP, found.free // 4))
        return min(ceiling, self._ceiling + share)

    def _reserve(self, ceiling: int) -> None:
        """Gate's question. Called from inside the pump: whatever ends the tunnel happens later."""
        self.charge()
        ceiling = self._affordable(ceiling)
        if ceiling > self.gate.reserved:
            self._promise(ceiling)
            record = self.flow.evidence.reserve(ceiling, *self.counts())
            self._gateway.ledger.append([record], lambda durable: self._reserved(durable, ceiling))
        elif self.gate.room > 0:
            self.gate.exhaust()
        else:
            self._gateway.reactor.call_soon(self._out_of_budget)

    def _reserved(self, durable: bool, ceiling: int) -> None:
        if self.ended or self.relay is None:
            return
        if not durable:
            self._gateway.reactor.call_later(RETRY_S, self._retry)
            return
        self.gate.grant(ceiling)
        self.relay.kick()

    def _retry(self) -> None:
        if not self.ended:
            self.gate.retry()

    def _out_of_budget(self) -> None:
        """All reserved bytes are used, none can be had: over, unless others still hold some."""
        if self.ended:
            return
        found = self._gateway.spending.allowance(self._request.subject, self.decision)
        undelivered = self.gate.taken - sum(self.counts())
        if found is not None and found.left <= undelivered:
            self.end(found.reason)
        else:
            self._gateway.reactor.call_later(RETRY_S, self._retry)

    def _exhausted_reason(self) -> str:
        found = self._gateway.spending.allowance(self._request.subject, self.decision)
        return found.reason if found is not None else "budget.exceeded"

    # -- what the gateway's sweeps ask

    def sweep(self, now: float) -> None:
        """Once a second: idle and first-byte limits, budgets, progress records."""
        relay = self.relay
        if relay is None or self.ended:
            return
        self.charge()
        if isinstance(self._watch, BodyFramer) and relay.down.shut:
            self.end("eof")  # the answer is complete; what the client still says has nowhere to go
        elif now - relay.activity > self._idle_s:
            self.end("http.second_request" if self._second_request else "idle")
        elif now > self._first_bytes_until:
            self.end("tls.timeout")
        elif now - self._progressed >= PROGRESS_S:
            self._progressed = now
            record = self.flow.evidence.progress(self.gate.reserved, *self.counts())
            self._gateway.ledger.append([record], lambda _: None)

    def resume(self) -> bytes:
        return self.flow.evidence.resume(self.gate.reserved, *self.counts())

    def recheck(self) -> None:
        """The snapshot changed: does it still allow what runs here?"""
        if self.ended:
            return
        decision = self._gateway.decide(self._request)
        # Used-up budgets and lease uses are judged where bytes are reserved, not here: the
        # connection being judged has been paid for.
        if decision.reason.startswith("budget."):
            return
        if self.lease:
            if decision.verdict is Verdict.DENY and not decision.reason.startswith("posture."):
                self.end("policy.changed")
        elif not decision.allowed:
            self.end("policy.changed")

    # -- the end

    def end(self, reason: str) -> None:
        """Cut: both sides at once, with RST."""
        if self.relay is not None:
            self.relay.end(reason)

    def _relay_ended(self, reason: str) -> None:
        self.ended = reason
        self.charge()
        self._promise(0)
        self._gateway.settling(self)
        if reason == "eof":
            self._settle_until = self._gateway.reactor.now() + SETTLE_S
            self.settle()
            return
        if reason.startswith(("tls.", "sni.", "http.")) or self.flow.evidence.decision != self.decision:
            self._gateway.denied_in_tunnel(self.flow, reason)
        self._final = self._kernel()
        self._upstream.abort()
        self._answer_late(reason)
        self.flow.client.abort()
        self._finish()

    def _answer_late(self, reason: str) -> None:
        """A TLS client that was refused after its hello can still be told so."""
        if isinstance(self._watch, FirstBytesJudge) and self._watch.tls and not sum(self.counts()):
            try:
                self.flow.client.sock.send(refusal.tls_alert(reason))
            except OSError:
                return

    def settle(self) -> bool:
        """True when both peers have acknowledged all (or time is up) and the close is written."""
        self._final = self._kernel()
        open_ends = any(count is not None and count.unacked for count in self._final)
        if open_ends and self._gateway.reactor.now() < self._settle_until:
            # Most have acknowledged by now or do so within a delayed ACK; asking costs as much as a flow.
            self._gateway.settle_later(self, self._settle_wait)
            self._settle_wait = min(2 * self._settle_wait, MAX_SETTLE_WAIT_S)
            return False
        self._upstream.close()
        self.flow.client.close()
        self._finish()
        return True

    def _kernel(self) -> tuple[KernelCount | None, KernelCount | None]:
        relay = self.relay
        if relay is None:
            return None, None
        up, down = relay.up, relay.down
        upstream = tcpinfo.kernel_count(
            self._upstream.sock, connected=True, fin_sent=up.shut, fin_received=down.eof
        )
        client = tcpinfo.kernel_count(
            self.flow.client.sock, connected=False, fin_sent=down.shut, fin_received=up.eof
        )
        # What we read and could not pass on was not delivered: neither book counts it.
        if upstream is not None:
            upstream = upstream.without(0, relay.undelivered_in)
        if client is not None:
            client = client.without(self.flow.handshake_out, self._consumed + relay.undelivered_out)
        return upstream, client

    def _finish(self) -> None:
        self.gate.stop()
        self._append_close(self.ended)
        self._gateway.closed(self)

    def _append_close(self, reason: str) -> None:
        self.ended = reason
        record = self.flow.evidence.close(reason, self.gate.reserved, self.counts(), *self._final)
        # Without a relay nobody knows whether the ledger has the open: then it may refuse the close.
        self._gateway.append_close(self, record, CLOSE_TRIES if self.relay is not None else 1)
