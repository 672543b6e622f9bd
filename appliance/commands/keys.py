"""`exeat keys ...`: the key with which the ledger signs its checkpoints, and how it is changed.

Works on files. The running ledger announces a new key in its records before it signs with it; what
is asked for here while it does not run happens at its next start.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.owner import as_owner
from exeat.ledger.reader import find_ledgers

if TYPE_CHECKING:
    from collections.abc import Callable

_WAIT_S = 5.0  # for the running ledger to take a new key
_MAX_OVERLAP_H = 24 * 365


def register(commands: Any) -> None:
    parser = commands.add_parser("keys", help="the ledger's signing key, and how it is changed")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="the public key that signs now, and those before it")
    show.add_argument("--chain", action="store_true", help="the statements by which one key follows another")
    show.set_defaults(handler=lambda args: _guarded(run_show, args))
    rotate = actions.add_parser("rotate", help="let a new key follow; for a time both sign")
    rotate.add_argument(
        "--overlap", type=_hours, default=24.0, metavar="HOURS", help="how long both sign (default 24)"
    )
    rotate.set_defaults(handler=lambda args: _guarded(run_rotate, args))
    new = actions.add_parser("new", help="a new key in place of one that is lost: trust in it begins anew")
    new.set_defaults(handler=lambda args: _guarded(run_new, args))
    for action in (show, rotate, new):
        action.add_argument("--json", action="store_true", help="print JSON")
        action.add_argument(
            "--state-dir", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="where the ledger lies"
        )


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1
    if not 0 <= hours <= _MAX_OVERLAP_H:
        raise argparse.ArgumentTypeError("a number of hours, a year at most")
    return hours


def _guarded(run: Callable[[Path, argparse.Namespace], int], args: argparse.Namespace) -> int:
    from exeat.ledger.keys import KeyMissingError, RotationError
    from exeat.ledger.note import NoteError

    state_dir: Path = args.state_dir or load_config(args).state_dir
    try:
        ledgers = find_ledgers(state_dir)
        if len(ledgers) != 1:
            raise NotReachableError(f"{state_dir}: holds {len(ledgers) or 'no'} ledgers, not one")
        return run(ledgers[0], args)
    except RotationError as error:
        raise UsageError(str(error)) from None
    except (KeyMissingError, NoteError) as error:
        raise NotReachableError(str(error)) from None
    except OSError as error:
        raise NotReachableError(f"{error.filename}: {error.strerror}: run this as root") from None


def run_show(directory: Path, args: argparse.Namespace) -> int:
    from exeat.ledger import keys, succession

    chain = keys.chain(directory)
    if args.chain and not args.json:
        print(chain, end="")
        return 0
    current, now = keys.verifier(directory), time.time()
    both = keys.overlap_until(directory) if not keys.overlap_ended(directory, now) else 0
    both = both if (directory / "keys" / "old.key").exists() else 0
    statements = succession.parse_chain(chain)
    former = [{"vkey": str(each.former), "vouched": each.vouched} for each in statements]
    waiting = keys.pending(directory) is not None
    if args.json:
        told = {"vkey": str(current), "former": former, "both_until": both, "waiting": waiting}
        print(json.dumps({**told, "chain": chain} if args.chain else told))
        return 0
    print(f"signs     {current}")
    if both:
        print(f"          and the key before it, until {_moment(both)}")
    for each in reversed(former):
        print(f"former    {each['vkey']}{'' if each['vouched'] else '  (lost: nothing leads on from it)'}")
    if waiting:
        print("waiting   a new key, for the ledger to run")
    return 0


def run_rotate(directory: Path, args: argparse.Namespace) -> int:
    from exeat.ledger import keys

    until = int(time.time() + args.overlap * 3600)
    with as_owner(directory):
        new = keys.prepare(directory, until)
    return _put_into_force(directory, str(new), until, args)


def run_new(directory: Path, args: argparse.Namespace) -> int:
    from exeat.ledger import keys

    with as_owner(directory):
        try:
            keys.signer(directory)
        except keys.KeyMissingError:
            return _put_into_force(directory, str(keys.prepare(directory, 0, lost=True)), 0, args)
    raise UsageError("the key is not lost: `exeat keys rotate` changes it, and those who trust it can follow")


def _put_into_force(directory: Path, vkey: str, until: int, args: argparse.Namespace) -> int:
    waiting = directory / "keys" / "next.note"  # the last file to go
    deadline = time.monotonic() + (_WAIT_S if _runs(directory) else 0)
    while waiting.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    taken = not waiting.exists()
    if args.json:
        print(json.dumps({"vkey": vkey, "in_force": taken, "both_until": until}))
        return 0
    print(f"{'signs' if taken else 'waiting':<9} {vkey}")
    if not taken:
        print("          the ledger does not run: it announces the key, and signs with it, when it starts")
    elif until > time.time():
        print(f"          and the key before it, until {_moment(until)}")
    print(
        "          hand the new key to those who check: `exeat keys show --chain` leads from one to the other"
    )
    return 0


def _runs(directory: Path) -> bool:
    """Whether a writer holds the ledger."""
    inode = (directory / "lock").stat().st_ino
    held = Path("/proc/locks").read_text(encoding="ascii")  # trying the lock could meet a start
    return any("FLOCK" in line and f":{inode} " in line for line in held.splitlines())


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
