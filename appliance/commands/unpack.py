"""`exeat unpack ARCHIVE`: take an archive apart in a jail, and let out only what is harmless.

The parsers run as a job without network under the strict profile; what they tell is judged again
here, and written by this program, as whoever called it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.archives import Reading
from exeat.appliance.client import load_config
from exeat.appliance.errors import UsageError
from exeat.policy.errors import UnitError
from exeat.policy.units import parse_count, parse_duration, parse_size
from exeat.sandbox.archive_folder import NewFolder, TargetError
from exeat.sandbox.archive_inside import ArchiveError, Caps

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

_TARS = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz", ".tbz2", ".txz", ".tzst", ".tar")
_SUFFIXES = (*_TARS, ".zip", ".gz", ".bz2", ".xz", ".zst")


def register(commands: Any) -> None:
    defaults = Caps()
    parser = commands.add_parser("unpack", help="take an archive apart in a jail, into one folder")
    parser.add_argument(
        "archive", metavar="ARCHIVE", help="zip, tar, gzip, bzip2, xz, zstd; - for standard input"
    )
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="a new or empty folder (default: ARCHIVE without its ending)"
    )
    for name, parse, shown, words in (
        ("size", parse_size, "1GiB", "of all files"),
        ("file", parse_size, "1GiB", "of one file"),
        ("count", parse_count, defaults.count, "files and folders"),
        ("ratio", parse_count, defaults.ratio, "times the archive's own size"),
        ("depth", parse_count, defaults.depth, "folders inside each other"),
        ("time", _seconds, f"{defaults.seconds}s", "for all of it"),
    ):
        parser.add_argument(
            f"--max-{name}", type=_unit(parse), metavar="N", help=f"{words}, at most (default {shown})"
        )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(handler=run)


def _seconds(text: str) -> int:
    return max(1, parse_duration(text) // 1000)


def _unit(parse: Callable[[str], int]) -> Callable[[str], int]:
    import argparse

    def parsed(text: str) -> int:
        try:
            return parse(text)
        except UnitError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def run(args: argparse.Namespace) -> int:
    """0 with all of it in its folder; 1 with nothing, and why."""
    if os.geteuid() != 0:
        raise UsageError("`exeat unpack` makes a jail and needs root: run it with sudo")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # and nothing is left, as by ctrl-c
    config, caps = load_config(args), _caps(args)
    into, inner = _names(args)
    with contextlib.closing(_opened(args.archive, caps)) as archive:
        try:
            with NewFolder(into) as folder:
                sums = Reading(config, caps, archive.fileno(), inner).into(folder)
                folder.finish()
        except TargetError as error:
            raise UsageError(str(error)) from None
        except ArchiveError as error:
            return _refused(args, error)
    if args.json:
        print(json.dumps({"ok": True, "into": str(into), "files": sums.files, "bytes": sums.size}))
    else:
        print(f"unpacked {sums.files} files, {sums.size} bytes into {into}")
    return 0


def _refused(args: argparse.Namespace, error: ArchiveError) -> int:
    if args.json:
        print(json.dumps({"ok": False, "error": error.code, "message": str(error)}))
    else:
        print(f"exeat: {args.archive}: {error} [{error.code}]; nothing was unpacked", file=sys.stderr)
    return 1


def _caps(args: argparse.Namespace) -> Caps:
    asked = {name: getattr(args, f"max_{name}") for name in ("size", "file", "count", "ratio", "depth")}
    asked["seconds"] = args.max_time
    return Caps(**{name: value for name, value in asked.items() if value is not None})


def _names(args: argparse.Namespace) -> tuple[Path, str]:
    """The folder, and the name of what is in a file that was only compressed."""
    if args.archive == "-":
        if args.into is None:
            raise UsageError("an archive from standard input has no name: say --into DIR")
        return args.into, "content"
    name = Path(args.archive).name
    ending = next((each for each in _SUFFIXES if name.lower().endswith(each)), "")
    stem = name[: len(name) - len(ending)]
    if args.into is None and (not ending or not stem):
        raise UsageError(f"{args.archive}: no known ending to leave off: say --into DIR")
    return args.into or Path(args.archive).with_name(stem), stem or "content"


def _opened(name: str, caps: Caps) -> Any:
    """The archive as a regular file that the job can read and nobody can write through it."""
    if name == "-":
        return _copied(sys.stdin.buffer, caps)
    try:
        archive = open(name, "rb")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    status = os.fstat(archive.fileno())
    if stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IWOTH:
        return archive
    with archive:
        return _copied(archive, caps)


def _copied(source: Any, caps: Caps) -> Any:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    shutil.copyfileobj(source, _Capped(copy, caps.size))
    copy.flush()
    return copy


class _Capped:
    def __init__(self, file: Any, most: int) -> None:
        self._file = file
        self._left = most

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise UsageError("the archive itself is larger than --max-size")
        self._file.write(data)
