"""`exeat job`: work that waits for its turn. Submitted now, run as a job when there is room and leave."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.client import Client, load_config
from exeat.appliance.commands import edit
from exeat.appliance.commands.run import job_options, request_of
from exeat.appliance.errors import RefusedError, UsageError
from exeat.appliance.parsers import add_verb
from exeat.appliance.plain import PlainBytes, plain

if TYPE_CHECKING:
    import argparse

_FOLLOW_S = 0.2
_OVER: Final = frozenset({"done", "failed", "cancelled", "skipped"})
_READ = 65536


def register(commands: Any) -> None:
    parser = commands.add_parser("job", help="submit work for later, list it, read what it said")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    submit = add_verb(verbs, "submit", "put a command into the queue", _submit)
    job_options(submit)
    submit.add_argument("--priority", type=int, default=0, metavar="N", help="-100 to 100; more goes first")
    submit.add_argument("--group", metavar="G", help="counts against this group's limit of the node")
    submit.add_argument(
        "--after", action="append", default=[], metavar="ID", help="only if this one ends well"
    )
    submit.add_argument(
        "--need",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="wait for leave to go there",
    )
    submit.add_argument("--retries", type=int, default=0, metavar="N", help="try again so often if it fails")
    submit.add_argument("--dry-run", action="store_true", help="say what would happen; keep nothing")
    submit.add_argument("--wait", action="store_true", help="until it is over; exit as it did")
    submit.add_argument(
        "--merge-if-clean",
        action="store_true",
        help="with --edit and --wait: merge what nobody has to look at",
    )
    submit.add_argument("--as", dest="person", metavar="NAME", help="the person who submits")
    submit.add_argument("cmd", nargs="+", metavar="CMD", help="the command, after `--`")
    submit.set_defaults(policy=None, hold=None)
    listing = add_verb(verbs, "ls", "what waits and why, and what runs", _ls)
    listing.add_argument("--project", metavar="P", help="of this project only")
    listing.add_argument("--all", action="store_true", help="what is over, too")
    _one(add_verb(verbs, "show", "one, whole", _show))
    logs = _one(add_verb(verbs, "logs", "what it wrote", _logs))
    logs.add_argument("--err", action="store_true", help="to standard error instead of standard output")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it is over")
    cancel = _one(add_verb(verbs, "cancel", "take it out of the queue, or end it", _cancel))
    cancel.add_argument("--as", dest="person", metavar="NAME", help="the person who decides")
    pause = _one(
        add_verb(verbs, "pause", "stop its processes where they are (or those of `exeat run`)", _steer)
    )
    resume = _one(add_verb(verbs, "resume", "let them go on, once there is a place", _steer))
    nack = _one(add_verb(verbs, "nack", "end it and put it back into the queue; no try is lost", _nack))
    nack.add_argument("--after", type=int, default=0, metavar="S", help="seconds before it may begin again")
    for parser in (pause, resume, nack):
        parser.add_argument("--as", dest="person", metavar="NAME", help="the person who decides")
    _one(add_verb(verbs, "wait", "until it is over; exit as it did", _wait))
    edit.register(verbs)


def _one(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("task", metavar="ID")
    return parser


def _submit(args: argparse.Namespace) -> int:
    if args.merge_if_clean and not (args.edit and args.wait):
        raise UsageError("--merge-if-clean needs --edit and --wait: who waits does it")
    config = load_config(args)
    request = request_of(args, config)
    more = {"as": args.person} if args.person else {}
    more |= {"group": args.group} if args.group else {}
    row = Client(config).call(
        "task.submit",
        **request,
        **more,
        priority=args.priority,
        after=args.after,
        needs=args.need,
        retries=args.retries,
        dry_run=args.dry_run,
    )["task"]
    if args.dry_run:
        text = f"would wait: {plain(row['waits']['text'])}" if row["waits"] else "would start"
        print(json.dumps(row) if args.json else text)
        return 0
    if args.wait:
        code = _until_over(args, row["id"])
        if args.merge_if_clean and code == 0:
            _merge_if_clean(args, row["id"])
        return code
    print(json.dumps(row) if args.json else row["id"])
    return 0


def _merge_if_clean(args: argparse.Namespace, task: str) -> None:
    """Says on standard error what it did; the exit code is the job's."""
    try:
        done = edit.merge_edit(load_config(args), task, if_clean=True, person=args.person or "")
        print(f"exeat: {done['changes']} changes are in {plain(done['folder'])}", file=sys.stderr)
    except RefusedError as error:
        print(f"exeat: not merged: {error}: exeat job diff {task}", file=sys.stderr)


def _row(args: argparse.Namespace, task: str) -> dict[str, Any]:
    row: dict[str, Any] = Client(load_config(args)).call("task.show", task=task)["task"]
    return row


def _ls(args: argparse.Namespace) -> int:
    given = {"project": args.project} if args.project else {}
    reply = Client(load_config(args)).call("task.ls", all=args.all, **given)
    if args.json:
        print(json.dumps(reply["tasks"]))
        return 0
    for row in reply["tasks"]:
        print(_line(row))
    running = sum(row["state"] == "running" for row in reply["tasks"])
    print(f"{running} of {reply['slots']} places taken")
    return 0


def _line(row: dict[str, Any]) -> str:
    words = plain(" ".join(row["request"]["argv"]))
    words = words if len(words) <= 40 else words[:37] + "..."
    said = plain(row["waits"]["text"] if row["waits"] else _outcome(row))
    return (
        f"{row['state']:<10} {row['id']:<13} {row['project']:<12} {row['priority']:>4}  {words:<40}  {said}"
    )


def _outcome(row: dict[str, Any]) -> str:
    if row["state"] == "running":
        return f"{row['job']} for {max(0, time.time_ns() // 1_000_000 - row['started_ms']) // 1000} s"
    code = "" if row["code"] is None else f"{row['code']} "
    return f"{code}{row['reason']}".strip()


def _show(args: argparse.Namespace) -> int:
    row = _row(args, args.task)
    if args.json:
        print(json.dumps(row))
        return 0
    for key, value in row.items():
        if value not in (None, "", [], {}):
            print(f"{key:<14} {plain(str(value)) if isinstance(value, str | int) else json.dumps(value)}")
    return 0


def _logs(args: argparse.Namespace) -> int:
    row = _row(args, args.task)  # it says whether there is such a task: nothing else becomes a path
    path = load_config(args).state_dir / "control" / "tasks" / row["id"] / ("err" if args.err else "out")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UsageError(f"{row['id']} has not begun") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: run this as root") from None
    terminal = PlainBytes() if sys.stdout.isatty() else None  # elsewhere it is as it was written
    with open(fd, "rb") as file:
        while True:
            over = row["state"] in _OVER
            while data := file.read(_READ):
                sys.stdout.buffer.write(terminal.feed(data) if terminal else data)
            sys.stdout.flush()
            if over or not args.follow:
                return 0
            time.sleep(_FOLLOW_S)
            row = _row(args, row["id"])


def _cancel(args: argparse.Namespace) -> int:
    more = {"as": args.person} if args.person else {}
    row = Client(load_config(args)).call("task.cancel", task=args.task, **more)["task"]
    print(json.dumps(row) if args.json else _line(row))
    return 0


def _steer(args: argparse.Namespace) -> int:
    more = {"as": args.person} if args.person else {}
    Client(load_config(args)).call(f"job.{args.verb}", job=args.task, **more)
    return 0


def _nack(args: argparse.Namespace) -> int:
    more = {"as": args.person} if args.person else {}
    reply = Client(load_config(args)).call("task.nack", task=args.task, after_ms=1000 * args.after, **more)
    row = reply["task"]
    print(json.dumps(row) if args.json else _line(row))
    return 0


def _wait(args: argparse.Namespace) -> int:
    return _until_over(args, args.task)


def _until_over(args: argparse.Namespace, task: str) -> int:
    while (row := _row(args, task))["state"] not in _OVER:
        time.sleep(_FOLLOW_S)
    print(json.dumps(row) if args.json else _line(row))
    return int(row["code"]) if row["code"] is not None else int(row["state"] != "done")
