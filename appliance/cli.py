"""The command line. Each command lives in `appliance/commands/`; this file only joins them.

Exit codes: 0 yes, 1 no, 2 unusable input, 3 appliance not reachable or cannot start.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from exeat.appliance.errors import NotReachableError, RefusedError, UsageError

# Which module registers a command; only that one is loaded, so that a command starts fast.
COMMANDS = {
    "up": "up",
    "run": "run",
    "learn": "learn",
    "unpack": "unpack",
    "image": "image",
    "template": "template",
    "job": "job",
    "why": "why",
    "request": "request",
    "lease": "lease",
    "device": "device",
    "status": "status",
    "kill": "kill",
    "notify": "notify",
    "flow": "flow",
    "events": "events",
    "metrics": "metrics",
    "policy": "policy",
    "ledger": "ledger",
    "keys": "keys",
    "dns": "dns",
    "lab": "lab",
    "doctor": "doctor",
    "identity": "identity",
    "user": "user",
    "passkey": "passkey",
    "token": "token",
    "console": "console",
    "tls": "tls",
    "config": "config",
    "env": "info",
    "completion": "info",
    "version": "info",
    "serve": "serve",
}
# What `exeat --help` says of each. It stands here, too, so that help needs none of the modules.
SUMMARIES = {
    "up": "run the appliance in the foreground",
    "run": "run a command in a jail that reaches the network only by policy",
    "learn": "watch a command with the web open, and propose a policy for it",
    "unpack": "take an archive apart in a jail, into one folder",
    "image": "file trees for jobs, from images of containers",
    "template": "profiles, limits and policies for jobs, by name",
    "job": "submit work for later, list it, read what it said",
    "why": "what would happen to a flow, and what would change it",
    "request": "ask for a lease, and wait for it with --wait",
    "lease": "list, ask for, approve and revoke leases",
    "device": "lend microphones, cameras and the like to jobs",
    "status": "whether the appliance runs, and with what",
    "kill": "the kill switch: what is stopped; stop it, let it again",
    "notify": "who is told of requests and alerts, and a test of it",
    "flow": "list, watch and cut live flows",
    "events": "what happens: requests, leases, flows, jobs, alerts",
    "metrics": "print metrics as Prometheus reads them",
    "policy": "check, show, try out and test policies",
    "ledger": "read the evidence and check it",
    "keys": "the ledger's signing key, and how it is changed",
    "dns": "what was looked up, and what was said",
    "lab": "a small Internet in network namespaces, to try exeat in",
    "doctor": "check this machine and say what to do next",
    "identity": "names and passwords for clients outside jails",
    "user": "people who may use the console, and their roles",
    "passkey": "authenticators for decisions in the console",
    "token": "tokens for programs that use the API",
    "console": "sign in to the console",
    "tls": "a certificate for the console, and whether it will do",
    "config": "check or show the configuration",
    "version": "print the version",
    "env": "the environment a job gets, to eval in a shell",
    "completion": "print a completion script",
    "serve": "run one process of the appliance (used by `exeat up`)",
}
_GLOBAL = ("--config", "--state-dir", "--run-dir")


def build_parser(command: str = "", *, names_only: bool = False) -> argparse.ArgumentParser:
    """The whole command line as one parser, or as much of it as `command`, or its help, needs."""
    parser = argparse.ArgumentParser(
        prog="exeat",
        description="Egress firewall for machines that run AI agents: nothing leaves without a lease.",
        epilog="Exit codes: 0 yes, 1 no, 2 unusable input, 3 appliance not reachable.",
        allow_abbrev=False,
    )
    _add_global(parser, default=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    if names_only:
        for name, text in SUMMARIES.items():
            commands.add_parser(name, help=text)
        return parser
    modules = [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values())
    for name in modules:
        importlib.import_module(f"exeat.appliance.commands.{name}").register(commands)
    for subparser in commands.choices.values():
        # `exeat up --config FILE` is the same as `exeat --config FILE up`.
        _add_global(subparser, default=argparse.SUPPRESS)
    return parser


def _add_global(parser: argparse.ArgumentParser, default: str | None) -> None:
    for option, metavar, words in (
        ("--config", "FILE", "configuration (default: /etc/exeat/exeat.toml)"),
        ("--state-dir", "DIR", "where ledger and leases live"),
        ("--run-dir", "DIR", "where the sockets are"),
    ):
        hidden = words if default is None else argparse.SUPPRESS
        parser.add_argument(option, type=Path, metavar=metavar, default=default, help=hidden)


def _command(words: list[str]) -> str:
    """The first word that is neither a global option nor its value."""
    rest = iter(words)
    for word in rest:
        if word in _GLOBAL:
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return ""


def main(argv: list[str] | None = None) -> int:
    """Run one command; every expected failure is one line on stderr and its exit code."""
    words = sys.argv[1:] if argv is None else argv
    command = _command(words)
    asks_help = not command and not {"-h", "--help"}.isdisjoint(words)
    args = build_parser(command, names_only=asks_help).parse_args(words)
    try:
        code: int = args.handler(args)
    except UsageError as error:
        return _fail(str(error), 2)
    except NotReachableError as error:
        return _fail(str(error), 3)
    except RefusedError as error:
        return _fail(f"{error} [{error.code}]", 1)
    except BrokenPipeError:
        # The reader went away (`exeat ledger tail | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return code


def _fail(message: str, code: int) -> int:
    print(f"exeat: {message}", file=sys.stderr)
    return code
