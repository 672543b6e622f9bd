"""Check what is derived from the segments against them, and make it anew where it is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exeat.ledger import keys, note, tiles
from exeat.ledger.merkle import leaf_hash
from exeat.ledger.published import read_checkpoint
from exeat.ledger.reader import ReaderError, dropped_before, read
from exeat.ledger.retention import leaves
from exeat.ledger.tiles import Rows

if TYPE_CHECKING:
    from pathlib import Path


def check(directory: Path, *, repair: bool) -> list[str]:
    """What is wrong with key, checkpoint and tiles; with `repair`, tiles are put right and still named.

    The checkpoint is never made anew: only the ledger itself signs. Raises OSError.
    """
    try:
        known = keys.known(directory)
        text = read_checkpoint(directory)
        if text is None:
            return ["there is no checkpoint"]
        checkpoint = note.open_checkpoint(text, *known)
    except (keys.KeyMissingError, note.NoteError) as error:
        return [str(error)]
    tree = _Tiles(directory, repair=repair)
    try:
        root = tree.up_to(checkpoint.size)
    except tiles.TileError as error:
        return [f"{error}, and its records were dropped: bring it back from a copy"]
    except ReaderError as error:
        return [str(error)]
    if tree.size < checkpoint.size:
        return [f"records {tree.size} to {checkpoint.size - 1} were signed and are gone"]
    if root != checkpoint.root:
        return [f"the first {checkpoint.size} records are not those that were signed"]
    return tree.wrong


class _Tiles:
    """The tree made from the records, each tile compared with the one that is stored."""

    def __init__(self, directory: Path, *, repair: bool) -> None:
        self._directory, self._repair = directory, repair
        self._made: dict[str, bytes] = {}
        self.wrong: list[str] = []
        self.size = 0

    def up_to(self, size: int) -> bytes:
        """Compare (or put right) all tiles of the first `size` records; their root."""
        rows = Rows(self._compare)
        for leaf in leaves(self._directory, min(size, dropped_before(self._directory))):
            rows.add(leaf)
        for seq, data in read(self._directory):
            if seq >= size:
                break
            rows.add(leaf_hash(data))
        self.size = rows.size
        for part in rows.partial():
            self._compare(*part)
        return tiles.Tree(rows.size, self._tile).root()

    def _tile(self, level: int, number: int, width: int) -> bytes:
        return self._made[tiles.path(level, number, width)]

    def _compare(self, level: int, number: int, tile: bytes) -> None:
        name = tiles.path(level, number, len(tile) // 32)
        if level or len(tile) < tiles.FULL:
            self._made[name] = tile
        else:  # of the leaves, the last few tiles are all that a root needs
            self._made = {key: kept for key, kept in self._made.items() if not key.startswith("tile/0/")}
            self._made[name] = tile
        path = self._directory / name
        stored = path.read_bytes() if path.is_file() else None
        if stored == tile:
            return
        full = path.parent.parent / path.parent.name.removesuffix(".p")
        if stored is None and len(tile) < tiles.FULL and full.is_file():
            return  # full by now
        self.wrong.append(f"{name} is {'missing' if stored is None else 'wrong'}")
        if self._repair:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_bytes(tile)
            temporary.rename(path)
