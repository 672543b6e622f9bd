"""`exeat token create|ls|revoke`: tokens for programs that use the API as a person."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from exeat.appliance.accounts_file import accounts_of
from exeat.appliance.client import load_config
from exeat.appliance.errors import UsageError
from exeat.appliance.parsers import add_verb
from exeat.policy.errors import UnitError
from exeat.policy.units import parse_duration

if TYPE_CHECKING:
    import argparse

LONGEST_MS = 366 * 86_400_000


def register(commands: Any) -> None:
    parser = commands.add_parser("token", help="tokens for programs that use the API")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_verb(verbs, "ls", "the tokens: never what they are, only what they open", _list)
    create = add_verb(verbs, "create", "make a token and print it, this once", _create)
    create.add_argument("account", metavar="NAME", help="whose token it is: it may never do more than they")
    create.add_argument("--scope", action="append", default=[], metavar="S", help="read, or a permission")
    create.add_argument("--ttl", default="30d", help="how long it opens anything (default 30d, most 366d)")
    create.add_argument("--note", default="", help="what it is for")
    revoke = verbs.add_parser("revoke", help="it opens nothing from the next request on")
    revoke.add_argument("token", metavar="ID")
    revoke.set_defaults(handler=_revoke)


def _create(args: argparse.Namespace) -> int:
    from exeat.appliance.console.permissions import scope_of

    scopes = args.scope or ["read"]
    try:
        scope_of(tuple(scopes))
        ttl_ms = parse_duration(args.ttl)
    except (UnitError, ValueError) as error:
        raise UsageError(str(error)) from None
    if ttl_ms > LONGEST_MS:
        raise UsageError("--ttl: at most 366d")
    now = time.time_ns() // 1_000_000
    with accounts_of(load_config(args)) as accounts:
        name, token = accounts.add_token(args.account, scopes, args.note, now, now + ttl_ms)
    print(json.dumps({"id": name, "token": token, "ends_ms": now + ttl_ms}) if args.json else token)
    return 0


def _list(args: argparse.Namespace) -> int:
    with accounts_of(load_config(args)) as accounts:
        found = accounts.tokens()
    if args.json:
        keys = ("id", "account", "scopes", "note", "made_ms", "ends_ms", "used_ms")
        print(json.dumps({"tokens": [{key: getattr(each, key) for key in keys} for each in found]}))
        return 0
    for each in found:
        used = _day(each.used_ms) if each.used_ms else "never"
        print(
            f"{each.id}  {each.account:<16} {','.join(each.scopes):<24} until {_day(each.ends_ms)}  "
            f"used {used}  {each.note}".rstrip()
        )
    return 0


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


def _revoke(args: argparse.Namespace) -> int:
    with accounts_of(load_config(args)) as accounts:
        accounts.revoke_token(args.token)
    return 0
