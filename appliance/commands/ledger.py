"""`exeat ledger ...`: read the evidence, check it, hand it on. Works on files; nothing need run.

Here: tail and verify. The other actions are in `appliance/ledger_*.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance import (
    ledger_archive,
    ledger_ask,
    ledger_proofs,
    ledger_reconcile,
    ledger_review,
    ledger_seals,
    ledger_stream,
    ledger_why,
)
from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.ledger_text import as_json, human, line
from exeat.ledger.filters import FIELDS, Filter, parse_kinds
from exeat.ledger.reader import Follower, ReaderError, find_ledgers, tail
from exeat.ledger.verify import Problem, Report, parse_head, verify

if TYPE_CHECKING:
    from collections.abc import Iterable

_FOLLOW_S = 0.2
_KEY_BREAK = "the key before was lost; nothing but the operator's word leads from it to the next"


def register(commands: Any) -> None:
    parser = commands.add_parser("ledger", help="read the evidence and check it")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    show = actions.add_parser("tail", help="the last records, and with -f those to come")
    show.add_argument("-f", "--follow", action="store_true", help="go on as records come")
    show.add_argument("-n", "--lines", type=_count, default=20, metavar="N", help="how many (default 20)")
    for name in FIELDS:
        more = "; *.NAME is every name under it" if name == "host" else ""
        show.add_argument(f"--{name}", default="", metavar=name[0].upper(), help=f"only this {name}{more}")
    show.add_argument(
        "--kind", dest="kinds", type=_kinds, default=(), metavar="K,..", help="only such records"
    )
    show.set_defaults(handler=run_tail)

    check = actions.add_parser("verify", help="check every byte and every account")
    check.add_argument(
        "--head", metavar="SIZE:ROOT", help="a head noted earlier, elsewhere: shows a cut or rewritten ledger"
    )
    check.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a signed checkpoint kept elsewhere: shows the same"
    )
    check.add_argument("--key", metavar="VKEY", help="the key that signed it, if none of the ledger's own")
    check.add_argument(
        "--quick", action="store_true", help="hashes and order only; no accounts, no look into the records"
    )
    check.add_argument("--note", action="store_true", help="note the result for the metrics")
    check.set_defaults(handler=run_verify)
    others = [
        part.register(actions, _ledgers)
        for part in (
            *(ledger_ask, ledger_reconcile, ledger_proofs, ledger_why, ledger_review),
            *(ledger_archive, ledger_stream, ledger_seals),
        )
    ]
    for action in (show, check, *(each for part in others for each in part)):
        action.add_argument("--json", action="store_true", help="print JSON")
        action.add_argument(
            "--state-dir", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="where the ledger lies"
        )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 8):
        raise argparse.ArgumentTypeError("not a number of records")
    return int(text)


def _kinds(text: str) -> tuple[str, ...]:
    try:
        parse_kinds(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return tuple(text.split(","))


def _ledgers(args: argparse.Namespace) -> list[Path]:
    state_dir: Path = args.state_dir or load_config(args).state_dir
    try:
        found = find_ledgers(state_dir)
    except OSError as error:
        raise NotReachableError(f"{state_dir}: {error.strerror}: run this as root") from None
    if not found:
        raise NotReachableError(f"{state_dir}: no ledger here: has `exeat up` run with this state directory?")
    return found


# --- tail


def run_tail(args: argparse.Namespace) -> int:
    chosen = Filter(parse_kinds(args.kinds), **{name: getattr(args, name) for name in FIELDS})
    followers = []
    for directory in _ledgers(args):
        try:
            entries, follower = (
                _chosen(directory, chosen, args.lines) if chosen else tail(directory, args.lines)
            )
        except (ReaderError, OSError) as error:
            raise NotReachableError(str(error)) from None
        _print(entries, chosen, args)
        followers.append(follower)
    while args.follow:
        for follower in followers:
            _print(follower.poll(), chosen, args)
        time.sleep(_FOLLOW_S)
    return 0


def _chosen(directory: Path, chosen: Filter, count: int) -> tuple[Iterable[tuple[int, bytes]], Follower]:
    follower = Follower(directory)
    return deque((entry for entry in follower.poll() if chosen.decoded(entry[1])), maxlen=count), follower


def _print(entries: Iterable[tuple[int, bytes]], chosen: Filter, args: argparse.Namespace) -> None:
    for seq, data in entries:
        record = chosen.decoded(data)
        if record is not None:
            print(json.dumps(as_json(seq, record)) if args.json else line(seq, record), flush=args.follow)


# --- verify


def run_verify(args: argparse.Namespace) -> int:
    try:
        heads = (parse_head(args.head),) if args.head else ()
    except ValueError as error:
        raise UsageError(f"--head: {error}") from None
    ledgers = _ledgers(args)
    if (heads or args.checkpoint) and len(ledgers) > 1:
        raise UsageError("there are several ledgers here; a head or checkpoint belongs to one")
    reports = []
    for directory in ledgers:
        try:
            own, wrong = _own_head(directory)
            known = heads + own + _kept_head(directory, args)
            report = verify(directory, heads=known, two=True, quick=args.quick)
            if report.size and not (own or wrong):
                report.notes.append("there is no signed checkpoint: that it was rewritten would not show")
            for what in filter(None, (wrong, _wrong_key(directory, report))):
                report.problems.append(Problem(report.size, what))
            reports.append((directory, report))
            if args.note:
                _note(directory, report)
        except OSError as error:
            raise NotReachableError(f"{directory}: {error.strerror or error}") from None
    if args.json:
        print(
            json.dumps(
                {"ok": all(report.ok for _, report in reports), "ledgers": [_json(*it) for it in reports]}
            )
        )
    else:
        print("\n\n".join(_text(*it) for it in reports))
    return 0 if all(report.ok for _, report in reports) else 1


def _note(directory: Path, report: Report) -> None:
    """For the metrics (`control.metrics`): when all of it was looked at, and whether it holds."""
    from exeat.appliance.owner import as_owner
    from exeat.ledger.small_files import replace

    said = {"ok": report.ok, "records": report.size, "at_ms": time.time_ns() // 1_000_000}
    with as_owner(directory):
        replace(directory / "verified.json", json.dumps(said) + "\n")


def _own_head(directory: Path) -> tuple[tuple[tuple[int, bytes], ...], str]:
    """(size, root) that the ledger itself signed last; and what is wrong with its checkpoint."""
    from exeat.ledger import keys, note
    from exeat.ledger.published import read_checkpoint

    try:
        text = read_checkpoint(directory)
        if text is None:
            return (), ""
        own = note.open_checkpoint(text, *keys.known(directory))
    except (keys.KeyMissingError, note.NoteError) as error:
        return (), f"its checkpoint does not count: {error}"
    return ((own.size, own.root),), ""


def _wrong_key(directory: Path, report: Report) -> str:
    """What is wrong if the key that is kept is not the one that the records lead to."""
    from exeat.ledger import keys

    try:
        kept = keys.verifier(directory).public.hex()
        if kept == report.key or not report.key or keys.pending(directory) is not None:
            return ""
    except keys.KeyMissingError:
        return ""
    return f"keys/log.vkey is not the key that the records name ({report.key})"


def _kept_head(directory: Path, args: argparse.Namespace) -> tuple[tuple[int, bytes], ...]:
    """(size, root) of the checkpoint that was kept elsewhere. Raises UsageError if it does not count."""
    from exeat.ledger import keys, note

    if args.checkpoint is None:
        return ()
    try:
        known = (note.parse_vkey(args.key),) if args.key else keys.known(directory)
        kept = note.open_checkpoint(args.checkpoint.read_text(encoding="utf-8"), *known)
    except (keys.KeyMissingError, note.NoteError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"--checkpoint: {error}") from None
    return ((kept.size, kept.root),)


def _json(directory: Path, report: Report) -> dict[str, Any]:
    return {"ok": report.ok, "path": str(directory), **asdict(report)}


def _text(directory: Path, report: Report) -> str:
    held = f"{report.size} in {report.segments} segment{'s' * (report.segments != 1)}"
    rows = [
        ("ledger", report.origin or str(directory)),
        *([("records", f"{held}: hashes and order only")] if report.quick else _books(held, report)),
        ("head", f"{report.size}:{report.root}"),
        *(
            [("dropped", f"records 0 to {report.dropped - 1}; what proves them is there")]
            * bool(report.dropped)
        ),
        *(("note", note) for note in report.notes),
        *(("note", f"record {number}: {_KEY_BREAK}") for number in report.key_breaks),
        *(("PROBLEM", f"record {problem.record}: {problem.what}") for problem in report.problems),
        ("result", "verified" if report.ok else "NOT VERIFIED"),
    ]
    return "\n".join(f"{name:<8}  {value}" for name, value in rows)


def _books(held: str, report: Report) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items())) or "none"
    flows = (
        f"{report.flows_closed} closed, {report.flows_orphaned} orphaned, {report.flows_open} open; "
        f"out {human(report.bytes_out)}, in {human(report.bytes_in)}"
    )
    return [("records", f"{held}: {kinds}"), ("flows", flows)]
