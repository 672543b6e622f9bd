"""Rules and budgets as data, with the one question a rule can answer: does it match?"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from exeat.policy.scopes import ANY_PORT, HTTPS, Ports, Scope, port_in, ports_cover, ports_text
from exeat.policy.units import format_time, format_usd

if TYPE_CHECKING:
    from exeat.policy.model import Address, Subject

DAY_MINUTES = 1440
WEEK_MINUTES = 7 * DAY_MINUTES
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
PROTOCOLS = ("tcp", "udp")


# Budgets that every flow of a project is charged to: its own, and the one of the baseline, whose name
# no file can use.
DEFAULT_BUDGET = "default"
BASELINE_BUDGET = "baseline/default"
ALWAYS = (DEFAULT_BUDGET, BASELINE_BUDGET)


class Kind(StrEnum):
    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"
    CEILING = "ceiling"


# A grant is narrow unless it says otherwise, a refusal is wide unless it says otherwise.
DEFAULT_PORTS: dict[Kind, Ports] = {
    Kind.ALLOW: HTTPS,
    Kind.ASK: HTTPS,
    Kind.CEILING: HTTPS,
    Kind.DENY: ANY_PORT,
}
DEFAULT_PROTOCOLS: dict[Kind, tuple[str, ...]] = {
    Kind.ALLOW: ("tcp",),
    Kind.ASK: ("tcp",),
    Kind.CEILING: ("tcp",),
    Kind.DENY: PROTOCOLS,
}


class Grantable(Protocol):
    """What rules and leases have in common."""

    @property
    def id(self) -> str: ...
    @property
    def to(self) -> tuple[Scope, ...]: ...
    @property
    def ports(self) -> Ports: ...
    @property
    def protocols(self) -> tuple[str, ...]: ...
    @property
    def except_(self) -> tuple[Scope, ...]: ...


def excepted(item: Grantable, target: str | Address, port: int) -> bool:
    """An `except` makes its own rule abstain; without ports it means every port."""
    return any(scope.reaches(target) and port_in(scope.ports or ANY_PORT, port) for scope in item.except_)


@dataclass(frozen=True, slots=True)
class When:
    """UTC, half-open. `daily` is (start, length) in minutes; a window over midnight belongs to the
    day it starts on."""

    from_ms: int | None = None
    until_ms: int | None = None
    daily: tuple[int, int] | None = None
    days: frozenset[int] = frozenset(range(7))

    def holds(self, now_ms: int) -> bool:
        if self.from_ms is not None and now_ms < self.from_ms:
            return False
        if self.until_ms is not None and now_ms >= self.until_ms:
            return False
        start, length = self.daily or (0, DAY_MINUTES)
        # 1970-01-01 was a Thursday: day 3 of a week that begins on Monday.
        minute = (now_ms // 60_000 + 3 * DAY_MINUTES) % WEEK_MINUTES
        return any((minute - day * DAY_MINUTES - start) % WEEK_MINUTES < length for day in self.days)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self.from_ms is not None:
            out["from"] = format_time(self.from_ms)
        if self.until_ms is not None:
            out["until"] = format_time(self.until_ms)
        if self.daily is not None:
            start, length = self.daily
            end = (start + length) % DAY_MINUTES or DAY_MINUTES
            out["daily"] = f"{_clock(start)}-{_clock(end)}"
        if len(self.days) < 7:
            out["days"] = [DAYS[day] for day in sorted(self.days)]
        return out


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `order` is its place in the document; only attribution of ties looks at it."""

    id: str
    kind: Kind
    to: tuple[Scope, ...]
    ports: Ports
    protocols: tuple[str, ...]
    except_: tuple[Scope, ...] = ()
    agents: frozenset[str] = frozenset()  # empty: all
    nodes: frozenset[str] = frozenset()
    when: When | None = None
    budget: str = ""
    private: bool = False
    raw: bool = False
    ech: bool = False
    direct: bool = False  # ask rules only: a lease for it may go past the proxy
    records: bool = False
    broad: bool = False
    why: str = ""
    ttl_ms: int | None = None  # ask rules only, like the next two
    max_ttl_ms: int | None = None
    approvals: int | None = None
    order: int = 0

    def applies(self, subject: Subject, proto: str, now_ms: int) -> bool:
        """Everything of the match but the target: protocol, who, when."""
        return (
            proto in self.protocols
            and (not self.agents or subject.agent in self.agents)
            and (not self.nodes or subject.node in self.nodes)
            and (self.when is None or self.when.holds(now_ms))
        )

    @property
    def never_matches(self) -> bool:
        return all(self._is_excepted_whole(scope) for scope in self.to)

    def _is_excepted_whole(self, scope: Scope) -> bool:
        ports = scope.ports or self.ports
        return any(e.covers(scope) and ports_cover(e.ports or ANY_PORT, ports) for e in self.except_)

    def to_json(self) -> dict[str, Any]:
        """The canonical form: itself a valid rule of the language, with nothing left to defaults."""
        out: dict[str, Any] = {
            "id": self.id,
            "to": sorted(map(str, self.to)),
            "ports": ports_text(self.ports),
            "proto": list(self.protocols),
        }
        optional: dict[str, Any] = {
            "except": sorted(map(str, self.except_)),
            "agent": sorted(self.agents),
            "node": sorted(self.nodes),
            "when": self.when.to_json() if self.when else None,
            "budget": self.budget,
            "private": self.private,
            "raw": self.raw,
            "ech": self.ech,
            "via": "direct" if self.direct else "",
            "records": self.records,
            "broad": self.broad,
            "why": self.why,
            "ttl": None if self.ttl_ms is None else f"{self.ttl_ms}ms",
            "max_ttl": None if self.max_ttl_ms is None else f"{self.max_ttl_ms}ms",
            "approvals": self.approvals,
        }
        return out | {key: value for key, value in optional.items() if value}

    def with_content_id(self) -> Rule:
        """An id from the content: stable under reordering, good for the ledger."""
        body = {key: value for key, value in self.to_json().items() if key != "id"}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        digest = hashlib.blake2s(text.encode(), digest_size=8).hexdigest()
        return replace(self, id=f"{self.kind}-{digest}")


COUNTERS = ("bytes_up", "bytes_down", "bytes", "connections", "lookups", "usd")
SIZE_COUNTERS = frozenset({"bytes_up", "bytes_down", "bytes"})


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` (bytes, count or micro-dollars) per aligned window of `window_ms`."""

    counter: str
    amount: int
    window_ms: int

    def to_json(self) -> str:
        amount = format_usd(self.amount) if self.counter == "usd" else str(self.amount)
        return f"{amount}/{self.window_ms}ms"


@dataclass(frozen=True, slots=True)
class Budget:
    """`soft`: when exhausted, ask instead of deny."""

    name: str
    limits: tuple[Limit, ...]
    soft: bool = False

    def to_json(self) -> dict[str, str]:
        out = {limit.counter: limit.to_json() for limit in self.limits}
        return out | ({"on_exceed": "ask"} if self.soft else {})
