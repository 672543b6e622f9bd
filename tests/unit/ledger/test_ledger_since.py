"""Reading from a moment on tells all that a budget counts, and leaves what is older unread."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import ledgers

from exeat.ledger import records, segment
from exeat.ledger.flows import TRACKED, FlowTable, step
from exeat.ledger.reader import ReaderError, find_segments, read
from exeat.ledger.records import Kind, Record
from exeat.ledger.since import Gist, first_segment, gists_since
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000
START = 1_780_000_000 * SECOND
SEGMENT = 2048  # bytes: some twenty records


class Unsynced:
    """The calls of the store without the waiting for the disk."""

    def __getattr__(self, name: str) -> Any:
        return (lambda _fd: None) if name in ("fsync", "fdatasync") else getattr(os, name)


class History:
    """A ledger whose clock the test sets; flows are kept account of as the daemon does."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, START
        self.table = FlowTable()
        self.directory = root / "l1"
        self.store = Store.create(
            self.directory,
            "exeat/n1",
            self.now,
            observer=self.table,
            segment_bytes=SEGMENT,
            io=Unsynced(),
        )

    def add(self, kind: Kind, number: int, **fields: int) -> None:
        # Of some kinds every record says who it is about, of others none does.
        who = {} if kind is Kind.RESERVE else {"job": f"job-{number % 5}", "src": f"127.0.0.1:{number}"}
        record = Record(kind, self.now, self.now, ledgers.flow_id(number), **who, **fields)
        if kind in TRACKED:
            state, _ = step(self.table.state(record.flow), record, self.store.size, 1)
            self.table.put(record.flow, state)
        self.store.append([records.encode(record)], self.now)

    def since(self, moment: int) -> list[Gist]:
        return [plain(found) for found in gists_since(self.root, moment)]

    def all(self) -> list[Gist]:
        return [plain(Gist.of(records.decode(data))) for _, data in read(self.directory)]


def plain(gist: Gist) -> Gist:
    """With a `who` that says nothing else."""
    return gist._replace(who=Record(Kind.OPEN, job=gist.who.job))


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path)


def live(history: History, chance: random.Random, count: int) -> None:
    """`count` records of flows that open, go on, and end in every way, a second apart or so."""
    opened, orphaned = list[int](), list[int]()
    for number in range(count):
        history.now += chance.randrange(2 * SECOND)
        roll = chance.random()
        if not opened or roll < 0.4:
            history.add(Kind.OPEN, number)
            opened.append(number)
        elif roll < 0.7:
            history.add(Kind.RESERVE, chance.choice(opened), reserved=number << 16, bytes_in=number)
        elif roll < 0.8:
            orphaned.append(opened.pop(chance.randrange(len(opened))))
            history.add(Kind.ORPHAN, orphaned[-1], bytes_out=1)
        elif roll < 0.85 and orphaned:
            history.add(Kind.CLOSE, orphaned.pop(0), bytes_out=number)
        else:
            history.add(Kind.CLOSE, opened.pop(chance.randrange(len(opened))), bytes_out=number)


def account(found: list[Gist], moment: int) -> tuple[list[Gist], dict[bytes, tuple[int, int]]]:
    """What counts: the records from `moment` on, and what is known of each flow that they leave open."""
    late = [record for record in found if record.t_real_ns >= moment]
    known: dict[bytes, tuple[int, int]] = {}
    opened = {record.flow for record in found if record.kind is Kind.OPEN}
    for record in found:
        reserved, bytes_in = known.get(record.flow, (0, 0))
        known[record.flow] = max(reserved, record.reserved), max(bytes_in, record.bytes_in)
    spoken = {record.flow for record in late}
    assert spoken <= opened
    spoken -= {record.flow for record in late if record.kind is Kind.CLOSE}  # which is exact
    return late, {flow: told for flow, told in known.items() if flow in spoken}


@pytest.mark.parametrize("seed", range(5))
def test_what_counts_is_the_same_as_in_the_whole_ledger(history: History, seed: int) -> None:
    live(history, random.Random(seed), 300)
    whole = history.all()
    for back in (0, 10, 60, 200, 1000):
        moment = history.now - back * SECOND
        assert account(history.since(moment), moment) == account(whole, moment)
    assert len(history.since(history.now)) < len(whole)


def test_what_is_older_is_not_read(history: History) -> None:
    for number in range(100):
        history.now += SECOND
        history.add(Kind.OPEN, number)
        history.add(Kind.CLOSE, number)
    found = history.since(history.now)
    for path in find_segments(history.directory)[: first_segment(history.directory, history.now)]:
        data = path.read_bytes()
        path.write_bytes(data[: segment.HEAD_PREFIX].ljust(len(data), b"\xff"))
    assert history.since(history.now) == found


def test_a_clock_that_was_set_back_leaves_nothing_out(history: History) -> None:
    live(history, random.Random(2), 100)
    noon = history.now
    history.add(Kind.OPEN, 1000)
    history.now -= 3600 * SECOND
    live_after = random.Random(3)
    for number in range(2000, 2100):
        history.now += live_after.randrange(2 * SECOND)
        history.add(Kind.OPEN, number)
    found = {record.flow for record in history.since(noon) if record.kind is Kind.OPEN}
    assert {ledgers.flow_id(number) for number in (1000, *range(2000, 2100))} <= found


def test_a_ledger_of_one_segment_is_read_whole(history: History) -> None:
    history.add(Kind.OPEN, 1)
    history.now += 86_400 * SECOND
    assert history.since(history.now) == history.all()


def test_no_ledger_is_no_records(tmp_path: Path) -> None:
    assert list(gists_since(tmp_path / "none", 0)) == []


def test_an_open_record_that_is_gone_is_an_error(history: History) -> None:
    history.add(Kind.OPEN, 1)
    for number in range(2, 60):
        history.now += SECOND
        history.add(Kind.OPEN, number)
        history.add(Kind.CLOSE, number)
    first = find_segments(history.directory)[0]
    data = bytearray(first.read_bytes())
    data[segment.HEAD_PREFIX + 40] ^= 1
    first.write_bytes(data)
    with pytest.raises(ReaderError, match="record 0 is missing"):
        history.since(history.now)
    first.unlink()
    with pytest.raises(ReaderError, match="missing"):
        history.since(history.now)
