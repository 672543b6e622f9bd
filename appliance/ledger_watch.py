"""`exeat ledger reconcile --watch S`: the ledger against the kernel, without the gateway's word.

Run where the gateway's own sockets are: in the host's network namespace.
"""

from __future__ import annotations

import contextlib
import json
import select
import time
from typing import TYPE_CHECKING

from exeat.appliance.errors import NotReachableError
from exeat.ledger import conntrack, records
from exeat.ledger.books import Books
from exeat.ledger.direct_books import DirectBooks, DirectFinding
from exeat.ledger.reader import Follower, ReaderError, tail
from exeat.ledger.records import Kind
from exeat.ledger.sock_ends import SocketEnds
from exeat.sandbox.rules import MARK

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


_POLL_MS = 200
_MARKED = 0xFFFF0000  # the bits of a mark that are no pinhole's number
_SWITCH = "it counts what begins after `sysctl -w net.netfilter.nf_conntrack_acct=1`"
_GRACE_S = 5.0  # how long the second book of a flow may take at the end


def run(ledgers: list[Path], args: argparse.Namespace) -> int:
    """Compare what ends in `args.watch` seconds. Returns the exit code."""
    ends, direct = SocketEnds(), _Direct()
    books = {directory: Books() for directory in ledgers}
    try:
        followers = {directory: _begin(directory, books[directory]) for directory in ledgers}
        poller = select.poll()
        poller.register(ends.fileno(), select.POLLIN)
        direct.register(poller)
        stop = time.monotonic() + args.watch
        while (now := time.monotonic()) < stop + _GRACE_S:
            poller.poll(_POLL_MS)
            for end in ends.read():
                for each in books.values():
                    each.ended(end)
            direct.hear()
            for directory, follower in followers.items():
                for seq, data in follower.poll():
                    for book in (books[directory], direct.books):
                        _take(book, seq, data)
            if now > stop and not any(each.waiting[0] for each in books.values()):
                break
    except (ReaderError, OSError) as error:
        raise NotReachableError(str(error)) from None
    finally:
        ends.close()
    codes = [_report(books[directory], ends.lost, directory, args) for directory in ledgers]
    return max(*codes, direct.report(as_json=args.json))


class _Direct:
    """Conntrack's book of direct flows, where it can be asked."""

    def __init__(self) -> None:
        self.books = DirectBooks(lambda number: MARK | number)
        self._counts = conntrack.counts()
        self._line: conntrack.Conntrack | None = None
        with contextlib.suppress(OSError):  # no right, or a kernel without it
            self._line = conntrack.Conntrack()

    def register(self, poller: select.poll) -> None:
        if self._line is not None:
            poller.register(self._line.fileno(), select.POLLIN)

    def hear(self) -> None:
        for connection in self._line.ended() if self._line is not None else ():
            if connection.mark & _MARKED == MARK:
                self.books.ended(connection)

    def report(self, *, as_json: bool) -> int:
        """Say it, and close. Returns the exit code."""
        if self._line is None:
            return 0
        self.hear()
        found = self.books.settle(self._line.living(MARK, _MARKED))
        lost = self._line.lost
        self._line.close()
        if not found:
            return 0
        if as_json:
            rows = [
                {"seq": each.seq, "flow": each.record.flow.hex(), "refused": each.refused} for each in found
            ]
            print(json.dumps({"direct": rows, "counts": self._counts, "lost": lost}))
        else:
            print(*_said(found, lost, counts=self._counts), sep="\n")
        return int(not lost and any(each.unexplained for each in found))


def _said(found: list[DirectFinding], lost: int, *, counts: bool) -> list[str]:
    judged = [(each, each.refused) for each in found if each.refused is not None]
    exact = sum(refused == (0, 0) for _, refused in judged)
    more = sum(max(0, count) for _, refused in judged for count in refused)
    lines = [
        f"direct: {exact} of {len(found)} flows are the same in conntrack; {more} bytes more were refused"
    ]
    if len(judged) < len(found) or not counts:
        lines.append(f"direct: {len(found) - len(judged)} without its counts: {_SWITCH}")
    if lost:
        lines.append(f"direct: the kernel dropped events {lost} times, so these are not judged")
    lines += [
        f"record {each.seq}: conntrack - ledger: out {refused[0]:+d}, in {refused[1]:+d} bytes"
        for each, refused in judged
        if each.unexplained
    ]
    return lines


def _begin(directory: Path, books: Books) -> Follower:
    """Know the flows that were opened lately; the ends of those that closed have been told to nobody."""
    entries, follower = tail(directory, 100_000)
    closed = {records.recall(data).flow for _, data in entries if records.recall(data).kind is Kind.CLOSE}
    for seq, data in entries:
        if records.recall(data).kind is Kind.OPEN and records.recall(data).flow not in closed:
            _take(books, seq, data)
    return follower


def _take(books: Books | DirectBooks, seq: int, data: bytes) -> None:
    if records.recall(data).kind in (Kind.OPEN, Kind.CLOSE):
        books.record(seq, records.decode(data))


def _report(books: Books, lost: int, directory: Path, args: argparse.Namespace) -> int:
    tally, (untold, _) = books.tally, books.waiting
    if args.json:
        row = {"path": str(directory), "exact": tally.exact, "cut": tally.cut, "blank": tally.blank}
        found = [{"seq": each.seq, "out": each.out, "in": each.into} for each in tally.findings]
        print(json.dumps({**row, "untold": untold, "lost": lost, "drifts": found}))
        return int(bool(tally.findings))
    on_the_way = f"{tally.out_on_the_way} out, {tally.in_unread} in"
    print(f"{tally.exact} flows exact, {tally.cut} cut with bytes on their way ({on_the_way})")
    print(f"{tally.blank} reset by the gateway: the kernel keeps no count of these, their records agree")
    if untold or lost:
        print(f"{untold} flows of whose end nothing was heard; the kernel dropped events {lost} times")
    for each in tally.findings:
        print(f"record {each.seq}: ledger - kernel: out {each.out:+d}, in {each.into:+d} bytes")
    print(f"DRIFT in {len(tally.findings)} flows" if tally.findings else "the books agree")
    return int(bool(tally.findings))
