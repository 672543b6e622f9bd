"""`exeat ledger query|index`: ask the evidence."""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.ledger_formats import FORMATS, write
from exeat.appliance.owner import as_owner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exeat.ledger.index import Fresh, Index

_FILTERS = ("project", "job", "agent", "episode", "lease", "host", "port", "verdict", "reason", "rule")
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def register(actions: Any, directories: Callable[[argparse.Namespace], list[Path]]) -> list[Any]:
    """Add the actions; `directories` finds the ledgers. The parsers, for options that all actions share."""
    ask = actions.add_parser("query", help="what passed and what was refused, by whom, where, when")
    for name in _FILTERS:
        more = "; *.NAME is every name under it" if name == "host" else ""
        ask.add_argument(f"--{name}", metavar=name[0].upper(), help=f"only this {name}{more}")
    ask.add_argument("--since", type=_moment, metavar="T", help="a time (2026-01-31T12:00Z) or an age (24h)")
    ask.add_argument("--until", type=_moment, metavar="T", help="the same; what is at T is left out")
    ask.add_argument("--sum", type=_keys, metavar="KEY,..", help="sums per key, such as project,host or day")
    ask.add_argument("--limit", type=_limit, default=1000, metavar="N", help="at most so many (default 1000)")
    ask.add_argument("--format", choices=FORMATS, default="table")
    ask.add_argument("--out", type=Path, metavar="FILE", help="write it there (parquet must)")
    ask.set_defaults(handler=lambda args: run_query(directories(args), args))

    kept = actions.add_parser("index", help="bring the index that `query` asks up to date")
    kept.add_argument("--anew", action="store_true", help="make it from the first record on")
    kept.set_defaults(handler=lambda args: run_index(directories(args), args))

    return [ask, kept]


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError("not a number")
    return int(text)


def _keys(text: str) -> list[str]:
    from exeat.ledger.questions import SUM_KEYS

    keys = text.split(",")
    for key in keys:
        if key not in SUM_KEYS:
            raise argparse.ArgumentTypeError(f"{key!r} is none of {', '.join(SUM_KEYS)}")
    return list(dict.fromkeys(keys))


def _moment(text: str) -> int:
    """Milliseconds since 1970."""
    age = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if age:
        return int(time.time() * 1000) - int(age[1]) * _UNITS_MS[age[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("neither a time nor an age such as 24h") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


# --- query


def run_query(ledgers: list[Path], args: argparse.Namespace) -> int:
    from exeat.ledger import questions

    where = {name: getattr(args, name) for name in _FILTERS if getattr(args, name) is not None}
    if not where.get("port", "0").isdecimal():
        raise UsageError("--port: not a number")
    question = questions.Question(where, args.since, args.until)
    columns: Sequence[str] = (*args.sum, *questions.SUMS) if args.sum else questions.ROW
    rows: list[tuple[Any, ...]] = []
    for directory in ledgers:
        opened = _open(directory)
        try:
            found = (
                questions.sums(opened, question, args.sum)
                if args.sum
                else questions.entries(opened, question, args.limit)
            )
            fresh = opened.fresh()
        finally:
            opened.close()
        rows += found[: args.limit]
        print(f"as of {_fresh(fresh)}", file=sys.stderr)
    if args.sum and (unknown := questions.why_by_rows(question, args.sum)):
        print(f"row by row: the sums per hour do not tell {unknown}", file=sys.stderr)
    if not args.sum:
        rows = [(row[0], _time(row[1]), *row[2:]) for row in rows]
    write("json" if args.json else args.format, columns, rows, args.out)
    return 0


def run_index(ledgers: list[Path], args: argparse.Namespace) -> int:
    found = []
    for directory in ledgers:
        opened = _open(directory, anew=args.anew)
        fresh = opened.fresh()
        opened.close()
        found.append({"path": str(directory), **fresh._asdict()})
        if not args.json:
            print(f"{directory}: {_fresh(fresh)}")
    if args.json:
        print(json.dumps(found))
    return 0


def _fresh(fresh: Fresh) -> str:
    return f"{fresh.records} records, the last of {_time(fresh.t)}" if fresh.records else "no records"


def _open(directory: Path, *, anew: bool = False) -> Index:
    from exeat.ledger.index import open_index
    from exeat.ledger.reader import ReaderError

    try:
        with as_owner(directory):
            return open_index(directory, anew=anew)
    except (ReaderError, OSError, sqlite3.Error) as error:
        raise NotReachableError(f"{directory}: {error}") from None


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
