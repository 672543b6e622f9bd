"""`decide`: one question, one answer, no I/O, never an exception.

Precedence: meta > deny > ceiling > budget > lease > ask > allow > posture. Within a stage every
matching rule counts, so the verdict does not depend on the order of the document; order only
breaks ties of attribution between equally specific rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from exeat.policy.errors import MalformedError
from exeat.policy.index import ScopeIndex
from exeat.policy.meta import DNS_PORTS, MetaRules, addresses_of, judged
from exeat.policy.model import Address, Decision, Request, Sni, Subject, Verdict
from exeat.policy.names import MAX_NAME, canonical_host
from exeat.policy.postures import Default, Posture, SniRule, is_public_name
from exeat.policy.rules import ALWAYS, PROTOCOLS, Budget, Kind, Rule, excepted
from exeat.policy.usage import Counters, Overlay, Peek, Usage, lease_spent
from exeat.policy.verdicts import Budgets, Hit, Slot, Verdicts, best_hits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from exeat.policy.addresses import Cidr
    from exeat.policy.document import Document, Endpoint
    from exeat.policy.index import Entry
    from exeat.policy.leases import Lease
    from exeat.policy.model import Permits

__all__ = ["CompiledPolicy", "compile_policy", "decide", "decide_lookup", "decide_records", "edge_ports"]

# Names that need no work to be canonical: what `parse_host` gives back unchanged. A last label that
# begins with a digit may be an address to somebody; `parse_host` judges those.
_LABEL: Final = "[a-z0-9_-]{0,62}+(?<!-)"
_PLAIN: Final = re.compile(rf"(?:[a-z0-9_]{_LABEL}\.)*+[a-z_]{_LABEL}")
# IPv6 addresses that stand for nothing but themselves: above all v4-mapped ones.
_V6_PLAIN: Final = range(1 << 64, 1 << 128)


@dataclass(frozen=True)
class CompiledPolicy:
    """A document made ready to answer. Immutable; build with `compile_policy`."""

    document: Document
    meta: MetaRules
    verdicts: Verdicts
    net_denies: ScopeIndex[Rule] | None  # what a resolved address may fall into
    speaks: bool  # whether any rule says what may be spoken

    def pieces(self) -> list[object]:
        """What a large policy is made of: who holds these decides when each of them is freed."""
        denies = () if self.net_denies is None else self.net_denies.cells()
        return [*self.verdicts.index.cells(), *denies, *self.document.rules, *(self.document.ceiling or ())]


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
    verdicts = Verdicts(document.rules, document.ceiling, Budgets(document.project, document.budgets))
    denies = [rule for rule in document.of_kind(Kind.DENY) if any(scope.net for scope in rule.to)]
    speaks = any(rule.raw or rule.ech or rule.direct or rule.records for rule in document.rules)
    return CompiledPolicy(document, meta, verdicts, ScopeIndex(denies) if denies else None, speaks)


def decide(policy: CompiledPolicy, request: Request, now_ms: int, overlay: Overlay) -> Decision:
    """The answer for `request` at `now_ms` (wall clock, ms since 1970). Total: any error is a deny."""
    try:
        if not _is_canonical(request):
            request = _canonical(request)
        return _decide(policy, request, now_ms, overlay)
    except MalformedError as error:
        return Decision(Verdict.DENY, error.code)
    except Exception:
        # Fail closed: whatever went wrong in here must not open anything or stop the caller.
        return Decision(Verdict.DENY, "internal.error")


def _is_canonical(request: Request) -> bool:
    """Whether `_canonical` would give the request back; False also where that takes a closer look."""
    host, port = request.host, request.port
    if type(host) is not str or len(host) > MAX_NAME or not _PLAIN.fullmatch(host):
        return False
    if type(port) is not int or not 1 <= port <= 65535:
        return False
    for family, value in request.resolved:  # noqa: SIM110 - a generator would cost more than all else here
        if family == 6 and value not in _V6_PLAIN:
            return False
    return True


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


def _decide(policy: CompiledPolicy, request: Request, now_ms: int, overlay: Overlay) -> Decision:
    document = policy.document
    refusal, public = policy.meta.judge(request)
    if not refusal and document.expires_ms is not None and now_ms >= document.expires_ms:
        refusal = "policy.expired"
    if not refusal and request.sni is not Sni.UNSEEN:
        refusal = _sni_refusal(document.knobs.sni, request)
    if refusal:
        return Decision(Verdict.DENY, refusal)
    slot = _slot(policy, request, now_ms, overlay)
    if slot.deny:
        return slot.answer(Verdict.DENY, "rule.deny", slot.deny[0].id)
    if not slot.ceiling:
        return slot.answer(Verdict.DENY, "ceiling.exceeded")
    if slot.peeks and not _has_room(overlay.usage, slot.peeks, now_ms):
        answer = _budget_answer(document, slot, now_ms, overlay)
        if answer is not None:
            return answer
    answer = _grant(policy, request, slot, public)
    if (policy.speaks or overlay.leases.speaks) and answer.verdict is not Verdict.DENY:
        return _spoken(slot, answer, public)
    return answer


def _sni_refusal(rule: SniRule, request: Request) -> str:
    if rule is SniRule.LOG:
        return ""
    if request.sni is Sni.ABSENT:
        return "sni.missing" if rule is SniRule.REQUIRE else ""
    try:
        same = canonical_host(request.sni) == request.host
    except MalformedError:
        same = False
    # RFC 6066 3: a server name is never an address, so one that equals a literal is a trick.
    return "" if same and isinstance(request.host, str) else "sni.mismatch"


def _slot(policy: CompiledPolicy, request: Request, now_ms: int, overlay: Overlay) -> Slot:
    """Every rule and lease that matches."""
    verdicts = policy.verdicts
    slot = verdicts.at(request.host, request.port, request.proto)
    more: list[Hit] = []
    if slot.loose:
        more = [hit for hit in slot.loose if _applies(hit[1], request, now_ms)]
    if policy.net_denies is not None and (request.resolved or type(request.host) is not str):
        more += _denied_addresses(policy.net_denies, request, now_ms, (*slot.hits, *slot.loose))
    leases = overlay.leases.matching(request, now_ms)
    if leases:
        leases = [lease for lease in leases if _alive(lease, overlay)]
    return verdicts.joined(slot, more, leases) if more or leases else slot


def _applies(rule: Rule, request: Request, now_ms: int) -> bool:
    return rule.applies(request.subject, request.proto, now_ms) and not excepted(
        rule, request.host, request.port
    )


def _denied_addresses(
    denies: ScopeIndex[Rule], request: Request, now_ms: int, known: Iterable[Hit]
) -> list[Hit]:
    """Deny rules on networks that a resolved address, or an IPv4 address inside one, falls into.

    A rule that has spoken on the host itself, for or against, is not asked again. One that several
    addresses fall into has the rank of its best scope among them, whatever their order.
    """
    fallen = [
        (address, cell)
        for address in judged(addresses_of(request))
        if (cell := denies.cell(address)) is not None
    ]
    if not fallen:
        return []
    spoken = {id(rule) for _, rule in known}
    found: dict[int, Hit] = {}
    for address, cell in fallen:
        for hit in best_hits(cell.entries(), request.port):
            rank, rule = hit
            before = found.get(id(rule))
            if (
                id(rule) not in spoken
                and (before is None or rank < before[0])
                and _applies(rule, request, now_ms)
                and not excepted(rule, address, request.port)
            ):
                found[id(rule)] = hit
    return list(found.values())


def _alive(lease: Lease, overlay: Overlay) -> bool:
    return (
        lease.id not in overlay.revoked
        and lease.epoch >= overlay.min_epoch
        and not lease_spent(lease, overlay.usage)
    )


def _has_room(usage: Counters, peeks: Iterable[Peek], now_ms: int) -> bool:
    """The short cut of our own counters; others are looked at one by one, they may be corrupt."""
    return isinstance(usage, Usage) and usage.has_room(peeks, now_ms)


def _budget_answer(document: Document, slot: Slot, now_ms: int, overlay: Overlay) -> Decision | None:
    """Deny or ask for an exhausted budget, hard ones and `ALWAYS` first; None while all have room."""
    budgets = [document.budgets.get(name) or Budget(name, ()) for name in slot.budgets]
    budgets.sort(key=lambda budget: (budget.soft, budget.name not in ALWAYS))  # and by name, as they were
    states = [(_budget_state(document.project, budget, now_ms, overlay), budget) for budget in budgets]
    for code in ("state", "exceeded"):
        for state, budget in states:
            if state != code:
                continue
            if budget.soft and state == "exceeded":
                return slot.answer(Verdict.ASK, "budget.ask", budget.name)
            return slot.answer(Verdict.DENY, f"budget.{state}", budget.name)
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


def _grant(policy: CompiledPolicy, request: Request, slot: Slot, public: bool) -> Decision:
    """Stages 5 to 8. Addresses of a name must be public unless the grant itself says private."""
    for lease in slot.leases:
        if public or lease.private:
            return slot.answer(Verdict.ALLOW, "lease.active", lease.id, lease.id)
    answer = _rule_answer(policy, request, slot, public)
    # A lease whose address check failed is as good as none, but it explains a deny best.
    if slot.leases and answer.verdict is Verdict.DENY:
        return slot.answer(Verdict.DENY, "address.not_public", slot.leases[0].id)
    return answer


def _spoken(slot: Slot, answer: Decision, public: bool) -> Decision:
    """The answer with what may be spoken: by any grant that allows this, or by the rule that asks, on
    whose terms a person will decide."""
    grants: list[Permits] = [rule for rule in slot.ask if rule.id == answer.rule]
    if answer.verdict is Verdict.ALLOW:
        grants = [lease for lease in slot.leases if public or lease.private]
        grants += [rule for rule in slot.allow if not slot.ask and (public or rule.private)]
    raw, ech = any(grant.raw for grant in grants), any(grant.ech for grant in grants)
    direct, records = any(grant.direct for grant in grants), any(grant.records for grant in grants)
    if not (raw or ech or direct or records):
        return answer
    return replace(answer, raw=raw, ech=ech, direct=direct, records=records)


def _rule_answer(policy: CompiledPolicy, request: Request, slot: Slot, public: bool) -> Decision:
    # Ask before allow, also when the ask fails: else a private allow would skip the person.
    if slot.ask:
        return _by_rules(slot, slot.ask, public, Verdict.ASK, "rule.ask")
    if slot.allow:
        return _by_rules(slot, slot.allow, public, Verdict.ALLOW, "rule.allow")
    verdict, reason = _posture_answer(policy, request, public)
    return slot.answer(verdict, reason)


def _by_rules(slot: Slot, rules: tuple[Rule, ...], public: bool, verdict: Verdict, reason: str) -> Decision:
    for rule in rules:
        if public or rule.private:
            return slot.answer(verdict, reason, rule.id)
    return slot.answer(Verdict.DENY, "address.not_public", rules[0].id)


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


_GRANTS = (Kind.ALLOW, Kind.ASK)


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
    judged too. Where it allows, and for a plain deny, the answer is that of 443/tcp.
    """
    first = decide(policy, Request(subject, host, 443, "tcp", resolved), now_ms, overlay)
    if first.verdict is Verdict.ALLOW or not _may_differ(policy, subject, host, overlay):
        return first
    best = first
    for port in edge_ports(policy, subject, host, overlay, resolved):
        for proto in PROTOCOLS:
            answer = decide(policy, Request(subject, host, port, proto, resolved), now_ms, overlay)
            if answer.verdict is Verdict.ALLOW:
                return answer
            if best.verdict is Verdict.DENY and answer.verdict is Verdict.ASK:
                best = answer
    return best


def decide_records(
    policy: CompiledPolicy, subject: Subject, host: str, now_ms: int, overlay: Overlay
) -> Decision | None:
    """May records of `host` other than addresses be looked up: the allowance that says so, on whatever port.

    None where no rule or lease says `records`. Exact in the way of `decide_lookup`.
    """
    if not (policy.speaks or overlay.leases.speaks):
        return None
    for port in edge_ports(policy, subject, host, overlay, ()):
        for proto in PROTOCOLS:
            answer = decide(policy, Request(subject, host, port, proto), now_ms, overlay)
            if answer.allowed and answer.records:
                return answer
    return None


def _may_differ(policy: CompiledPolicy, subject: Subject, host: str, overlay: Overlay) -> bool:
    """Whether any port could be better than a deny: False only if nothing but the posture speaks."""
    document = policy.document
    if document.posture not in (Posture.ALLOWLIST, Posture.CUSTOM) or (
        document.posture is Posture.CUSTOM and document.default is not Default.DENY
    ):
        return True
    if any(name in document.budgets and document.budgets[name].soft for name in ALWAYS):
        return True  # a budget that asks when it is used up does so on every port that is not denied
    try:
        target = canonical_host(host)
    except MalformedError:
        return False
    granting = (entry for entry in policy.verdicts.index.covering(target) if entry.item.kind in _GRANTS)
    return any(True for _ in granting) or any(True for _ in overlay.leases.covering(subject, target))


def edge_ports(
    policy: CompiledPolicy, subject: Subject, host: str, overlay: Overlay, resolved: Iterable[Address]
) -> list[int]:
    """One port of each stretch over which the answer for the host and its addresses does not change."""
    try:
        target = canonical_host(host)
        addresses = judged(map(_canonical_address, resolved))
    except MalformedError:
        return []
    starts, denies = {1, *policy.document.knobs.public_ports}, policy.net_denies
    entries: Iterator[Entry[Rule] | Entry[Lease]] = chain(
        policy.verdicts.index.covering(target),
        overlay.leases.covering(subject, target),
        *(denies.covering(address) for address in addresses if denies is not None),
    )
    for item, ports, _ in entries:
        ranges = [ports, *(scope.ports or () for scope in item.except_)]
        starts |= {edge for ports in ranges for low, high in ports for edge in (low, high + 1)}
    # A port that a meta rule takes out of a range must not stand for the rest of it.
    closed = DNS_PORTS | {port for _, port in policy.meta.control}
    starts |= {_first_open(start, closed) for start in starts}
    return sorted(starts)


def _first_open(port: int, closed: frozenset[int]) -> int:
    while port in closed:
        port += 1
    return port
