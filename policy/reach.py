"""`reach`: can anyone get at a scope under a policy, and does it take an operator?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from exeat.policy.authority import LEVELS, NOTHING, Level, Side, Who, new_tables
from exeat.policy.cells import cells
from exeat.policy.containment import Extent
from exeat.policy.model import Speech
from exeat.policy.portsets import lowest
from exeat.policy.representatives import literals_of, names_of, refused
from exeat.policy.witness import Witness, witness_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exeat.policy.document import Document
    from exeat.policy.leases import Lease
    from exeat.policy.places import Host

__all__ = ["Reach", "Via", "reach"]


class Via(StrEnum):
    """What it takes. `SELF_SERVICE`: the policy allows it, or asks when a job tries. `OPERATOR`: only
    a lease that a person grants unasked."""

    SELF_SERVICE = "self-service"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Reach:
    """The easiest way into a scope, and a flow that takes it; both None: no lease can reach it."""

    via: Via | None
    witness: Witness | None

    @property
    def reachable(self) -> bool:
        return self.via is not None


def reach(policy: Document, scope: Lease, *, now_ms: int) -> Reach:
    """The widest authority anywhere in `scope` (hosts, ports, protocols, speech) at `now_ms` or later.

    Names are taken to resolve to public addresses that no rule names: any other only gets less.
    """
    best: tuple[Level, Witness] | None = None
    for level, witness in _ways(policy, scope, now_ms):
        if best is None or level.rank > best[0].rank:
            best = (level, witness())
        if level is Level.ALLOW:
            break
    if best is None:
        return Reach(None, None)
    return Reach(Via.OPERATOR if best[0] is Level.GRANTABLE else Via.SELF_SERVICE, best[1])


def _ways(policy: Document, scope: Lease, now_ms: int) -> Iterator[tuple[Level, Callable[[], Witness]]]:
    tables = new_tables()
    side, extent = Side(policy, tables), Extent(scope)
    further = (*scope.to, *scope.except_)
    asked = (Speech.DIRECT, Speech.RECORDS, Speech.RAW, Speech.ECH)
    wanted = next((speech for speech in asked if getattr(scope, speech)), Speech.JUDGED)
    hosts: list[Host] = [*names_of((policy,), further), *literals_of((policy,), further)]
    for host in hosts:
        ports = extent.ports(host)
        if not ports or refused(host):
            continue
        place = side.place(host)
        numbers = {number for number, _ in (*place.rules, *(place.ceiling or ()))}
        traits = [tables.traits.values[number] for number in sorted(numbers)]
        for cell in cells(traits, (policy.expires_ms,), now_ms):
            if cell.speech is not Speech.JUDGED:
                continue
            who = cell._replace(speech=wanted)
            authority = side.authority(place, who) if who.proto in scope.protocols else NOTHING
            for level in LEVELS:
                if open_ := authority.at_least(level) & ports:
                    yield level, partial(_witness, policy, host, lowest(open_), who, level)
                    break


def _witness(policy: Document, host: Host, port: int, who: Who, level: Level) -> Witness:
    return witness_of(policy, policy, host, None, port, who, level=level, what="reachable")
