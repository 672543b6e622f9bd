"""The walls of a jail and how far each way out came, for people (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.appliance.jail.verdict import Wall

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exeat.appliance.jail.verdict import Result

_STEP: Final = 9  # columns from wall to wall
_TITLE: Final = 38
_WALLS: Final = tuple(Wall)[:-1]


def draw(results: Sequence[Result]) -> str:
    """A line for each probe: an arrow that ends at the wall that stopped it, and the evidence."""
    head = " " * (_TITLE + 6) + "".join(f"{wall:^{_STEP}}" for wall in Wall)
    lines = [head.rstrip()]
    for result in results:
        lines.append(
            f"{result.probe.title:<{_TITLE}} {result.probe.who:<4} {_way(result.wall)} {result.evidence}"
        )
    lines.append("")
    lines.append(summary(results))
    return "\n".join(lines)


def summary(results: Iterable[Result]) -> str:
    """How many were stopped by what."""
    listed = list(results)
    stopped = [f"{count} by {wall}" for wall in _WALLS if (count := sum(r.wall is wall for r in listed))]
    out = sum(not result.blocked for result in listed)
    return f"{len(listed)} ways out tried: stopped {', '.join(stopped)}; {out} got out or were not proven"


def _way(wall: Wall) -> str:
    """The arrow: as many segments as walls were passed, then the wall or the open end."""
    cells = []
    for each in _WALLS:
        if each is wall:
            cells.append("────X".ljust(_STEP))
        elif wall is Wall.OUT or _WALLS.index(each) < _WALLS.index(wall):
            cells.append("─" * _STEP)
        else:
            cells.append("    |".ljust(_STEP))
    return "".join(cells) + ("──▶ OUT".ljust(_STEP) if wall is Wall.OUT else " " * _STEP)
