"""The normative decide cases in the form in which a door can be asked them.

A case fixes the instant and what has been spent. A process under test gets both through the two
seams that the product has for them, `Clock` and `Usage`, and nothing else of it is replaced.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.addresses import parse_address
from exeat.policy.cases import case_lease
from exeat.policy.document import load_policy
from exeat.policy.model import Address, Sni, Subject
from exeat.policy.names import MalformedError, parse_host
from exeat.policy.snapshot import Snapshot
from exeat.policy.units import parse_time
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exeat.policy.leases import Lease

VECTORS = Path(__file__).parents[1] / "vectors"
ELSEWHERE = "93.184.216.34"  # where a name leads when its case does not say

State = dict[str, Any]


@dataclass(frozen=True)
class DoorCase:
    """One decide case. `host`, `port` and `sni` are as the case gives them, malformed ones too."""

    id: str
    policy: str
    leases: tuple[Lease, ...]
    state: Mapping[str, Any]
    now_ms: int
    request: Mapping[str, Any]
    expect: Mapping[str, str]

    @property
    def subject(self) -> Subject:
        base = Subject("p", "a1", node="n1")
        return base._replace(**{name: self.request[name] for name in Subject._fields if name in self.request})

    @property
    def host(self) -> Any:
        return self.request["host"]

    @property
    def port(self) -> Any:
        return self.request.get("port", 443)

    @property
    def proto(self) -> str:
        return str(self.request.get("proto", "tcp"))

    @property
    def sni(self) -> str | Sni:
        """As the case says; without a word of it, what an honest client sends."""
        said = self.request.get("sni", Sni.UNSEEN)
        if said is None:
            return Sni.ABSENT
        if said is not Sni.UNSEEN:
            return str(said)
        target = self.target
        return target if isinstance(target, str) else Sni.ABSENT

    @property
    def target(self) -> str | Address | None:
        """The canonical host, None for a malformed one."""
        try:
            return parse_host(self.host)
        except MalformedError:
            return None

    @property
    def resolved(self) -> tuple[str, ...]:
        return tuple(map(str, self.request.get("resolved", (ELSEWHERE,))))

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(map(parse_address, self.resolved))

    @property
    def allowed(self) -> bool:
        return self.expect["decision"] == "allow"

    def steering(self) -> State:
        counters = {k: self.state.get(k, {}) for k in ("budgets", "lease_uses", "lease_bytes")}
        return {"now_ms": self.now_ms, **counters}

    def snapshot(self, generation: int) -> dict[str, Any]:
        """What control would send."""
        document = load_policy(self.policy, file=self.id, suffixes=bundled_suffixes())
        return Snapshot.message(
            generation=generation,
            fresh_ms=60_000,
            documents=[document],
            projects={document.project: document.digest},
            leases=self.leases,
            revoked=self.state.get("revoked", ()),
            min_epoch=self.state.get("min_epoch", 0),
        )


def load_cases() -> list[DoorCase]:
    """Every decide case of both files."""
    files = [
        yaml.safe_load((VECTORS / name).read_text(encoding="utf-8"))
        for name in ("policy-cases.yaml", "policy-neighbours.yaml")
    ]
    normative = files[0]
    return [
        _case(case, normative)
        for file in files
        for case in file["cases"]
        if case.get("kind", "decide") == "decide"
    ]


def _case(case: dict[str, Any], normative: dict[str, Any]) -> DoorCase:
    leases = [normative["leases"][item] if isinstance(item, str) else item for item in case.get("leases", ())]
    return DoorCase(
        id=case["id"],
        policy=normative["policies"].get(case["policy"], case["policy"]),
        leases=tuple(map(case_lease, leases)),
        state=case.get("state", {}),
        now_ms=parse_time(case.get("now", normative["defaults"]["now"])),
        request=case["request"],
        expect={"decision": _verdict(case["expect"]["reason"]), **case["expect"]},
    )


def _verdict(reason: str) -> str:
    """For the neighbours that name a reason only."""
    return "allow" if reason in ("posture.public", "rule.allow") else "deny"


@dataclass
class Steering:
    """What a process under test is told about time and spending, by way of a file."""

    path: Path

    def set(self, state: State) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(state), encoding="utf-8")
        os.replace(part, self.path)

    def read(self) -> State:
        state: State = json.loads(self.path.read_text(encoding="utf-8"))
        return state


class SteeredClock:
    """Stands still at the case's instant."""

    def __init__(self, read: Callable[[], State]) -> None:
        self._read = read

    def now_ms(self) -> int:
        return int(self._read()["now_ms"])


class SteeredUsage(Usage):
    """Says what the case states, corrupt counters included; charges are taken and not shown."""

    def __init__(self, read: Callable[[], State]) -> None:
        super().__init__()
        self._read = read

    def used(self, project: str, budget: str, counter: str, window_ms: int, now_ms: int) -> Any:
        return self._read().get("budgets", {}).get(budget, {}).get(counter, 0)

    def has_room(self, peeks: object, now_ms: int) -> bool:
        """The short way past `used` is for counters that cannot be corrupt."""
        return False

    def lease_uses(self, lease_id: str) -> int:
        return int(self._read().get("lease_uses", {}).get(lease_id, 0))

    def lease_bytes(self, lease_id: str) -> int:
        return int(self._read().get("lease_bytes", {}).get(lease_id, 0))
