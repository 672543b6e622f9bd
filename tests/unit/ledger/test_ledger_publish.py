"""Checkpoints and tiles: made from the segments, made anew when lost, refused when they would lie."""

from __future__ import annotations

import shutil
import signal
import stat
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import deny, running, settings, start, wait_for

from exeat.ledger import keys, note, proofs
from exeat.ledger.client import append_blocking
from exeat.ledger.merkle import leaf_hash
from exeat.ledger.publish import Publisher, PublishError
from exeat.ledger.published import read_checkpoint, tile_loader
from exeat.ledger.reader import read
from exeat.ledger.store import Store
from exeat.ledger.tiles import Tree

if TYPE_CHECKING:
    from pathlib import Path

ORIGIN = "exeat/n1"


def build(base: Path, count: int, *, first: int = 0, segment_bytes: int = 16384) -> Store:
    store = Store.create(base, ORIGIN, 1, segment_bytes=segment_bytes)
    keys.ensure(base, ORIGIN)
    grow(store, count, first=first)
    return store


def grow(store: Store, count: int, *, first: int = 0) -> None:
    for number in range(first, first + count, 50):
        store.append([deny(n) for n in range(number, min(number + 50, first + count))], 1)


def publish(store: Store) -> Publisher:
    publisher = Publisher(store.directory)
    publisher.publish(store.size, store.root())
    return publisher


def checkpoint(directory: Path) -> note.Checkpoint:
    text = read_checkpoint(directory)
    assert text is not None
    return note.open_checkpoint(text, keys.verifier(directory))


def test_the_key_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    build(tmp_path / "l", 0).close()
    private = tmp_path / "l" / "keys" / "log.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o400
    text = private.read_text()
    keys.ensure(tmp_path / "l", ORIGIN)
    assert private.read_text() == text
    assert keys.signer(tmp_path / "l").verifier == keys.verifier(tmp_path / "l")


def test_no_second_key_for_a_ledger_that_has_signed(tmp_path: Path) -> None:
    store = build(tmp_path / "l", 5)
    publish(store)
    (tmp_path / "l" / "keys" / "log.key").unlink()
    keys.ensure(tmp_path / "l", ORIGIN)
    with pytest.raises(keys.KeyMissingError):
        Publisher(tmp_path / "l")


@pytest.mark.parametrize("sizes", [(1, 2, 3), (255, 256, 257), (700, 700, 1300)])
def test_checkpoints_grow_and_belong_together(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """The same publisher going on, and a new one each time, make the same tree as the store."""
    store = build(tmp_path / "l", 0)
    lasting: Publisher | None = None
    before: note.Checkpoint | None = None
    for size in sizes:
        grow(store, size - store.size, first=store.size)
        lasting = lasting or Publisher(store.directory)
        (lasting if size != sizes[1] else Publisher(store.directory)).publish(store.size, store.root())
        now = checkpoint(store.directory)
        assert (now.origin, now.size, now.root) == (ORIGIN, size, store.root())
        tree = Tree(size, tile_loader(store.directory))
        for index, data in list(read(store.directory))[:: max(1, size // 7)]:
            proof = proofs.inclusion(index, size, tree.roots)
            proofs.check_inclusion(index, size, leaf_hash(data), proof, now.root)
        if before is not None:
            growth = proofs.consistency(before.size, size, tree.roots)
            proofs.check_consistency(before.size, size, before.root, now.root, growth)
        before = now
        lasting = None if size == sizes[1] else lasting


@pytest.mark.parametrize("damage", ["all", "one gone", "one wrong", "one short"])
def test_tiles_are_made_anew(tmp_path: Path, damage: str) -> None:
    store = build(tmp_path / "l", 600)
    publish(store)
    tile = tmp_path / "l" / "tile" / "0" / "002.p" / "88"
    clean = tile.read_bytes()
    if damage == "all":
        shutil.rmtree(tmp_path / "l" / "tile")
    elif damage == "one gone":
        tile.unlink()
    else:
        tile.write_bytes(bytes(len(clean)) if damage == "one wrong" else clean[:-1])
    publish(store)
    assert tile.read_bytes() == clean
    assert Tree(600, tile_loader(tmp_path / "l")).root() == store.root()


def test_an_old_partial_tile_is_still_found_when_it_is_full(tmp_path: Path) -> None:
    store = build(tmp_path / "l", 100)
    publish(store)
    old = checkpoint(tmp_path / "l")
    grow(store, 300, first=100)
    publish(store)
    assert Tree(100, tile_loader(tmp_path / "l")).root() == old.root


def test_a_root_that_the_records_do_not_make_is_not_signed(tmp_path: Path) -> None:
    store = build(tmp_path / "l", 10)
    with pytest.raises(PublishError, match="do not make the root"):
        Publisher(store.directory).publish(10, bytes(32))
    assert read_checkpoint(store.directory) is None


def test_a_rewritten_ledger_is_not_signed(tmp_path: Path) -> None:
    """Somebody put another history in place of the signed one; with the tiles left, and without."""
    honest = build(tmp_path / "l", 300)
    publish(honest)
    signed = read_checkpoint(tmp_path / "l")
    other = build(tmp_path / "o", 400, first=1000)
    shutil.rmtree(tmp_path / "l" / "seg")
    shutil.copytree(tmp_path / "o" / "seg", tmp_path / "l" / "seg")
    for tiles_left in (True, False):
        if not tiles_left:
            shutil.rmtree(tmp_path / "l" / "tile")
        with pytest.raises(PublishError, match="do not make the root"):
            Publisher(tmp_path / "l").publish(other.size, other.root())
    assert read_checkpoint(tmp_path / "l") == signed


def test_a_shortened_ledger_is_not_signed(tmp_path: Path) -> None:
    store = build(tmp_path / "l", 10)
    publish(store)
    with pytest.raises(PublishError, match="10 are signed"):
        Publisher(tmp_path / "l").publish(9, bytes(32))


def test_a_foreign_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    store = build(tmp_path / "l", 10)
    stranger = note.Signer(ORIGIN, bytes(32))
    text = stranger.sign(note.Checkpoint(ORIGIN, 10, store.root()).text())
    (tmp_path / "l" / "checkpoint").write_text(text)
    with pytest.raises(PublishError, match="not signed by a key that is known"):
        Publisher(tmp_path / "l")


def test_the_daemon_signs_within_a_second_and_at_shutdown(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    directory = chosen.directory
    with running(tmp_path) as daemon:
        append_blocking(daemon.path, [deny(n) for n in range(20)])
        wait_for(lambda: (directory / "checkpoint").exists(), "a checkpoint")
        append_blocking(daemon.path, [deny(n) for n in range(7)])
    assert checkpoint(directory).size == 28  # with the boot record


def test_after_a_kill_the_next_daemon_signs_on(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    for round_ in range(3):
        daemon = start(chosen)
        append_blocking(daemon.path, [deny(n) for n in range(300)])
        wait_for(lambda: (chosen.directory / "checkpoint").exists(), "a checkpoint")
        daemon.stop(signal.SIGKILL if round_ < 2 else signal.SIGTERM)
    assert checkpoint(chosen.directory).size == 903
    assert not list(chosen.directory.glob("tile/0/*.tmp"))
