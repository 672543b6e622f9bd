"""`exeat events`: what happens on this node, out of the console's journal."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError

if TYPE_CHECKING:
    from exeat.appliance.console.journal import Event

POLL_S: Final = 0.2
NEWEST: Final = 20


def register(commands: Any) -> None:
    parser = commands.add_parser("events", help="what happens: requests, leases, flows, jobs, alerts")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is still to come")
    parser.add_argument(
        "--topic", action="append", default=[], type=_topic, metavar="T", help="only this topic (repeatable)"
    )
    parser.add_argument(
        "--since",
        type=_number,
        metavar="ID",
        help="all that is kept from behind this event on (0: everything)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one event a line")
    parser.set_defaults(handler=_events)


def _topic(text: str) -> str:
    from exeat.appliance.console.journal import TOPICS

    if text not in TOPICS:
        raise argparse.ArgumentTypeError(f"one of {', '.join(TOPICS)}")
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise argparse.ArgumentTypeError("the number of an event")
    return int(text)


def _events(args: argparse.Namespace) -> int:
    from exeat.appliance.console.journal import TOPICS, Follower, read

    config = load_config(args)
    folder = config.state_dir / "console" / "events"
    topics = frozenset(args.topic) or frozenset(TOPICS)
    try:
        if not folder.is_dir():
            raise NotReachableError(f"{folder} is not there: the console keeps events ([console] listen)")
        after = _start(folder, topics, args)
        while (page := read(folder, after, topics)).events:
            if page.lost:
                print("... older ones are not kept any more", flush=True)
            for event in page.events:
                _print(event, as_json=args.json)
            after = page.next
        if args.follow:
            follower = Follower(folder, after, topics)
            while True:
                for event in follower.poll():
                    _print(event, as_json=args.json)
                time.sleep(POLL_S)
    except OSError as error:
        raise NotReachableError(f"{error.filename or folder}: {error.strerror}: run this as root") from None
    return 0


def _start(folder: Any, topics: frozenset[str], args: argparse.Namespace) -> int:
    """From behind which event: as asked, or the last few; of those that follow, none of before."""
    from exeat.appliance.console.journal import newest, read

    if args.since is not None:
        return int(args.since)
    if args.follow:
        return newest(folder)
    after, last = 0, list[int]()
    while (page := read(folder, after, topics)).events:
        last = [*last, *(event.id for event in page.events)][-NEWEST - 1 :]
        after = page.next
    return last[0] if len(last) > NEWEST else 0


def _print(event: Event, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(event._asdict()), flush=True)
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_ms / 1000))
    facts = " ".join(f"{key}={_word(value)}" for key, value in event.data.items() if value not in ("", None))
    print(f"{event.id} {at} {event.topic} {facts}", flush=True)


def _word(value: object) -> str:
    """One word, whatever an agent wrote."""
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if not text.isprintable() or " " in text or '"' in text else text
