"""Rules, groups and budgets from nodes of a policy file. Raises PolicyError with file, line, column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from exeat.policy.errors import ScopeError, UnitError
from exeat.policy.model import Address
from exeat.policy.rules import (
    COUNTERS,
    DAY_MINUTES,
    DAYS,
    DEFAULT_PORTS,
    DEFAULT_PROTOCOLS,
    PROTOCOLS,
    SIZE_COUNTERS,
    Budget,
    Kind,
    Limit,
    Rule,
    When,
)
from exeat.policy.scopes import Ports, Reach, Scope, parse_ports, parse_scope
from exeat.policy.units import (
    parse_count,
    parse_duration,
    parse_rate_count,
    parse_rate_size,
    parse_rate_usd,
    parse_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exeat.policy.postures import Knobs
    from exeat.policy.tree import Node

MAX_WHY = 500
VIA = ("proxy", "direct")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CLOCK = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")
_T = TypeVar("_T")

_COMMON = frozenset({"id", "to", "ports", "proto", "except", "why", "broad"})
_WHO_WHEN = frozenset({"agent", "node", "when"})
_GRANT = _COMMON | _WHO_WHEN | {"budget", "private", "raw", "ech", "records"}
RULE_KEYS = {
    Kind.ALLOW: _GRANT,
    Kind.ASK: _GRANT | {"via", "ttl", "max_ttl", "approvals"},
    Kind.DENY: _COMMON | _WHO_WHEN,
    Kind.CEILING: _COMMON,
}


class PublicSuffixes(Protocol):
    """Knows the public suffix list; policy code does no file I/O itself."""

    def is_broad(self, name: str) -> bool:
        """Whether `name` is a public suffix or an ancestor of one (`co.uk`, `amazonaws.com`)."""
        ...


@dataclass(frozen=True)
class Context:
    """What a rule may refer to. `suffixes` is None for documents that were checked when authored."""

    groups: Mapping[str, tuple[Scope, ...]]
    budgets: Mapping[str, Budget]
    knobs: Knobs
    suffixes: PublicSuffixes | None


def convert(node: Node, parse: Callable[[str], _T]) -> _T:
    """Parse a scalar, giving unit and scope errors the node's place in the file."""
    try:
        return parse(node.scalar())
    except (ScopeError, UnitError) as error:
        raise node.translate(error) from None


def one_of(node: Node, words: tuple[str, ...], code: str) -> str:
    text = node.scalar()
    if text not in words:
        raise node.error(code, f"`{text}` is not one of {', '.join(words)}")
    return text


def identifier(node: Node) -> str:
    text = node.scalar()
    if not _ID.fullmatch(text):
        raise node.error("doc.id", f"`{text}` is not an id: letters, digits, `.`, `_`, `-`, at most 64")
    return text


def load_rule(node: Node, kind: Kind, order: int, context: Context) -> Rule:
    keys = node.mapping(RULE_KEYS[kind])
    if "to" not in keys:
        raise node.error("doc.missing_key", "a rule needs `to`")
    broad = "broad" in keys and _boolean(keys["broad"])
    ttl_ms, max_ttl_ms = _lease_times(keys, context.knobs)
    rule = Rule(
        id=identifier(keys["id"]) if "id" in keys else "",
        kind=kind,
        to=load_scopes(keys["to"], context, broad=broad or kind is Kind.DENY),
        ports=_ports(keys["ports"]) if "ports" in keys else DEFAULT_PORTS[kind],
        protocols=_protocols(keys["proto"]) if "proto" in keys else DEFAULT_PROTOCOLS[kind],
        except_=load_scopes(keys["except"], context, broad=True) if "except" in keys else (),
        agents=_words(keys.get("agent")),
        nodes=_words(keys.get("node")),
        when=_when(keys["when"]) if "when" in keys else None,
        budget=_budget_name(keys["budget"], context) if "budget" in keys else "",
        private="private" in keys and _boolean(keys["private"]),
        raw="raw" in keys and _boolean(keys["raw"]),
        ech="ech" in keys and _boolean(keys["ech"]),
        direct="via" in keys and one_of(keys["via"], VIA, "rule.via") == "direct",
        records="records" in keys and _boolean(keys["records"]),
        broad=broad,
        why=_why(keys["why"]) if "why" in keys else "",
        ttl_ms=ttl_ms,
        max_ttl_ms=max_ttl_ms,
        approvals=_approvals(keys["approvals"]) if "approvals" in keys else None,
        order=order,
    )
    return rule if rule.id else rule.with_content_id()


def load_scopes(node: Node, context: Context, *, broad: bool) -> tuple[Scope, ...]:
    """A scope or a list of them; `$name` is the scopes of a group. Order and repeats mean nothing.

    `broad` permits wildcards over public suffixes. Only what grants must ask for that: a wide deny
    or except refuses more, and the shared-hosting suffixes are exactly what people want to deny.
    """
    found: dict[Scope, None] = {}
    for item in node.one_or_more():
        text = item.scalar()
        group = context.groups.get(text[1:]) if text.startswith("$") else None
        if group is None and text.startswith("$"):
            raise item.error("doc.unknown_group", f"no group `{text[1:]}` in this file")
        for scope in group if group is not None else (convert(item, parse_scope),):
            if not broad and is_too_broad(scope, context.suffixes):
                message = f"`{scope}` covers names of many owners: narrow it, or say `broad: true`"
                raise item.error("scope.too_broad", message)
            found[scope] = None
    return tuple(sorted(found, key=str))


def is_too_broad(scope: Scope, suffixes: PublicSuffixes | None) -> bool:
    if suffixes is None or scope.reach in (Reach.HOST, Reach.NET):
        return False
    return scope.reach is Reach.ANY or suffixes.is_broad(scope.name)


def load_groups(node: Node) -> dict[str, tuple[Scope, ...]]:
    groups = {}
    for name, value in node.mapping().items():
        if not _ID.fullmatch(name):
            raise value.error("doc.id", f"`{name}` is not a group name")
        groups[name] = tuple(dict.fromkeys(convert(item, parse_scope) for item in value.one_or_more()))
    return groups


def load_budgets(node: Node) -> dict[str, Budget]:
    return {name: _budget(name, value) for name, value in node.mapping().items()}


def _budget(name: str, node: Node) -> Budget:
    keys = node.mapping(frozenset({*COUNTERS, "on_exceed"}))
    if not _ID.fullmatch(name):
        raise node.error("doc.id", f"`{name}` is not a budget name")
    soft = "on_exceed" in keys and one_of(keys["on_exceed"], ("deny", "ask"), "budget.on_exceed") == "ask"
    limits = tuple(_limit(counter, keys[counter]) for counter in COUNTERS if counter in keys)
    if not limits:
        raise node.error(
            "doc.missing_key", f"budget `{name}` limits nothing: set one of {', '.join(COUNTERS)}"
        )
    return Budget(name, limits, soft)


def _limit(counter: str, node: Node) -> Limit:
    parse = parse_rate_size if counter in SIZE_COUNTERS else parse_rate_count
    amount, window_ms = convert(node, parse_rate_usd if counter == "usd" else parse)
    return Limit(counter, amount, window_ms)


def load_endpoint(node: Node) -> tuple[str | Address, int]:
    """`host:port` of the control plane, as a scope with exactly one host and one port."""
    scope = convert(node, parse_scope)
    port = scope.ports[0] if scope.ports else (0, 0)
    if scope.wide or len(scope.ports or ()) != 1 or port[0] != port[1]:
        raise node.error("scope.syntax", f"`{node.text}` is not HOST:PORT")
    if scope.net is not None:
        return Address(scope.net.family, scope.net.value), port[0]
    return scope.name, port[0]


def _boolean(node: Node) -> bool:
    return one_of(node, ("true", "false"), "doc.type") == "true"


def _ports(node: Node) -> Ports:
    items = node.one_or_more()
    if not items:
        raise node.error("scope.port", "an empty port list matches nothing: leave `ports` out or name some")
    texts = [item.scalar() for item in items]
    try:
        return parse_ports(texts)
    except ScopeError as error:
        raise node.translate(error) from None


def _protocols(node: Node) -> tuple[str, ...]:
    words = {one_of(item, (*PROTOCOLS, "any"), "rule.proto") for item in node.one_or_more()}
    if not words:
        raise node.error("rule.proto", "an empty protocol list matches nothing")
    return tuple(word for word in PROTOCOLS if word in words or "any" in words)


def _words(node: Node | None) -> frozenset[str]:
    if node is None:
        return frozenset()
    words = frozenset(identifier(item) for item in node.one_or_more())
    if not words:
        raise node.error("doc.type", "an empty list would match everyone: leave the key out or name some")
    return words


def _why(node: Node) -> str:
    text = node.scalar()
    if not text.isprintable() or len(text) > MAX_WHY:
        raise node.error("doc.type", f"`why` is one line of at most {MAX_WHY} printable characters")
    return text


def _budget_name(node: Node, context: Context) -> str:
    name = node.scalar()
    if name not in context.budgets:
        raise node.error("doc.unknown_budget", f"no budget `{name}` in this file")
    return name


def _approvals(node: Node) -> int:
    try:
        count = parse_count(node.scalar())
    except UnitError:
        count = 0
    if not 1 <= count <= 9:
        raise node.error("rule.approvals", "an ask needs 1 to 9 approvals")
    return count


def _lease_times(keys: Mapping[str, Node], knobs: Knobs) -> tuple[int | None, int | None]:
    ttl = convert(keys["ttl"], parse_duration) if "ttl" in keys else None
    longest = convert(keys["max_ttl"], parse_duration) if "max_ttl" in keys else None
    if longest is not None and longest > knobs.max_ttl_ms:
        raise keys["max_ttl"].error("lease.max_ttl", "`max_ttl` is longer than the preset permits")
    if ttl is not None and ttl > (longest or knobs.max_ttl_ms):
        raise keys["ttl"].error(
            "lease.max_ttl", "`ttl` is longer than `max_ttl` (or what the preset permits)"
        )
    return ttl, longest


def _when(node: Node) -> When | None:
    keys = node.mapping(frozenset({"from", "until", "daily", "days"}))
    if not keys:
        return None
    start = convert(keys["from"], parse_time) if "from" in keys else None
    end = convert(keys["until"], parse_time) if "until" in keys else None
    if start is not None and end is not None and start >= end:
        raise keys["until"].error("rule.when", "`until` is not after `from`")
    days = frozenset(DAYS.index(one_of(day, DAYS, "rule.when")) for day in _days(keys))
    return When(start, end, _daily(keys["daily"]) if "daily" in keys else None, days or frozenset(range(7)))


def _days(keys: Mapping[str, Node]) -> Sequence[Node]:
    if "days" not in keys:
        return []
    items = keys["days"].one_or_more()
    if not items:
        raise keys["days"].error("rule.when", "an empty list of days never holds")
    return items


def _daily(node: Node) -> tuple[int, int]:
    start_text, dash, end_text = node.scalar().partition("-")
    start, end = _CLOCK.fullmatch(start_text), _CLOCK.fullmatch(end_text)
    if not dash or start is None or end is None:
        raise node.error("rule.when", f"`{node.text}` is not a window like 22:00-06:00 (UTC)")
    first, last = int(start[1]) * 60 + int(start[2]), int(end[1]) * 60 + int(end[2])
    if first >= DAY_MINUTES or last > DAY_MINUTES or first == last:
        raise node.error("rule.when", f"`{node.text}` is empty or past 24:00")
    return first, last - first if last > first else last - first + DAY_MINUTES
