"""A second evaluator, written to be read: no index, no shortcut, one loop per sentence of the spec.

It shares the data types and the address table with the product (those have tables of their own) and
none of the matching, attribution or precedence.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from exeat.policy.addresses import AddressClass, classify, embedded_v4, is_metadata
from exeat.policy.model import Address, Sni
from exeat.policy.postures import Default, Posture, SniRule
from exeat.policy.rules import Kind
from exeat.policy.scopes import ANY_PORT, Reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from exeat.policy.addresses import Cidr
    from exeat.policy.document import Document
    from exeat.policy.leases import Lease
    from exeat.policy.model import Request
    from exeat.policy.rules import Budget, Rule, When
    from exeat.policy.scopes import Scope

_DAYS = 7
_SPECIAL_ENDS = (
    "localhost local internal test example invalid onion arpa alt lan home corp intranet private localdomain"
)


_ALWAYS = {"default", "baseline/default"}
_METADATA = (
    "metadata metadata.google.internal metadata.goog metadata.azure.internal metadata.tencentyun.com "
    "metadata.platformequinix.com metadata.packet.net instance-data instance-data.ec2.internal "
    "rancher-metadata rancher-metadata.rancher.internal"
)


class Answer(NamedTuple):
    """As `Decision`: what was decided, by what, what else matched, and which budgets to charge."""

    verdict: str
    reason: str
    rule: str = ""
    matched: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    lease: str = ""
    raw: bool = False
    ech: bool = False
    direct: bool = False
    records: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What the node, the moment and the organisation add to a policy."""

    leases: Sequence[Lease] = ()
    used: Mapping[tuple[str, str], Any] = field(default_factory=dict)  # (budget, counter) -> spent
    lease_uses: Mapping[str, int] = field(default_factory=dict)
    lease_bytes: Mapping[str, int] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    min_epoch: int = 0
    treat_as_public: tuple[Cidr, ...] = ()
    control: frozenset[tuple[str | Address, int]] = frozenset()
    host_local: frozenset[Address] = frozenset()
    # Its deny rules, ceiling, control endpoints, end and default budget (`baseline/default`) hold too.
    baseline: Document | None = None

    def with_baseline(self, document: Document) -> list[Document]:
        return [document] if self.baseline is None else [document, self.baseline]

    def denies(self, document: Document) -> list[Rule]:
        """Rules of the project stand before those of the baseline, each in their order."""
        theirs = [] if self.baseline is None else _of(self.baseline, Kind.DENY)
        marked = [replace(rule, id=f"baseline/{rule.id}", order=10**6 + rule.order) for rule in theirs]
        return [*_of(document, Kind.DENY), *marked]

    def budgets(self, document: Document) -> dict[str, Budget]:
        found = dict(document.budgets)
        if self.baseline is not None and "default" in self.baseline.budgets:
            found["baseline/default"] = self.baseline.budgets["default"]
        return found

    def classify(self, address: Address) -> AddressClass:
        treated = any(_holds_address(net, address) for net in self.treat_as_public)
        return AddressClass.PUBLIC if treated else classify(address)


class _Matching(NamedTuple):
    """Everything that matches a request."""

    deny: list[Rule]
    ask: list[Rule]
    allow: list[Rule]
    leases: list[Lease]

    def budgets(self, known: Iterable[str]) -> list[str]:
        rules = [*self.ask, *self.allow]
        named = {rule.budget for rule in rules} | {lease.budget for lease in self.leases}
        return sorted(named - {""} | _ALWAYS & set(known))


def reference(document: Document, request: Request, now_ms: int, around: Surroundings) -> Answer:
    """The answer for a canonical request."""
    addresses: list[Address] = []
    for address in (*([request.host] if isinstance(request.host, Address) else []), *request.resolved):
        addresses += [address, *embedded_v4(address)]

    refusal = _meta(document, request, addresses, around)
    both = around.with_baseline(document)
    if not refusal and any(each.expires_ms is not None and each.expires_ms <= now_ms for each in both):
        refusal = "policy.expired"
    refusal = refusal or _sni(document, request)
    if refusal:
        return Answer("deny", refusal)

    denying = [rule for rule in around.denies(document) if _denies(rule, request, addresses, now_ms)]
    asking = [rule for rule in _of(document, Kind.ASK) if _matches(rule, request, now_ms)]
    allowing = [rule for rule in _of(document, Kind.ALLOW) if _matches(rule, request, now_ms)]
    active = [x for x in around.leases if _lease_matches(x, request, now_ms) and _lives(x, around)]
    all_ = _Matching(
        _most_specific_first(denying, request, addresses),
        _most_specific_first(asking, request, []),
        _most_specific_first(allowing, request, []),
        sorted(active, key=lambda lease: lease.id),
    )
    return _decided(document, request, now_ms, around, all_)._replace(
        matched=tuple(item.id for items in all_ for item in items),
        budgets=tuple(all_.budgets(around.budgets(document))),
    )


def _decided(
    document: Document, request: Request, now_ms: int, around: Surroundings, all_: _Matching
) -> Answer:
    if all_.deny:
        return Answer("deny", "rule.deny", all_.deny[0].id)
    for each in around.with_baseline(document):
        if each.ceiling is not None and not any(_matches(r, request, now_ms) for r in each.ceiling):
            return Answer("deny", "ceiling.exceeded")
    known = around.budgets(document)
    spent = _budgets(known, all_.budgets(known), around.used)
    if spent:
        return spent

    strangers = [address for address in request.resolved if address != request.host]
    public = all(around.classify(address) is AddressClass.PUBLIC for address in strangers)
    granting = _granting(all_, public)
    for lease in all_.leases:
        if public or lease.private:
            return Answer("allow", "lease.active", lease.id, lease=lease.id, **_speech(granting))
    answer = _rules_or_posture(document, request, all_, public)
    if all_.leases and answer.verdict == "deny":
        return Answer("deny", "address.not_public", all_.leases[0].id)
    if answer.verdict == "ask":  # on the terms of the one rule that asks
        granting = [item for item in granting if item.id == answer.rule]
    return answer._replace(**_speech(granting)) if answer.verdict != "deny" else answer


def _speech(granting: Sequence[Rule | Lease]) -> dict[str, bool]:
    return {
        word: any(getattr(item, word) for item in granting) for word in ("raw", "ech", "direct", "records")
    }


def _granting(all_: _Matching, public: bool) -> list[Rule | Lease]:
    """Whoever lets it out or, where somebody must be asked, asks."""
    asked_for = all_.ask and not any(public or lease.private for lease in all_.leases)
    rules = all_.ask if asked_for else [] if all_.ask else all_.allow
    return [item for item in (*all_.leases, *rules) if public or item.private]


def _rules_or_posture(document: Document, request: Request, all_: _Matching, public: bool) -> Answer:
    for rules, verdict, reason in ((all_.ask, "ask", "rule.ask"), (all_.allow, "allow", "rule.allow")):
        if rules:
            usable = [rule for rule in rules if public or rule.private]
            if not usable:
                return Answer("deny", "address.not_public", rules[0].id)
            return Answer(verdict, reason, usable[0].id)
    return _posture(document, request, public)


def _of(document: Document, kind: Kind) -> list[Rule]:
    return [rule for rule in document.rules if rule.kind is kind]


def _meta(document: Document, request: Request, addresses: Sequence[Address], around: Surroundings) -> str:
    subject, host = request.subject, request.host
    name = host if isinstance(host, str) else ""
    dialled = [*request.resolved, *([host] if isinstance(host, Address) else [])]
    classes = {str(around.classify(address)) for address in dialled}
    inside = {str(around.classify(address)) for address in addresses if address not in dialled}
    classes |= inside & {"loopback", "linklocal", "multicast"}
    loops = ("localhost", "localdomain", "localhost6", "localdomain6", "ip6-localhost", "ip6-loopback")
    tests = [
        ("meta.attribution", subject.agent == "" or subject.project == ""),
        ("meta.project", subject.project != document.project),
        ("meta.proto", request.proto not in ("tcp", "udp")),
        ("meta.dns_bypass", request.port in (53, 784, 853, 8853)),
        ("meta.loopback", name.split(".")[-1] in loops or bool(classes & {"loopback", "unspecified"})),
        ("meta.loopback", any(address in around.host_local for address in addresses)),
        ("meta.metadata", _metadata_name(name) or any(is_metadata(address) for address in addresses)),
        ("meta.special_address", bool(classes & {"linklocal", "multicast", "reserved"})),
        (
            "meta.control_plane",
            any(
                (place, request.port) in control
                for control in (around.control, *(each.control for each in around.with_baseline(document)))
                for place in (host, *addresses)
            ),
        ),
    ]
    return next((code for code, hit in tests if hit), "")


def _metadata_name(name: str) -> bool:
    return any(f".{name}".endswith(f".{known}") for known in _METADATA.split())


def _holds_address(net: Cidr, address: Address) -> bool:
    network = (ipaddress.IPv4Network if net.family == 4 else ipaddress.IPv6Network)((net.value, net.length))
    plain = (ipaddress.IPv4Address if address.family == 4 else ipaddress.IPv6Address)(address.value)
    return plain in network


def _sni(document: Document, request: Request) -> str:
    rule = document.knobs.sni
    if rule is SniRule.LOG or request.sni is Sni.UNSEEN:
        return ""
    if request.sni is Sni.ABSENT:
        return "sni.missing" if rule is SniRule.REQUIRE else ""
    return "" if request.sni == request.host else "sni.mismatch"


def _reaches(scope: Scope, target: str | Address) -> bool:
    if isinstance(target, Address):
        return scope.net is not None and _holds_address(scope.net, target)
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


def _lives(lease: Lease, around: Surroundings) -> bool:
    return (
        lease.id not in around.revoked
        and lease.epoch >= around.min_epoch
        and (lease.max_uses is None or around.lease_uses.get(lease.id, 0) < lease.max_uses)
        and (lease.max_bytes is None or around.lease_bytes.get(lease.id, 0) < lease.max_bytes)
    )


def _most_specific_first(rules: list[Rule], request: Request, addresses: Sequence[Address]) -> list[Rule]:
    def ranks(rule: Rule, targets: Iterable[str | Address]) -> list[Any]:
        return [
            _rank(scope)
            for target in targets
            for scope in rule.to
            if _reaches(scope, target)
            and _in(request.port, scope.ports or rule.ports)
            and not _abstains(rule, target, request.port)
        ]

    def best(rule: Rule) -> Any:  # the host itself explains the match better than its addresses do
        return max(ranks(rule, [request.host]) or ranks(rule, addresses))

    return sorted(rules, key=lambda r: (tuple(-n for n in best(r)), r.order, r.id))


def _rank(scope: Scope) -> tuple[int, int]:
    if scope.reach is Reach.HOST or (
        scope.net and scope.net.length == (32 if scope.net.family == 4 else 128)
    ):
        return (2, 0)
    if scope.reach is Reach.ANY:
        return (0, 0)
    return (1, scope.net.length if scope.net else len(scope.name.split(".")))


def _budgets(
    known: Mapping[str, Budget], names: list[str], used: Mapping[tuple[str, str], Any]
) -> Answer | None:
    """Corrupt before exhausted, hard before soft, those that always hold before the others."""
    corrupt: list[tuple[bool, str]] = []
    hard: list[str] = []
    soft: list[str] = []
    for name in sorted(names, key=lambda name: (name not in _ALWAYS, name)):
        budget = known.get(name)
        limits = budget.limits if budget else ()
        spent = [used.get((name, limit.counter), 0) for limit in limits]
        if budget is None or any(type(amount) is not int or amount < 0 for amount in spent):
            corrupt.append((budget is not None and budget.soft, name))
        elif any(amount >= limit.amount for amount, limit in zip(spent, limits, strict=True)):
            (soft if budget.soft else hard).append(name)
    if corrupt:
        return Answer("deny", "budget.state", sorted(corrupt, key=lambda one: one[0])[0][1])
    if hard:
        return Answer("deny", "budget.exceeded", hard[0])
    return Answer("ask", "budget.ask", soft[0]) if soft else None


def _posture(document: Document, request: Request, public: bool) -> Answer:
    literal = isinstance(request.host, Address)
    posture, default = document.posture, document.default
    if posture is Posture.OFF:
        return Answer("allow", "posture.off")
    if posture is Posture.CUSTOM and default is Default.ASK:
        if not public:
            return Answer("deny", "address.not_public")
        return Answer("ask", "posture.ask_ip" if literal else "posture.ask")
    if literal:
        return Answer("deny", "ip_literal.denied")
    if posture is Posture.ALLOWLIST or (posture is Posture.CUSTOM and default is Default.DENY):
        return Answer("deny", "posture.default_deny")
    labels = str(request.host).split(".")
    if len(labels) < 2 or labels[-1] in _SPECIAL_ENDS.split():
        return Answer("deny", "posture.not_public_name")
    if request.proto != "tcp" or request.port not in document.knobs.public_ports:
        return Answer("deny", "posture.port")
    return Answer("allow", "posture.public") if public else Answer("deny", "address.not_public")
