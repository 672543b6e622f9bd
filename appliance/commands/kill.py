"""`exeat kill`: end everything, or one project, and let nothing be reached; and let it again."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RUNNING_ON = "jobs that run go on, without network: end them where `exeat run` runs"
ENDED = "jobs ended, with all their processes:"


def register(commands: Any) -> None:
    parser = commands.add_parser("kill", help="the kill switch: what is stopped; stop it, let it again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=_show)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, text, handler in (
        ("on", "end all flows and jobs, and refuse new ones and every lookup", _on),
        ("off", "let policy decide again", _off),
    ):
        verb = verbs.add_parser(name, help=text)
        # SUPPRESS: else this would undo `exeat kill --json on`.
        verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        what = verb.add_mutually_exclusive_group(required=True)
        what.add_argument("--all", action="store_true", help="everything on this node")
        what.add_argument("--project", metavar="P", help="of this project only")
        what.add_argument("--node", metavar="N", help="as --all, if N is the name of this node")
        verb.add_argument("--reason", default="", metavar="TEXT", help="kept on the ledger, shown by status")
        verb.add_argument(
            "--as", dest="person", metavar="NAME", help="the person who decides (default: root)"
        )
        if handler is _on:
            verb.add_argument("--network-only", action="store_true", help="let jobs run on, without network")
        verb.set_defaults(handler=handler)


def lines(stopped: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What is stopped, by whom and why: a line each."""
    for row in stopped:
        what = "EVERYTHING" if row["project"] is None else f"project {row['project']}"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["at_ms"] / 1000))
        why = f' "{row["reason"]}"' if row["reason"] else ""
        only = "" if row["jobs"] else " (network only)"
        yield f"{what}{only}, by {row['by']} at {when}{why}"


def _show(args: argparse.Namespace) -> int:
    return _print(args, Client(load_config(args)).call("kill.ls")["stopped"])


def _on(args: argparse.Namespace) -> int:
    only = {"network_only": True} if args.network_only else {}
    reply = _turn(args, "kill.on", **only)
    code = _print(args, reply["stopped"])
    if not args.json:
        print(RUNNING_ON if args.network_only else f"{ENDED} {reply['ended']}")
    return code


def _off(args: argparse.Namespace) -> int:
    return _print(args, _turn(args, "kill.off")["stopped"])


def _turn(args: argparse.Namespace, verb: str, **more: Any) -> dict[str, Any]:
    config = load_config(args)
    if args.node not in (None, config.node.name):
        raise UsageError(f"this node is `{config.node.name}`: run this on `{args.node}`")
    what = {"project": args.project} if args.project is not None else {"all": True}
    who = {"as": args.person} if args.person else {}
    return Client(config).call(verb, reason=args.reason, **what, **who, **more)


def _print(args: argparse.Namespace, stopped: list[dict[str, Any]]) -> int:
    if args.json:
        print(json.dumps(stopped))
        return 0
    for line in lines(stopped):
        print(f"stopped    {line}")
    if not stopped:
        print("nothing is stopped")
    return 0
