"""`exeat ledger checkpoint|prove|export|fsck`: what can be shown to others, and is it sound."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.owner import as_owner

if TYPE_CHECKING:
    from collections.abc import Callable


def number(text: str) -> int:
    """A record's number, as an argument."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise argparse.ArgumentTypeError("not the number of a record")
    return int(text)


def register(actions: Any, directories: Callable[[argparse.Namespace], list[Path]]) -> list[Any]:
    """Add the actions; `directories` finds the ledgers. The parsers, for options that all actions share."""

    def one(args: argparse.Namespace) -> Path:
        found = directories(args)
        if len(found) > 1:
            raise UsageError(f"several ledgers here: {', '.join(map(str, found))}")
        return found[0]

    show = actions.add_parser("checkpoint", help="the signed checkpoint: keep it somewhere else")
    show.add_argument("--key", action="store_true", help="the public key to check it with instead")
    show.set_defaults(handler=lambda args: _guarded(run_checkpoint, one(args), args))

    prove = actions.add_parser("prove", help="a proof that one record stands in the ledger")
    prove.add_argument("seq", type=number, metavar="SEQ", help="the record's number")
    prove.add_argument(
        "--cosigned", action="store_true", help="under the newest checkpoint that witnesses signed"
    )
    prove.set_defaults(handler=lambda args: _guarded(run_prove, one(args), args))

    export = actions.add_parser("export", help="records with their proof, for a stranger to check")
    export.add_argument("out", type=Path, metavar="DIR", help="a folder that does not exist yet")
    export.add_argument("--job", default="", metavar="J", help="all records of this job and of its flows")
    export.add_argument("--from", dest="first", type=number, metavar="SEQ", help="from this record on")
    export.add_argument("--to", dest="last", type=number, metavar="SEQ", help="up to this record")
    export.add_argument(
        "--since",
        type=Path,
        metavar="FILE",
        help="a checkpoint the receiver has: show that it is gone on from",
    )
    export.add_argument(
        "--cosigned", action="store_true", help="under the newest checkpoint that witnesses signed"
    )
    export.set_defaults(handler=lambda args: _guarded(run_export, one(args), args))

    fsck = actions.add_parser("fsck", help="check tiles, checkpoint and key against the records")
    fsck.add_argument("--repair", action="store_true", help="make missing and wrong tiles anew")
    fsck.set_defaults(handler=lambda args: _guarded(run_fsck, one(args), args))
    return [show, prove, export, fsck]


def _guarded(
    run: Callable[[Path, argparse.Namespace], int], directory: Path, args: argparse.Namespace
) -> int:
    # Not at the top: the cryptography library takes its time, and `ledger tail` needs none of it.
    from exeat.ledger.bundle import BundleError
    from exeat.ledger.keys import KeyMissingError
    from exeat.ledger.note import NoteError
    from exeat.ledger.reader import ReaderError
    from exeat.ledger.tiles import TileError

    try:
        return run(directory, args)
    except (BundleError, KeyMissingError, NoteError, TileError) as error:
        print(f"exeat: {error}", file=sys.stderr)
        return 1
    except FileExistsError as error:
        raise UsageError(f"{error.filename} exists already") from None
    except (ReaderError, OSError) as error:
        raise NotReachableError(str(error)) from None


def run_checkpoint(directory: Path, args: argparse.Namespace) -> int:
    from exeat.ledger import keys
    from exeat.ledger.bundle import signed

    key = keys.verifier(directory)
    if args.key:
        print(json.dumps({"vkey": str(key)}) if args.json else key)
        return 0
    text, checkpoint, _ = signed(directory)
    if args.json:
        root = checkpoint.root.hex()
        print(
            json.dumps(
                {
                    "origin": checkpoint.origin,
                    "size": checkpoint.size,
                    "root": root,
                    "vkey": str(key),
                    "note": text,
                }
            )
        )
    else:
        print(text, end="")
    return 0


def run_prove(directory: Path, args: argparse.Namespace) -> int:
    from exeat.ledger.bundle import prove

    proof = prove(directory, args.seq, cosigned=_cosigned(directory, args))
    print(
        json.dumps({"seq": args.seq, "proof": proof}) if args.json else proof, end="\n" if args.json else ""
    )
    return 0


def run_export(directory: Path, args: argparse.Namespace) -> int:
    from exeat.ledger.bundle import export

    if args.job and (args.first is not None or args.last is not None):
        raise UsageError("either --job, or --from and --to")
    since = args.since.read_text(encoding="utf-8") if args.since else None
    done = export(
        directory,
        args.out,
        job=args.job,
        first=args.first or 0,
        last=args.last,
        since=since,
        cosigned=_cosigned(directory, args),
    )
    if args.json:
        print(json.dumps({"out": str(args.out), **done._asdict()}))
        return 0
    newer = f"; {done.newer} newer not covered yet" if done.newer else ""
    print(f"{args.out}: {done.records} records, proved in a tree of {done.size}{newer}")
    return 0


def _cosigned(directory: Path, args: argparse.Namespace) -> str | None:
    """The newest checkpoint with cosignatures, if that is wanted. Raises UsageError if there is none."""
    from exeat.ledger.witnessing import seals

    if not args.cosigned:
        return None
    path = seals(directory.parent.parent, directory.name) / "cosigned"
    if not path.exists():
        raise UsageError("no witness has cosigned: leave --cosigned out, or see `exeat ledger witness`")
    return path.read_text(encoding="utf-8")


def run_fsck(directory: Path, args: argparse.Namespace) -> int:
    from exeat.ledger import fsck

    with as_owner(directory):
        wrong = fsck.check(directory, repair=args.repair)
    repaired = args.repair and all(each.startswith("tile/") for each in wrong)
    if args.json:
        print(
            json.dumps({"ok": not wrong or repaired, "repaired": repaired and bool(wrong), "problems": wrong})
        )
    else:
        print("\n".join(wrong) + "\nmade anew" * bool(repaired) if wrong else f"{directory}: sound")
    return 0 if not wrong or repaired else 1
