"""`exeat console login NAME`: a link that signs a person in, once."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.accounts_file import accounts_of
from exeat.appliance.client import load_config
from exeat.appliance.errors import UsageError
from exeat.appliance.parsers import add_verb

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("console", help="sign in to the console")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    login = add_verb(verbs, "login", "print a link that signs NAME in, once, within 15 minutes", _login)
    login.add_argument("name", metavar="NAME")


def _login(args: argparse.Namespace) -> int:
    config = load_config(args)
    if not config.console.listen:
        raise UsageError("[console] listen is empty: there is no console to sign in to")
    with accounts_of(config) as accounts:
        secret = accounts.add_link(args.name, time.time_ns() // 1_000_000)
    # After `#`: browsers keep that to themselves, so it is in no log and no Referer.
    url = f"{config.console.url()}/#login={secret}"
    print(json.dumps({"url": url, "link": secret}) if args.json else url)
    return 0
