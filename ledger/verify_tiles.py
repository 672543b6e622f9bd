"""What proves records that were dropped: the lowest row of tiles. A part of `ledger.verify`.

Read as docs/formats/ledger.md has it, without the writer's code.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_WIDTH = 256


def roots(directory: Path, sizes: Iterable[int]) -> dict[int, bytes]:
    """The root of the tree at each of these sizes, as far as there are tiles. Raises OSError."""
    wanted = sorted(set(sizes))
    found: dict[int, bytes] = {}
    peaks: list[tuple[int, bytes]] = []  # (height, hash)
    for size, leaf in enumerate(_leaves(directory, wanted[-1] if wanted else 0), 1):
        height, node = 0, leaf
        while peaks and peaks[-1][0] == height:
            node = sha256(b"\1" + peaks.pop()[1] + node).digest()
            height += 1
        peaks.append((height, node))
        if size in wanted:
            found[size] = _root(peaks)
    return found


def _root(peaks: list[tuple[int, bytes]]) -> bytes:
    node = peaks[-1][1]
    for _, peak in peaks[-2::-1]:
        node = sha256(b"\1" + peak + node).digest()
    return node


def _leaves(directory: Path, end: int) -> Iterable[bytes]:
    for number in range(-(-end // _WIDTH)):
        groups = [f"{number % 1000:03d}"]
        above = number // 1000
        while above:
            groups.insert(0, f"x{above % 1000:03d}")
            above //= 1000
        path = directory / "tile" / "0" / "/".join(groups)
        if not path.is_file():
            return
        tile = path.read_bytes()
        for at in range(0, 32 * min(_WIDTH, end - number * _WIDTH), 32):
            yield tile[at : at + 32]
