"""What the disk may hold after power is lost inside the last write, enumerated.

The last group is cut at every byte, and every subset of its sectors is left unwritten (a sector
that also holds acknowledged bytes keeps those: they were synced before). Whatever is left, `open`
must give back every acknowledged record and then a prefix of the torn group, and go on.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.support.ledgers import deny

from exeat.ledger import reader
from exeat.ledger.store import Store
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTOR = 512


def before_and_after(base: Path) -> tuple[bytes, bytes, bytes, list[bytes], list[bytes]]:
    """Segment bytes before and after the last group, the head as acknowledged, both lists of records."""
    store = Store.create(base, "o", 1, segment_bytes=16384)
    acked = [deny(number) for number in range(4)]
    store.append(acked[:2], 1)
    store.append(acked[2:], 2)
    path = base / "seg" / "000000000000.seg"
    before, head = path.read_bytes(), (base / "head").read_bytes()
    torn = [deny(number) for number in range(10, 22)]
    store.append(torn, 3)
    store.close()
    return before, path.read_bytes(), head, acked, torn


def check(base: Path, image: bytes, head: bytes, acked: list[bytes], torn: list[bytes]) -> int:
    path = base / "seg" / "000000000000.seg"
    path.write_bytes(image)
    (base / "head").write_bytes(head)
    store = Store.open(base, 4, segment_bytes=16384)
    size = store.size
    store.close()
    again = Store.open(base, 4, segment_bytes=16384)  # finds the same, and nothing left to repair
    assert (again.size, again.recovery.rewritten, again.recovery.torn_bytes) == (size, False, 0)
    again.close()
    got = [data for _, data in reader.read(base)]
    assert len(got) == size
    assert got == (acked + torn)[:size]
    assert size >= len(acked)
    report = verify(base)
    assert report.ok
    assert not report.notes
    return size - len(acked)


def last_write(before: bytes, after: bytes) -> tuple[int, int]:
    differing = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    return differing[0], differing[-1] + 1


def prefixes(before: bytes, after: bytes) -> Iterator[bytes]:
    start, end = last_write(before, after)
    for cut in range(start, end + 1, 7):
        yield after[:cut] + before[cut:]
    yield after


def sector_subsets(before: bytes, after: bytes) -> Iterator[bytes]:
    start, end = last_write(before, after)
    sectors = range(start // SECTOR, (end - 1) // SECTOR + 1)
    assert 3 <= len(sectors) <= 8
    for kept in itertools.product((False, True), repeat=len(sectors)):
        image = bytearray(before)
        for sector, keep in zip(sectors, kept, strict=True):
            if keep:
                image[sector * SECTOR : (sector + 1) * SECTOR] = after[
                    sector * SECTOR : (sector + 1) * SECTOR
                ]
        yield bytes(image)


def test_every_prefix_of_the_last_write(tmp_path: Path) -> None:
    before, after, head, acked, torn = before_and_after(tmp_path / "l")
    kept = {check(tmp_path / "l", image, head, acked, torn) for image in prefixes(before, after)}
    assert kept == set(range(len(torn) + 1))


def test_every_subset_of_the_sectors_of_the_last_write(tmp_path: Path) -> None:
    before, after, head, acked, torn = before_and_after(tmp_path / "l")
    kept = {check(tmp_path / "l", image, head, acked, torn) for image in sector_subsets(before, after)}
    assert {0, len(torn)} < kept


def test_the_torn_bytes_are_counted_and_dropped(tmp_path: Path) -> None:
    before, after, head, acked, _torn = before_and_after(tmp_path / "l")
    start, _ = last_write(before, after)
    path = tmp_path / "l" / "seg" / "000000000000.seg"
    path.write_bytes(after[: start + 40] + before[start + 40 :])
    (tmp_path / "l" / "head").write_bytes(head)
    assert verify(tmp_path / "l").notes == [
        "unfinished write behind record 3: never acknowledged, settled at the next start"
    ]
    store = Store.open(tmp_path / "l", 4, segment_bytes=16384)
    assert 0 < store.recovery.torn_bytes <= 43
    assert store.recovery.rewritten
    assert store.size == len(acked)
    store.close()
    assert not path.read_bytes()[start:].strip(b"\0")
