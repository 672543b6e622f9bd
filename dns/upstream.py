"""Asking the configured upstream resolvers: who is asked first, who as well, and who next.

Never the system resolver: an upstream is an address from the configuration. Equal questions in
flight are asked once. When the first server takes longer than it usually does, a second one is
asked beside it and the first answer counts; how often that happens is bounded.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from exeat.dns.build import build_question
from exeat.dns.health import Health
from exeat.dns.plain_try import PlainTry, sockaddr
from exeat.dns.tls_link import TlsLink, TlsTry, client_context
from exeat.dns.wire import Answer, Rcode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exeat.ledger.reactor import Reactor, Timer

    Done = Callable[[Answer | None], None]

MAX_IN_FLIGHT = 512  # different questions at once, one descriptor each
MAX_WAITERS = 4096  # askers of one question
MIN_TRIES = 3
HEDGE_SHARE = 0.1  # second questions per question, over time
HEDGE_BURST = 10.0


class Server(NamedTuple):
    """A literal address and a port; with a `name` it is asked over TLS and must prove that name."""

    host: str
    port: int
    name: str = ""


class Upstream:
    """The one way out for DNS. `servers` are asked in order of preference, those that work first.

    `ca` is a PEM file with the roots that sign TLS servers, in place of the system's. Raises
    OSError or ValueError when a server or the roots cannot be used.
    """

    def __init__(
        self, reactor: Reactor, servers: Sequence[Server | tuple[str, int]], ca: Path | None = None
    ) -> None:
        if not servers:
            raise ValueError("at least one upstream is needed")
        self.reactor = reactor
        self.servers = tuple(Server(*server) for server in servers)
        self.health = [Health() for _ in self.servers]
        self.hedges = HEDGE_BURST
        for server in self.servers:
            sockaddr(server.host, server.port)
        context = client_context(ca) if any(server.name for server in self.servers) else None
        self._links = {
            index: TlsLink(reactor, (server.host, server.port), server.name, context)
            for index, server in enumerate(self.servers)
            if server.name and context is not None
        }
        self._in_flight: dict[bytes, Exchange] = {}

    def ask(self, name: bytes, qtype: int, done: Done) -> None:
        """Ask for `name` (wire form); `done` gets the matching answer, or None when there is none."""
        key = build_question(name, qtype)
        exchange = self._in_flight.get(key)
        if exchange is None:
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                self.reactor.call_soon(lambda: done(None))
                return
            self.hedges = min(HEDGE_BURST, self.hedges + HEDGE_SHARE)
            exchange = self._in_flight[key] = Exchange(self, name, qtype)
            exchange.waiters.append(done)
            exchange.start()
        elif len(exchange.waiters) >= MAX_WAITERS:
            self.reactor.call_soon(lambda: done(None))
        else:
            exchange.waiters.append(done)

    def plan(self) -> list[int]:
        """The servers of one exchange, best first, each possibly more than once."""
        now = self.reactor.now()
        order = sorted(range(len(self.servers)), key=lambda index: not self.health[index].healthy(now))
        return [order[i % len(order)] for i in range(max(MIN_TRIES, len(order)))]

    def open(
        self, index: int, exchange: Exchange, ended: Callable[[Answer | None, bool], None]
    ) -> PlainTry | TlsTry:
        """Ask one server. Raises OSError when that cannot even be begun."""
        link = self._links.get(index)
        if link is not None:
            return TlsTry(link, exchange.name, exchange.qtype, ended)
        return PlainTry(self.reactor, self.servers[index][:2], exchange.name, exchange.qtype, ended)

    def finish(self, exchange: Exchange, answer: Answer | None) -> None:
        # Not at once: who asks in this turn of the loop must still find the exchange, or the cache.
        self.reactor.call_soon(lambda: self._deliver(exchange, answer))

    def _deliver(self, exchange: Exchange, answer: Answer | None) -> None:
        self._in_flight.pop(exchange.key, None)
        while exchange.waiters:
            done = exchange.waiters.popleft()
            try:
                done(answer)
            except Exception:
                self.finish(exchange, answer)  # one broken waiter must not cost the others theirs
                raise

    def close(self) -> None:
        """Drop every question and connection; nobody is answered."""
        for exchange in self._in_flight.values():
            exchange.drop()
        self._in_flight.clear()
        for link in self._links.values():
            link.close()


class Exchange:
    """One question on its way through its tries; always ends in exactly one `Upstream.finish`."""

    def __init__(self, upstream: Upstream, name: bytes, qtype: int) -> None:
        self.name = name
        self.qtype = qtype
        self.key = build_question(name, qtype)
        self.waiters: deque[Done] = deque()
        self._upstream = upstream
        self._plan = upstream.plan()
        self._tries: dict[int, tuple[PlainTry | TlsTry, int, float]] = {}  # by the order of their start
        self._count = 0
        self._hedge: Timer | None = None

    def start(self) -> None:
        """Make the first try that can be made, or end without an answer."""
        upstream, first = self._upstream, self._plan[0]
        if not self._next():
            upstream.finish(self, None)
        elif len(upstream.servers) > 1:
            self._hedge = upstream.reactor.call_later(upstream.health[first].hedge_s, self._ask_another)

    def _next(self) -> bool:
        """Ask the next server of the plan; False when there is none left."""
        reactor = self._upstream.reactor
        while self._plan:
            index = self._plan.pop(0)
            self._count += 1
            number = self._count
            try:
                a_try = self._upstream.open(index, self, partial(self._ended, number))
            except OSError:
                self._give_up(index)
            else:
                self._tries[number] = (a_try, index, reactor.now())
                return True
        return False

    def _ask_another(self) -> None:
        """The first server dawdles: ask a second one beside it, if there is one that works."""
        upstream, now = self._upstream, self._upstream.reactor.now()
        busy = {index for _, index, _ in self._tries.values()}
        spare = [i for i in self._plan if i not in busy and upstream.health[i].healthy(now)]
        if spare and len(busy) == 1 and upstream.hedges >= 1.0:
            upstream.hedges -= 1.0
            self._plan.remove(spare[0])
            self._plan.insert(0, spare[0])
            self._next()

    def _give_up(self, index: int) -> None:
        self._upstream.health[index].failed(self._upstream.reactor.now())
        self._plan = [other for other in self._plan if other != index]

    def _ended(self, number: int, answer: Answer | None, silent: bool) -> None:
        """One try is over; one that was only silent gets the rest of its turns."""
        _, index, began = self._tries.pop(number)
        now = self._upstream.reactor.now()
        if answer is not None and not answer.truncated and answer.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN):
            self._upstream.health[index].ok(now - began)
            for _, other, start in self._tries.values():
                self._upstream.health[other].outrun(now - start)
            self.drop()
            self._upstream.finish(self, answer)
            return
        if silent:
            self._upstream.health[index].failed(now)
        else:
            self._give_up(index)
        if not self._next() and not self._tries:
            self.drop()
            self._upstream.finish(self, None)

    def drop(self) -> None:
        """Let go of every try and the timer."""
        if self._hedge is not None:
            self._hedge.cancel()
            self._hedge = None
        for a_try, _, _ in self._tries.values():
            a_try.drop()
        self._tries.clear()
