"""Verification by one process, or by two with half of the segments each. A part of `ledger.verify`.

The second half takes what its first segment says of the tree before it for granted; that is then
compared with what the first half came to. Records of flows that were opened in the first half are
handed back and judged there. Only a ledger without any fault is reported by two: in any other case
one process goes through all of it, and says exactly where.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from exeat.ledger.verify_books import COUNTED, FLOW, Accounts, Problem, Report
from exeat.ledger.verify_tiles import roots
from exeat.ledger.verify_tree import BrokenError, Chain

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.ledger.verify_tree import Head


class Work(NamedTuple):
    """A ledger to verify: its segments, the content of the last one, heads known, what to look at."""

    paths: list[Path]
    newest: bytes
    heads: tuple[Head, ...]
    quick: bool
    dropped: bool = False

    def read(self, index: int) -> bytes:
        return self.newest if index == len(self.paths) - 1 else self.paths[index].read_bytes()

    def follow(self, chain: Chain, first: int, end: int) -> BrokenError | None:
        """Go through the segments `first` up to `end`; what broke off."""
        try:
            if first == 0:
                chain.check_heads()
            for index in range(first, end):
                if self.paths[index].name != f"{index:012d}.seg":
                    raise BrokenError(chain.size, f"segment {index:012d} is missing")
                chain.segment(self.read(index), last=index == len(self.paths) - 1)
            if end == len(self.paths):
                chain.finish()
        except BrokenError as broken:
            return broken
        return None


def whole(work: Work) -> Report:
    """The report, by this process alone."""
    report = Report(quick=work.quick)
    accounts = Accounts(report, dropped=work.dropped)
    chain = Chain(work.heads, None if work.quick else accounts.record, quick=work.quick)
    broken = work.follow(chain, 0, len(work.paths))
    accounts.finish()
    _of_chain(report, chain)
    if chain.dropped[0] and broken is None:
        _of_dropped(report, chain.dropped, accounts.tombstones, work)
    report.segments = chain.segments
    if broken is not None:
        report.problems.append(Problem(broken.record, broken.what))
    return report


def _of_chain(report: Report, chain: Chain) -> None:
    report.origin, report.size, report.root = chain.origin, chain.size, chain.root().hex()
    report.notes += chain.notes


def _of_dropped(report: Report, dropped: Head, tombstones: list[bytes], work: Work) -> None:
    """Whether the ledger itself says that these records were dropped, and the tiles still prove them."""
    size, root = dropped
    report.dropped = size
    told = [(int.from_bytes(each[:8], "big"), each[8:]) for each in tombstones]
    if not any(end > size or (end, at) == (size, root) for end, at in told):
        report.problems.append(Problem(0, f"records 0 to {size - 1} are gone, and no record says so"))
    noted = [each for each in work.heads if 0 < each[0] <= size]
    found = roots(work.paths[0].parent.parent, [size, *(end for end, _ in noted)])
    for end, at in [*noted, dropped]:
        if found.get(end) != at:
            what = f"the tiles of the dropped records do not make the root at size {end} that is known"
            report.problems.append(Problem(end - 1, what))
    if not any(end >= size for end, _ in work.heads):
        report.notes.append("nothing that is signed or noted goes on from the dropped records")


# --- two processes, each for a half of the segments


def in_two(work: Work) -> Report | None:
    """The report on a sound ledger; None if the two halves are not both sound and of one piece."""
    middle = len(work.paths) // 2
    other = _Half(work, middle)
    report = Report(quick=work.quick)
    accounts = Accounts(report)
    chain = Chain(work.heads, None if work.quick else accounts.record, quick=work.quick)
    broken = work.follow(chain, 0, middle)
    theirs = other.join()
    if broken is not None or theirs is None or theirs.begins != [chain.origin, chain.size, _hex(chain.peaks)]:
        return None
    for number, data in theirs.later:
        accounts.record(number, bytes.fromhex(data))
    if not accounts.apart_from(theirs.flows):
        return None
    accounts.finish()
    for name in COUNTED:
        setattr(report, name, getattr(report, name) + theirs.report[name])
    for kind, count in theirs.report["kinds"].items():
        report.kinds[kind] = report.kinds.get(kind, 0) + count
    report.origin, report.size, report.root = chain.origin, theirs.report["size"], theirs.report["root"]
    report.segments = len(work.paths)
    report.notes += theirs.report["notes"]
    return report


class _Found(NamedTuple):
    """What the second half found: where it begins, its report, the records that need the first half, and
    the flows that it opened."""

    begins: list[Any]
    report: dict[str, Any]
    later: list[tuple[int, str]]
    flows: bytes


class _Half:
    """The segments from `first` on, in a process of their own."""

    def __init__(self, work: Work, first: int) -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                with open(write, "wb") as pipe:
                    _tell(pipe, work, first)
            finally:
                os._exit(0)  # what breaks off counts for nothing
        os.close(write)
        self._pipe = read

    def join(self) -> _Found | None:
        """None unless it went through to the end and all was well."""
        with open(self._pipe, "rb") as pipe:
            head, flows = pipe.readline(), pipe.read()
        os.waitpid(self._pid, 0)
        try:
            found = _Found(**json.loads(head), flows=flows)
        except (ValueError, TypeError):
            return None
        return found if len(flows) == FLOW * found.report["flows"] else None


def _tell(pipe: BinaryIO, work: Work, first: int) -> None:
    report = Report()
    accounts = Accounts(report, later=[])
    chain = Chain(work.heads, None if work.quick else accounts.record, quick=work.quick)
    try:
        begins = chain.start_at(work.read(first))
        broken = work.follow(chain, first, len(work.paths))
    except BrokenError:
        return
    accounts.finish()
    if broken is not None or not report.ok:
        return
    _of_chain(report, chain)
    flows = accounts.flows()
    said = {
        "begins": [begins.origin, begins.size, _hex(begins.peaks)],
        "report": {**asdict(report), "flows": len(flows) // FLOW},
        "later": [(number, data.hex()) for number, data in accounts.later or ()],
    }
    pipe.write(json.dumps(said).encode() + b"\n" + flows)


def _hex(hashes: list[bytes]) -> list[str]:
    return [each.hex() for each in hashes]
