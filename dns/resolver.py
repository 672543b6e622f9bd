"""One name under one policy: vetted addresses, or the reason why there are none.

The order is the point. The policy core is asked before anything leaves the node, so a denied
name causes no upstream query; it is asked again when the answer is there, with the names and all
addresses it leads to, under whatever snapshot is in force by then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exeat.dns.vet import UNAVAILABLE, Chain, Status, dial_order, follow
from exeat.dns.wire import Answer, Qtype, wire_name
from exeat.policy.model import Decision, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.dns.judge import Asker, Judge
    from exeat.dns.upstream import Upstream
    from exeat.ledger.reactor import Reactor
    from exeat.policy.model import Address

    Done = Callable[["Finding"], None]
    Key = tuple[str, str, int]

MAX_CACHED = 8192  # chains
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
    """

    status: Status
    decision: Decision
    reason: str = ""
    addresses: tuple[tuple[Address, int], ...] = ()
    ttl: int = 0

    @property
    def refused(self) -> bool:
        """The core or the vetting said no, as opposed to the network having nothing to say."""
        return not self.decision.allowed


class Resolver:
    """Looks names up for jails (`find`) and for the proxy (`find_both`)."""

    def __init__(self, reactor: Reactor, upstream: Upstream, judge: Judge) -> None:
        self._reactor = reactor
        self._upstream = upstream
        self._judge = judge
        self._cache: dict[Key, tuple[Chain, float]] = {}
        self._epoch = 0

    def clear(self) -> None:
        """Forget everything, also what is still under way: a new snapshot is in force."""
        self._cache.clear()
        self._epoch += 1

    def cached(self, asker: Asker, host: str, qtype: int) -> bool:
        return self._cached(self._key(asker, host, qtype)) is not None

    def find(self, asker: Asker, host: str, qtype: int, done: Done) -> None:
        """Addresses of one type (A or AAAA). `done` may be called from in here."""
        key = self._key(asker, host, qtype)
        chain = self._cached(key)
        if chain is not None:
            done(self._judged(asker, host, chain))
            return
        decision = self._judge.admit(asker, host)
        if not decision.allowed:
            done(_refused(decision))
            return
        name, epoch = wire_name(host), self._epoch

        def arrived(answer: Answer | None) -> None:
            chain = UNAVAILABLE if answer is None else follow(answer, name, qtype)
            if epoch == self._epoch:
                self._keep(key, chain)
            done(self._judged(asker, host, chain))

        self._judge.charge(asker, decision)
        self._upstream.ask(name, qtype, arrived)

    def find_both(self, asker: Asker, host: str, done: Done) -> None:
        """Addresses of both types in dial order. All that are given were judged."""
        both = _Both(self._reactor, done)
        for qtype in (Qtype.A, Qtype.AAAA):
            self.find(asker, host, qtype, both.arrived)

    def _key(self, asker: Asker, host: str, qtype: int) -> Key:
        return self._judge.binding(asker.subject).digest, host, qtype

    def _cached(self, key: Key) -> Chain | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        chain, expires = entry
        left = expires - self._reactor.now()
        if left <= 0:
            del self._cache[key]
            return None
        return Chain(chain.status, chain.targets, chain.addresses, math.ceil(left))

    def _keep(self, key: Key, chain: Chain) -> None:
        if chain.status is Status.UNAVAILABLE or chain.ttl <= 0:
            return
        if len(self._cache) >= MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = (chain, self._reactor.now() + chain.ttl)

    def _judged(self, asker: Asker, host: str, chain: Chain) -> Finding:
        """The core's word on where `chain` leads, asked on every use."""
        decision = self._judge.verdict(asker, host, chain.targets, chain.addresses)
        if not decision.allowed:
            return _refused(decision)
        if chain.status is Status.FOUND:
            addresses = tuple((address, chain.ttl) for address in chain.addresses)
            return Finding(chain.status, decision, "", addresses, chain.ttl)
        reason = REASONS[chain.status]
        if chain.status is Status.HOSTILE:
            decision = Decision(Verdict.DENY, reason, decision.rule)
        return Finding(chain.status, decision, reason, (), chain.ttl)


def _refused(decision: Decision) -> Finding:
    return Finding(Status.UNAVAILABLE, decision, decision.reason)


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
        return Finding(Status.FOUND, found[0].decision, "", dial_order(chains), ttl)
    order = (Status.NXDOMAIN, Status.UNAVAILABLE, Status.NODATA)
    return min(findings, key=lambda finding: order.index(finding.status))
