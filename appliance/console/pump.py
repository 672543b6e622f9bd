"""What control tells, into the journal: the one place from which everybody who watches reads."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.console.auth.principal import Principal
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from exeat.appliance.console.journal import Journal
    from exeat.appliance.console.state import Console

RETRY_S: Final = 1.0
# The console itself: it may look, like any viewer. Who sees what of it is judged where it goes out.
WATCHER: Final = Principal("console", "viewer", frozenset(), "unix")


async def pump(console: Console, journal: Journal) -> None:
    """For as long as the process lives; control may come and go. What it told before is not asked for."""
    place: dict[str, Any] = {}
    while True:
        try:
            reply = await console.control(WATCHER, "events.tail", **place)
        except RefusedError:
            await asyncio.sleep(RETRY_S)
            continue
        for topic, data in _items(reply):
            try:
                journal.append(topic, data)
            except ValueError as error:  # one that is too large takes no other with it
                print(f"console: {error}", file=sys.stderr, flush=True)
        place = {"feed": reply["feed"], "after": reply["next"]}


def _items(reply: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if reply["lost"]:
        yield "flows", {"ev": "lost", "count": reply["lost"]}
    for event in reply["events"]:
        yield event["topic"], event["data"]
