"""The ledger's Merkle tree: RFC 6962 section 2.1 (RFC 9162 hashes identically). Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HASH: Final = 32  # bytes
EMPTY_ROOT: Final = sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data): the prefix keeps a leaf from passing for a node."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: the roots of its full subtrees, largest first.

    log2(size) hashes are enough to append for ever. Raises ValueError if `peaks` does not hold
    one hash per set bit of `size`.
    """

    __slots__ = ("_peaks", "_root", "_rooted", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        if len(peaks) != size.bit_count() or any(len(peak) != HASH for peak in peaks):
            raise ValueError("a frontier has one hash per set bit of its size")
        self.size = size
        self._peaks = list(peaks)
        self._root = EMPTY_ROOT
        self._rooted = 0  # the size that `_root` is of: a tree that only grows has one root at each

    @property
    def peaks(self) -> tuple[bytes, ...]:
        return tuple(self._peaks)

    def add(self, data: bytes) -> None:
        """Append one leaf, given its data."""
        node, full = sha256(b"\x00" + data).digest(), self.size
        while full & 1:  # each trailing one-bit is a full subtree of the height reached so far
            node = sha256(b"\x01" + self._peaks.pop() + node).digest()
            full >>= 1
        self._peaks.append(node)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append leaves, given the data of each: as `add`, but row by row, which takes a quarter less."""
        row = [sha256(b"\x00" + data).digest() for data in leaves]
        peaks, full, count = self._peaks, self.size, len(row)
        new: list[bytes] = []  # peaks, the smallest first: what finds no partner in its row
        while row:
            if full & 1:
                row.insert(0, peaks.pop())
            if len(row) & 1:
                new.append(row.pop())
            pairs = iter(row)
            row = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
            full >>= 1
        peaks.extend(reversed(new))
        self.size += count

    def root(self) -> bytes:
        if self._rooted != self.size:
            node = self._peaks[-1]
            for peak in reversed(self._peaks[:-1]):
                node = sha256(b"\x01" + peak + node).digest()
            self._root, self._rooted = node, self.size
        return self._root

    def copy(self) -> Frontier:
        same = Frontier()
        same.size, same._peaks = self.size, self._peaks[:]
        same._root, same._rooted = self._root, self._rooted
        return same
