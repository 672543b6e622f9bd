"""`exeat learn -- CMD`: run a command with the web open, watch, and propose the policy it needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance import learning, summary
from exeat.appliance.client import load_config
from exeat.appliance.commands import run as running
from exeat.appliance.errors import UsageError
from exeat.ledger.files import write_all

if TYPE_CHECKING:
    import argparse

    from exeat.appliance.config import Config

# Everything public on the web's ports; what no policy can open stays shut, and is seen.
_WATCH = "egress: v1\nproject: {project}\nposture: public\n"
_WHAT = "the policy that `exeat learn` watches with"


def register(commands: Any) -> None:
    parser = commands.add_parser(
        "learn",
        help="watch a command with the web open, and propose a policy for it",
        usage="exeat learn [options] -- CMD [ARG ...]\n       exeat learn --from JOB... [options]",
    )
    running.job_options(parser)
    parser.add_argument(
        "--from", dest="jobs", action="append", metavar="JOB", help="out of a job that ran before"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="a new file for the proposal")
    parser.add_argument("--json", action="store_true", help="the proposal as JSON")
    parser.add_argument("cmd", nargs="*", metavar="CMD", help="the command, after `--`")
    parser.set_defaults(handler=learn, hold=None, policy=None)


def learn(args: argparse.Namespace) -> int:
    """The exit code of the command: half a run proposes half a policy."""
    if bool(args.jobs) == bool(args.cmd):
        raise UsageError("want a command after `--`, or --from JOB of one that ran before")
    if args.output and args.output.exists():
        raise UsageError(f"{args.output} is there already")
    config, project = load_config(args), args.project or "learned"
    code, jobs = (0, args.jobs) if args.jobs else _watch(args, config, project)
    text = _proposal(config, project, jobs, as_json=args.json)
    if args.output:
        _write_new(args.output, text)
        print(
            f"exeat: the proposal: {args.output}; try it: exeat policy check {args.output}", file=sys.stderr
        )
    else:
        sys.stdout.flush()
        print(text, end="")
    if code:
        print(f"exeat: the command ended with {code}: it may not have shown all it needs", file=sys.stderr)
    return code


def _watch(args: argparse.Namespace, config: Config, project: str) -> tuple[int, list[str]]:
    if os.geteuid() != 0:
        raise UsageError("`exeat learn` makes a jail and needs root: run it with sudo")
    args.project = None  # its policy is not what this job runs under
    request = running.request_of(args, config) | {"policy": _WATCH.format(project=project), "file": _WHAT}
    job, code, _ = running.execute(config, request)
    return code, [job]


def _proposal(config: Config, project: str, jobs: list[str], *, as_json: bool) -> str:
    from exeat.appliance.public_suffixes import bundled_suffixes  # takes time

    runs = [(job, summary.of_job(config.state_dir / "ledger", job)) for job in jobs]
    unknown = [job for job, lines in runs if not lines]
    if unknown:
        print(f"exeat: the ledger holds no flow or lookup of {', '.join(unknown)}", file=sys.stderr)
    proposal = learning.propose(project, runs, bundled_suffixes())
    if as_json:
        return learning.as_json(proposal) + "\n"
    return learning.as_yaml(proposal, summary.human)


def _write_new(path: Path, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            write_all(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
