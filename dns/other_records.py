"""Records other than addresses of a name under one policy, where a rule or lease says `records`.

The order is that of `resolver`: the policy core before anything leaves the node, and again when the
answer is there, with every alias in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.dns import rdata
from exeat.dns.resolver import REASONS
from exeat.dns.vet import MAX_TTL_S, MIN_TTL_S, Status, aliases_of, negative_ttl, walk
from exeat.dns.wire import Answer, Rcode, WireError, wire_name
from exeat.policy.model import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.dns.judge import Asker, Judge
    from exeat.dns.upstream import Upstream
    from exeat.ledger.reactor import Reactor

MAX_CACHED: Final = 1024
MAX_OCTETS: Final = 8192  # of one answer: what is looked up is a way in as well


@dataclass(frozen=True, slots=True)
class RecordsFinding:
    """How a lookup ended. `records` (data as `rdata` gives it) only when `decision` allows.

    `reason` is "" for FOUND, else as in `resolver.Finding`.
    """

    status: Status
    decision: Decision
    reason: str = ""
    records: tuple[bytes, ...] = ()
    ttl: int = 0


class _Gathered(NamedTuple):
    status: Status
    targets: tuple[bytes, ...] = ()
    records: tuple[bytes, ...] = ()
    ttl: int = 0


def gather(answer: Answer | None, name: bytes, qtype: int) -> _Gathered:
    """What of `answer` may be believed and passed on. As `vet.follow`, all of it or nothing."""
    if answer is None or answer.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        return _Gathered(Status.UNAVAILABLE)
    aliases = aliases_of(answer.records)
    targets = walk(aliases, name) if aliases is not None else None
    if targets is None:
        return _Gathered(Status.HOSTILE)
    end = targets[-1] if targets else name
    found = [record for record in answer.records if record.rtype == qtype]
    if any(record.owner != end for record in found) or (found and answer.rcode == Rcode.NXDOMAIN):
        return _Gathered(Status.HOSTILE)
    try:
        read = [rdata.read(answer.message, qtype, record.start, record.end) for record in found]
    except WireError:
        return _Gathered(Status.HOSTILE)
    kept = [data for data in read if data is not None]
    if sum(len(data.octets) for data in kept) > MAX_OCTETS:
        return _Gathered(Status.HOSTILE)
    targets += tuple(each for data in kept for each in data.names)
    if not kept:
        status = Status.NXDOMAIN if answer.rcode == Rcode.NXDOMAIN else Status.NODATA
        return _Gathered(status, targets, (), negative_ttl(answer))
    ttl = min(record.ttl for record in answer.records)
    records = tuple(dict.fromkeys(data.octets for data in kept))
    return _Gathered(Status.FOUND, targets, records, max(MIN_TTL_S, min(MAX_TTL_S, ttl)))


class OtherRecords:
    """Looks them up for jails. Answers are remembered for their time, and no longer than a snapshot."""

    def __init__(self, reactor: Reactor, upstream: Upstream, judge: Judge) -> None:
        self._reactor = reactor
        self._upstream = upstream
        self._judge = judge
        self._cache: dict[tuple[str, str, int], tuple[float, _Gathered]] = {}
        self._epoch = 0

    def clear(self) -> None:
        """Forget everything, also what is still under way: a new snapshot is in force."""
        self._cache.clear()
        self._epoch += 1

    def find(self, asker: Asker, host: str, qtype: int, done: Callable[[RecordsFinding], None]) -> None:
        """Records of `qtype`, one of `rdata.SERVED`. `done` may be called from in here."""
        key = self._judge.binding(asker.subject).digest, host, qtype
        expires, known = self._cache.get(key, (0.0, None))
        left = expires - self._reactor.now()
        if known is not None and left > 0:
            done(self._judged(asker, host, known._replace(ttl=math.ceil(left))))
            return
        decision = self._judge.records(asker, host)
        if decision is None:
            done(_REFUSED)
            return
        self._judge.charge(asker, decision)
        epoch = self._epoch
        name = wire_name(host)

        def arrived(answer: Answer | None) -> None:
            gathered = gather(answer, name, qtype)
            if gathered.ttl and epoch == self._epoch:
                if len(self._cache) >= MAX_CACHED:
                    self._cache.clear()
                self._cache[key] = self._reactor.now() + gathered.ttl, gathered
            if gathered.status is not Status.UNAVAILABLE:
                exists = gathered.status is not Status.NXDOMAIN
                self._judge.heard(asker, host, decision, exists=exists)
            done(self._judged(asker, host, gathered))

        self._upstream.ask(name, qtype, arrived)

    def _judged(self, asker: Asker, host: str, gathered: _Gathered) -> RecordsFinding:
        """What policy says now, when the answer is known."""
        granted = self._judge.records(asker, host)
        if granted is None:
            return _REFUSED
        decision = self._judge.verdict(asker, host, gathered.targets, ())
        if not decision.allowed:
            return RecordsFinding(gathered.status, decision, decision.reason)
        if gathered.status is Status.FOUND:
            return RecordsFinding(gathered.status, granted, "", gathered.records, gathered.ttl)
        reason = REASONS[gathered.status]
        if gathered.status is Status.HOSTILE:
            granted = Decision(Verdict.DENY, reason, granted.rule)
        return RecordsFinding(gathered.status, granted, reason, (), gathered.ttl)


# The permission ended while the answer was on its way.
_REFUSED: Final = RecordsFinding(Status.UNAVAILABLE, Decision(Verdict.DENY, "dns.refused"), "dns.refused")
