"""`exeat ledger reconcile`: hold the evidence against the kernel's own counts."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from exeat.appliance.errors import NotReachableError
from exeat.appliance.ledger_formats import write
from exeat.ledger.reader import ReaderError, read
from exeat.ledger.reconcile import KEYS, differences, header_bytes, reconcile
from exeat.ledger.records import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.ledger.reconcile import Account, Drift, Reconciliation
    from exeat.ledger.records import Record

_DRIFTS = 50
_BY = ("jail", "lease")
_COUNTS = (
    *("flows", "bytes_out", "bytes_in", "kernel_out", "kernel_in", "headers", "retransmitted"),
    *("drifting", "uncounted", "orphaned", "open"),
)
_FLOW = ("seq", "flow", *KEYS, "bytes_out", "bytes_in", "kernel_out", "kernel_in", "headers", "retransmitted")


def register(actions: Any, directories: Callable[[argparse.Namespace], list[Path]]) -> list[Any]:
    """Add the action; `directories` finds the ledgers. The parser, for options that all actions share."""
    books = actions.add_parser("reconcile", help="the ledger's bytes against the kernel's, flow by flow")
    books.add_argument("--job", default="", metavar="J", help="only this job's flows")
    books.add_argument(
        "--by",
        type=_keys,
        default=_BY,
        metavar="KEY,..",
        help=f"a table for each of these: {', '.join(KEYS)} (default {','.join(_BY)})",
    )
    books.add_argument("--flows", action="store_true", help="and one of all flows")
    books.add_argument(
        "--watch",
        type=_seconds,
        metavar="S",
        help="for S seconds, against what the kernel itself tells of connections that end (on the host)",
    )
    books.set_defaults(handler=lambda args: run_reconcile(directories(args), args))
    return [books]


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(dict.fromkeys(text.split(",")))
    for key in keys:
        if key not in KEYS:
            raise argparse.ArgumentTypeError(f"{key!r} is none of {', '.join(KEYS)}")
    return keys


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError("not a number")
    return int(text)


def run_reconcile(ledgers: list[Path], args: argparse.Namespace) -> int:
    if args.watch is not None:
        from exeat.appliance.ledger_watch import run

        return run(ledgers, args)
    drifting = False
    for directory in ledgers:
        flows = list[tuple[Any, ...]]()
        try:
            found = reconcile(
                read(directory),
                args.job,
                args.by,
                (lambda seq, record: flows.append(_flow(seq, record))) if args.flows else None,  # noqa: B023 - within this turn
            )
        except (ReaderError, OSError) as error:
            raise NotReachableError(f"{directory}: {error}") from None
        except (RecordError, ValueError) as error:
            print(f"exeat: {directory}: {error}: run `exeat ledger verify`", file=sys.stderr)
            return 1
        drifting = drifting or bool(found.drifts)
        if args.json:
            print(json.dumps(_json(directory, found, flows)))
        else:
            _print(found, flows)
    return int(drifting)


def _flow(seq: int, record: Record) -> tuple[Any, ...]:
    """In the columns of `_FLOW`, and how the books differ in words."""
    counts = record.bytes_out, record.bytes_in, record.kernel_out, record.kernel_in
    names = (of(record) for of in KEYS.values())
    found = differences(record)
    differ = "no count" if found is None else _words(found)
    return (seq, record.flow.hex(), *names, *counts, header_bytes(record), record.retrans, differ)


def _json(directory: Path, found: Reconciliation, flows: list[tuple[Any, ...]]) -> dict[str, Any]:
    return {
        "ok": not found.drifts,
        "path": str(directory),
        "total": asdict(found.total),
        **{
            f"{key}s": {value: asdict(account) for value, account in group.items()}
            for key, group in found.groups.items()
        },
        **({"flows": [dict(zip((*_FLOW, "differ"), row, strict=True)) for row in flows]} if flows else {}),
        "drifts": [{**drift._asdict(), "flow": drift.flow.hex()} for drift in found.drifts],
    }


def _print(found: Reconciliation, flows: list[tuple[Any, ...]]) -> None:
    if flows:
        write("table", (*_FLOW, "differ"), [(row[0], row[1][:8], *row[2:]) for row in flows], None)
        print()
    for key, group in found.groups.items():
        rows = [(value or "-", *_counts(account)) for value, account in sorted(group.items())]
        if rows and list(group) != [""]:  # a table of nothing but flows without one says nothing
            write("table", (key, *_COUNTS), rows, None)
            print()
    write("table", ("", *_COUNTS), [("all", *_counts(found.total))], None)
    print("\n".join(_remarks(found)))


def _counts(account: Account) -> tuple[int, ...]:
    return tuple(getattr(account, name) for name in _COUNTS)


def _remarks(found: Reconciliation) -> list[str]:
    total = found.total
    lines = [
        f"on the wire about {total.headers} bytes of headers more (52 a segment, 72 for IPv6),"
        f" {total.retransmitted} retransmitted"
    ]
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
    return lines


def _words(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {difference:+d}" for name, difference in found.items())


def _drift(drift: Drift) -> str:
    flow = f"flow {drift.flow.hex()[:8]} of {drift.job or '-'} to {drift.host or '-'}"
    return f"record {drift.seq}: {flow}: {_words(drift.differences)} bytes"
