"""`exeat device`: what can be lent to jobs, who has it, and until when."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.errors import UsageError
from exeat.appliance.parsers import add_verb
from exeat.appliance.plain import plain
from exeat.policy.errors import UnitError
from exeat.policy.units import parse_duration

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("device", help="lend microphones, cameras and the like to jobs")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_verb(verbs, "ls", "the devices, and who has them", _ls)
    grant = add_verb(verbs, "grant", "ask for one on behalf of a job; another person approves it", _grant)
    grant.add_argument("device", metavar="NAME")
    grant.add_argument("--job", required=True, metavar="J", help="the name of a job that runs")
    grant.add_argument("--ttl", metavar="TIME", help="how long it shall last (for example 10m)")
    grant.add_argument("--reason", default="", help="shown to the approver")
    revoke = add_verb(verbs, "revoke", "end a grant now", _revoke)
    revoke.add_argument("lease", metavar="LEASE")
    for each in (grant, revoke):
        each.add_argument("--as", dest="person", metavar="NAME", help="the person who acts")


def _ls(args: argparse.Namespace) -> int:
    rows = Client(load_config(args)).call("device.ls")["devices"]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['device']:<20} {row['mode']:<6} {plain(row['path'])}")
        for lease in row["grants"]:
            state = "open" if lease["open"] else lease["state"]
            print(f"    {state:<10} {plain(lease['id'])}  job {plain(lease['job'])}")
    return 0


def _grant(args: argparse.Namespace) -> int:
    request: dict[str, Any] = {"device": args.device, "job": args.job, "reason": args.reason}
    if args.person:
        request["as"] = args.person
    if args.ttl:
        try:
            request["ttl_ms"] = parse_duration(args.ttl)
        except UnitError as error:
            raise UsageError(str(error)) from None
    row = Client(load_config(args)).call("device.grant", **request)["lease"]
    print(json.dumps(row) if args.json else f"{row['id']}: exeat lease approve {row['id']} --as NAME")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    more = {"as": args.person} if args.person else {}
    Client(load_config(args)).call("lease.revoke", lease=args.lease, **more)
    return 0
