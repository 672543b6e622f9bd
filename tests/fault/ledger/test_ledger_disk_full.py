"""A file system that really is full: the ledger refuses, says so once, and writes again when it can."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.support.ledger_flows import Gateway
from tests.support.ledgers import deny, flow_id, record, running, wait_for

from exeat.ledger import reader
from exeat.ledger.client import LedgerError, append_blocking
from exeat.ledger.reactor import Reactor
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
        assert said.count("the disk is full; room is left for") == 1
        assert said.index("the disk is full") < said.index("nothing new is let through")
    records = [decode(data) for _, data in reader.read(daemon.settings.directory)]
    assert sum(entry.detail.startswith("xxx") for entry in records) >= acked
    assert any(entry.kind is Kind.GAP and "No space" in entry.detail for entry in records)
    assert verify(daemon.settings.directory).ok


def test_flows_on_a_disk_that_fills_up(small_disk: Path, tmp_path: Path) -> None:
    """What was acknowledged stands; what was not is said not to be; all of it adds up afterwards."""
    reactor = Reactor()
    with running(tmp_path, segment_bytes=65536, grace_s=0.5) as daemon:
        gateway = Gateway(reactor, daemon.path)
        gateway.turn_until(lambda: len(gateway.closed) > 50, "flows close")
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk)
        ballast.write_bytes(bytes(free.f_bavail * free.f_bsize))
        gateway.turn_until(lambda: bool(gateway.failed), "the disk is full")
        assert not gateway.client.available
        ballast.unlink()
        wait_for(lambda: writes(daemon.path, [deny()]), "the ledger writes again")
        gateway.finish()
        wait_for(lambda: not verify(daemon.settings.directory).flows_open, "what was given up is settled")
    reactor.close()
    kinds: dict[bytes, list[Kind]] = {}
    for _, data in reader.read(daemon.settings.directory):
        entry = decode(data)
        kinds.setdefault(entry.flow, []).append(entry.kind)
    assert all(kinds[flow_id(flow)][-1] is Kind.CLOSE for flow in gateway.closed)
    assert verify(daemon.settings.directory).ok


def test_a_start_on_a_full_disk_fails_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(4 * 1024 * 1024 - 65536))
    with pytest.raises(AssertionError, match="did not start"), running(tmp_path):
        pass
    assert not list(small_disk.rglob("*.seg"))
    assert not list(small_disk.rglob("*.tmp"))
