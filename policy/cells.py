"""The dimensions of a request besides host and port, each cut into finitely many parts.

Protocol, agent and node by the words that rules use (and one that none uses), time at the bounds
that rules have: every absolute bound from now on, and the first coming of each weekly bound after
each of them. Between two such points no rule changes its mind.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from exeat.policy.authority import Who
from exeat.policy.model import Speech, permits
from exeat.policy.rules import DAY_MINUTES, PROTOCOLS, WEEK_MINUTES, When

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exeat.policy.authority import Traits

MINUTE_MS = 60_000
_EPOCH_MINUTE = 3 * DAY_MINUTES  # 1970-01-01 was a Thursday: day 3 of a week that begins on Monday
WEEK_MS = WEEK_MINUTES * MINUTE_MS


def cells(traits: Iterable[Traits], expiries: Iterable[int | None], now_ms: int) -> Iterator[Who]:
    """One `Who` for every part of protocol x agent x node x time x speech that these rules can tell apart."""
    seen = list(traits)
    agents = _words("agent", (each.agents for each in seen))
    nodes = _words("node", (each.nodes for each in seen))
    times = instants((each.when for each in seen if each.when is not None), expiries, now_ms)
    for at_ms, proto, agent, node, speech in product(times, PROTOCOLS, agents, nodes, _speeches(seen)):
        yield Who(proto, agent, node, at_ms, speech)


def _speeches(seen: Iterable[Traits]) -> list[Speech]:
    """What some rule permits expressly; to the others it is all one."""
    marked = (Speech.ECH, Speech.RAW, Speech.DIRECT, Speech.RECORDS)
    named = [speech for speech in marked if any(permits(each, speech) for each in seen)]
    return [Speech.JUDGED, *named]


def _words(kind: str, groups: Iterable[frozenset[str]]) -> list[str]:
    named = sorted({word for group in groups for word in group})
    fresh = f"any-{kind}"
    while fresh in named:
        fresh += "-"
    return [*named, fresh]


def instants(whens: Iterable[When], expiries: Iterable[int | None], now_ms: int) -> list[int]:
    absolute = {now_ms, *(bound for bound in expiries if bound is not None and bound > now_ms)}
    weekly: set[int] = set()
    for when in whens:
        if when.until_ms is not None and when.until_ms <= now_ms:
            continue  # over and done with
        absolute |= {bound for bound in (when.from_ms, when.until_ms) if bound is not None and bound > now_ms}
        weekly |= _weekly_bounds(when)
    firsts = {_next(start, minute) for start in absolute for minute in weekly}
    return sorted(absolute | firsts)


def _weekly_bounds(when: When) -> set[int]:
    """The minutes of the week at which the rule may turn on or off."""
    if when.daily is None and len(when.days) == 7:
        return set()
    start, length = when.daily or (0, DAY_MINUTES)
    return {
        (day * DAY_MINUTES + edge) % WEEK_MINUTES for day in when.days for edge in (start, start + length)
    }


def _next(start_ms: int, minute: int) -> int:
    """The first instant from `start_ms` on that begins this minute of the week."""
    offset = (minute - _EPOCH_MINUTE) % WEEK_MINUTES * MINUTE_MS
    return start_ms + (offset - start_ms) % WEEK_MS
