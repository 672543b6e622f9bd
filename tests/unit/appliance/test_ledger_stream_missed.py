"""Records that were dropped before a stream came to them: the ledger's tombstone stands in their place."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.keeping import Kept
from tests.support.receivers import numbers

from exeat.appliance.config import load
from exeat.appliance.stream.follow import Streaming
from exeat.appliance.stream.missed import UNEXPLAINED, mark
from exeat.ledger import keys, verify_offline
from exeat.ledger.merkle import leaf_hash
from exeat.ledger.reader import find_segments, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "state" / "ledger" / "x")
    made.fill(50, 1000)
    made.fill(95, 400)
    yield made
    made.store.close()


def stream(base: Path, **more: Any) -> list[dict[str, Any]]:
    """What a stream sends to a file until it has sent all; this start's part of it."""
    out = base / "out.jsonl"
    text = f'[node]\nname = "n1"\n[paths]\nstate_dir = "{base}/state"\n[[ledger.stream]]\nname = "s"\n'
    text += f'to = "file:{out}"\nbegin = "start"\n'
    (base / "exeat.toml").write_text(
        text + "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
    )
    config = load(base / "exeat.toml")
    (base / "state" / "stream").mkdir(exist_ok=True)
    streaming = Streaming(config, config.ledger.stream[0], threading.Event())
    while streaming.turn():
        pass
    return [json.loads(line) for line in out.read_bytes().splitlines()] if out.exists() else []


def test_a_stream_that_is_behind_is_told_what_it_missed(ledger: Kept, tmp_path: Path) -> None:
    before = stream(tmp_path)
    assert [event["seq"] for event in before] == list(range(1402))
    (position,) = (tmp_path / "state" / "stream").glob("s.*")
    leaf = leaf_hash(next(data for seq, data in read(ledger.directory) if seq == 299)).hex()
    kept = json.loads(position.read_text())
    position.write_text(json.dumps({**kept, "next": 300, "marks": [[300, leaf]]}))  # it was away since then
    first = ledger.drop()
    events = stream(tmp_path)[len(before) :]
    tombstone = events[0]
    assert (tombstone["kind"], tombstone["reason_code"]) == ("gap", "retention")
    assert (tombstone["missed"]["first"], tombstone["missed"]["last"]) == (300, first - 1)
    assert [event["seq"] for event in events[1:]] == list(range(first, ledger.store.size))
    assert events[[event["seq"] for event in events].index(tombstone["seq"], 1)]["kind"] == "gap"
    proof = tmp_path / "tombstone"
    proof.write_text(tombstone["missed"]["proof"])
    assert verify_offline.main([str(proof), "--key", str(keys.verifier(ledger.directory))]) == 0
    assert stream(tmp_path)[len(before) + len(events) :] == []  # said once


def test_whatever_is_wanted_a_gap_is_told(ledger: Kept, tmp_path: Path) -> None:
    first = ledger.drop()
    (only,) = stream(tmp_path, kinds=["lease"])
    assert (only["missed"]["first"], only["missed"]["last"]) == (0, first - 1)


def test_records_that_are_gone_without_a_tombstone_are_told_as_that(ledger: Kept, tmp_path: Path) -> None:
    ledger.drop()
    (directory,) = (tmp_path / "state" / "ledger").iterdir()
    event = mark(directory, 0, 1402)  # more than any tombstone says
    assert (event.record.reason_code, event.record.count) == (UNEXPLAINED, 1402)
    assert event.fields()["missed"] == {"first": 0, "last": 1401, "proof": ""}


def test_a_damaged_checkpoint_does_not_hold_a_stream_up(ledger: Kept, tmp_path: Path) -> None:
    first = ledger.drop()
    (ledger.directory / "checkpoint").write_text("nothing\n\n")
    events = stream(tmp_path)
    assert (events[0]["missed"]["last"], events[0]["missed"]["proof"]) == (first - 1, "")
    assert numbers((tmp_path / "out.jsonl").read_bytes())[-1] == ledger.store.size - 1
    assert len(find_segments(ledger.directory)) > 1
