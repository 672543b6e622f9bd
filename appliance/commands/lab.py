"""`exeat lab up|down|demo`: a small Internet in network namespaces, and the main job in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.lab import manage, plan
from exeat.appliance.lab.picture import hints, picture

if TYPE_CHECKING:
    import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("lab", help="a small Internet in network namespaces, to try exeat in")
    actions = parser.add_subparsers(dest="action", required=True, metavar="up|down|demo")
    up = _action(actions, "up", "make the lab and start the appliance in it", _up)
    up.add_argument("--no-appliance", action="store_true", help="only the network and its hosts")
    _action(actions, "down", "remove everything of the lab", _down)
    demo = _action(actions, "demo", "run a real job through the appliance and check every promise", _demo)
    demo.add_argument("--json", action="store_true", help="one JSON document instead of the report")
    demo.add_argument("--keep", action="store_true", help="leave the lab up afterwards")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, handler: object
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)
    parser.add_argument("--prefix", default=plan.DEFAULT_PREFIX, help="of the namespaces' names")
    parser.add_argument("--lab-dir", type=Path, default=plan.DEFAULT_RUN_DIR, metavar="DIR")
    parser.add_argument("--lab-state-dir", type=Path, default=plan.DEFAULT_STATE_DIR, metavar="DIR")
    parser.set_defaults(handler=handler)
    return parser


def _lab(args: argparse.Namespace) -> plan.Lab:
    if os.geteuid() != 0:
        raise UsageError("the lab makes network namespaces and needs root: run it with sudo")
    try:
        return plan.Lab.named(args.prefix, args.lab_dir, args.lab_state_dir)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _up(args: argparse.Namespace) -> int:
    lab = _lab(args)
    try:
        manage.up(lab, appliance=not args.no_appliance)
    except manage.LabError as error:
        raise NotReachableError(str(error)) from None
    print(picture(lab))
    print(hints(lab, appliance=not args.no_appliance), end="")
    return 0


def _down(args: argparse.Namespace) -> int:
    try:
        manage.down(_lab(args))
    except manage.LabError as error:
        raise NotReachableError(str(error)) from None
    print("lab: down, nothing of it is left")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from exeat.appliance.lab.demo import run  # only here: the other two need none of it

    return run(_lab(args), as_json=args.json, keep=args.keep)
