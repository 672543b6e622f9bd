"""`exeat up`: the whole appliance in the foreground."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.preflight import check_tools
from exeat.appliance.supervisor import StartError, Supervisor

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("up", help="run the appliance in the foreground")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise UsageError("`exeat up` makes namespaces and needs root: run it with sudo")
    config = load_config(args)
    if problem := check_tools(config):
        raise NotReachableError(problem)
    if config.lab.treat_as_public:
        print("exeat: WARNING: [lab] treat_as_public is set: this is a test network", file=sys.stderr)
    try:
        return Supervisor(config, global_arguments(args)).run()
    except StartError as error:
        raise NotReachableError(str(error)) from None


def global_arguments(args: argparse.Namespace) -> list[str]:
    """The global options again, for the processes we start."""
    pairs = (("--config", args.config), ("--state-dir", args.state_dir), ("--run-dir", args.run_dir))
    return [part for name, value in pairs if value is not None for part in (name, str(value.absolute()))]
