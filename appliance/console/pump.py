"""What control tells, into the journal: the one place from which everybody who watches reads."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.console.auth.principal import Principal
from exeat.appliance.console.journal import BUSY
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from exeat.appliance.console.journal import Journal
    from exeat.appliance.console.state import Console

RETRY_S: Final = 1.0
# The console itself: it may look, like any viewer. Who sees what of it is judged where it goes out.
WATCHER: Final = Principal("console", "viewer", frozenset(), "unix")


async def pump(console: Console, journal: Journal, kept: Path) -> None:
    """For as long as the process lives; control may come and go.

    `kept` is the file of how far it came: what happened while the console was away is told as far as control
    remembers it. After a crash some events may be in the journal twice, never missing.
    """
    place = _read(kept)
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
        begun = not place
        place = {"feed": reply["feed"], "after": reply["next"]}
        if begun or any(event["topic"] not in BUSY for event in reply["events"]):
            _write(kept, place)


def _items(reply: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if reply["lost"]:
        yield "flows", {"ev": "lost", "count": reply["lost"]}
    for event in reply["events"]:
        yield event["topic"], event["data"]


def _read(kept: Path) -> dict[str, Any]:
    """Nothing where there is no place: then it begins with what happens from now on."""
    try:
        place = json.loads(kept.read_text(encoding="ascii"))
        return {"feed": str(place["feed"]), "after": int(place["after"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _write(kept: Path, place: Mapping[str, Any]) -> None:
    """A full disk costs events twice after a crash, and nothing else."""
    fresh = kept.with_suffix(".new")
    try:
        fresh.write_text(json.dumps(place), encoding="ascii")
        fresh.replace(kept)
    except OSError as error:
        print(f"console: {kept}: {error.strerror}", file=sys.stderr, flush=True)
