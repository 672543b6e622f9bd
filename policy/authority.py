"""What a policy grants at one place, as sets of ports: the algebra under `widens` and `reach`.

Authority is a lattice: *grantable* (a person's lease would open it) < *ask* < *allow*. A rule is
reduced to what one host sees of it, its ports and its traits, so that the many hosts that see the
same share one computation. The meaning is that of `decide`; tests hold the two together.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from exeat.policy.addresses import embedded_v4
from exeat.policy.meta import DNS_PORTS
from exeat.policy.model import Address, Speech, permits
from exeat.policy.places import Covers, Host
from exeat.policy.portsets import ALL_PORTS, NO_PORTS, mask_of, ports_mask
from exeat.policy.postures import Default, Posture, is_public_name
from exeat.policy.rules import ALWAYS, Kind, Rule, When
from exeat.policy.scopes import ANY_PORT

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from exeat.policy.document import Document
    from exeat.policy.scopes import Scope

ValueT = TypeVar("ValueT", bound="Hashable")
OPEN = ALL_PORTS & ~ports_mask(DNS_PORTS)  # no policy opens the others


class Level(StrEnum):
    """How much of something a policy gives away."""

    ALLOW = "allow"
    ASK = "ask"
    GRANTABLE = "grantable"
    NONE = "none"

    @property
    def rank(self) -> int:
        return _RANKS[self]


_RANKS = {Level.NONE: 0, Level.GRANTABLE: 1, Level.ASK: 2, Level.ALLOW: 3}
LEVELS = (Level.ALLOW, Level.ASK, Level.GRANTABLE)


class Traits(NamedTuple):
    """Everything of a rule but where it reaches."""

    kind: Kind
    protocols: tuple[str, ...]
    agents: frozenset[str]
    nodes: frozenset[str]
    when: When | None
    budget: str
    private: bool
    raw: bool
    ech: bool
    direct: bool
    records: bool
    approvals: int
    max_ttl_ms: int


class Interned(Generic[ValueT]):
    """Small numbers for values that are slow to hash; equal values get equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[ValueT, int] = {}
        self.values: list[ValueT] = []

    def number(self, value: ValueT) -> int:
        known = self._numbers.get(value)
        if known is None:
            known = self._numbers[value] = len(self.values)
            self.values.append(value)
        return known


class Tables(NamedTuple):
    """Shared by the two sides of a comparison, so that their numbers mean the same."""

    traits: Interned[Traits]
    ports: Interned[int]


def new_tables() -> Tables:
    return Tables(Interned(), Interned())


Grip = tuple[int, int]  # numbers of traits and of a port set


class Place(NamedTuple):
    """Everything a policy can tell about a host. Equal places have equal authority."""

    literal: bool
    public_name: bool
    public: bool  # every address it may be dialled at is
    closed: int  # number of the port set that is control plane here
    rules: tuple[Grip, ...]  # deny and allow sorted, then ask as attributed
    ceiling: tuple[Grip, ...] | None


class Terms(NamedTuple):
    """What an ask needs: at least so many approvals, for at most so long."""

    ports: int
    approvals: int
    max_ttl_ms: int


class Authority(NamedTuple):
    """Port sets; `allow` and `ask` are disjoint and both inside `grantable`."""

    allow: int
    ask: int
    grantable: int
    terms: tuple[Terms, ...] = ()
    budgets: tuple[tuple[str, int], ...] = ()  # which budgets a flow is charged to, where

    def at_least(self, level: Level) -> int:
        if level is Level.ALLOW:
            return self.allow
        return self.allow | self.ask | (0 if level is Level.ASK else self.grantable)


NOTHING = Authority(0, 0, 0)


class Who(NamedTuple):
    proto: str
    agent: str
    node: str
    at_ms: int
    speech: Speech = Speech.JUDGED


class _Filed(NamedTuple):
    rule: Rule
    traits: int
    ports: int
    specificity: tuple[int, int]


class Side:
    """One document, indexed to answer for any host."""

    def __init__(self, document: Document, tables: Tables) -> None:
        self.document = document
        self._tables = tables
        self._rules = Covers(self._file(document.rules))
        self._ceiling = None if document.ceiling is None else Covers(self._file(document.ceiling))
        self._control: dict[Host, int] = {}
        for host, port in document.control:
            self._control[host] = self._control.get(host, 0) | 1 << port
        self._open_closed = tables.ports.number(NO_PORTS)
        self._public_ports = ports_mask(document.knobs.public_ports)
        zero = {b.name: b.soft for b in document.budgets.values() if any(x.amount <= 0 for x in b.limits)}
        self._never = frozenset(name for name, soft in zero.items() if not soft)
        self._asks_always = frozenset(name for name, soft in zero.items() if soft)

    def _file(self, rules: Iterable[Rule]) -> Iterator[tuple[Scope, _Filed]]:
        knobs = self.document.knobs
        for rule in rules:
            asks = rule.kind is Kind.ASK
            traits = Traits(
                rule.kind,
                rule.protocols,
                rule.agents,
                rule.nodes,
                rule.when,
                rule.budget,
                rule.private,
                rule.raw,
                rule.ech,
                rule.direct,
                rule.records,
                (rule.approvals or knobs.approvals) if asks else 0,
                (rule.max_ttl_ms or knobs.max_ttl_ms) if asks else 0,
            )
            number = self._tables.traits.number(traits)
            for scope in rule.to:
                yield scope, _Filed(rule, number, mask_of(scope.ports or rule.ports), scope.specificity)

    # -- places

    def place(self, host: Host, address: Address | None = None, *, public: bool = True) -> Place:
        """`address` is where a name resolves to (None: nowhere special); `public` says of what class."""
        literal = isinstance(host, Address)
        dialled = host if isinstance(host, Address) else address
        filed, closed = self._rules.of(host), self._control.get(host, 0)
        further: list[Grip] = []
        if dialled is not None:
            further, more = self.denials(dialled, host)
            closed |= more
        return Place(
            literal,
            isinstance(host, str) and is_public_name(host),
            public,
            self._tables.ports.number(closed) if closed else self._open_closed,
            self._grips(filed, host, further),
            None if self._ceiling is None else self._grips(self._ceiling.of(host), host, []),
        )

    def denials(self, address: Address, host: Host | None = None) -> tuple[list[Grip], int]:
        """What denies a flow that is dialled at `address` (or carries an IPv4 address inside): deny
        rules, less those that `except` the host that was asked for; and control plane ports."""
        grips: list[Grip] = []
        closed = 0
        for place in (address, *embedded_v4(address)):
            closed |= self._control.get(place, 0)
            for filed in self._rules.of(place):
                if filed.rule.kind is Kind.DENY:
                    ports = filed.ports & ~_excepted(filed.rule, place)
                    if host is not None:
                        ports &= ~_excepted(filed.rule, host)
                    grips.append((filed.traits, self._tables.ports.number(ports)))
        return grips, closed

    def excepts_names(self, address: Address) -> tuple[str, ...]:
        """The excepts by name of the deny rules on this address: they make it differ from host to host."""
        found = {
            str(scope)
            for place in (address, *embedded_v4(address))
            for filed in self._rules.of(place)
            if filed.rule.kind is Kind.DENY
            for scope in filed.rule.except_
            if scope.net is None
        }
        return tuple(sorted(found))

    def _grips(self, filed: list[_Filed], host: Host, further: list[Grip]) -> tuple[Grip, ...]:
        number, values = self._tables.ports.number, self._tables.ports.values
        if len(filed) == 1 and not further and not filed[0].rule.except_:
            return ((filed[0].traits, number(filed[0].ports)),)
        plain: dict[int, int] = {}
        asks: list[tuple[_Filed, int]] = []
        for traits, ports_number in further:
            plain[traits] = plain.get(traits, 0) | values[ports_number]
        for each in filed:
            ports = each.ports & ~_excepted(each.rule, host) if each.rule.except_ else each.ports
            if each.rule.kind is Kind.ASK:
                asks.append((each, ports))
            elif ports:
                plain[each.traits] = plain.get(each.traits, 0) | ports
        grips = sorted((traits, number(ports)) for traits, ports in plain.items() if ports)
        return (*grips, *self._ask_grips(asks)) if asks else tuple(grips)

    def _ask_grips(self, asks: list[tuple[_Filed, int]]) -> list[Grip]:
        """Most specific first, then in the order of the document, as `decide` attributes them; where
        all ask on the same terms the order says nothing."""
        number = self._tables.ports.number
        terms = {self._tables.traits.values[each.traits][-6:] for each, _ in asks}
        if len(terms) > 1:
            asks.sort(key=_attribution)
            return [(each.traits, number(ports)) for each, ports in asks if ports]
        merged: dict[int, int] = {}
        for each, ports in asks:
            merged[each.traits] = merged.get(each.traits, 0) | ports
        return sorted((traits, number(ports)) for traits, ports in merged.items() if ports)

    # -- authority

    def authority(self, place: Place, who: Who) -> Authority:
        """What `who` may do there while all budgets are unspent."""
        document = self.document
        if document.expires_ms is not None and who.at_ms >= document.expires_ms:
            return NOTHING
        denied, asked, allowed = self._applying(place.rules, who)
        grantable = OPEN & ~self._tables.ports.values[place.closed]
        for ports, _ in denied:
            grantable &= ~ports
        if place.ceiling is not None:
            grantable &= _union(self._applying(place.ceiling, who, Kind.CEILING)[0])
        if not grantable:
            return NOTHING
        ask_all, allow_all = _union(asked), _union(allowed)
        speaking = [held for held in allowed if permits(held[1], who.speech)]
        allow = _union(speaking, usable=place.public) & ~ask_all & grantable
        uncovered = grantable & ~(ask_all | allow_all)
        terms = self._terms(asked, place, uncovered, grantable, who.speech)
        allow |= self._posture_allows(place, who) & uncovered
        authority = Authority(allow, _union_terms(terms), grantable, terms, self._charged(asked, allowed))
        return self._after_zero_budgets(authority, who.speech)

    def _applying(
        self, grips: tuple[Grip, ...], who: Who, kind: Kind = Kind.DENY
    ) -> tuple[list[_Held], list[_Held], list[_Held]]:
        """The deny (or ceiling), ask and allow grips that hold for `who`."""
        traits_of, ports_of = self._tables.traits.values, self._tables.ports.values
        refusing: list[_Held] = []
        asking: list[_Held] = []
        allowing: list[_Held] = []
        for traits_number, ports_number in grips:
            traits = traits_of[traits_number]
            if (
                who.proto not in traits.protocols
                or (traits.agents and who.agent not in traits.agents)
                or (traits.nodes and who.node not in traits.nodes)
                or (traits.when is not None and not traits.when.holds(who.at_ms))
            ):
                continue
            group = refusing if traits.kind is kind else asking if traits.kind is Kind.ASK else allowing
            group.append((ports_of[ports_number], traits))
        return refusing, asking, allowing

    def _terms(
        self, asked: list[_Held], place: Place, uncovered: int, grantable: int, speech: Speech
    ) -> tuple[Terms, ...]:
        terms: list[Terms] = []
        left = grantable
        for ports, traits in asked:
            if (place.public or traits.private) and ports & left:
                # The rule that asks says what the lease will permit, whatever others say.
                if permits(traits, speech):
                    terms.append(Terms(ports & left, traits.approvals, traits.max_ttl_ms))
                left &= ~ports
        document = self.document
        if document.posture is Posture.CUSTOM and document.default is Default.ASK and place.public:
            knobs = document.knobs
            if uncovered and speech is Speech.JUDGED:
                terms.append(Terms(uncovered, knobs.approvals, knobs.max_ttl_ms))
        return tuple(terms)

    def _posture_allows(self, place: Place, who: Who) -> int:
        """The ports that the posture opens where no rule speaks."""
        document = self.document
        if who.speech is not Speech.JUDGED:
            return NO_PORTS
        if document.posture is Posture.OFF:
            return ALL_PORTS
        public = document.posture is Posture.PUBLIC or (
            document.posture is Posture.CUSTOM and document.default is Default.PUBLIC
        )
        opens = public and place.public_name and place.public and who.proto == "tcp"
        return self._public_ports if opens else NO_PORTS

    def _charged(self, *groups: list[_Held]) -> tuple[tuple[str, int], ...]:
        charged: dict[str, int] = {}
        if not self.document.budgets:
            return ()
        for ports, traits in (held for group in groups for held in group):
            if traits.budget:
                charged[traits.budget] = charged.get(traits.budget, 0) | ports
        charged |= {name: ALL_PORTS for name in ALWAYS if name in self.document.budgets}
        return tuple(sorted(charged.items()))

    def _after_zero_budgets(self, authority: Authority, speech: Speech) -> Authority:
        """A budget of zero is always used up: hard ones close, soft ones turn everything into an ask."""
        if not self._never and not self._asks_always:
            return authority
        allow, ask, grantable, terms, budgets = authority
        shut = _union([(ports, None) for name, ports in budgets if name in self._never])
        asks = _union([(ports, None) for name, ports in budgets if name in self._asks_always])
        grantable &= ~shut
        asks &= grantable
        knobs = self.document.knobs
        allow, ask = allow & grantable & ~asks, ask & grantable & ~asks
        kept = tuple(Terms(each.ports & grantable & ~asks, *each[1:]) for each in terms)
        if asks and speech is Speech.JUDGED:
            ask |= asks
            kept = (*kept, Terms(asks, knobs.approvals, knobs.max_ttl_ms))
        return Authority(allow, ask, grantable, kept, budgets)


_Held = tuple[int, Traits]


def _excepted(rule: Rule, host: Host) -> int:
    ports = 0
    for scope in rule.except_:
        if scope.reaches(host):
            ports |= mask_of(scope.ports or ANY_PORT)
    return ports


def _union(held: Iterable[tuple[int, Traits | None]], *, usable: bool = True) -> int:
    ports = 0
    for each, traits in held:
        if usable or (traits is not None and traits.private):
            ports |= each
    return ports


def _union_terms(terms: tuple[Terms, ...]) -> int:
    ports = 0
    for each in terms:
        ports |= each.ports
    return ports


def _attribution(item: tuple[_Filed, int]) -> tuple[int, int, int, str]:
    filed, _ = item
    return -filed.specificity[0], -filed.specificity[1], filed.rule.order, filed.rule.id
