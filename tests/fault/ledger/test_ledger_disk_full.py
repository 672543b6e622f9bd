"""A file system that really is full: the ledger refuses, says so once, and writes again when it can."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import deny, record, running, wait_for

from exeat.ledger import reader
from exeat.ledger.client import LedgerError, append_blocking
from exeat.ledger.records import Kind, decode
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a small tmpfs"),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB where the state directory will be."""
    disk = tmp_path / "state"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def writes(path: Path, records: list[bytes]) -> bool:
    try:
        append_blocking(path, records)
    except LedgerError:
        return False
    return True


def test_a_full_disk_latches_and_space_heals_it(
    small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as daemon:
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk)
        ballast.write_bytes(bytes(free.f_bavail * free.f_bsize))
        acked = 0
        big = [record(Kind.DENY, detail="x" * 1000)] * 50
        while writes(daemon.path, big):
            acked += len(big)
        assert acked  # the room made ahead was used first
        for _ in range(5):
            with pytest.raises(LedgerError, match="unavailable"):
                append_blocking(daemon.path, [deny()])
        ballast.unlink()
        wait_for(lambda: writes(daemon.path, [deny()]), "the ledger writes again")
        said = capfd.readouterr().err
        assert said.count("No space left on device") == 1
        assert said.count("ledger writes again") == 1
    records = [decode(data) for _, data in reader.read(daemon.settings.directory)]
    assert sum(entry.detail.startswith("xxx") for entry in records) >= acked
    assert any(entry.kind is Kind.GAP and "No space" in entry.detail for entry in records)
    assert verify(daemon.settings.directory).ok


def test_a_start_on_a_full_disk_fails_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(4 * 1024 * 1024 - 65536))
    with pytest.raises(AssertionError, match="did not start"), running(tmp_path):
        pass
    assert not list(small_disk.rglob("*.seg"))
    assert not list(small_disk.rglob("*.tmp"))
