"""Limits of jobs as people write them: `memory=512MiB,pids=64,cpu=1.5,time=10m`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from exeat.policy.errors import UnitError
from exeat.policy.units import parse_count, parse_duration, parse_size
from exeat.sandbox.limits import LEAST, MAY_BE_NONE, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

TIME: Final = "time"  # how long a job may run, in ms; held by control, all others by the warden
NONE: Final = "none"
_CPU: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?", re.ASCII)


def _parse_cpu(text: str) -> int:
    """Thousandths of a processor."""
    if not _CPU.fullmatch(text):
        raise UnitError("unit.count", f"`{text}` is not a number of processors: write it like 2 or 0.5")
    whole, _, part = text.partition(".")
    return int(whole) * 1000 + int(part.ljust(3, "0"))


_PARSERS: Final[dict[str, Callable[[str], int]]] = {
    "memory": parse_size,
    "pids": parse_count,
    "cpu": _parse_cpu,
    "tmp": parse_size,
    "work": parse_size,
    "file": parse_size,
    "files": parse_count,
    "io": parse_size,
    TIME: parse_duration,
}


def parse_limits(text: str) -> dict[str, int]:
    """{name: number}; `none` is 0. Raises UnitError, which says what is wrong with which part."""
    found: dict[str, int] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name not in _PARSERS:
            names = ", ".join(_PARSERS)
            raise UnitError("unit.limit", f"`{part}`: a limit is NAME=VALUE, NAME one of {names}")
        if name in found:
            raise UnitError("unit.limit", f"`{part}`: {name} stands there twice")
        if value == NONE and name in MAY_BE_NONE | {TIME}:
            found[name] = 0
            continue
        try:
            found[name] = _PARSERS[name](value)
        except UnitError as error:
            raise UnitError(error.code, f"{name}: {error}") from None
    return found


def node_limits(text: str) -> tuple[Limits, int]:
    """What a node gives each job at most: the warden's part, and ms (0: no end). Raises UnitError."""
    asked = parse_limits(text)
    time_ms = asked.pop(TIME, 0)
    for name, value in asked.items():
        if value < getattr(LEAST, name) and (value or name not in MAY_BE_NONE):
            raise UnitError("unit.limit", f"{name}: {value} is too little for any job")
    return replace(Limits(), **asked), time_ms
