"""`exeat config check|show`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import RefusedError, UsageError

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("config", help="check or show the configuration")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser("check", help="is it valid, with its policies? prints the first problem")
    check.set_defaults(handler=_check)
    show = verbs.add_parser("show", help="the effective configuration, as JSON")
    show.set_defaults(handler=_show)


def _check(args: argparse.Namespace) -> int:
    from exeat.appliance.control.policies import Policies

    policies = Policies.of(load_config(args))
    try:
        policies.read(time.time_ns() // 1_000_000)
        policies.read_shadows()
    except RefusedError as error:
        raise UsageError(str(error)) from None
    print("configuration is valid")
    return 0


def _show(args: argparse.Namespace) -> int:
    print(load_config(args).model_dump_json(indent=2))
    return 0
