"""Reading a ledger that is damaged: what comes is in order, and nobody takes the rest for not there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import deny
from tests.support.witnesses import ORIGIN, Ledger

from exeat.appliance.cli import main
from exeat.appliance.control.rebuild import _known
from exeat.ledger import fsck, reader, since
from exeat.ledger.packing import Packing
from exeat.ledger.publish import Publisher, PublishError
from exeat.ledger.reader import Follower, ReaderError, ledger_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def flip(paths: list[Path]) -> None:
    data = bytearray(paths[2].read_bytes())
    data[len(data) // 2] ^= 1
    paths[2].write_bytes(data)


def truncate(paths: list[Path]) -> None:
    os.truncate(paths[2], paths[2].stat().st_size // 2)


def empty(paths: list[Path]) -> None:
    paths[2].write_bytes(b"")


def swap(paths: list[Path]) -> None:
    first, second = paths[2].read_bytes(), paths[3].read_bytes()
    paths[2].write_bytes(second)
    paths[3].write_bytes(first)


def repeat(paths: list[Path]) -> None:
    """One that follows lies in its place: what stood there is gone."""
    paths[2].write_bytes(paths[4].read_bytes())


DAMAGES = [flip, truncate, empty, swap, repeat]


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """Of six segments and more; below a state directory."""
    made = Ledger(ledger_of(tmp_path, ORIGIN), segment_bytes=8192)
    for first in range(0, 400, 20):
        made.store.append([deny(first + number) for number in range(20)], first)
    made.publish()
    packing = Packing(made.directory)
    while request.param and packing.step(made.store.size):
        pass
    yield made
    made.store.close()


def read_until_damage(directory: Path) -> list[int]:
    found, entries = list[int](), reader.read(directory)
    with pytest.raises(ReaderError):
        found.extend(seq for seq, _ in entries)
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_behind_the_last_good_record(ledger: Ledger, damage: Callable[..., None]) -> None:
    paths = reader.find_segments(ledger.directory)
    begin, end = reader.first_record(paths[2]), reader.first_record(paths[3])
    damage(paths)
    found = read_until_damage(ledger.directory)
    assert found == list(range(len(found)))
    assert begin <= len(found) < end


@pytest.mark.parametrize("damage", [flip, empty, swap])
def test_everybody_who_reads_says_so(
    ledger: Ledger, damage: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(reader.find_segments(ledger.directory))
    for words in (
        ["query", "--sum", "project"],
        ["reconcile"],
        ["export", str(tmp_path / "bundle"), "--from", "0", "--to", "300"],
        ["tail", "-n", "400"],
        ["index"],
        ["fsck"],
        ["verify"],
    ):
        code = main(["--state-dir", str(tmp_path), "ledger", *words])
        said = capsys.readouterr()
        assert code in (1, 2, 3), words
        assert "verify" in said.err + said.out or "missing" in said.err + said.out or words[0] == "verify"
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_control_knows_that_it_does_not_know_all(ledger: Ledger, damage: Callable[..., None]) -> None:
    """Else it would forget the kill switch, and count less than was spent."""
    state = ledger.directory.parent.parent
    assert _known(state)[1]
    damage(reader.find_segments(ledger.directory))
    assert not _known(state)[1]
    with pytest.raises((ReaderError, ValueError)):
        list(since.gists_since(state / "ledger", 0))


def test_fsck_and_publisher_say_where(ledger: Ledger) -> None:
    paths = reader.find_segments(ledger.directory)
    flip(paths)
    (said,) = fsck.check(ledger.directory, repair=False)
    assert "segment 000000000002 breaks off" in said
    (ledger.directory / "checkpoint").unlink()
    with pytest.raises(PublishError, match="breaks off"):
        Publisher(ledger.directory).publish(ledger.store.size, ledger.store.root())


def test_a_follower_in_step_with_the_writer_never_takes_a_new_segment_for_damage(tmp_path: Path) -> None:
    """The writer seals, and begins the next, between any two of its readings."""
    ledger = Ledger(tmp_path / "l", segment_bytes=4096)
    follower, seen = Follower(ledger.directory), 0
    real = follower._path

    def meanwhile(index: int) -> Path:
        if index == follower._index + 1:  # it has read, and is about to look for the next one
            ledger.store.append([deny(number) for number in range(15)], 1)
        return real(index)

    follower._path = meanwhile  # type: ignore[method-assign]
    for _ in range(30):
        for seq, _ in follower.poll():
            assert seq == seen
            seen += 1
    assert len(reader.find_segments(ledger.directory)) > 5
    ledger.store.close()
