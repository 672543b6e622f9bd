"""`exeat dns tail|top|pins`: what was looked up, by whom, and what was said.

`tail` and `top` work on the ledger's files; `pins` asks the running guard which answers still stand.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.commands.dns_top import SECTIONS, Top, picture
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

    top = actions.add_parser("top", help="the names, subjects and refusals there were most of")
    top.add_argument("--by", choices=SECTIONS, default="", help="only this table")
    top.set_defaults(handler=run_top)
    pins = actions.add_parser("pins", help="the answers that still stand: who was told which address")
    pins.add_argument("--name", metavar="NAME", default="", help="only this name and those below it")
    pins.add_argument("--address", metavar="A", default="", help="only this address")
    pins.set_defaults(handler=run_pins)
    for action, lines in ((tail, 20), (top, 20), (pins, 200)):
        action.add_argument(
            "-n", "--lines", type=int, default=lines, metavar="N", help=f"how many (default {lines})"
        )
        action.add_argument("--project", metavar="P", default="", help="only this project's")
        action.add_argument("--job", metavar="J", default="", help="only this job's")
        action.add_argument("--json", action="store_true", help="print JSON")
    for action in (tail, top):
        action.add_argument("--denied", action="store_true", help="only what was not let through")
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
    top = Top()
    for follower in _followers(args):
        for record in _lookups(follower, args):
            top.add(record)
    if args.json:
        for row in top.rows(args.by, args.lines):
            print(json.dumps(row))
    else:
        print(picture(top, args.by, args.lines))
    return 0


def run_pins(args: argparse.Namespace) -> int:
    asked = {"project": args.project, "job": args.job, "name": args.name, "address": args.address}
    given = {field: value for field, value in asked.items() if value}
    with closing(Client(load_config(args), "guard")) as guard:
        reply = guard.call("pins", limit=args.lines, **given)
    if args.json:
        print(json.dumps(reply["rows"]))
        return 0
    for row in reply["rows"]:
        who = f"{row['project']}/{row['job'] or row['agent']}"
        print(f"{who:<20} {row['name']:<40} {row['address']:<26} {row['left_s']:>6.0f} s left")
    if not reply["rows"]:
        print("no answers stand")
    elif reply["total"] > len(reply["rows"]):
        print(f"and {reply['total'] - len(reply['rows'])} more")
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
