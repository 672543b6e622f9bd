"""`exeat flow`: which flows live, what happens now, and cutting some. Evidence is `exeat ledger`."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.parsers import add_verb
from exeat.appliance.summary import human

if TYPE_CHECKING:
    import argparse

SHOWN = 12  # digits of an id: enough to be unique among some thousands


def register(commands: Any) -> None:
    parser = commands.add_parser("flow", help="list, watch and cut live flows")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = add_verb(verbs, "ls", "live flows, and those that wait", _ls)
    listing.add_argument("--project", metavar="P", help="of this project only")
    tail = add_verb(verbs, "tail", "what is opened, closed and refused, until ctrl-c", _tail)
    tail.add_argument("--project", metavar="P", help="of this project only")
    cut = add_verb(verbs, "cut", "end live flows now; policy is not changed: see exeat kill", _cut)
    what = cut.add_mutually_exclusive_group(required=True)
    what.add_argument("flow", metavar="ID", nargs="?", help="a flow, or as much of its id as no other has")
    what.add_argument("--project", metavar="P", help="all of this project")
    what.add_argument("--job", metavar="J", help="all of this job")
    what.add_argument("--lease", metavar="L", help="all that this lease lets through")
    cut.add_argument("--reason", default="", metavar="TEXT", help="kept on the ledger")
    cut.add_argument("--as", dest="person", metavar="NAME", help="the person who decides (default: root)")


def _ls(args: argparse.Namespace) -> int:
    given = {"project": args.project} if args.project else {}
    return _print(args, Client(load_config(args)).call("flow.ls", **given), "no flows")


def _print(args: argparse.Namespace, reply: dict[str, Any], nothing: str) -> int:
    rows, total = reply["flows"], reply["total"]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(_line(row))
    if not rows:
        print(nothing)
    elif total > len(rows):
        print(f"and {total - len(rows)} more")
    return 0


def _line(row: dict[str, Any]) -> str:
    who = f"{row['project']}/{row['job'] or row['agent']}"
    verdict = row["verdict"] if row["state"] == "live" else f"{row['verdict']}, waits"
    udp = "/udp" if row["proto"] == "udp" else ""
    moved = f"{human(row['bytes_out']):>8} out {human(row['bytes_in']):>8} in"
    seconds = max(0, int(time.time() - row["since_ms"] / 1000))
    by = row["lease"] or row["rule"] or row["reason"]
    return (
        f"{row['flow'][:SHOWN]} {who:<20} {row['dest'] + udp:<34} {verdict:<11} {moved} {seconds:>6}s  {by}"
    )


def _tail(args: argparse.Namespace) -> int:
    client = Client(load_config(args))
    after = client.call("flow.tail")["next"]
    print("exeat: watching from now on; ctrl-c ends it", file=sys.stderr, flush=True)
    while True:
        reply = client.call("flow.tail", after=after)
        after = reply["next"]
        events = reply["events"]
        if reply["lost"]:
            events = [{"ev": "lost", "count": reply["lost"]}, *events]
        for event in events:
            if event["ev"] == "lost" or args.project in (None, event["project"]):
                print(json.dumps(event) if args.json else _event(event), flush=True)


def _event(event: dict[str, Any]) -> str:
    if event["ev"] == "lost":
        return f"{event['count']} events were too fast to be shown; the ledger has them"
    who = f"{event['project']}/{event['job']}" if event["job"] else event["project"]
    moved = ""
    if event["ev"] == "close":
        moved = f" {human(event['bytes_out'])} out {human(event['bytes_in'])} in"
    name = "ask" if event["verdict"] == "ask" else event["ev"]
    return f"{name:<5} {event['flow'][:SHOWN]} {who:<20} {event['dest']:<34} {event['reason']}{moved}"


def _cut(args: argparse.Namespace) -> int:
    what = {"flow": args.flow, "project": args.project, "job": args.job, "lease": args.lease}
    given = {name: value for name, value in what.items() if value is not None}
    who = {"as": args.person} if args.person else {}
    reply = Client(load_config(args)).call("flow.cut", reason=args.reason, **given, **who)
    return _print(args, reply, "nothing to cut")
