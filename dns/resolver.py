"""One name under one policy: vetted addresses, or the reason why there are none.

The order is the point. The policy core is asked before anything leaves the node, so a denied
name causes no upstream query; it is asked again when the answer is there, with the names and all
addresses it leads to, under whatever snapshot is in force by then.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exeat.dns.vet import UNAVAILABLE, Chain, Status, dial_order, follow
from exeat.dns.wire import Answer, Qtype, wire_name
from exeat.policy.model import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.dns.judge import Admitted, Asker, Judge
    from exeat.dns.upstream import Upstream
    from exeat.ledger.reactor import Reactor
    from exeat.policy.model import Address

    Done = Callable[["Finding"], None]
    Key = tuple[str, str, int]

MAX_CACHED = 8192  # chains
MAX_STALE_S = 300.0  # how long after its end an answer may stand in for one that does not come
STALE_TTL_S = 2  # what a client is told of such an answer, and of no other
STALE_WAIT_S = 1.5  # how long the upstreams are waited for first, RFC 8767 section 5
HOT_USES = 3  # an answer used so often is asked for again before it ends
HOT_LEFT = 0.2  # with this share of its time left
SECOND_FAMILY_S = 0.3  # how long one family's addresses wait for the other's
REASONS = {
    Status.NXDOMAIN: "dns.nxdomain",
    Status.NODATA: "dns.no_address",
    Status.HOSTILE: "dns.refused",
    Status.UNAVAILABLE: "dns.unavailable",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """How a lookup ended. Addresses (with seconds to live) only when `decision` allows.

    `reason` is "" for FOUND, a code of the policy core when it refused, else one of REASONS.
    `stale`: the upstreams did not answer in time, so this is what they said last (RFC 8767).
    `authentic`: the upstream has checked the signatures, and is one that is believed.
    """

    status: Status
    decision: Decision
    reason: str = ""
    addresses: tuple[tuple[Address, int], ...] = ()
    ttl: int = 0
    stale: bool = False
    authentic: bool = False

    @property
    def refused(self) -> bool:
        """The core or the vetting said no, as opposed to the network having nothing to say."""
        return not self.decision.allowed


class _Entry:
    """A remembered answer; `expires` is when it ends, not when it is forgotten."""

    __slots__ = ("chain", "expires", "renewing", "uses")

    def __init__(self, chain: Chain, now: float) -> None:
        self.chain = chain
        self.expires = now + chain.ttl
        self.uses = 0
        self.renewing = False


class Resolver:
    """Looks names up for jails (`find`) and for the proxy (`find_both`)."""

    def __init__(self, reactor: Reactor, upstream: Upstream, judge: Judge) -> None:
        self._reactor = reactor
        self._upstream = upstream
        self._judge = judge
        self._cache: OrderedDict[Key, _Entry] = OrderedDict()
        self._epoch = 0

    def clear(self) -> None:
        """Forget everything, also what is still under way: a new snapshot is in force."""
        self._cache.clear()
        self._epoch += 1

    def cached(self, asker: Asker, host: str, qtype: int) -> bool:
        return self._fresh(self._key(asker, host, qtype)) is not None

    def find(self, asker: Asker, host: str, qtype: int, done: Done, admitted: Admitted | None = None) -> None:
        """Addresses of one type (A or AAAA). `done` may be called from in here.

        `admitted` is what the asker was told of this host a moment ago.
        """
        key = self._key(asker, host, qtype)
        entry = self._fresh(key)
        if entry is not None:
            self._use(asker, key, entry)
            left = math.ceil(entry.expires - self._reactor.now())
            done(self._judged(asker, host, replace(entry.chain, ttl=left)))
            return
        if admitted is not None and self._judge.stands(admitted):
            decision = admitted.decision
        else:
            decision = self._judge.admit(asker, host)
        if not decision.allowed:
            done(_refused(decision))
            return
        self._judge.charge(asker, decision)

        def arrived(chain: Chain) -> None:
            if chain.status is not Status.UNAVAILABLE and not chain.stale:
                self._judge.heard(asker, host, decision, exists=chain.status is not Status.NXDOMAIN)
            done(self._judged(asker, host, chain))

        wait = _Wait(self._reactor, self._stale(key), arrived)
        self._ask(key, wait.arrived)

    def _ask(self, key: Key, done: Callable[[Chain], None]) -> None:
        """Ask the upstreams and remember what they say, unless a new snapshot came meanwhile."""
        _, host, qtype = key
        name, epoch = wire_name(host), self._epoch

        def arrived(answer: Answer | None) -> None:
            chain = UNAVAILABLE if answer is None else follow(answer, name, qtype)
            if epoch == self._epoch:
                self._keep(key, chain)
            done(chain)

        self._upstream.ask(name, qtype, arrived)

    def _use(self, asker: Asker, key: Key, entry: _Entry) -> None:
        """Ask again before the end for what is asked for often, so that nobody has to wait for it."""
        entry.uses += 1
        soon = entry.expires - self._reactor.now() <= HOT_LEFT * entry.chain.ttl
        if entry.uses < HOT_USES or not soon or entry.renewing or entry.chain.status is not Status.FOUND:
            return
        entry.renewing = True
        decision = self._judge.admit(asker, key[1])
        if decision.allowed:
            self._judge.charge(asker, decision)
            self._ask(key, lambda _chain: None)

    def find_both(self, asker: Asker, host: str, done: Done, admitted: Admitted | None = None) -> None:
        """Addresses of both types in dial order. All that are given were judged. See `find`."""
        both = _Both(self._reactor, done)
        for qtype in (Qtype.A, Qtype.AAAA):
            self.find(asker, host, qtype, both.arrived, admitted)

    def _key(self, asker: Asker, host: str, qtype: int) -> Key:
        return self._judge.binding(asker.subject).digest, host, qtype

    def _fresh(self, key: Key) -> _Entry | None:
        entry = self._cache.get(key)
        return entry if entry is not None and entry.expires > self._reactor.now() else None

    def _stale(self, key: Key) -> Chain | None:
        """What may stand in for an answer that does not come: addresses, and not for long."""
        entry = self._cache.get(key)
        if entry is None or entry.chain.status is not Status.FOUND:
            return None
        return entry.chain if self._reactor.now() < entry.expires + MAX_STALE_S else None

    def _keep(self, key: Key, chain: Chain) -> None:
        if chain.status is Status.UNAVAILABLE:
            return
        self._cache.pop(key, None)
        if chain.ttl <= 0:
            return
        if len(self._cache) >= MAX_CACHED:
            self._cache.popitem(last=False)
        self._cache[key] = _Entry(chain, self._reactor.now())

    def _judged(self, asker: Asker, host: str, chain: Chain) -> Finding:
        """The core's word on where `chain` leads, asked on every use."""
        decision = self._judge.verdict(asker, host, chain.targets, chain.addresses)
        if not decision.allowed:
            return _refused(decision)
        if chain.status is Status.FOUND:
            addresses = tuple((address, chain.ttl) for address in chain.addresses)
            return Finding(chain.status, decision, "", addresses, chain.ttl, chain.stale, chain.authentic)
        reason = REASONS[chain.status]
        if chain.status is Status.HOSTILE:
            decision = Decision(Verdict.DENY, reason, decision.rule)
        return Finding(chain.status, decision, reason, (), chain.ttl)


def _refused(decision: Decision) -> Finding:
    return Finding(Status.UNAVAILABLE, decision, decision.reason)


class _Wait:
    """Ends once: with the upstreams' answer or, when that is late or none, with the stale one."""

    def __init__(self, reactor: Reactor, stale: Chain | None, done: Callable[[Chain], None]) -> None:
        self._stale = replace(stale, ttl=STALE_TTL_S, stale=True) if stale is not None else None
        self._done: Callable[[Chain], None] | None = done
        if stale is not None:
            reactor.call_later(STALE_WAIT_S, lambda: self.arrived(UNAVAILABLE))

    def arrived(self, chain: Chain) -> None:
        done, self._done = self._done, None
        if done is not None:
            late = chain.status is Status.UNAVAILABLE
            done(self._stale if late and self._stale is not None else chain)


class _Both:
    """Joins the findings of two families; ends once, early if the second one dawdles."""

    def __init__(self, reactor: Reactor, done: Done) -> None:
        self._reactor = reactor
        self._done: Done | None = done
        self._findings: list[Finding] = []

    def arrived(self, finding: Finding) -> None:
        self._findings.append(finding)
        if finding.refused or len(self._findings) == 2:
            self._finish()
        elif finding.status is Status.FOUND:
            self._reactor.call_later(SECOND_FAMILY_S, self._finish)

    def _finish(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(join(self._findings))


def join(findings: list[Finding]) -> Finding:
    """One finding of several: a refusal beats all, then addresses, then what is most certain."""
    for finding in findings:
        if finding.refused:
            return finding
    found = [finding for finding in findings if finding.status is Status.FOUND]
    if found:
        chains = [Chain(f.status, (), tuple(a for a, _ in f.addresses), f.ttl) for f in found]
        ttl = min(finding.ttl for finding in found)
        stale = any(finding.stale for finding in found)
        return Finding(Status.FOUND, found[0].decision, "", dial_order(chains), ttl, stale)
    order = (Status.NXDOMAIN, Status.UNAVAILABLE, Status.NODATA)
    return min(findings, key=lambda finding: order.index(finding.status))
