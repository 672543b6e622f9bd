"""Control's continuous double entry: what drifts is recorded, once, and shown."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.ledgers import DEST, flow_id, record

from exeat.appliance.control import books
from exeat.appliance.control.books import BookKeeper
from exeat.appliance.control.evidence import Evidence
from exeat.appliance.control.store import Store as ControlStore
from exeat.ledger.records import Kind, Record, decode
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from pathlib import Path


class Kept(Evidence):
    """Keeps what would be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "n1", ControlStore(path))
        self.records: list[Record] = []

    async def owe(self, record: bytes) -> None:
        self.records.append(decode(record))


def close(number: int, out: int, kernel_out: int) -> list[bytes]:
    who: dict[str, Any] = {"project": "p1", "job": "j1", "dest": DEST}
    return [
        record(Kind.OPEN, number, reserved=10_000, **who),
        record(Kind.CLOSE, number, bytes_out=out, kernel_out=kernel_out, segs_out=3, **who),
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "ledger" / "abc", "exeat/n1", 1, segment_bytes=4096)
    made.append(close(1, 5, 6), 1)  # before control was there: not its news
    return made


def test_a_drift_is_recorded_once_with_whose_it_was(store: Store, tmp_path: Path) -> None:
    kept = Kept(tmp_path / "control.sqlite")
    keeper = BookKeeper(tmp_path, kept)
    asyncio.run(keeper.look())
    for number in range(2, 40):
        store.append(close(number, 100, 100), 1)
    store.append(close(40, 100, 88), 1)
    asyncio.run(keeper.look())
    asyncio.run(keeper.look())
    (said,) = kept.records
    assert (said.kind, said.decision, said.flow, said.project) == (Kind.RECONCILE, "drift", flow_id(40), "p1")
    assert (said.bytes_out, said.kernel_out, said.count) == (100, 88, 1)
    assert said.detail == f"record {store.size - 1}: upstream out +12 bytes"
    assert keeper.state == {"compared": 39, "drifts": 1, "last": said.detail}


def test_many_drifts_do_not_fill_the_ledger(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "MOST", 2)
    kept = Kept(tmp_path / "control.sqlite")
    keeper = BookKeeper(tmp_path, kept)
    asyncio.run(keeper.look())
    for number in range(2, 9):
        store.append(close(number, 100, 88), 1)
    asyncio.run(keeper.look())
    assert [each.count for each in kept.records] == [1, 1, 5]
    assert keeper.state["drifts"] == 7


def test_a_ledger_that_is_not_there_yet_is_no_error(tmp_path: Path) -> None:
    keeper = BookKeeper(tmp_path, Kept(tmp_path / "control.sqlite"))
    asyncio.run(keeper.look())
    assert keeper.state["drifts"] == 0
