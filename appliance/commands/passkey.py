"""`exeat passkey invite|ls|remove`: who decides with which authenticator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.parsers import add_verb
from exeat.appliance.plain import plain

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("passkey", help="authenticators for decisions in the console")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    invite = add_verb(verbs, "invite", "a code for NAME to register one passkey with", _invite)
    invite.add_argument("person", metavar="NAME")
    add_verb(verbs, "ls", "all passkeys", _list)
    remove = add_verb(verbs, "remove", "it decides nothing from now on", _remove)
    remove.add_argument("passkey", metavar="ID")
    remove.add_argument("--as", dest="by", metavar="WHO", help="who takes it away (default: root)")


def _invite(args: argparse.Namespace) -> int:
    said = Client(load_config(args)).call("passkey.invite", person=args.person)
    print(json.dumps({"code": said["code"], "ends_ms": said["ends_ms"]}) if args.json else said["code"])
    return 0


def _list(args: argparse.Namespace) -> int:
    rows = Client(load_config(args)).call("passkey.ls", all=True)["passkeys"]
    if args.json:
        print(json.dumps({"passkeys": rows}))
        return 0
    for row in rows:
        print(f"{plain(row['person']):<20} {plain(row['name']):<24} {row['id']}")
    return 0


def _remove(args: argparse.Namespace) -> int:
    by = {"as": args.by} if args.by else {}
    Client(load_config(args)).call("passkey.remove", passkey=args.passkey, **by)
    print("{}" if args.json else "removed")
    return 0
