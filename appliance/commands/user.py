"""`exeat user add|ls|set|password|rm`: who may use the console, and in which role."""

from __future__ import annotations

import getpass
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.accounts_file import accounts_of
from exeat.appliance.client import load_config
from exeat.appliance.errors import UsageError
from exeat.appliance.parsers import add_verb
from exeat.policy.admin import ACCOUNTS

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("user", help="people who may use the console, and their roles")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_verb(verbs, "ls", "the accounts", _list)
    for verb, words, handler in (
        ("add", "make an account; `exeat console login` opens it", _add),
        ("set", "change role and projects, from the next request on", _set),
    ):
        action = verbs.add_parser(verb, help=words)
        action.add_argument("name", metavar="NAME")
        action.add_argument("--role", required=True, choices=tuple(ACCOUNTS))
        action.add_argument(
            "--project", action="append", default=[], metavar="P", help="only this one (again for more)"
        )
        action.set_defaults(handler=handler)
    for verb, words, handler in (
        ("password", "set a password, read from the terminal or from a pipe", _password),
        ("rm", "remove the account with its tokens and sessions, at once", _remove),
    ):
        action = verbs.add_parser(verb, help=words)
        action.add_argument("name", metavar="NAME")
        action.set_defaults(handler=handler)


def _list(args: argparse.Namespace) -> int:
    with accounts_of(load_config(args)) as accounts:
        found = accounts.all()
    if args.json:
        rows = [{"name": each.name, "role": each.role, "projects": each.projects} for each in found]
        print(json.dumps({"users": rows}))
        return 0
    for each in found:
        print(f"{each.name:<20} {each.role:<9} {', '.join(each.projects) or 'all projects'}")
    return 0


def _add(args: argparse.Namespace) -> int:
    with accounts_of(load_config(args)) as accounts:
        accounts.add(args.name, args.role, args.project, time.time_ns() // 1_000_000)
    return 0


def _set(args: argparse.Namespace) -> int:
    with accounts_of(load_config(args)) as accounts:
        accounts.change(args.name, args.role, args.project)
    return 0


def _password(args: argparse.Namespace) -> int:
    from exeat.appliance.console.auth.passwords import hashed

    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if sys.stdin.isatty() and password != getpass.getpass("Again: "):
        raise UsageError("the two are not the same")
    digest = hashed(password)
    with accounts_of(load_config(args)) as accounts:
        accounts.set_password(args.name, digest)
    return 0


def _remove(args: argparse.Namespace) -> int:
    with accounts_of(load_config(args)) as accounts:
        accounts.remove(args.name)
    return 0
