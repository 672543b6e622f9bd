"""`exeat ledger reconcile --watch S`: the ledger against the kernel, without the gateway's word.

Run where the gateway's own sockets are: in the host's network namespace.
"""

from __future__ import annotations

import json
import select
import time
from typing import TYPE_CHECKING

from exeat.appliance.errors import NotReachableError
from exeat.ledger import records
from exeat.ledger.books import Books
from exeat.ledger.reader import Follower, ReaderError, tail
from exeat.ledger.records import Kind
from exeat.ledger.sock_ends import SocketEnds

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


_POLL_MS = 200
_GRACE_S = 5.0  # how long the second book of a flow may take at the end


def run(ledgers: list[Path], args: argparse.Namespace) -> int:
    """Compare what ends in `args.watch` seconds. Returns the exit code."""
    ends = SocketEnds()
    books = {directory: Books() for directory in ledgers}
    try:
        followers = {directory: _begin(directory, books[directory]) for directory in ledgers}
        poller = select.poll()
        poller.register(ends.fileno(), select.POLLIN)
        stop = time.monotonic() + args.watch
        while (now := time.monotonic()) < stop + _GRACE_S:
            poller.poll(_POLL_MS)
            for end in ends.read():
                for each in books.values():
                    each.ended(end)
            for directory, follower in followers.items():
                for seq, data in follower.poll():
                    _take(books[directory], seq, data)
            if now > stop and not any(each.waiting[0] for each in books.values()):
                break
    except (ReaderError, OSError) as error:
        raise NotReachableError(str(error)) from None
    finally:
        ends.close()
    return max(_report(books[directory], ends.lost, directory, args) for directory in ledgers)


def _begin(directory: Path, books: Books) -> Follower:
    """Know the flows that were opened lately; the ends of those that closed have been told to nobody."""
    entries, follower = tail(directory, 100_000)
    closed = {records.recall(data).flow for _, data in entries if records.recall(data).kind is Kind.CLOSE}
    for seq, data in entries:
        if records.recall(data).kind is Kind.OPEN and records.recall(data).flow not in closed:
            _take(books, seq, data)
    return follower


def _take(books: Books, seq: int, data: bytes) -> None:
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
