"""A concrete flow that one policy gives away and another does not, checked by `decide` itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from exeat.policy.addresses import WIDTH, Cidr, embedded_v4, format_address
from exeat.policy.authority import Level
from exeat.policy.decide import compile_policy, decide
from exeat.policy.leases import Lease
from exeat.policy.model import Address, Request, Sni, Speech, Subject, Verdict, permits
from exeat.policy.rules import PROTOCOLS
from exeat.policy.scopes import ANY_PORT, Reach, Scope
from exeat.policy.units import format_time
from exeat.policy.usage import Overlay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exeat.policy.authority import Who
    from exeat.policy.document import Document
    from exeat.policy.model import Decision
    from exeat.policy.places import Host

_FOREVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Spent:
    """A counter that stands at `amount` in this budget and window; all others are at zero."""

    budget: str
    counter: str
    window_ms: int
    amount: int

    def used(self, project: str, budget: str, counter: str, window_ms: int, now_ms: int) -> int:
        return (
            self.amount if (budget, counter, window_ms) == (self.budget, self.counter, self.window_ms) else 0
        )

    def lease_uses(self, lease_id: str) -> int:
        return 0

    def lease_bytes(self, lease_id: str) -> int:
        return 0


UNSPENT = Spent("", "", 0, 0)


@dataclass(frozen=True, slots=True)
class Witness:
    """One flow that is wider under the second policy, at `at_ms` (wall clock, ms since 1970).

    `level` is what the second gives; `what` says how the first gives less. `before` and `after` are
    the rule ids (else reason codes) by which each decides. `spent` is a counter that must have
    reached its limit for the difference to show, `speech` what the flow must speak for it. The
    request's project is left open.
    """

    level: Level
    request: Request
    at_ms: int
    what: str
    spent: Spent | None = None
    before: str = ""
    after: str = ""
    speech: Speech = Speech.JUDGED

    @property
    def host(self) -> str:
        """A name, or an address as an authority writes it."""
        return host_text(self.request.host)

    @property
    def port(self) -> int:
        return self.request.port

    def to_json(self) -> dict[str, Any]:
        request = self.request
        out: dict[str, Any] = {
            "level": str(self.level),
            "host": self.host,
            "port": request.port,
            "proto": request.proto,
            "agent": request.subject.agent,
            "node": request.subject.node,
            "at": format_time(self.at_ms),
            "what": self.what,
            "before": self.before,
            "after": self.after,
        }
        if request.resolved:
            out["resolved"] = [format_address(address) for address in request.resolved]
        if request.sni is not Sni.UNSEEN:
            out["sni"] = None if request.sni is Sni.ABSENT else str(request.sni)
        if self.speech is not Speech.JUDGED:
            out["speech"] = str(self.speech)
        if self.spent is not None:
            out["spent"] = {"budget": self.spent.budget, self.spent.counter: self.spent.amount}
        return out

    def __str__(self) -> str:
        request = self.request
        parts = [f"{self.level}: {self.host}:{request.port}/{request.proto}"]
        parts += [f"resolved to {format_address(address)}" for address in request.resolved]
        parts.append(f"for {request.subject.agent} on {request.subject.node} at {format_time(self.at_ms)}")
        if self.speech is not Speech.JUDGED:
            parts.append(f"speaking {self.speech}")
        if self.spent is not None:
            parts.append(f"with {self.spent.counter} of budget {self.spent.budget} used up")
        return f"{', '.join(parts)}: {self.what} ({self.before} -> {self.after})"


def host_text(host: Host) -> str:
    if isinstance(host, str):
        return host
    return f"[{format_address(host)}]" if host.family == 6 else format_address(host)


def level_of(document: Document, request: Request, now_ms: int, spent: Spent = UNSPENT) -> Level:
    """What `decide` grants for a request of this document's project: without leases, then with one
    for everything."""
    return judge(document, request, now_ms, spent)[0]


def judge(
    document: Document,
    request: Request,
    now_ms: int,
    spent: Spent = UNSPENT,
    speech: Speech = Speech.JUDGED,
) -> tuple[Level, Decision]:
    """`level_of`, and the decision without any lease."""
    request = replace(request, subject=request.subject._replace(project=document.project))
    policy = compile_policy(document)
    decision = decide(policy, request, now_ms, Overlay.of((), usage=spent))
    if decision.verdict is not Verdict.DENY and permits(decision, speech):
        return Level.ALLOW if decision.allowed else Level.ASK, decision
    lease = universal_lease(document.project, request.host)
    granted = decide(policy, request, now_ms, Overlay.of((lease,), usage=spent))
    return Level.GRANTABLE if granted.allowed and permits(granted, speech) else Level.NONE, decision


def universal_lease(project: str, host: Host) -> Lease:
    """As much as a person could ever grant at this host."""
    if isinstance(host, Address):
        scope = Scope(Reach.NET, net=Cidr(host.family, host.value, WIDTH[host.family]))
    else:
        scope = Scope(Reach.ANY)
    return Lease(
        id="universal",
        project=project,
        to=(scope,),
        ports=ANY_PORT,
        protocols=PROTOCOLS,
        private=True,
        raw=True,
        ech=True,
        direct=True,
        records=True,
        exp_ms=_FOREVER,
    )


def relevant(document: Document, hosts: Iterable[Host]) -> Document:
    """The document with only the rules that can speak about these hosts: same answers, quick to compile."""
    listed = list(hosts)

    def speaks(scopes: tuple[Scope, ...]) -> bool:
        return any(scope.reaches(host) for scope in scopes for host in listed)

    ceiling = document.ceiling
    return replace(
        document,
        rules=tuple(rule for rule in document.rules if speaks(rule.to)),
        ceiling=None if ceiling is None else tuple(rule for rule in ceiling if speaks(rule.to)),
    )


def witness_of(
    a: Document,
    b: Document,
    host: Host,
    address: Address | None,
    port: int,
    who: Who,
    *,
    level: Level,
    what: str,
    spent: Spent | None = None,
    sni: str | Sni = Sni.UNSEEN,
) -> Witness:
    """The difference as a request that `decide` can be asked about, with what it says on each side."""
    resolved = () if address is None else (address,)
    request = Request(Subject("", who.agent, node=who.node), host, port, who.proto, resolved, sni)
    hosts = [place for each in (host, *resolved) for place in _judged(each)]
    said = [
        judge(relevant(document, hosts), request, who.at_ms, spent or UNSPENT, who.speech)[1]
        for document in (a, b)
    ]
    return Witness(
        level=level,
        request=request,
        at_ms=who.at_ms,
        what=what,
        spent=spent,
        before=_cause(said[0]),
        after=_cause(said[1]),
        speech=who.speech,
    )


def _judged(host: Host) -> tuple[Host, ...]:
    return (host, *embedded_v4(host)) if isinstance(host, Address) else (host,)


def _cause(decision: Decision) -> str:
    return decision.rule or decision.reason
