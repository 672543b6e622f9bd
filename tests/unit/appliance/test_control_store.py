"""What control remembers: across restarts, damaged files, and clocks that go backwards."""

from __future__ import annotations

import json
import sqlite3
import time
from typing import TYPE_CHECKING

import pytest

from exeat.appliance.control.store import MIGRATIONS, DamagedError, Store, StoreError
from exeat.appliance.control.time import TOLERANCE_MS, TrustedClock

if TYPE_CHECKING:
    from pathlib import Path

HOUR_MS = 3_600_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def test_rows_survive_a_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path / "c.sqlite")
    store.save_lease("p/a/1", "1")
    store.save_lease("p/a/1", "2")
    store.save_job("p-1", "{}")
    store.close()
    again = Store(tmp_path / "c.sqlite")
    assert list(again.load_leases()) == [("p/a/1", "2")]
    assert list(again.load_jobs()) == [("p-1", "{}")]
    again.save_owed(b"its end", instead_of_job="p-1")
    assert list(again.load_jobs()) == []
    assert [record for _, record in again.load_owed()] == [b"its end"]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    Store(path).close()
    broken = (*MIGRATIONS, "CREATE TABLE extra (x TEXT) STRICT; INSERT INTO nowhere VALUES (1)")
    with pytest.raises(
        StoreError, match=rf"migration {len(broken)}: no such table: nowhere; nothing was changed"
    ):
        Store(path, broken)
    tables = {name for (name,) in sqlite3.connect(path).execute("SELECT name FROM sqlite_master")}
    assert "extra" not in tables
    Store(path).close()


def test_a_migration_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    Store(path).close()
    with pytest.raises(StoreError, match="migration 1 is not the one that was applied"):
        Store(path, (MIGRATIONS[0] + " ", *MIGRATIONS[1:]))


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    Store(path, (*MIGRATIONS, "CREATE TABLE later (x TEXT) STRICT")).close()
    with pytest.raises(StoreError, match="newer version"):
        Store(path)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(DamagedError, match=r"c\.sqlite: file is not a database"):
        Store(path)


def test_a_row_that_is_no_document_is_damage(tmp_path: Path) -> None:
    """SQLite has no checksums: it gives back whatever the disk says."""
    path = tmp_path / "c.sqlite"
    store = Store(path)
    store.save_lease("p/a/1", '{"id": 1}')
    store.close()
    path.write_bytes(path.read_bytes().replace(b'{"id": 1}', b'{"id": \x00}'))
    with pytest.raises(DamagedError, match="table lease holds what is not JSON"):
        Store(path)


def test_a_page_that_is_gone_is_found_before_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    store = Store(path)
    for number in range(2000):
        store.save_task(f"t-{number}", json.dumps("x" * 200))
    store.close()
    pages = bytearray(path.read_bytes())
    middle = len(pages) // 2 // 4096 * 4096
    pages[middle : middle + 4096] = bytes(4096)
    path.write_bytes(pages)
    with pytest.raises(DamagedError, match=r"c\.sqlite: "):
        Store(path)


def test_the_high_water_mark_only_rises(tmp_path: Path) -> None:
    store = Store(tmp_path / "c.sqlite")
    for value in (5, 9, 7):
        store.keep_latest_ms(value)
    assert store.latest_ms == 9


def test_a_fresh_clock_is_trusted_and_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "c.sqlite")
    clock = TrustedClock(store)
    assert clock.trusted
    assert not clock.tick()
    assert abs(store.latest_ms - wall_ms()) < 5000


def test_a_clock_behind_what_was_seen_is_not_trusted(tmp_path: Path) -> None:
    """As after a reboot with an empty battery: time that passed meanwhile is unknown."""
    store = Store(tmp_path / "c.sqlite")
    seen = wall_ms() + HOUR_MS
    store.keep_latest_ms(seen)
    clock = TrustedClock(store)
    assert not clock.trusted
    assert clock.now_ms() >= seen  # nothing that had ended by then is alive again
    assert not clock.tick()
    assert store.latest_ms == seen  # an untrusted clock leaves no mark


def test_a_small_step_back_is_no_alarm(tmp_path: Path) -> None:
    store = Store(tmp_path / "c.sqlite")
    store.keep_latest_ms(wall_ms() + TOLERANCE_MS // 2)
    assert TrustedClock(store).trusted


def test_trust_returns_when_the_clock_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "c.sqlite")
    store.keep_latest_ms(wall_ms() + HOUR_MS)
    clock = TrustedClock(store)
    later = time.time_ns() + 2 * HOUR_MS * 1_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert clock.tick()
    assert clock.trusted
