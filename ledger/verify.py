"""An independent verifier: what a stranger would write from docs/formats/ledger.md.

Shares no code with the writer on purpose (only with the stand-alone verifier of bundles), so that a
mistake there is not repeated here. It reads a ledger from its first byte, recomputes every hash, and
keeps its own accounts of flows. Problems carry the number of the record they concern.

`ledger.verify_tree` follows segments and hashes, `ledger.verify_books` the accounts,
`ledger.verify_halves` shares the work.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from exeat.ledger.verify_books import Problem, Report
from exeat.ledger.verify_halves import Work, in_two, whole
from exeat.ledger.verify_tree import is_dropped

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.ledger.verify_tree import Head

__all__ = ["Problem", "Report", "head_file", "parse_head", "verify"]


def parse_head(text: str) -> tuple[int, bytes]:
    """`SIZE:ROOT` with ROOT in hex. Raises ValueError."""
    size, _, root = text.partition(":")
    if not size.isascii() or not size.isdecimal() or len(size) > 19 or len(root) != 64:
        raise ValueError("a head is SIZE:ROOT, a decimal number and 64 hex digits")
    return int(size), bytes.fromhex(root)


def head_file(directory: Path) -> tuple[int, bytes] | None:
    """The newest durable (size, root) the writer noted down."""
    try:
        data = (directory / "head").read_bytes()
    except FileNotFoundError:
        return None
    found = []
    for at in (0, 512):
        slot = data[at : at + 60]
        if (
            len(slot) == 60
            and slot[:8] == b"exeathd1"
            and zlib.crc32(slot[:56]) == int.from_bytes(slot[56:], "big")
        ):
            found.append((int.from_bytes(slot[8:16], "big"), slot[16:48]))
    return max(found, default=None)


def verify(
    directory: Path, *, heads: tuple[Head, ...] = (), two: bool = False, quick: bool = False
) -> Report:
    """Verify the ledger in `directory`, also against `heads` (size, root) known from elsewhere.

    `two` shares the work with a second process, with the same result. `quick` computes the tree and
    follows the order of all records, so that none can be missing or another; it does not look into
    them, nor at the checksums beside them. If it finds anything wrong all is verified after all.
    Raises OSError if the ledger cannot be read, FileNotFoundError if there is none.
    """
    noted = head_file(directory)  # before the segments: the writer may be at work
    paths = sorted((directory / "seg").glob("*.seg"))
    if not paths:
        raise FileNotFoundError(f"{directory} holds no ledger")
    newest = paths[-1].read_bytes()  # the only one that grows
    dropped = is_dropped(paths[0].read_bytes())
    quick = quick and not dropped  # only records say that records were dropped
    work = Work(paths, newest, heads + ((noted,) if noted else ()), quick, dropped)
    report = in_two(work) if two and len(paths) > 1 and not dropped else whole(work) if quick else None
    if report is None or not report.ok:
        report = whole(work._replace(quick=False))
    if noted is None and report.size and report.ok:
        report.notes.append("there is no head file: a cut tail would not show")
    return report
