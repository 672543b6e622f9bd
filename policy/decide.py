"""`decide`: one question, one answer, no I/O, never an exception.

Precedence: meta > deny > ceiling > budget > lease > ask > allow > posture. Within a stage every
matching rule counts, so the verdict does not depend on the order of the document; order only
breaks ties of attribution between equally specific rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exeat.policy.errors import MalformedError
from exeat.policy.index import ScopeIndex
from exeat.policy.meta import DNS_PORTS, MetaRules, addresses_of, judged
from exeat.policy.model import Address, Decision, Request, Sni, Subject, Verdict
from exeat.policy.names import canonical_host
from exeat.policy.postures import Default, Posture, SniRule, is_public_name
from exeat.policy.rules import PROTOCOLS, Budget, Kind, Rule, excepted
from exeat.policy.usage import Overlay, lease_spent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from exeat.policy.addresses import Cidr
    from exeat.policy.document import Document, Endpoint
    from exeat.policy.leases import Lease

__all__ = ["CompiledPolicy", "compile_policy", "decide", "decide_lookup"]


@dataclass(frozen=True)
class CompiledPolicy:
    """A document made ready to answer. Immutable; build with `compile_policy`."""

    document: Document
    meta: MetaRules
    rules: ScopeIndex[Rule]
    ceiling: ScopeIndex[Rule] | None


def compile_policy(
    document: Document,
    *,
    treat_as_public: Sequence[Cidr] = (),
    control: Iterable[Endpoint] = (),
    host_local: Iterable[Address] = (),
) -> CompiledPolicy:
    """`treat_as_public` is for the lab; `control` and `host_local` are the node's own places."""
    meta = MetaRules(
        project=document.project,
        control=frozenset((*document.control, *control)),
        treat_as_public=tuple(treat_as_public),
        host_local=frozenset(host_local),
    )
    ceiling = None if document.ceiling is None else ScopeIndex(document.ceiling)
    return CompiledPolicy(document, meta, ScopeIndex(document.rules), ceiling)


def decide(policy: CompiledPolicy, request: Request, now_ms: int, overlay: Overlay) -> Decision:
    """The answer for `request` at `now_ms` (wall clock, ms since 1970). Total: any error is a deny."""
    try:
        request = _canonical(request)
        return _decide(policy, request, now_ms, overlay)
    except MalformedError as error:
        return Decision(Verdict.DENY, error.code)
    except Exception:
        # Fail closed: whatever went wrong in here must not open anything or stop the caller.
        return Decision(Verdict.DENY, "internal.error")


def _canonical(request: Request) -> Request:
    host = canonical_host(request.host)
    port = request.port
    if type(port) is not int or not 1 <= port <= 65535:
        raise MalformedError("malformed.port")
    resolved = request.resolved
    if any(address.family == 6 for address in resolved):
        resolved = tuple(_canonical_address(address) for address in resolved)
    if host == request.host and resolved == request.resolved:
        return request
    return replace(request, host=host, resolved=resolved)


def _canonical_address(address: Address) -> Address:
    host = canonical_host(address)
    if not isinstance(host, Address):
        raise MalformedError("malformed.ip")
    return host


@dataclass(slots=True)
class _Matches:
    """The rules and leases that match, each list with the attributed one first."""

    deny: list[Rule]
    ask: list[Rule]
    allow: list[Rule]
    leases: list[Lease]
    budgets: tuple[str, ...] = ()

    def answer(self, verdict: Verdict, reason: str, rule: str = "", lease: str = "") -> Decision:
        matched = [item.id for group in (self.deny, self.ask, self.allow, self.leases) for item in group]
        return Decision(verdict, reason, rule, tuple(matched), self.budgets, lease)


def _decide(policy: CompiledPolicy, request: Request, now_ms: int, overlay: Overlay) -> Decision:
    document = policy.document
    refusal = policy.meta.refusal(request)
    if not refusal and document.expires_ms is not None and now_ms >= document.expires_ms:
        refusal = "policy.expired"
    if not refusal:
        refusal = _sni_refusal(document.knobs.sni, request)
    if refusal:
        return Decision(Verdict.DENY, refusal)
    matches = _matches(policy, request, now_ms, overlay)
    if matches.deny:
        return matches.answer(Verdict.DENY, "rule.deny", matches.deny[0].id)
    if policy.ceiling is not None and not _under_ceiling(policy.ceiling, request, now_ms):
        return matches.answer(Verdict.DENY, "ceiling.exceeded")
    return _budget_answer(document, matches, now_ms, overlay) or _grant(policy, request, matches)


def _sni_refusal(rule: SniRule, request: Request) -> str:
    if rule is SniRule.LOG or request.sni is Sni.UNSEEN:
        return ""
    if request.sni is Sni.ABSENT:
        return "sni.missing" if rule is SniRule.REQUIRE else ""
    try:
        same = canonical_host(request.sni) == request.host
    except MalformedError:
        same = False
    # RFC 6066 3: a server name is never an address, so one that equals a literal is a trick.
    return "" if same and isinstance(request.host, str) else "sni.mismatch"


def _matches(policy: CompiledPolicy, request: Request, now_ms: int, overlay: Overlay) -> _Matches:
    subject, port, proto = request.subject, request.port, request.proto
    hits = policy.rules.hits(request.host, port)
    by_kind: dict[Kind, list[tuple[tuple[int, int], Rule]]] = {Kind.DENY: [], Kind.ASK: [], Kind.ALLOW: []}
    for specificity, rule in hits.values():
        if rule.applies(subject, proto, now_ms):
            by_kind[rule.kind].append((specificity, rule))
    by_kind[Kind.DENY] += _denied_addresses(policy, request, now_ms, known=hits.keys())
    leases = [
        lease
        for _, lease in overlay.leases.hits(request.host, port).values()
        if lease.serves(subject, proto, now_ms) and _alive(lease, overlay)
    ]
    leases.sort(key=lambda lease: lease.id)
    deny, ask, allow = (_attributed(by_kind[kind]) for kind in (Kind.DENY, Kind.ASK, Kind.ALLOW))
    named = {item.budget for group in (ask, allow, leases) for item in group if item.budget}
    budgets = policy.document.budgets
    if "default" in budgets:
        named.add("default")
    return _Matches(deny, ask, allow, leases, tuple(sorted(named)))


def _denied_addresses(
    policy: CompiledPolicy, request: Request, now_ms: int, known: Iterable[str]
) -> Iterator[tuple[tuple[int, int], Rule]]:
    """Deny rules on networks that a resolved address, or an IPv4 address inside one, falls into."""
    seen = set(known)
    for address in judged(addresses_of(request)):
        for rule_id, (specificity, rule) in policy.rules.hits(address, request.port).items():
            if rule.kind is not Kind.DENY or rule_id in seen:
                continue
            if excepted(rule, request.host, request.port):
                continue
            if rule.applies(request.subject, request.proto, now_ms):
                seen.add(rule_id)
                yield specificity, rule


def _alive(lease: Lease, overlay: Overlay) -> bool:
    return (
        lease.id not in overlay.revoked
        and lease.epoch >= overlay.min_epoch
        and not lease_spent(lease, overlay.usage)
    )


def _attributed(found: list[tuple[tuple[int, int], Rule]]) -> list[Rule]:
    """Most specific first, then document order, then id."""
    found.sort(key=lambda hit: (-hit[0][0], -hit[0][1], hit[1].order, hit[1].id))
    return [rule for _, rule in found]


def _under_ceiling(ceiling: ScopeIndex[Rule], request: Request, now_ms: int) -> bool:
    hits = ceiling.hits(request.host, request.port).values()
    return any(rule.applies(request.subject, request.proto, now_ms) for _, rule in hits)


def _budget_answer(document: Document, matches: _Matches, now_ms: int, overlay: Overlay) -> Decision | None:
    """Deny or ask for an exhausted budget, hard ones and `default` first; None while all have room."""
    budgets = [document.budgets.get(name) or Budget(name, ()) for name in matches.budgets]
    budgets.sort(key=lambda budget: (budget.soft, budget.name != "default", budget.name))
    states = [(_budget_state(document.project, budget, now_ms, overlay), budget) for budget in budgets]
    for code in ("state", "exceeded"):
        for state, budget in states:
            if state != code:
                continue
            if budget.soft and state == "exceeded":
                return matches.answer(Verdict.ASK, "budget.ask", budget.name)
            return matches.answer(Verdict.DENY, f"budget.{state}", budget.name)
    return None


def _budget_state(project: str, budget: Budget, now_ms: int, overlay: Overlay) -> str:
    if not budget.limits:
        return "state"  # a lease names a budget that the policy does not have
    exceeded = False
    for limit in budget.limits:
        used = overlay.usage.used(project, budget.name, limit.counter, limit.window_ms, now_ms)
        if not isinstance(used, int) or isinstance(used, bool) or used < 0:
            return "state"
        exceeded = exceeded or used >= limit.amount
    return "exceeded" if exceeded else ""


def _grant(policy: CompiledPolicy, request: Request, matches: _Matches) -> Decision:
    """Stages 5 to 8. Addresses of a name must be public unless the grant itself says private."""
    dialled = tuple(address for address in request.resolved if address != request.host)
    public = policy.meta.all_public(dialled)
    for lease in matches.leases:
        if public or lease.private:
            return matches.answer(Verdict.ALLOW, "lease.active", lease.id, lease.id)
    answer = _rule_answer(policy, request, matches, public)
    # A lease whose address check failed is as good as none, but it explains a deny best.
    if matches.leases and answer.verdict is Verdict.DENY:
        return matches.answer(Verdict.DENY, "address.not_public", matches.leases[0].id)
    return answer


def _rule_answer(policy: CompiledPolicy, request: Request, matches: _Matches, public: bool) -> Decision:
    # Ask before allow, also when the ask fails: else a private allow would skip the person.
    for rules, verdict, reason in (
        (matches.ask, Verdict.ASK, "rule.ask"),
        (matches.allow, Verdict.ALLOW, "rule.allow"),
    ):
        for rule in rules:
            if public or rule.private:
                return matches.answer(verdict, reason, rule.id)
        if rules:
            return matches.answer(Verdict.DENY, "address.not_public", rules[0].id)
    verdict, reason = _posture_answer(policy, request, public)
    return matches.answer(verdict, reason)


def _posture_answer(policy: CompiledPolicy, request: Request, public: bool) -> tuple[Verdict, str]:
    document = policy.document
    literal = isinstance(request.host, Address)
    if document.posture is Posture.OFF:
        return Verdict.ALLOW, "posture.off"
    if document.posture is Posture.CUSTOM and document.default is Default.ASK:
        if not public:
            return Verdict.DENY, "address.not_public"
        return Verdict.ASK, "posture.ask_ip" if literal else "posture.ask"
    if literal:
        return Verdict.DENY, "ip_literal.denied"
    if document.posture is Posture.PUBLIC or (
        document.posture is Posture.CUSTOM and document.default is Default.PUBLIC
    ):
        return _public_answer(policy, request, public)
    return Verdict.DENY, "posture.default_deny"


def _public_answer(policy: CompiledPolicy, request: Request, public: bool) -> tuple[Verdict, str]:
    if not isinstance(request.host, str) or not is_public_name(request.host):
        return Verdict.DENY, "posture.not_public_name"
    if request.proto != "tcp" or request.port not in policy.document.knobs.public_ports:
        return Verdict.DENY, "posture.port"
    if not public:
        return Verdict.DENY, "address.not_public"
    return Verdict.ALLOW, "posture.public"


_BEST = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}


def decide_lookup(
    policy: CompiledPolicy,
    subject: Subject,
    host: str,
    now_ms: int,
    overlay: Overlay,
    resolved: tuple[Address, ...] = (),
) -> Decision:
    """May this name be resolved at all: the best answer over all ports and protocols.

    Exact, not sampled: a decision only changes at the edges of port ranges that some rule, lease or
    built-in names for this host, so one port per range is asked. With `resolved`, every address is
    judged too. For a plain deny the answer is that of 443/tcp.
    """
    first = decide(policy, Request(subject, host, 443, "tcp", resolved), now_ms, overlay)
    if first.verdict is Verdict.ALLOW:
        return first
    best = first
    for port in _edge_ports(policy, host, overlay):
        for proto in PROTOCOLS:
            answer = decide(policy, Request(subject, host, port, proto, resolved), now_ms, overlay)
            if answer.verdict is Verdict.ALLOW:
                return answer
            if _BEST[answer.verdict] < _BEST[best.verdict]:
                best = answer
    return best


def _edge_ports(policy: CompiledPolicy, host: str, overlay: Overlay) -> list[int]:
    try:
        target = canonical_host(host)
    except MalformedError:
        return []
    starts = {1, *policy.document.knobs.public_ports}
    for index in (policy.rules, policy.ceiling, overlay.leases):
        for entry in index.covering(target) if index is not None else ():
            ranges = [entry.ports, *(scope.ports or () for scope in entry.item.except_)]
            starts |= {edge for ports in ranges for low, high in ports for edge in (low, high + 1)}
    # A port that a meta rule takes out of a range must not stand for the rest of it.
    closed = DNS_PORTS | {port for _, port in policy.meta.control}
    starts |= {_first_open(start, closed) for start in starts}
    return sorted(port for port in starts - DNS_PORTS if port <= 65535)


def _first_open(port: int, closed: frozenset[int]) -> int:
    while port in closed:
        port += 1
    return port
