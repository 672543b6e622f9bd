"""Old records go; what proves them stays.

A segment whose records are dropped is replaced by its first frame and its seal: where it began, the
roots up to there, and the root at its end. With the tiles, old proofs and checkpoints still check.
Two parties share the work, so that no append waits:

1. the publisher's process picks what rules allow to go, compares every record with the tree that is
   signed, syncs the tiles that will be all that is left, and writes DIR/retention (`propose`)
2. the writer leaves out what open flows need, records a `gap` that names what goes (the tombstone),
   and when a checkpoint covers that, replaces one segment a second (`Dropping`)

A crash between any two steps leaves segments that are whole or replaced, each by a rename.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import keys, note, segment, tiles
from exeat.ledger.merkle import HASH, leaf_hash
from exeat.ledger.published import read_checkpoint, tile_loader
from exeat.ledger.reader import begun_ns, dropped_before, find_segments, first_record, gone
from exeat.ledger.records import Kind
from exeat.ledger.small_files import replace
from exeat.ledger.tiles import TileError, Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.ledger.records import Record

REASON: Final = "retention"
_DAY_NS: Final = 86_400 * 1_000_000_000


class Rules(NamedTuple):
    """What is kept: `keep_days` and `keep_bytes` of records, 0 for any; in any case `at_least_days`.

    `archived` says how many segments, from the first on, are safe elsewhere; None if that is not asked.
    """

    keep_days: int = 0
    keep_bytes: int = 0
    at_least_days: int = 32
    archived: Callable[[], int] | None = None

    @property
    def any(self) -> bool:
        return bool(self.keep_days or self.keep_bytes)


EVERYTHING: Final = Rules()


class RetentionError(Exception):
    """What should go is not what was signed: nothing goes."""


def due(directory: Path, rules: Rules, now_ns: int) -> int:
    """The segment from which on records are kept, by the rules alone. Raises ReaderError, OSError."""
    paths = find_segments(directory)
    first = begun = 0
    while first < len(paths) and gone(paths[first]):
        begun = max(begun, begun_ns(paths[first]))
        first += 1
    total = sum(path.stat().st_size for path in paths[first:])
    most = len(paths) - 1 if rules.archived is None else min(len(paths) - 1, rules.archived())
    while first < most:
        # The next one was begun when this one was sealed, and no earlier than this one: clocks go back.
        begun = max(begun, begun_ns(paths[first]), begun_ns(paths[first + 1]))
        age_ns = now_ns - begun
        old = rules.keep_days and age_ns > rules.keep_days * _DAY_NS
        large = rules.keep_bytes and total > rules.keep_bytes
        if not (old or large) or age_ns < rules.at_least_days * _DAY_NS:
            break
        total -= paths[first].stat().st_size
        first += 1
    return first


def propose(directory: Path, rules: Rules, now_ns: int) -> int:
    """Check what may go and leave word of it; the number of the first record that would be kept.

    Raises RetentionError if it is not what was signed; ReaderError, TileError, KeyMissingError, OSError.
    """
    begin, index = dropped_before(directory), due(directory, rules, now_ns)
    text = read_checkpoint(directory)
    paths = find_segments(directory)
    if text is None or index == 0 or gone(paths[index - 1]):
        return begin
    checkpoint = note.open_checkpoint(text, *keys.known(directory))
    tree = Tree(checkpoint.size, tile_loader(directory))
    if tree.root() != checkpoint.root:
        raise RetentionError("the tiles are not those of the checkpoint")
    size, chosen = begin, 0
    for number, path in enumerate(paths[:index]):
        end = size if gone(path) else _check(path, size, tree)
        # Above full tiles of the lowest row all can be made anew: those must be there, and synced.
        if checkpoint.size < (end // tiles.WIDTH + 1) * tiles.WIDTH:
            break
        size, chosen = end, number + 1
    if size == begin:
        return begin
    for number in range(begin // tiles.WIDTH, size // tiles.WIDTH + 1):
        _sync(directory / tiles.path(0, number))
    replace(directory / "retention", f"{chosen} {size} {tree.roots(0, size).hex()}\n")
    return size


def proposed(directory: Path) -> int:
    """The segment below which all may be dropped at any moment; 0: none is. Raises OSError."""
    try:
        return _read(directory / "retention")[0]
    except FileNotFoundError:
        return 0


def _check(path: Path, size: int, tree: Tree) -> int:
    """Every record of a segment against the signed tree; the number behind the last."""
    sealed = False
    for found in segment.scan(path.read_bytes()):
        if found.kind == segment.RECORD:
            if (
                found.seq != size
                or size >= tree.size
                or tree.roots(size, size + 1) != leaf_hash(found.payload)
            ):
                raise RetentionError(f"{path}: record {size} is not what was signed: nothing is dropped")
            size += 1
        sealed = found.kind == segment.SEAL
    if not sealed:
        raise RetentionError(f"{path} has no seal: nothing is dropped")
    return size


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size != tiles.FULL:
            raise TileError(f"{path} is not full")
        os.fsync(fd)
    finally:
        os.close(fd)


def stub(path: Path) -> bytes:
    """What stays of a sealed segment: its head and its seal. Raises RetentionError."""
    data = path.read_bytes()
    head, last = b"", None
    for found in segment.scan(data):
        head = head or data[: found.end]
        last = found
    if last is None or last.kind != segment.SEAL:
        raise RetentionError(f"{path} has no seal")
    return head + segment.frame(last.seq, segment.SEAL, last.payload)


class Dropping:
    """The writer's part. `oldest` gives the number of the oldest `open` record of a flow that is open."""

    def __init__(self, directory: Path, oldest: Callable[[], int | None], size: Callable[[], int]) -> None:
        self._directory, self._oldest, self._size = directory, oldest, size
        self._until = 0  # segments below this go
        self._covered = 0  # the size a checkpoint must have first

    def due(self, own: Callable[..., Record]) -> Iterator[Record]:
        """The tombstone, or one step behind it. Raises OSError, NoteError, KeyMissingError, ReaderError."""
        proposal = self._directory / "retention"
        if not self._until and proposal.exists():
            index, size, root = self._limited(*_read(proposal))
            if size > dropped_before(self._directory):
                first = dropped_before(self._directory)
                detail = f"records {first} to {size - 1} are dropped by age or size; their proofs stay"
                data = size.to_bytes(8, "big") + root
                yield own(Kind.GAP, reason_code=REASON, count=size - first, detail=detail, data=data)
                self._until, self._covered = index, self._size()
            else:
                proposal.unlink()
        elif self._until:
            self._step(proposal)

    def _limited(self, index: int, size: int, root: bytes) -> tuple[int, int, bytes]:
        """Less, where an open flow began in what would go. Raises RetentionError."""
        oldest, paths = self._oldest(), find_segments(self._directory)
        if index >= len(paths) or _where(paths[index]) != (size, root):
            # The writer's own look at it: an older copy may have been put back below this file.
            (self._directory / "retention").unlink()
            raise RetentionError("what should go does not fit these segments")
        if oldest is None or oldest >= size:
            return index, size, root
        while index and first_record(paths[index]) > oldest:
            index -= 1
        return index, *_where(paths[index])

    def _step(self, proposal: Path) -> None:
        text = read_checkpoint(self._directory)
        if text is None or note.open_checkpoint(text, *keys.known(self._directory)).size < self._covered:
            return
        for path in find_segments(self._directory)[: self._until]:
            if not gone(path):
                replace(path, stub(path))
                return
        self._until = 0
        proposal.unlink(missing_ok=True)


def _where(path: Path) -> tuple[int, bytes]:
    """The number of records before a segment, and their root. Raises RetentionError."""
    head = next(segment.scan(path.read_bytes()), None)
    if head is None:
        raise RetentionError(f"{path} has no head")
    return head.seq, segment.parse_head(head).frontier.root()


def _read(path: Path) -> tuple[int, int, bytes]:
    index, size, root = path.read_text(encoding="ascii").split()
    return int(index), int(size), bytes.fromhex(root)


def leaves(directory: Path, end: int) -> Iterator[bytes]:
    """The leaf hashes of the records up to `end`, from the tiles. Raises TileError."""
    load = tile_loader(directory)
    for number in range(-(-end // tiles.WIDTH)):
        tile = load(0, number, min(tiles.WIDTH, end - number * tiles.WIDTH))
        if len(tile) < HASH * min(tiles.WIDTH, end - number * tiles.WIDTH):
            raise TileError(f"{tiles.path(0, number)} is too short")
        yield from (tile[at : at + HASH] for at in range(0, len(tile), HASH))
