"""The words every part of exeat speaks: who, where, and what was decided.

Pure data. Hosts and addresses are canonical before they get in here: a name is lower-case
ASCII without a trailing dot (`names.parse_host`), an address is a (family, value) pair and
never a string, so nothing downstream can be tempted to hand text to a resolver.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol


class Verdict(StrEnum):
    """What the policy core answers. Anything that is not a clear `allow` opens nothing."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class Address(NamedTuple):
    """An IP address. `family` is 4 or 6; `value` is the unsigned integer of the wire form."""

    family: int
    value: int

    def packed(self) -> bytes:
        return self.value.to_bytes(4 if self.family == 4 else 16, "big")


class Subject(NamedTuple):
    """Who asks, set by the node from the kernel's own knowledge, never by the client."""

    project: str
    agent: str
    job: str = ""
    episode: str = ""
    node: str = ""


class Sni(StrEnum):
    """Why there is no server name to judge."""

    UNSEEN = "unseen"  # no ClientHello has been read (yet)
    ABSENT = "absent"  # a complete ClientHello carried none


class Speech(StrEnum):
    """What a flow speaks, as far as a rule or lease must say that it may."""

    JUDGED = "judged"  # what the proxy's judgement of the first bytes lets through anyway
    ECH = "ech"  # TLS whose ClientHello hides the inner server name (the outer one is judged)
    RAW = "raw"  # anything: the first bytes are not judged
    DIRECT = "direct"  # packets past the proxy (a pinhole); beside the others, neither more nor less
    RECORDS = "records"  # lookups of records other than addresses; beside the others, neither more nor less


class Permits(Protocol):
    """What rules, leases and decisions say about it."""

    @property
    def raw(self) -> bool: ...
    @property
    def ech(self) -> bool: ...
    @property
    def direct(self) -> bool: ...
    @property
    def records(self) -> bool: ...


def permits(grant: Permits, speech: Speech) -> bool:
    """Whether `speech` is within the grant. Where anything may be spoken, ECH may too."""
    if speech is Speech.DIRECT:
        return grant.direct
    if speech is Speech.RECORDS:
        return grant.records
    return grant.raw or speech is Speech.JUDGED or (speech is Speech.ECH and grant.ech)


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the core: may `subject` reach `host`:`port` over `proto`?

    `resolved` holds every address the flow may be dialled to (all of them are judged).
    `sni` is a canonical name, or one of `Sni`.
    """

    subject: Subject
    host: str | Address
    port: int
    proto: str = "tcp"
    resolved: tuple[Address, ...] = ()
    sni: str | Sni = Sni.UNSEEN


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. `reason` is a stable code (docs/policy.md lists them all).

    `rule` is the id of the attributed rule, lease or budget ("" when none decided);
    `matched` holds the ids of all matching rules; `budgets` those to charge if it goes ahead. `raw`,
    `ech`, `direct` and `records` are what may be spoken (`permits`): by any rule or lease that allows
    it, or by the ask rule named.
    """

    verdict: Verdict
    reason: str
    rule: str = ""
    matched: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    lease: str = ""
    raw: bool = False
    ech: bool = False
    direct: bool = False
    records: bool = False

    @property
    def allowed(self) -> bool:
        return self.verdict is Verdict.ALLOW
