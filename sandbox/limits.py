"""What one job may use, as checked numbers (pure).

The node has a ceiling for each; a job may ask for less and never for more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

from exeat.sandbox.names import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

KIB, MIB, GIB = 1024, 1024**2, 1024**3


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes; `cpu` in thousandths of one processor. 0 is none, for those that may be 0.

    `io` is bytes a second: as many may be read, and as many written, of each disk of the node.
    """

    memory: int = (
        4 * GIB
    )  # of all its processes, and of what they keep in /tmp, /dev/shm and a /work of that kind
    pids: int = 1024  # processes and threads
    cpu: int = 0
    tmp: int = GIB  # of /tmp
    work: int = 0  # of /work, then held in memory; 0: a folder on the node's disk
    file: int = 0  # of each file
    files: int = 4096  # open descriptors of each process
    io: int = 0


# Below these not even a shell comes up, or the kernel refuses the value.
LEAST: Final = Limits(
    memory=8 * MIB, pids=4, cpu=10, tmp=64 * KIB, work=64 * KIB, file=64 * KIB, files=64, io=64 * KIB
)
MAY_BE_NONE: Final = frozenset({"cpu", "work", "file", "io"})
BY_CGROUP: Final = frozenset({"memory", "pids", "cpu", "io"})  # nothing else holds them


def parse_limits(raw: object, ceiling: Limits) -> Limits:
    """`ceiling`, lowered to what is asked for: {name: number}. Raises SpecError."""
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
        raise SpecError("argument", "limits must be an object of names and numbers")
    if unknown := raw.keys() - asdict(ceiling).keys():
        raise SpecError(
            "argument", f"{len(unknown)} unknown limit(s): there are {', '.join(asdict(ceiling))}"
        )
    return replace(ceiling, **{name: _one(name, value, ceiling) for name, value in raw.items()})


def _one(name: str, value: object, ceiling: Limits) -> int:
    most, least = getattr(ceiling, name), getattr(LEAST, name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise SpecError("argument", f"limit {name} must be a whole number")
    if value == 0 and name in MAY_BE_NONE and most == 0:
        return 0
    if value < least:
        raise SpecError("limits", f"limit {name} is {value}: at least {least}")
    if most and value > most:
        raise SpecError("limits", f"limit {name} is {value}: this node gives at most {most}")
    return value


def needs_cgroup(raw: Mapping[str, object]) -> bool:
    """Does somebody ask for a limit that only cgroups hold?"""
    return not BY_CGROUP.isdisjoint(raw)
