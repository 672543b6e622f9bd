"""`exeat ledger query|index|reconcile`: ask the evidence, and hold it against the kernel's own counts."""

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
    from exeat.ledger.reconcile import Account, Drift, Reconciliation

_FILTERS = ("project", "job", "agent", "episode", "lease", "host", "port", "verdict", "reason", "rule")
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DRIFTS = 50


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

    books = actions.add_parser("reconcile", help="the ledger's bytes against the kernel's, flow by flow")
    books.add_argument("--job", default="", metavar="J", help="only this job's flows")
    books.add_argument(
        "--watch",
        type=_limit,
        metavar="S",
        help="for S seconds, against what the kernel itself tells of connections that end (on the host)",
    )
    books.set_defaults(handler=lambda args: run_reconcile(directories(args), args))
    return [ask, kept, books]


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


# --- reconcile


def run_reconcile(ledgers: list[Path], args: argparse.Namespace) -> int:
    from exeat.ledger.reader import ReaderError, read
    from exeat.ledger.reconcile import reconcile
    from exeat.ledger.records import RecordError

    if args.watch is not None:
        from exeat.appliance.ledger_watch import run

        return run(ledgers, args)
    drifting = False
    for directory in ledgers:
        try:
            found = reconcile(read(directory), args.job)
        except (ReaderError, OSError) as error:
            raise NotReachableError(f"{directory}: {error}") from None
        except (RecordError, ValueError) as error:
            print(f"exeat: {directory}: {error}: run `exeat ledger verify`", file=sys.stderr)
            return 1
        drifting = drifting or bool(found.drifts)
        print(json.dumps(_json(directory, found)) if args.json else _text(found))
    return int(drifting)


def _json(directory: Path, found: Reconciliation) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "ok": not found.drifts,
        "path": str(directory),
        "total": asdict(found.total),
        "jobs": {job: asdict(account) for job, account in found.jobs.items()},
        "drifts": [{**drift._asdict(), "flow": drift.flow.hex()} for drift in found.drifts],
    }


def _text(found: Reconciliation) -> str:
    total = found.total
    lines = [_account(f"job {job or '-'}", account) for job, account in sorted(found.jobs.items())]
    lines.append(_account("all", total))
    lines.append(
        f"on the wire about {total.headers} bytes of headers more (52 a segment, 72 for IPv6),"
        f" {total.retransmitted} retransmitted"
    )
    if total.uncounted:
        lines.append(f"{total.uncounted} flows without counts of the kernel")
    if total.orphaned:
        lines.append(f"{total.orphaned} flows orphaned: bounds, not counts")
    if total.open:
        lines.append(f"{total.open} flows still open")
    lines += [_drift(drift) for drift in found.drifts[:_DRIFTS]]
    if len(found.drifts) > _DRIFTS:
        lines.append(f"... and {len(found.drifts) - _DRIFTS} more")
    lines.append(f"DRIFT in {len(found.drifts)} flows" if found.drifts else "the books agree")
    return "\n".join(lines)


def _account(name: str, account: Account) -> str:
    return (
        f"{name}: {account.flows} flows, ledger out {account.bytes_out} in {account.bytes_in},"
        f" kernel out {account.kernel_out} in {account.kernel_in}"
    )


def _drift(drift: Drift) -> str:
    parts = ", ".join(f"{name} {difference:+d}" for name, difference in drift.differences.items())
    flow = f"flow {drift.flow.hex()[:8]} of {drift.job or '-'} to {drift.host or '-'}"
    return f"record {drift.seq}: {flow}: {parts} bytes"
