"""`exeat ledger review`: one day, for who answers for it."""

from __future__ import annotations

import argparse
import sqlite3
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError, RefusedError
from exeat.appliance.owner import as_owner
from exeat.ledger.small_files import replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.review import Review

_MOST_DAYS = 366


def register(actions: Any, directories: Callable[[argparse.Namespace], list[Path]]) -> list[Any]:
    """Add the action; `directories` finds the ledgers. The parsers, for options that all actions share."""
    parser = actions.add_parser("review", help="one day: destinations, what is new, refusals, leases, costs")
    parser.add_argument(
        "--day", type=_day, metavar="D", help="2026-01-31, today or yesterday (default), in UTC"
    )
    parser.add_argument(
        "--known", type=_days, default=30, metavar="N", help="new is what the N days before did not have (30)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every destination and refusal")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="write both there, named by the day")
    parser.set_defaults(handler=lambda args: run(directories(args), args))
    return [parser]


def _day(text: str) -> date:
    today = datetime.fromtimestamp(time.time(), tz=UTC).date()
    if text in ("today", "yesterday"):
        return today - timedelta(days=text == "yesterday")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not a day: 2026-01-31, today or yesterday") from None


def _days(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and int(text) <= _MOST_DAYS):
        raise argparse.ArgumentTypeError(f"a number of days, at most {_MOST_DAYS}")
    return int(text)


def run(ledgers: list[Path], args: argparse.Namespace) -> int:
    from exeat.appliance.review import page, tables

    found = _review(ledgers, args.day or _day("yesterday"), args.known)
    named = args.dir and args.dir / f"exeat-{found.day}"
    for path in (args.html, named and named.with_suffix(".html")):
        if path:
            _put(path, page.html(found, load_config(args).node.name))
    for path in (args.csv, named and named.with_suffix(".csv")):
        if path:
            _put(path, tables.as_csv(found))
    print(tables.dumps(found) if args.json else tables.as_text(found))
    return 0


def _review(ledgers: list[Path], day: date, known_days: int) -> Review:
    from exeat.ledger.reader import ReaderError
    from exeat.ledger.review import Review, review

    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    start_s = int(start.timestamp())
    found = Review(day.isoformat())
    for directory in ledgers:
        try:
            known = _known(directory, start_s * 1000, known_days)
            review(directory, day.isoformat(), start_s * 1_000_000_000, known, found)
        except (ReaderError, OSError, sqlite3.Error) as error:
            raise NotReachableError(f"{directory}: {error}") from None
        except ValueError as error:
            raise RefusedError("ledger.damaged", f"{directory}: {error}: run `exeat ledger verify`") from None
    return found


def _known(directory: Path, until_ms: int, days: int) -> list[tuple[str, str]]:
    """(project, host) of the flows of the days before."""
    from exeat.ledger.index import open_index
    from exeat.ledger.questions import Question, sums

    with as_owner(directory):
        index = open_index(directory)
    try:
        rows = sums(index, Question({}, until_ms - days * 86_400_000, until_ms), ["project", "host"])
    finally:
        index.close()
    return [(project, host) for project, host, _, _, flows, *_ in rows if flows]


def _put(path: Path, text: str) -> None:
    """Whole or not at all: somebody may be looking at the one of yesterday."""
    try:
        replace(path, text, 0o666)  # less the umask
    except OSError as error:
        raise NotReachableError(f"{path}: {error.strerror}") from None
