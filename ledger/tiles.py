"""The tree as C2SP tlog-tiles: 256 hashes to a tile, rows of tiles, written once. No I/O.

Row 0 holds the leaf hashes; each hash of row L is the root of a full tile of row L - 1. A row ends
in a partial tile if its hashes are not a multiple of 256. Tiles are derived from the segments and
can be made anew at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Final

from exeat.ledger.merkle import EMPTY_ROOT, HASH, node_hash
from exeat.ledger.proofs import split

WIDTH: Final = 256  # hashes in a full tile
FULL: Final = WIDTH * HASH  # bytes
_BITS: Final = 8

Loader = Callable[[int, int, int], bytes]  # (level, number, width) -> the tile's bytes


class TileError(Exception):
    """A tile is missing or is not what it must be."""


def path(level: int | str, number: int, width: int = WIDTH) -> str:
    """`tile/0/x001/x234/067`, or with `.p/W` behind it if it holds `width` hashes only."""
    groups = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        groups.insert(0, f"x{number % 1000:03d}")
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(groups)}{partial}"


def tile_root(tile: bytes) -> bytes:
    """The root of a full tile's 256 hashes."""
    row = [tile[at : at + HASH] for at in range(0, FULL, HASH)]
    while len(row) > 1:
        row = [
            sha256(b"\x01" + left + right).digest() for left, right in zip(row[::2], row[1::2], strict=True)
        ]
    return row[0]


class Rows:
    """The open ends of all rows of a growing tree. `full` gets each tile that fills up."""

    def __init__(self, full: Callable[[int, int, bytes], None], size: int = 0) -> None:
        self.size = size
        self._full = full
        self._rows: list[bytearray] = [bytearray()]

    @classmethod
    def load(cls, full: Callable[[int, int, bytes], None], size: int, tile: Loader) -> Rows:
        """Take up a tree of `size` from its last, partial tiles. The caller checks the root."""
        rows = cls(full, size)
        rows._rows = [bytearray(tile(*part)) if part[2] else bytearray() for part in ends(size)]
        return rows

    def add(self, leaf: bytes) -> None:
        """Append a leaf's hash."""
        row = self._rows[0]
        row += leaf
        self.size += 1
        if len(row) == FULL:
            self._fill(0)

    def _fill(self, level: int) -> None:
        tile = bytes(self._rows[level])
        self._full(level, (self.size >> _BITS * (level + 1)) - 1, tile)
        self._rows[level].clear()
        if level + 1 == len(self._rows):
            self._rows.append(bytearray())
        above = self._rows[level + 1]
        above += tile_root(tile)
        if len(above) == FULL:
            self._fill(level + 1)

    def partial(self) -> list[tuple[int, int, bytes]]:
        """(level, number, content) of the partial tile at the end of each row that has one."""
        return [
            (level, self.size >> _BITS * (level + 1), bytes(row))
            for level, row in enumerate(self._rows)
            if row
        ]


def ends(size: int) -> list[tuple[int, int, int]]:
    """(level, number, width) of the tile at the end of each row; width 0 if the row ends in a full one."""
    found, level = [], 0
    while level == 0 or size >> _BITS * level:
        found.append((level, size >> _BITS * (level + 1), (size >> _BITS * level) % WIDTH))
        level += 1
    return found


class Tree:
    """A tree of `size` leaves, read from its tiles; hashes of ranges for `ledger.proofs`."""

    def __init__(self, size: int, tile: Loader) -> None:
        self.size = size
        self._load = tile
        self._tile = lru_cache(maxsize=1024)(self._read)
        self._node = lru_cache(maxsize=65536)(self._make)

    def root(self) -> bytes:
        return self.roots(0, self.size)

    def roots(self, first: int, end: int) -> bytes:
        """The root over the leaves from `first` up to `end`; `first` is where RFC 6962 would divide."""
        if first == end:
            return EMPTY_ROOT
        count = end - first
        if count & (count - 1) == 0 and first % count == 0:
            return self._node(count.bit_length() - 1, first)
        middle = first + split(count)
        return node_hash(self.roots(first, middle), self.roots(middle, end))

    def _make(self, height: int, first: int) -> bytes:
        level, above = divmod(height, _BITS)
        if above == 0:
            number, at = divmod(first >> height, WIDTH)
            return self._tile(level, number)[at * HASH : (at + 1) * HASH]
        half = 1 << height - 1
        return node_hash(self._node(height - 1, first), self._node(height - 1, first + half))

    def _read(self, level: int, number: int) -> bytes:
        hashes = self.size >> _BITS * level
        width = min(WIDTH, hashes - number * WIDTH)
        data = self._load(level, number, width)
        if len(data) != width * HASH:
            raise TileError(f"{path(level, number, width)} has a wrong length")
        return data
