"""`exeat why HOST[:PORT]`: what would happen, and the command that would change it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("why", help="what would happen to a flow, and what would change it")
    parser.add_argument("to", metavar="HOST[:PORT]")
    parser.add_argument("--project", metavar="P")
    parser.add_argument("--agent", metavar="A")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    given = {"project": args.project, "agent": args.agent}
    reply = Client(load_config(args)).call(
        "why", to=args.to, **{name: value for name, value in given.items() if value is not None}
    )
    if args.json:
        print(json.dumps({key: value for key, value in reply.items() if key not in ("id", "ok")}))
    else:
        by = f" by {reply['rule']}" if reply["rule"] else ""
        print(f"{reply['verdict']}  {reply['to']}  {reply['text']}{by} [{reply['reason']}]")
        if reply["next"]:
            print(f"  to change it: {reply['next']}")
    return 0 if reply["verdict"] == "allow" else 1
