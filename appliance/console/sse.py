"""Events as a browser takes them (HTML, section 9.2), made from pages of the journal. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exeat.appliance.console.auth.principal import Principal
    from exeat.appliance.console.journal import Event

PING: Final = b"event: ping\ndata: {}\n\n"
RETRY: Final = b"retry: 2000\n\n"  # ms until a browser comes back


def messages(events: Iterable[Event], who: Principal) -> Iterator[bytes]:
    """One for each event that they may see; flows that follow each other go together."""
    flows: list[Event] = []
    for event in events:
        if event.topic == "flows":
            if _seen(event, who):
                flows.append(event)
            continue
        yield from _flows(flows)
        flows = []
        if _seen(event, who):
            yield message(event.id, event.topic, {**event.data, "at_ms": event.at_ms})
    yield from _flows(flows)


def message(number: int, topic: str, data: Any) -> bytes:
    """JSON has no line breaks of its own, so it is one `data` line."""
    return f"id: {number}\nevent: {topic}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _flows(events: list[Event]) -> Iterator[bytes]:
    if not events:
        return
    rows = [{**event.data, "at_ms": event.at_ms} for event in events if event.data.get("ev") != "lost"]
    lost = sum(int(event.data.get("count", 0)) for event in events if event.data.get("ev") == "lost")
    yield message(events[-1].id, "flows", {"events": rows, "lost": lost})


def _seen(event: Event, who: Principal) -> bool:
    """Of other projects nothing; of none in particular, what stops everybody."""
    project = event.data.get("project") or ""
    if not project:
        return not who.projects or event.topic == "admin" or event.data.get("ev") == "lost"
    return who.sees(str(project))
