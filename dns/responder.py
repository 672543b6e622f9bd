"""What a jail is answered: from the bytes of a query to the bytes of the reply.

Order: parse, see that the guard may answer at all, decide, record, and only then look up. A
denial is NXDOMAIN with an SOA (never REFUSED, which stalls musl for five seconds); trouble of
our own is SERVFAIL. Replies are remembered for a second, denials for five, and longer what only a new
snapshot can change; by the exact bytes of the query, and never past a snapshot, so that repeating one
costs a dictionary look-up and is still counted on the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from exeat.dns import build, wire
from exeat.dns.batch import Hot
from exeat.dns.journal import Journal, Lookup, Sight, answered, rcode_text
from exeat.dns.judge import Admitted, Asker, Binding, Judge
from exeat.dns.pins import Pins
from exeat.dns.rdata import SERVED
from exeat.dns.reverse import reversed_address
from exeat.dns.ruling import LEASE_REQUIRED, Blocked, Ruling, rule
from exeat.dns.upstream import MAX_IN_FLIGHT
from exeat.dns.vet import MIN_TTL_S, Status
from exeat.dns.wire import Ede, Qtype, Query, Rcode
from exeat.ledger.limits import TokenBucket
from exeat.ledger.tally import Tally
from exeat.policy.model import Decision, Subject, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from exeat.dns.batch import Table
    from exeat.dns.other_records import OtherRecords, RecordsFinding
    from exeat.dns.resolver import Finding, Resolver
    from exeat.policy.model import Address

    Reply = Callable[[bytes], None]
    # Of who asks, the name, its addresses with their seconds to live, and what to do once they may be used.
    Ahead = Callable[[Subject, str, "Sequence[tuple[Address, int]]", Callable[[], None]], None]

MISS_RATE = 100.0  # per second and jail: lookups that cost a record or an upstream query
MISS_BURST = 500.0
MAX_PENDING = 256  # unanswered queries of one jail
MAX_NAMES = 8192  # names that a jail has asked for, of those it may go on asking while it is slowed
MAX_HOT = 4096  # remembered replies of one jail
HOT_S = 1.0
STEADY_NO_S = 60.0  # a no that only a new snapshot can change, and that would end all of these
STEADY_SHARE = 1 / 3  # of an answer's time: such a yes; so much longer may a client keep it

TOO_FAST = Decision(Verdict.DENY, "dns.rate")


@dataclass(slots=True)
class Jail:
    """One jail as the guard knows it; who asks is decided by the socket the query came in on."""

    name: str
    subject: Subject
    bucket: TokenBucket
    hot: Table = field(default_factory=dict)
    names: set[bytes] = field(default_factory=set)
    pending: int = 0
    connections: int = 0

    @classmethod
    def new(cls, name: str, subject: Subject, now: float) -> Jail:
        return cls(name, subject, TokenBucket(MISS_RATE, MISS_BURST, now))


def at_once(
    _subject: Subject, _host: str, _addresses: Sequence[tuple[Address, int]], then: Callable[[], None]
) -> None:
    """Nothing has to be opened before an answer is used."""
    then()


class Responder:
    """Answers the queries of all jails. `now` is seconds of CLOCK_BOOTTIME."""

    def __init__(
        self,
        now: Callable[[], float],
        judge: Judge,
        resolver: Resolver,
        others: OtherRecords,
        journal: Journal,
        ahead: Ahead = at_once,
        tally: Tally | None = None,
    ) -> None:
        self.tally = tally or Tally()
        self.took = self.tally.time("dns_duration_seconds")
        self.pins = Pins(now)
        self.epoch = 0  # goes up when all that is remembered is forgotten
        self.pending = 0  # unanswered queries of all jails
        self.ahead = ahead
        self._now = now
        self._judge = judge
        self._resolver = resolver
        self._others = others
        self._journal = journal

    @property
    def ready(self) -> bool:
        """Whether anything but SERVFAIL may be answered."""
        return self._judge.fresh and self._journal.ready

    def forget(self, jails: Iterable[Jail]) -> None:
        """Something else is in force: nothing decided before is remembered, nor what is under way."""
        self.epoch += 1
        for jail in jails:
            jail.hot.clear()

    def repeated(self, sights: list[Sight]) -> None:
        """Lookups like these were answered with what is remembered of them. Only while `ready`."""
        count = self._journal.count
        for sight in sights:
            count(sight)

    def answer(self, jail: Jail, data: bytes, reply: Reply, *, udp: bool) -> bool:
        """Answer one message, now or later, once; False if it is none that gets an answer."""
        try:
            query = wire.parse_query(data)
        except wire.WireError as error:
            if error.rcode is None:
                return False
            reply(build.build_error(data, error.rcode))
            return True
        turn = _Turn(self, jail, data, query, reply, udp)
        if query.opt is not None and query.opt.version:
            reply(turn.build(Rcode.BADVERS))
        elif not self.ready or jail.pending >= min(MAX_PENDING, MAX_IN_FLIGHT - self.pending):
            # A jail may wait for as many answers as there is room left for: those that flood get equal
            # shares, and one more always finds as much as each of them has.
            turn.count(refused := turn.not_ready())
            reply(refused)
        else:
            turn.start()
        return True


class _Turn:
    """One query on its way to its reply."""

    __slots__ = (
        "_began",
        "_binding",
        "_data",
        "_ended",
        "_epoch",
        "_host",
        "_jail",
        "_query",
        "_reply",
        "_responder",
        "_sight",
        "_udp",
    )

    def __init__(
        self, responder: Responder, jail: Jail, data: bytes, query: Query, reply: Reply, udp: bool
    ) -> None:
        self._responder = responder
        self._jail = jail
        self._data = data
        self._query = query
        self._reply = reply
        self._udp = udp
        self._sight: Sight | None = None
        self._began = responder._now()
        self._ended = False
        self._epoch = responder.epoch
        self._host = ""
        self._binding = Binding()

    def build(self, rcode: Rcode, ede: Blocked | None = None) -> bytes:
        return build.build_reply(self._query, rcode, ede=ede, limit=self._room())

    def not_ready(self) -> bytes:
        return self.build(Rcode.SERVFAIL, (Ede.NOT_READY, "not ready"))

    def _room(self) -> int:
        return self._query.udp_limit if self._udp else 0xFFFF

    def start(self) -> None:
        """Decide and go on; whatever goes wrong in here, the client is told and the turn ends."""
        self._jail.pending += 1
        self._responder.pending += 1
        try:
            self._decide()
        except Exception:
            self._end(self.not_ready())
            raise

    def _decide(self) -> None:
        if self._flooding():
            self._limit()
            return
        judge = self._responder._judge
        asker = Asker(self._jail.subject)
        self._binding = judge.binding(asker.subject)
        if self._query.qtype == Qtype.PTR and self._answered_before(asker):
            return
        ruling = rule(
            self._query, lambda host: judge.admit(asker, host), lambda host: judge.records(asker, host)
        )
        self._host = ruling.host
        if ruling.rcode is Rcode.NOTIMP:
            judge.odd_type(asker, ruling.host, ruling.decision)
        lookup = self._lookup(ruling.decision, judge.shadow(asker, ruling.host, ruling.decision))
        if self._is_miss(asker, ruling, lookup) and not self._jail.bucket.take(self._responder._now()):
            self._limit()
            return
        if ruling.rcode is None:
            admitted = judge.admitted(ruling.decision)
            self._note(lookup, lambda: self._find(asker, ruling.host, admitted))
            return
        reply = self.build(ruling.rcode, ruling.ede)
        steady = judge.steady(asker.subject, ruling.decision)
        # A no may be remembered for longer than a yes, whose lease or budget may end meanwhile.
        holds = self._spread(STEADY_NO_S) if steady and not ruling.decision.allowed else build.NEGATIVE_S
        self._note(lookup, lambda: self._end(reply, holds))

    def _find(self, asker: Asker, host: str, admitted: Admitted) -> None:
        qtype, responder = self._query.qtype, self._responder
        if qtype in (Qtype.A, Qtype.AAAA):
            responder._resolver.find(asker, host, qtype, self._found, admitted)
        else:
            responder._others.find(asker, host, qtype, self._found_records)

    def _answered_before(self, asker: Asker) -> bool:
        """Whether this asks for the name of an address that the client was told, and may know again.

        The client gets back what it has; nothing is looked up.
        """
        responder = self._responder
        address = reversed_address(wire.host_text(self._query.name) or "")
        names = responder.pins.names(asker.subject, address) if address is not None else []
        if not names or not self._jail.bucket.take(responder._now()):
            return False
        decided = [(name, responder._judge.admit(asker, name)) for name in names]
        known = [wire.wire_name(name) for name, decision in decided if decision.allowed]
        if not known:
            return False
        self._host = wire.host_text(self._query.name) or ""
        decision = next(decision for _, decision in decided if decision.allowed)
        limit = self._room()
        reply = build.build_reply(self._query, Rcode.NOERROR, records=known, ttl=MIN_TTL_S, limit=limit)
        self._note(self._lookup(decision), lambda: self._end(reply))
        return True

    def _flooding(self) -> bool:
        """A name this jail has not asked for, and no token left: not even worth a decision."""
        jail, name = self._jail, self._query.name
        if name in jail.names:
            return False
        if not jail.bucket.has(self._responder._now()):
            return True
        if len(jail.names) >= MAX_NAMES:
            jail.names.clear()
        jail.names.add(name)
        return False

    def _limit(self) -> None:
        """Refuse for the rate, recorded as a count without names."""
        limited = Lookup.of(self._jail.subject, "", TOO_FAST, "dns", self._binding)
        reply = self.build(Rcode.SERVFAIL, (Ede.NOT_READY, "too many lookups"))
        self._note(limited, lambda: self._end(reply))

    def _lookup(self, decision: Decision, shadow: str = "") -> Lookup:
        qtype = self._query.qtype
        if not shadow and decision.allowed and qtype in SERVED and decision.records:
            shadow = f"type {Qtype(qtype).name}"
        return Lookup.of(self._jail.subject, self._host, decision, "dns", self._binding, shadow)

    def _is_miss(self, asker: Asker, ruling: Ruling, lookup: Lookup) -> bool:
        if not self._responder._journal.known(lookup):
            return True
        cached = self._responder._resolver.cached
        return ruling.rcode is None and not cached(asker, ruling.host, self._query.qtype)

    def _note(self, lookup: Lookup, then: Callable[[], None]) -> None:
        def done(sight: Sight | None) -> None:
            self._sight = sight
            if sight is not None:
                then()
            else:
                self._end(self.not_ready())

        self._responder._journal.note(lookup, done)

    def _found_records(self, finding: RecordsFinding) -> None:
        if finding.decision.allowed and finding.status is Status.FOUND:
            reply = build.build_reply(
                self._query,
                Rcode.NOERROR,
                records=finding.records,
                ttl=finding.ttl,
                limit=self._room(),
            )
            self._end(reply, min(HOT_S, finding.ttl))
        else:
            self._found_nothing(finding)

    def _found(self, finding: Finding) -> None:
        if finding.decision.allowed and finding.status is Status.FOUND:
            ahead = self._responder.ahead
            ahead(self._jail.subject, self._host, finding.addresses, partial(self._answer, finding))
        else:
            self._found_nothing(finding)

    def _found_nothing(self, finding: Finding | RecordsFinding) -> None:
        if not finding.decision.allowed:
            rcode = Rcode.SERVFAIL if finding.reason == "policy.expired" else Rcode.NXDOMAIN
            text = LEASE_REQUIRED if finding.decision.verdict is Verdict.ASK else finding.reason
            reply = self.build(rcode, (Ede.BLOCKED, text))
            self._note(self._lookup(finding.decision), lambda: self._end(reply))
        elif finding.status is Status.UNAVAILABLE:
            self._end(self.build(Rcode.SERVFAIL, (Ede.NO_REACHABLE_AUTHORITY, finding.reason)))
        else:
            rcode = Rcode.NXDOMAIN if finding.status is Status.NXDOMAIN else Rcode.NOERROR
            self._end(self.build(rcode), min(HOT_S, finding.ttl))

    def _answer(self, finding: Finding) -> None:
        addresses = [address for address, _ in finding.addresses]
        self._responder.pins.note(self._jail.subject, self._host, addresses, finding.ttl)
        reply = build.build_reply(
            self._query,
            Rcode.NOERROR,
            addresses=addresses,
            ttl=finding.ttl,
            ede=(Ede.STALE, "the upstream resolver does not answer") if finding.stale else None,
            limit=self._room(),
            authentic=finding.authentic and self._query.wants_authentic,
        )
        steady = self._responder._judge.steady(self._jail.subject, finding.decision)
        longer = self._spread(finding.ttl * STEADY_SHARE) if steady else 0.0
        self._end(reply, min(finding.ttl, max(HOT_S, longer)))

    def _end(self, reply: bytes, holds: float = 0.0) -> None:
        """Send `reply`; one that holds for some seconds is remembered for so long."""
        jail, sight = self._jail, self._sight
        if self._ended:
            return
        self._ended = True
        jail.pending -= 1
        self._responder.pending -= 1
        self.count(reply)
        self._responder.took.add(self._responder._now() - self._began)
        # Only a name seen before, and no client option (a cookie differs each time): what an
        # attacker varies must not push out what others repeat.
        if holds and sight is not None and sight.count and self._may_be_remembered():
            if len(jail.hot) >= MAX_HOT:
                jail.hot.clear()
            sight.rcode = reply[3] & 15
            jail.hot[self._data[2:]] = Hot(reply[2:], self._responder._now() + holds, sight)
        self._reply(reply)

    def count(self, reply: bytes) -> None:
        """For the metrics. What was not decided has no verdict."""
        rcode, tally = reply[3] & 15, self._responder.tally
        if self._sight is not None:
            answered(tally, self._sight.lookup, rcode)
        else:
            tally.count("dns_queries_total", self._jail.subject.project, rcode_text(rcode), "none")

    def _may_be_remembered(self) -> bool:
        """Over UDP, without an option, and decided under what is in force now."""
        return self._udp and self._plain() and self._epoch == self._responder.epoch

    def _spread(self, seconds: float) -> float:
        """Between half of that and all of it, by the query's id: what began together does not end so."""
        return seconds * (256 + self._data[1]) / 512

    def _plain(self) -> bool:
        return len(self._data) <= 12 + len(self._query.question) + 11
