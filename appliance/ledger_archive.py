"""`exeat ledger archive ...`: sealed segments in buckets, checked there, and brought back.

Started by root, each half changes to the user whose half it is: the ledger's own makes batches (it
can read the key), the exporting one carries them (it may use the network).
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError, UsageError
from exeat.ledger.records import printable
from exeat.ledger.small_files import read_said

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from exeat.appliance.archive.store import Store
    from exeat.appliance.config import Config
    from exeat.ledger.manifest import Manifest
    from exeat.ledger.note import Verifier

_ACTIONS = {
    "prepare": "make batches of sealed segments (as the ledger's user; `run` does it too)",
    "run": "make batches and bring them into the buckets; a timer runs it",
    "status": "what is safe where, and what waits",
    "verify": "check what the buckets hold",
    "restore": "bring a ledger back into a new folder, and verify it there",
}


def register(actions: Any, directories: Callable[[argparse.Namespace], list[Path]]) -> list[Any]:
    """Add the actions; `directories` finds the ledgers. The parsers, for options that all actions share."""
    parser = actions.add_parser("archive", help="keep sealed segments in S3-compatible storage")
    commands = parser.add_subparsers(dest="archive_action", required=True, metavar="ACTION")
    made = {name: commands.add_parser(name, help=words) for name, words in _ACTIONS.items()}
    for name in ("run", "verify", "restore"):
        made[name].add_argument("--store", metavar="NAME", help="only this [[ledger.archive]]")
    made["run"].add_argument(
        "--carry-only", action="store_true", help="make no batches, bring those that wait"
    )
    made["verify"].add_argument("--deep", action="store_true", help="read every byte back")
    made["restore"].add_argument("out", type=Path, metavar="DIR", help="a new folder; then --state-dir of it")
    for name in ("verify", "restore"):
        made[name].add_argument("--node", metavar="NAME", help="whose ledger (default: this node's)")
        made[name].add_argument("--key", metavar="VKEY", help="the ledger's public key, if it is not here")
    handlers: dict[str, Callable[[Config, argparse.Namespace], int]] = {
        "prepare": lambda config, args: _prepare_all(config, directories(args)),
        "run": lambda config, args: _run(config, args, directories(args)),
        "status": lambda config, args: _status(config, args, directories(args)),
        "verify": _verify,
        "restore": _restore,
    }
    for name, each in made.items():
        each.set_defaults(handler=lambda args, run=handlers[name]: _guarded(run, args))
    return list(made.values())


def _guarded(run: Callable[[Config, argparse.Namespace], int], args: argparse.Namespace) -> int:
    config = load_config(args)
    if not config.ledger.archive:
        raise UsageError("no [[ledger.archive]] in the configuration: docs/ledger.md shows one")
    return _answer(lambda: run(config, args))


def _answer(work: Callable[[], int]) -> int:
    """The exit code of `work`; what it raised is one line."""
    # Not at the top: `ledger tail` needs none of it.
    from exeat.appliance.archive.store import StoreError
    from exeat.ledger.archive import ArchiveError, BusyError
    from exeat.ledger.bundle import BundleError
    from exeat.ledger.keys import KeyMissingError
    from exeat.ledger.note import NoteError
    from exeat.ledger.reader import ReaderError
    from exeat.ledger.tiles import TileError

    try:
        return work()
    except StoreError as error:
        code = 3 if error.code == "archive.unavailable" else 1
        said: Exception = error
    except (ArchiveError, BundleError, BusyError, KeyMissingError, NoteError, TileError) as error:
        code, said = 1, error
    except (NotReachableError, ReaderError, OSError) as error:
        code, said = 3, error
    print(f"exeat: {said}", file=sys.stderr, flush=True)
    return code


def receipts_of(config: Config, directory: Path) -> Path:
    """Where the carrier keeps what it knows of one ledger."""
    return config.state_dir / "archive" / directory.name


def _stores(config: Config, name: str | None = None) -> list[Store]:
    from exeat.appliance.archive.store import Store

    chosen = [each for each in config.ledger.archive if name in (None, each.name)]
    if not chosen:
        raise UsageError(f"no [[ledger.archive]] of the name {name}")
    return [Store(each) for each in chosen]


# --- prepare and run


def _prepare_all(config: Config, ledgers: list[Path]) -> int:
    from exeat.ledger import archive

    chosen = config.ledger
    plan = archive.Plan(
        chosen.archive_segments, chosen.archive_after_s, chosen.archive_waiting, chosen.archive_compression
    )
    names = [store.name for store in chosen.archive]
    for directory in ledgers:
        receipts = receipts_of(config, directory)
        made = archive.prepare(
            directory,
            plan,
            partial(_is_safe, receipts, names),
            time.time_ns(),
        )
        for manifest in made:
            print(f"exeat: archive: {manifest.object} made, {manifest.size} bytes", flush=True)
    return 0


def _is_safe(receipts: Path, names: list[str], manifest: Manifest) -> bool:
    from exeat.ledger.archive import has_receipt

    return all(has_receipt(receipts, manifest, name) for name in names)


def _run(config: Config, args: argparse.Namespace, ledgers: list[Path]) -> int:
    worst = 0
    for directory in ledgers:
        if not args.carry_only:
            owner = pwd.getpwuid(directory.stat().st_uid)
            worst = max(worst, _as_user(owner, directory, partial(_prepare_all, config, [directory])))
        if os.geteuid() == 0:
            _make_folder(config, receipts_of(config, directory).parent)
        carried = _as_user(_exporter(config), directory, partial(_carry, config, args, directory))
        worst = max(worst, carried)
    return worst


def _exporter(config: Config) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(config.users.export)
    except KeyError:
        raise NotReachableError(f"no such user {config.users.export}: run `exeat doctor`") from None


def _make_folder(config: Config, receipts: Path) -> None:
    """The folder that the carrier makes others in: those it makes itself, root goes in no folder of its."""
    owner = _exporter(config)
    receipts.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(receipts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, owner.pw_uid, owner.pw_gid)
    finally:
        os.close(fd)


def _carry(config: Config, args: argparse.Namespace, directory: Path) -> int:
    from exeat.appliance.archive.carry import Carrier
    from exeat.appliance.archive.store import StoreError
    from exeat.ledger.archive import alone

    receipts, worst = receipts_of(config, directory), 0
    with alone(receipts):
        for store in _stores(config, args.store):
            failed = receipts / f"{store.name}.failed"
            try:
                done = Carrier(directory, receipts, store).run()
            except StoreError as error:  # the others get theirs all the same
                failed.write_text(f"{error}\n", encoding="utf-8")
                print(f"exeat: archive: {error}", file=sys.stderr, flush=True)
                worst = max(worst, 3 if error.code == "archive.unavailable" else 1)
                continue
            except (LookupError, TypeError, ValueError) as error:
                said = f"{store.name}: an answer that is none of S3's: {printable(repr(error), 200)}"
                failed.write_text(f"{said} [archive.refused]\n", encoding="utf-8")
                print(f"exeat: archive: {said}", file=sys.stderr, flush=True)
                worst = max(worst, 1)
                continue
            failed.unlink(missing_ok=True)
            for manifest in done:
                print(f"exeat: archive: {manifest.object} is in {store.name}", flush=True)
    return worst


def _as_user(user: pwd.struct_passwd, directory: Path, work: Callable[[], int]) -> int:
    """The exit code of `work`, done by `user` in a process of its own; here, if it is us already.

    Of groups it has its own and that of the ledger in `directory`, which may read it.
    """
    if os.geteuid() == user.pw_uid:
        return work()
    if os.geteuid() != 0:
        raise NotReachableError(f"this is {user.pw_name}'s to do: run it as root or as {user.pw_name}")
    group = directory.stat().st_gid
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([group])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            os.nice(10)
            code = _answer(work)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- status, verify, restore


def _status(config: Config, args: argparse.Namespace, ledgers: list[Path]) -> int:
    from exeat.ledger import archive
    from exeat.ledger.reader import find_segments

    names = [store.name for store in config.ledger.archive]
    rows: list[dict[str, Any]] = []
    for directory in ledgers:
        receipts, made = receipts_of(config, directory), archive.manifests(directory)
        rows.append(
            {
                "path": str(directory),
                "sealed": len(find_segments(directory)) - 1,
                "prepared": made[-1].last + 1 if made else 0,
                "safe": archive.safely_archived(directory, receipts, names),
                "stores": {name: _store_status(receipts, made, name) for name in names},
            }
        )
    if args.json:
        print(json.dumps(rows))
    else:
        print("\n\n".join(_status_text(row) for row in rows))
    return int(any(store["failed"] for row in rows for store in row["stores"].values()))


def _store_status(receipts: Path, made: list[Manifest], name: str) -> dict[str, Any]:
    from exeat.ledger import archive

    held = [archive.has_receipt(receipts, manifest, name) for manifest in made]
    failed = receipts / f"{name}.failed"
    return {
        "batches": sum(held),
        "waiting": len(held) - sum(held),
        "failed": read_said(failed),
    }


def _status_text(row: dict[str, Any]) -> str:
    lines = [
        row["path"],
        f"  {row['sealed']} segments sealed, {row['prepared']} in batches, {row['safe']} safe in every store",
    ]
    for name, store in row["stores"].items():
        lines.append(f"  {name}: {store['batches']} batches, {store['waiting']} waiting")
        lines += [f"    FAILED: {store['failed']}"] * bool(store["failed"])
    return "\n".join(lines)


def _trusted(args: argparse.Namespace, directory: Path) -> tuple[Verifier, ...]:
    from exeat.ledger import keys, note

    if args.key:
        try:
            return (note.parse_vkey(args.key),)
        except note.NoteError as error:
            raise UsageError(f"--key: {error}") from None
    try:
        return keys.known(directory)
    except keys.KeyMissingError:
        raise UsageError("there is no key here to check it with: --key VKEY") from None


def _ledger_folder(config: Config, node: str | None) -> Path:
    origin = f"exeat/{node or config.node.name}"
    return config.state_dir / "ledger" / hashlib.sha256(origin.encode()).hexdigest()


def _verify(config: Config, args: argparse.Namespace) -> int:
    from exeat.appliance.archive import back

    directory = _ledger_folder(config, args.node)
    trusted, code = _trusted(args, directory), 0
    rows: list[dict[str, Any]] = []
    for store in _stores(config, args.store):
        found = back.look(store, directory.name, trusted, deep=args.deep)
        carried = len(list(receipts_of(config, directory).glob(f"*.{store.name}.receipt")))
        if carried > len(found.batches):
            found.problems.append(f"{carried} batches were carried there, {len(found.batches)} are there")
        last = found.batches[-1] if found.batches else None
        records, segments = (last.end, last.last + 1) if last else (0, 0)
        code = code or int(bool(found.problems))
        rows.append(
            {"store": store.name, "segments": segments, "records": records, "problems": found.problems}
        )
    if args.json:
        print(json.dumps(rows))
    for row in () if args.json else rows:
        print(f"{row['store']}: {row['segments']} segments, {row['records']} records")
        print("".join(f"  PROBLEM  {problem}\n" for problem in row["problems"]), end="")
    return code


def _restore(config: Config, args: argparse.Namespace) -> int:
    from exeat.appliance.archive import back

    directory = _ledger_folder(config, args.node)
    store = _stores(config, args.store)[0]
    batches, report = back.restore(store, directory.name, _trusted(args, directory), args.out)
    problems = [f"record {problem.record}: {problem.what}" for problem in report.problems]
    if args.json:
        print(
            json.dumps(
                {"ok": report.ok, "batches": len(batches), "records": report.size, "problems": problems}
            )
        )
    else:
        print(f"{args.out}: {len(batches)} batches from {store.name}, {report.size} records")
        print("".join(f"PROBLEM  {problem}\n" for problem in problems), end="")
        print("verified" if report.ok else "NOT VERIFIED")
    return 0 if report.ok else 1
