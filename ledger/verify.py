"""An independent verifier: what a stranger would write from docs/formats/ledger.md.

Shares no code with the writer on purpose (only with the stand-alone verifier of bundles), so that a
mistake there is not repeated here. It reads a ledger from its first byte, recomputes every hash, and
keeps its own accounts of flows. Problems carry the number of the record they concern.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.grammar import brief
from exeat.ledger.verify_offline import FalseError, parse_record, read_statement

if TYPE_CHECKING:
    from pathlib import Path

_MAX_PROBLEMS: Final = 100
_PREFIX: Final = struct.Struct(">IIQ")
_DATA: Final = 39  # of a record's fields, the binary evidence
_ACCOUNTED: Final = (
    "kinds",
    "flows_open",
    "flows_closed",
    "flows_orphaned",
    "bytes_out",
    "bytes_in",
    "key",
    "key_breaks",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """`record` is the number of the first record concerned."""

    record: int
    what: str


@dataclass(slots=True)
class Report:
    """What was found. `problems` is in the order of the ledger; empty means it verifies."""

    origin: str = ""
    size: int = 0
    root: str = ""
    segments: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    flows_open: int = 0
    flows_closed: int = 0
    flows_orphaned: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    key: str = ""  # the public key that signs at the end, in hex
    key_breaks: list[int] = field(default_factory=list)  # records by which a key followed without the former
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


class _BrokenError(Exception):
    """Nothing behind this point can be trusted."""

    def __init__(self, record: int, what: str) -> None:
        super().__init__(what)
        self.problem = Problem(record, what)


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


def verify(directory: Path, *, heads: tuple[tuple[int, bytes], ...] = (), two: bool = False) -> Report:
    """Verify the ledger in `directory`, also against `heads` (size, root) known from elsewhere.

    `two` shares the work with a second process: for a ledger that is large, with the same result.
    Raises OSError if it cannot be read, FileNotFoundError if there is none.
    """
    noted = head_file(directory)  # before the segments: the writer may be at work
    paths = sorted((directory / "seg").glob("*.seg"))
    if not paths:
        raise FileNotFoundError(f"{directory} holds no ledger")
    newest = paths[-1].read_bytes()  # the only one that grows
    known = heads + ((noted,) if noted else ())
    if two:
        books = _Books(paths, newest)
        check = _run(_Verifier(known, books=False), paths, newest)
        if books.join(check.report):
            return _noting(check.report, noted)
    return _noting(_run(_Verifier(known), paths, newest).report, noted)


def _noting(report: Report, noted: tuple[int, bytes] | None) -> Report:
    if noted is None and report.size and report.ok:
        report.notes.append("there is no head file: a cut tail would not show")
    return report


def _run(check: _Verifier, paths: list[Path], newest: bytes) -> _Verifier:
    try:
        for index, path in enumerate(paths):
            if path.name != f"{index:012d}.seg":
                raise _BrokenError(check.size, f"segment {index:012d} is missing")
            last = index == len(paths) - 1
            check.segment(newest if last else path.read_bytes(), last=last)
            check.report.segments += 1
        check.finish()
    except _BrokenError as broken:
        check.report.problems.append(broken.problem)
    check.summary()
    return check


class _Books:
    """The accounts of all flows, kept by a second process while this one computes the tree."""

    def __init__(self, paths: list[Path], newest: bytes) -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                with open(write, "w", encoding="utf-8") as pipe:
                    json.dump(_keep_books(paths, newest), pipe)
            finally:
                os._exit(0)  # what breaks off counts for nothing
        os.close(write)
        self._pipe = read

    def join(self, report: Report) -> bool:
        """Complete a report of the tree. False if the two did not see the same sound ledger."""
        with open(self._pipe, encoding="utf-8") as pipe:
            text = pipe.read()
        os.waitpid(self._pid, 0)
        try:
            found = json.loads(text)
        except ValueError:
            return False
        if not report.ok or found.pop("size") != report.size:
            return False
        report.problems = [Problem(*problem) for problem in found.pop("problems")]
        for name, value in found.items():
            setattr(report, name, value)
        return True


def _keep_books(paths: list[Path], newest: bytes) -> dict[str, Any]:
    report = Report()
    accounts = _Accounts(report)
    size = 0
    for path in paths:
        data = newest if path is paths[-1] else path.read_bytes()
        at, pending = 0, list[bytes]()
        while (frame := _frame(data, at)) is not None:
            _, kind, body, at = frame
            if kind == b"R":
                pending.append(body)
            elif kind in (b"C", b"S"):
                for number, record in enumerate(pending, size):
                    accounts.record(number, record)
                size += len(pending)
                pending = []
    accounts.finish()
    whole = asdict(report)
    kept = {name: whole[name] for name in _ACCOUNTED}
    return {**kept, "size": size, "problems": [(each.record, each.what) for each in report.problems]}


class _Verifier:
    def __init__(self, heads: tuple[tuple[int, bytes], ...], *, books: bool = True) -> None:
        self.report = Report()
        self.accounts = _Accounts(self.report)
        self.books = books  # else somebody else keeps the accounts
        self.heads = heads
        self.noted = {size for size, _ in heads}
        self.size = 0  # committed records
        self.peaks: list[tuple[int, bytes]] = []  # (height, hash)
        self.sealed = True  # before the first segment: a head must come
        self._check_heads()

    def note(self, text: str) -> None:
        self.report.notes.append(text)

    # --- framing

    def segment(self, data: bytes, *, last: bool) -> None:
        if not self.sealed:
            raise _BrokenError(self.size, "the segment before this one was never sealed")
        at, pending = self._head(data), list[bytes]()
        self.sealed = False
        while True:
            number = self.size + len(pending)
            frame = _frame(data, at)
            if frame is None:
                self._end(data, at, len(pending), last=last)
                return
            seq, kind, body, at = frame
            if self.sealed:
                raise _BrokenError(number, "there is something behind the seal")
            if seq != number:
                raise _BrokenError(number, f"missing or out of order: record {seq} stands in its place")
            if kind == b"R":
                pending.append(body)
            elif kind in (b"C", b"S"):
                self._commit(body, pending)
                self.sealed = kind == b"S"
                pending = []
            else:
                raise _BrokenError(number, "a frame of unknown kind")

    def _head(self, data: bytes) -> int:
        frame = _frame(data, 0)
        if frame is None or frame[1] != b"H" or frame[0] != self.size:
            raise _BrokenError(self.size, "the head of the segment is damaged")
        body = frame[2]
        try:
            version, _, length = struct.unpack_from(">BQB", body)
            origin, at = body[10 : 10 + length].decode(), 10 + length
            peaks = [body[at + 1 + 32 * n : at + 33 + 32 * n] for n in range(body[at])]
        except (struct.error, IndexError, ValueError):
            raise _BrokenError(self.size, "the head of the segment is malformed") from None
        if version != 1 or not origin or self.report.origin not in ("", origin):
            raise _BrokenError(self.size, "the segment belongs to another ledger")
        if peaks != [peak for _, peak in self.peaks]:
            raise _BrokenError(self.size, "the segment does not go on from the one before it")
        self.report.origin = origin
        return frame[3]

    def _commit(self, body: bytes, pending: list[bytes]) -> None:
        first = self.size
        for record in pending:
            self._leaf(record)
            self.size += 1
            if self.size in self.noted:
                self._check_heads()
        if len(body) != 48 or int.from_bytes(body[:8], "big") != self.size or body[8:40] != self._root():
            raise _BrokenError(first, f"records {first} to {self.size - 1}: not what their Merkle root says")
        if self.books:
            for number, record in enumerate(pending, first):
                self.accounts.record(number, record)

    def _end(self, data: bytes, at: int, uncommitted: int, *, last: bool) -> None:
        rest = data[at:].rstrip(b"\0")
        number = self.size + uncommitted
        if self.sealed:
            if rest:
                raise _BrokenError(number, "there is something behind the seal")
            return
        if not last:
            raise _BrokenError(number, f"the segment breaks off before record {number}, without a seal")
        if not rest and not uncommitted:
            return
        acknowledged = max((size for size, _ in self.heads), default=0)
        if rest and (acknowledged > self.size or _commit_behind(data, at)):
            raise _BrokenError(number, "damaged: its checksum does not match")
        self.note(
            f"unfinished write behind record {self.size - 1}: never acknowledged, settled at the next start"
        )

    def finish(self) -> None:
        newest = max((size for size, _ in self.heads), default=0)
        if newest > self.size:
            raise _BrokenError(self.size, f"records {self.size} to {newest - 1} are gone: the tail was cut")

    def summary(self) -> None:
        self.report.size, self.report.root = self.size, self._root().hex()
        self.accounts.finish()

    # --- the tree (RFC 6962 section 2.1)

    def _leaf(self, record: bytes) -> None:
        height, node = 0, sha256(b"\0" + record).digest()
        while self.peaks and self.peaks[-1][0] == height:
            node = sha256(b"\1" + self.peaks.pop()[1] + node).digest()
            height += 1
        self.peaks.append((height, node))

    def _root(self) -> bytes:
        if not self.peaks:
            return sha256(b"").digest()
        node = self.peaks[-1][1]
        for _, peak in self.peaks[-2::-1]:
            node = sha256(b"\1" + peak + node).digest()
        return node

    def _check_heads(self) -> None:
        for size, root in self.heads:
            if size == self.size and root != self._root():
                raise _BrokenError(max(0, size - 1), f"the root at size {size} is not the one that was noted")


def _frame(data: bytes, at: int) -> tuple[int, bytes, bytes, int] | None:
    """(seq, kind, payload, end) of the frame at `at`; None if there is no valid one."""
    if at + 16 > len(data):
        return None
    length, crc, seq = _PREFIX.unpack_from(data, at)
    end = at + 16 + length
    if length == 0 or end > len(data):
        return None
    if zlib.crc32(data[at + 8 : end], zlib.crc32(data[at : at + 4])) != crc:
        return None
    return seq, data[at + 16 : at + 17], data[at + 17 : end], end


def _commit_behind(data: bytes, at: int) -> bool:
    """Whether a valid commit stands behind the broken frame at `at`: then it was not a torn write."""
    at += 16 + int.from_bytes(data[at : at + 4], "big")
    while (frame := _frame(data, at)) is not None:
        if frame[1] in (b"C", b"S"):
            return True
        at = frame[3]
    return False


@dataclass(slots=True)
class _Flow:
    reserved: int
    total: int


class _Accounts:
    """Double entry: what each flow's records must add up to."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._open: dict[bytes, _Flow] = {}
        self._settled: dict[bytes, _Flow | None] = {}  # orphaned flows keep their account

    def record(self, number: int, data: bytes) -> None:
        try:
            kind, account = brief(data)
        except ValueError as error:
            self._problem(number, f"not a record of schema 1: {error}")
            return
        self._report.kinds[kind] = self._report.kinds.get(kind, 0) + 1
        what = ""
        if kind in ("open", "reserve", "progress", "close", "orphan", "resume"):
            what = self._flow(kind, account)
        elif kind == "key" or (kind == "boot" and not self._report.key):
            what = self._key(number, kind, parse_record(data)[1][_DATA])
        if what:
            self._problem(number, f"{kind}: {what}")

    def _key(self, number: int, kind: str, data: bytes) -> str:
        """The first start says which key signs; each change of it must go on from the one before."""
        if kind == "boot":
            self._report.key = data.hex()
            return ""
        if not data:
            return ""
        try:
            former, new, vouched = read_statement(data.decode())
        except (FalseError, UnicodeDecodeError) as error:
            return str(error)
        now = self._report.key
        if now not in ("", former.public.hex(), new.public.hex()):  # the same one again: after a crash
            return "this change of keys does not go on from the key before it"
        self._report.key = new.public.hex()
        if not vouched and now != self._report.key:
            self._report.key_breaks.append(number)
        return ""

    def _flow(self, kind: str, fields: tuple[bytes, int, int, int]) -> str:
        flow, out, into, reserved = fields
        if kind == "open":
            if flow in self._open or flow in self._settled:
                return "this flow was opened before"
            self._open[flow] = _Flow(reserved, out + into)
            return ""
        account = self._open.get(flow) or (self._settled.get(flow) if kind == "close" else None)
        if account is None:
            return "the flow is settled already" if flow in self._settled else "the flow was never opened"
        account.reserved = max(account.reserved, reserved)
        what = ""
        if kind in ("progress", "close", "orphan"):
            if out + into > account.reserved:
                what = f"{out + into} bytes passed, {account.reserved} were reserved"
            elif out + into < account.total:
                what = f"{out + into} bytes, fewer than the {account.total} reported before"
            account.total = out + into
        if kind in ("close", "orphan"):
            self._settle(kind, flow, account, out, into)
        return what

    def _settle(self, kind: str, flow: bytes, account: _Flow, out: int, into: int) -> None:
        report = self._report
        if flow in self._settled:  # exact counts after an orphan's bounds
            report.flows_orphaned -= 1
        self._open.pop(flow, None)
        self._settled[flow] = account if kind == "orphan" else None
        if kind == "close":
            report.flows_closed += 1
            report.bytes_out += out
            report.bytes_in += into
        else:
            report.flows_orphaned += 1

    def _problem(self, number: int, what: str) -> None:
        if len(self._report.problems) < _MAX_PROBLEMS:
            self._report.problems.append(Problem(number, what))

    def finish(self) -> None:
        self._report.flows_open = len(self._open)
