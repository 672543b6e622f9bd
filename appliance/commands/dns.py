"""`exeat dns tail|top`: what was looked up, by whom, and what was said. Works on the ledger's files."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError
from exeat.ledger.reader import Follower, ReaderError, find_ledgers
from exeat.ledger.records import Kind, Record, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLLOW_S = 0.2


def register(commands: Any) -> None:
    parser = commands.add_parser("dns", help="what was looked up, and what was said")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    tail = actions.add_parser("tail", help="the last lookups, and with -f those to come")
    tail.add_argument("-f", "--follow", action="store_true", help="go on as lookups come")
    tail.set_defaults(handler=run_tail)

    top = actions.add_parser("top", help="the names looked up most")
    top.set_defaults(handler=run_top)
    for action in (tail, top):
        action.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="how many (default 20)")
        action.add_argument("--project", metavar="P", default="", help="only this project's")
        action.add_argument("--job", metavar="J", default="", help="only this job's")
        action.add_argument("--denied", action="store_true", help="only what was not let through")
        action.add_argument("--json", action="store_true", help="print JSON")
        action.add_argument(
            "--state-dir", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="where the ledger lies"
        )


def run_tail(args: argparse.Namespace) -> int:
    followers = _followers(args)
    records = [record for follower in followers for record in _lookups(follower, args)]
    records.sort(key=lambda record: record.t_real_ns)
    for record in records[-args.lines :] if args.lines > 0 else []:
        _show(record, args)
    while args.follow:
        for follower in followers:
            for record in _lookups(follower, args):
                _show(record, args)
        time.sleep(_FOLLOW_S)
    return 0


def run_top(args: argparse.Namespace) -> int:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for follower in _followers(args):
        for record in _lookups(follower, args):
            counts[record.project, _host(record), record.decision, record.reason_code] += record.count
    for (project, host, decision, reason), count in counts.most_common(max(0, args.lines)):
        if args.json:
            row = {"count": count, "project": project, "host": host, "decision": decision, "reason": reason}
            print(json.dumps(row))
        else:
            print(f"{count:>8}  {decision:<5}  {host or '-'}  {reason}  ({project or '-'})")
    return 0


def _followers(args: argparse.Namespace) -> list[Follower]:
    state_dir: Path = args.state_dir or load_config(args).state_dir
    try:
        found = find_ledgers(state_dir)
        followers = [Follower(directory) for directory in found]
    except (OSError, ReaderError) as error:
        raise NotReachableError(f"{state_dir}: {error}: run this as root") from None
    if not followers:
        raise NotReachableError(f"{state_dir}: no ledger here: has `exeat up` run with this state directory?")
    return followers


def _lookups(follower: Follower, args: argparse.Namespace) -> Iterator[Record]:
    """The lookups that came since the last time, those asked for."""
    try:
        for _, data in follower.poll():
            record = decode(data)
            if (
                record.kind is Kind.DNS
                and (not args.project or record.project == args.project)
                and (not args.job or record.job == args.job)
                and not (args.denied and record.decision == "allow")
            ):
                yield record
    except (OSError, ReaderError) as error:
        raise NotReachableError(str(error)) from None


def _host(record: Record) -> str:
    return record.dest.host if record.dest is not None else ""


def _show(record: Record, args: argparse.Namespace) -> None:
    at = datetime.fromtimestamp(record.t_real_ns / 1e9, tz=UTC)
    if args.json:
        row = {
            "time": at.isoformat(), "project": record.project, "agent": record.agent, "job": record.job,
            "host": _host(record), "decision": record.decision, "reason": record.reason_code,
            "rule": record.rule_id, "lease": record.lease_id, "asked_by": record.name_source,
            "count": record.count,
        }  # fmt: skip
        print(json.dumps(row), flush=args.follow)
        return
    times = f"  x{record.count}" if record.count > 1 else ""
    by = f"  by {record.rule_id}" if record.rule_id else ""
    who = record.job or record.agent or "-"
    line = f"{at:%H:%M:%S}  {who:<16}  {record.decision:<5}  {_host(record) or '-'}  {record.reason_code}"
    print(f"{line}{by}{times}  ({record.name_source})", flush=args.follow)
