"""A second evaluator, written to be read: no index, no shortcut, one loop per sentence of the spec.

It shares the data types and the address table with the product (those have tables of their own) and
none of the matching, attribution or precedence.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from exeat.policy.addresses import AddressClass, classify, embedded_v4, is_metadata
from exeat.policy.model import Address, Sni
from exeat.policy.postures import Default, Posture, SniRule
from exeat.policy.rules import Kind
from exeat.policy.scopes import ANY_PORT, Reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exeat.policy.document import Document
    from exeat.policy.leases import Lease
    from exeat.policy.model import Request
    from exeat.policy.rules import Rule, When
    from exeat.policy.scopes import Scope

Answer = tuple[str, str, str]  # verdict, reason, rule
_DAYS = 7
_SPECIAL_ENDS = (
    "localhost local internal test example invalid onion arpa alt lan home corp intranet private localdomain"
)


def reference(
    document: Document,
    request: Request,
    now_ms: int,
    leases: Iterable[Lease] = (),
    used: dict[tuple[str, str], int] | None = None,
    baseline: Document | None = None,
) -> Answer:
    """The answer for a canonical request; `used` maps (budget, counter) to what is spent.

    `baseline`: its deny rules, ceiling, control endpoints, end and default budget (counted as
    `baseline/default`) hold too.
    """
    both = [document] if baseline is None else [document, baseline]
    addresses = list(request.resolved) + ([request.host] if isinstance(request.host, Address) else [])
    for address in list(addresses):
        addresses.extend(embedded_v4(address))

    meta = _meta(both, request, addresses)
    if meta:
        return ("deny", meta, "")
    if any(each.expires_ms is not None and each.expires_ms <= now_ms for each in both):
        return ("deny", "policy.expired", "")
    sni = _sni(document, request)
    if sni:
        return ("deny", sni, "")

    denying = [rule for each in both for rule in _denying(each, request, addresses, now_ms)]
    if denying:
        named = _attributed(denying, request, addresses)
        mine = any(rule is named for rule in document.rules)
        return ("deny", "rule.deny", named.id if mine else f"baseline/{named.id}")
    for each in both:
        if each.ceiling is not None and not any(_matches(r, request, now_ms) for r in each.ceiling):
            return ("deny", "ceiling.exceeded", "")

    asking = [rule for rule in _of(document, Kind.ASK) if _matches(rule, request, now_ms)]
    allowing = [rule for rule in _of(document, Kind.ALLOW) if _matches(rule, request, now_ms)]
    active = sorted((x for x in leases if _lease_matches(x, request, now_ms)), key=lambda lease: lease.id)

    names = {item.budget for item in (*asking, *allowing, *active) if item.budget}
    spent = _budgets(both, names, used or {})
    if spent:
        return spent

    strangers = [address for address in request.resolved if address != request.host]
    public = all(classify(address) is AddressClass.PUBLIC for address in strangers)
    for lease in active:
        if public or lease.private:
            return ("allow", "lease.active", lease.id)
    answer = _rules_or_posture(document, request, asking, allowing, public)
    if active and answer[0] == "deny":
        return ("deny", "address.not_public", active[0].id)
    return answer


def _rules_or_posture(
    document: Document, request: Request, asking: list[Rule], allowing: list[Rule], public: bool
) -> Answer:
    for rules, verdict, reason in ((asking, "ask", "rule.ask"), (allowing, "allow", "rule.allow")):
        if rules:
            usable = [rule for rule in rules if public or rule.private]
            if not usable:
                return ("deny", "address.not_public", _attributed(rules, request, []).id)
            return (verdict, reason, _attributed(usable, request, []).id)
    return _posture(document, request, public)


def _denying(document: Document, request: Request, addresses: Sequence[Address], now_ms: int) -> list[Rule]:
    return [rule for rule in _of(document, Kind.DENY) if _denies(rule, request, addresses, now_ms)]


def _of(document: Document, kind: Kind) -> list[Rule]:
    return [rule for rule in document.rules if rule.kind is kind]


def _meta(both: Sequence[Document], request: Request, addresses: Sequence[Address]) -> str:
    subject, host = request.subject, request.host
    name = host if isinstance(host, str) else ""
    dialled = [*request.resolved, *([host] if isinstance(host, Address) else [])]
    classes = {str(classify(address)) for address in dialled}
    inside = {str(classify(address)) for address in addresses if address not in dialled}
    classes |= inside & {"loopback", "linklocal", "multicast"}
    loops = ("localhost", "localdomain", "localhost6", "localdomain6", "ip6-localhost", "ip6-loopback")
    tests = [
        ("meta.attribution", subject.agent == "" or subject.project == ""),
        ("meta.project", subject.project != both[0].project),
        ("meta.proto", request.proto not in ("tcp", "udp")),
        ("meta.dns_bypass", request.port in (53, 784, 853, 8853)),
        ("meta.loopback", name.split(".")[-1] in loops or bool(classes & {"loopback", "unspecified"})),
        ("meta.metadata", _metadata_name(name) or any(is_metadata(address) for address in addresses)),
        ("meta.special_address", bool(classes & {"linklocal", "multicast", "reserved"})),
        (
            "meta.control_plane",
            any((place, request.port) in each.control for each in both for place in (host, *addresses)),
        ),
    ]
    return next((code for code, hit in tests if hit), "")


def _metadata_name(name: str) -> bool:
    return f".{name}".endswith((".metadata.google.internal", ".metadata.goog", ".metadata"))


def _sni(document: Document, request: Request) -> str:
    rule = document.knobs.sni
    if rule is SniRule.LOG or request.sni is Sni.UNSEEN:
        return ""
    if request.sni is Sni.ABSENT:
        return "sni.missing" if rule is SniRule.REQUIRE else ""
    return "" if request.sni == request.host else "sni.mismatch"


def _reaches(scope: Scope, target: str | Address) -> bool:
    if isinstance(target, Address):
        if scope.net is None or scope.net.family != target.family:
            return False
        network = ipaddress.ip_network((scope.net.value, scope.net.length)) if target.family == 4 else None
        if network is None:
            network6 = ipaddress.IPv6Network((scope.net.value, scope.net.length))
            return ipaddress.IPv6Address(target.value) in network6
        return ipaddress.IPv4Address(target.value) in network
    if scope.reach is Reach.NET:
        return False
    if scope.reach is Reach.ANY:
        return True
    mine, theirs = scope.name.split("."), target.split(".")
    if mine == theirs:
        return scope.reach in (Reach.HOST, Reach.TREE)
    below = len(theirs) > len(mine) and theirs[-len(mine) :] == mine
    return below and scope.reach in (Reach.TREE, Reach.BELOW)


def _in(port: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(port in range(low, high + 1) for low, high in ranges)


def _covers(item: Rule | Lease, target: str | Address, port: int) -> bool:
    admitted = any(_reaches(s, target) and _in(port, s.ports or item.ports) for s in item.to)
    return admitted and not _abstains(item, target, port)


def _abstains(item: Rule | Lease, target: str | Address, port: int) -> bool:
    return any(_reaches(s, target) and _in(port, s.ports or ANY_PORT) for s in item.except_)


def _who_when(rule: Rule, request: Request, now_ms: int) -> bool:
    subject = request.subject
    return (
        request.proto in rule.protocols
        and (not rule.agents or subject.agent in rule.agents)
        and (not rule.nodes or subject.node in rule.nodes)
        and (rule.when is None or _holds(rule.when, now_ms))
    )


def _holds(when: When, now_ms: int) -> bool:
    if when.from_ms is not None and now_ms < when.from_ms:
        return False
    if when.until_ms is not None and now_ms >= when.until_ms:
        return False
    if when.daily is None and len(when.days) == _DAYS:
        return True
    start, length = when.daily or (0, 1440)
    today, minute = divmod(now_ms // 60_000, 1440)
    for day, at in ((today, minute), (today - 1, minute + 1440)):  # a window of today, or of yesterday
        weekday = (day + 3) % _DAYS  # 1970-01-01 was a Thursday, Monday is 0
        if weekday in when.days and start <= at < start + length:
            return True
    return False


def _matches(rule: Rule, request: Request, now_ms: int) -> bool:
    return _who_when(rule, request, now_ms) and _covers(rule, request.host, request.port)


def _denies(rule: Rule, request: Request, addresses: Sequence[Address], now_ms: int) -> bool:
    if not _who_when(rule, request, now_ms):
        return False
    if _covers(rule, request.host, request.port):
        return True
    if _abstains(rule, request.host, request.port):
        return False
    return any(_covers(rule, address, request.port) for address in addresses)


def _lease_matches(lease: Lease, request: Request, now_ms: int) -> bool:
    subject = request.subject
    return (
        lease.state == "active"
        and lease.issuer == "home"
        and lease.nbf_ms <= now_ms < lease.exp_ms
        and lease.project == subject.project
        and (not lease.agents or subject.agent in lease.agents)
        and (not lease.nodes or subject.node in lease.nodes)
        and (not lease.job or lease.job == subject.job)
        and request.proto in lease.protocols
        and _covers(lease, request.host, request.port)
    )


def _attributed(rules: list[Rule], request: Request, addresses: Sequence[Address]) -> Rule:
    def best(rule: Rule) -> Any:
        ranks = []
        for target in (request.host, *addresses):
            for scope in rule.to:
                ports = scope.ports or rule.ports
                if (
                    _reaches(scope, target)
                    and _in(request.port, ports)
                    and not _abstains(rule, target, request.port)
                ):
                    ranks.append(_rank(scope))
            if ranks and target == request.host:
                break  # the host itself explains the match better than its addresses do
            if ranks:
                break
        return max(ranks)

    # Rules of the project stand before those of the baseline, each in their order.
    place = {id(rule): (number, rule.id) for number, rule in enumerate(rules)}
    return min(rules, key=lambda rule: (tuple(-n for n in best(rule)), place[id(rule)]))


def _rank(scope: Scope) -> tuple[int, int]:
    if scope.reach is Reach.HOST or (
        scope.net and scope.net.length == (32 if scope.net.family == 4 else 128)
    ):
        return (2, 0)
    if scope.reach is Reach.ANY:
        return (0, 0)
    return (1, scope.net.length if scope.net else len(scope.name.split(".")))


def _budgets(both: Sequence[Document], names: set[str], used: dict[tuple[str, str], int]) -> Answer | None:
    budgets = dict(both[0].budgets)
    always = {"default"} & set(budgets)
    if len(both) > 1 and "default" in both[1].budgets:
        budgets["baseline/default"] = both[1].budgets["default"]
        always.add("baseline/default")
    soft = None
    for name in sorted(names | always, key=lambda name: (name not in always, name)):
        budget = budgets[name]
        if any(used.get((name, limit.counter), 0) >= limit.amount for limit in budget.limits):
            if not budget.soft:
                return ("deny", "budget.exceeded", name)
            soft = soft or name
    return ("ask", "budget.ask", soft) if soft else None


def _posture(document: Document, request: Request, public: bool) -> Answer:
    literal = isinstance(request.host, Address)
    posture, default = document.posture, document.default
    if posture is Posture.OFF:
        return ("allow", "posture.off", "")
    if posture is Posture.CUSTOM and default is Default.ASK:
        if not public:
            return ("deny", "address.not_public", "")
        return ("ask", "posture.ask_ip" if literal else "posture.ask", "")
    if literal:
        return ("deny", "ip_literal.denied", "")
    if posture is Posture.ALLOWLIST or (posture is Posture.CUSTOM and default is Default.DENY):
        return ("deny", "posture.default_deny", "")
    labels = str(request.host).split(".")
    if len(labels) < 2 or labels[-1] in _SPECIAL_ENDS.split():
        return ("deny", "posture.not_public_name", "")
    if request.proto != "tcp" or request.port not in document.knobs.public_ports:
        return ("deny", "posture.port", "")
    return ("allow", "posture.public", "") if public else ("deny", "address.not_public", "")
