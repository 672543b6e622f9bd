"""Postures (what holds where no rule speaks) and presets (knob sets). Unknown words never load."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

HOUR_MS = 3_600_000


class Posture(StrEnum):
    OFF = "off"
    PUBLIC = "public"
    ALLOWLIST = "allowlist"
    CUSTOM = "custom"


class Default(StrEnum):
    """What posture `custom` says to a request that no rule or lease covers."""

    ASK = "ask"
    DENY = "deny"
    PUBLIC = "public"


class Preset(StrEnum):
    RELAXED = "relaxed"
    STANDARD = "standard"
    STRICT = "strict"


class SniRule(StrEnum):
    """How the server name of a ClientHello is held against the target."""

    LOG = "log"  # any name passes
    MATCH = "match"  # a name, if present, must be the target
    REQUIRE = "require"  # and it must be present


@dataclass(frozen=True, slots=True)
class Knobs:
    public_ports: frozenset[int]
    sni: SniRule
    max_ttl_ms: int
    approvals: int
    approvals_wide: int  # for wildcard and CIDR scopes
    freshness_ms: int
    drain_ms: int  # open flows at lease expiry; revocation always cuts at once


KNOBS = {
    Preset.RELAXED: Knobs(
        public_ports=frozenset({80, 443, 8080, 8443}),
        sni=SniRule.LOG,
        max_ttl_ms=24 * HOUR_MS,
        approvals=1,
        approvals_wide=1,
        freshness_ms=24 * HOUR_MS,
        drain_ms=60_000,
    ),
    Preset.STANDARD: Knobs(
        public_ports=frozenset({80, 443}),
        sni=SniRule.MATCH,
        max_ttl_ms=8 * HOUR_MS,
        approvals=1,
        approvals_wide=1,
        freshness_ms=HOUR_MS,
        drain_ms=30_000,
    ),
    Preset.STRICT: Knobs(
        public_ports=frozenset({443}),
        sni=SniRule.REQUIRE,
        max_ttl_ms=HOUR_MS,
        approvals=1,
        approvals_wide=2,
        freshness_ms=600_000,
        drain_ms=0,
    ),
}

# Special-use names (RFC 6761 and the IANA registry) and names that people use for inside.
SPECIAL_LABELS = frozenset(
    [
        "localhost",
        "local",
        "internal",
        "test",
        "example",
        "invalid",
        "onion",
        "arpa",
        "alt",
        "lan",
        "home",
        "corp",
        "intranet",
        "private",
        "localdomain",
    ]
)


def is_public_name(name: str) -> bool:
    """Whether a canonical name may be a public one: two labels or more, no special-use end."""
    _, dot, last = name.rpartition(".")
    return bool(dot) and last not in SPECIAL_LABELS
