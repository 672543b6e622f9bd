"""Old records go, and what proves them stays: by age, by size, never what is needed, whole after a crash."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.keeping import DAY_NS, NOW, OLD, Kept
from tests.support.ledgers import deny, record, start, wait_for
from tests.support.ledgers import settings as ledger_settings
from tests.support.witnesses import ORIGIN

from exeat.appliance.config import ConfigError, load
from exeat.ledger import bundle, fsck, keys, publish, retention, verify_offline
from exeat.ledger.archive import ArchiveError
from exeat.ledger.client import append_blocking
from exeat.ledger.clock import Wary
from exeat.ledger.flows import FlowTable
from exeat.ledger.index import open_index
from exeat.ledger.publish import Publisher
from exeat.ledger.published import read_checkpoint
from exeat.ledger.reader import dropped_before, find_segments, gone, read, tail
from exeat.ledger.records import Kind, decode
from exeat.ledger.retention import Dropping, RetentionError, Rules, due, propose
from exeat.ledger.since import gists_since
from exeat.ledger.store import Store
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Kept]:
    """1,000 records of day 50, then 1,000 of day 95; a checkpoint kept from day 50."""
    made = Kept(tmp_path / "state" / "ledger" / "x")
    made.fill(50, 400)
    made.kept_note = read_checkpoint(made.directory) or ""
    made.fill(50, 600)
    made.fill(95, 1000)
    yield made
    made.store.close()


def test_what_is_old_goes_and_the_rest_verifies(
    ledger: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_proof = tmp_path / "old.tlog-proof"
    old_proof.write_text(bundle.prove(ledger.directory, 77))
    all_before = list(read(ledger.directory))
    first = ledger.drop()
    assert 700 < first <= 1002
    kept = list(read(ledger.directory))
    assert kept[: len(all_before) - first] == all_before[first:]
    report = verify(ledger.directory, two=True)
    assert report.problems == []
    assert report.dropped == first
    tombstone = next(decode(data) for _, data in reversed(kept) if decode(data).reason_code == "retention")
    assert (tombstone.kind, tombstone.count) == (Kind.GAP, first)

    kept_file = tmp_path / "kept"
    kept_file.write_text(ledger.kept_note)
    assert ledger.exeat("verify", "--checkpoint", str(kept_file)) == 0
    assert f"records 0 to {first - 1}; what proves them is there" in capsys.readouterr().out
    key = str(keys.verifier(ledger.directory))
    assert verify_offline.main([str(old_proof), "--key", key]) == 0
    assert ledger.exeat("prove", "77") == 1
    assert "was dropped" in capsys.readouterr().err
    bundle.export(ledger.directory, tmp_path / "out", since=ledger.kept_note)
    assert verify_offline.main([str(tmp_path / "out"), "--key", key, "--checkpoint", str(kept_file)]) == 0
    assert ledger.exeat("prove", str(first)) == 0
    assert fsck.check(ledger.directory, repair=False) == []
    assert tail(ledger.directory, 5000)[0][0][0] == first
    assert not list(ledger.directory.rglob("*.tmp"))


def test_space_is_given_back(ledger: Kept) -> None:
    def used() -> int:
        return sum(path.stat().st_blocks for path in find_segments(ledger.directory))

    before = used()
    ledger.drop()
    assert used() < 0.7 * before
    assert all(path.stat().st_size < 4096 for path in find_segments(ledger.directory) if gone(path))


def test_by_size_the_oldest_go(ledger: Kept) -> None:
    sizes = [path.stat().st_size for path in find_segments(ledger.directory)]
    rules = Rules(keep_bytes=sum(sizes) - sizes[0] - 1, at_least_days=1)
    assert due(ledger.directory, rules, NOW) == 2
    assert due(ledger.directory, rules._replace(keep_bytes=sum(sizes)), NOW) == 0
    assert due(ledger.directory, rules._replace(at_least_days=60), NOW) == 0
    assert due(ledger.directory, rules._replace(archived=lambda: 1), NOW) == 1
    assert due(ledger.directory, Rules(keep_bytes=1, at_least_days=1), 200 * DAY_NS) == len(sizes) - 1
    assert not Rules().any
    assert ledger.drop(rules) == _begin(ledger, 2)
    assert ledger.drop(rules) == _begin(ledger, 2)  # that is enough


def _begin(ledger: Kept, index: int) -> int:
    return int.from_bytes(find_segments(ledger.directory)[index].read_bytes()[8:16], "big")


def test_what_an_open_flow_needs_stays(ledger: Kept) -> None:
    ledger.oldest = 300
    first = ledger.drop()
    assert first == max(begin for n in range(9) if (begin := _begin(ledger, n)) <= 300)
    ledger.oldest = 0
    assert ledger.drop() == first
    ledger.oldest = None
    assert ledger.drop() > first
    assert verify(ledger.directory).ok


def test_it_goes_on_and_on(ledger: Kept) -> None:
    first = ledger.drop()
    ledger.fill(99, 600)
    second = ledger.drop(Rules(keep_days=2, at_least_days=1))
    assert second > first
    report = verify(ledger.directory)
    assert (report.problems, report.dropped) == ([], second)
    ledger.store.close()
    ledger.store = Store.open(ledger.directory, NOW, segment_bytes=16384)
    ledger.fill(100, 300)
    assert verify(ledger.directory).ok


def test_an_index_forgets_with_the_ledger(ledger: Kept) -> None:
    def counts(index: sqlite3.Connection) -> tuple[int, int]:
        (entries,) = index.execute("select count(*) from entry").fetchone()
        (summed,) = index.execute("select coalesce(sum(entries), 0) from hour").fetchone()
        return entries, summed

    index = open_index(ledger.directory)
    whole = counts(index.db)
    index.close()
    first = ledger.drop()
    index = open_index(ledger.directory)
    after = counts(index.db)
    index.close()
    shutil.rmtree(ledger.directory / "derived")
    anew = open_index(ledger.directory)
    assert after == counts(anew.db)
    assert after[0] < whole[0] - first + 10
    anew.close()


def test_flows_over_the_edge_are_judged_by_what_is_left(tmp_path: Path) -> None:
    ledger = Kept(tmp_path / "state" / "ledger" / "x")
    table = FlowTable()
    ledger.store.append([record(Kind.OPEN, 1, job="j", reserved=100)], 50 * DAY_NS)
    ledger.fill(50, 400)
    ledger.fill(95, 100)
    ledger.store.append([record(Kind.CLOSE, 1, bytes_out=7)], 95 * DAY_NS)
    ledger.fill(95, 200)
    first = ledger.drop()
    assert first > 10
    report = verify(ledger.directory)
    assert report.problems == []
    assert (report.flows_closed, report.bytes_out) == (1, 7)
    assert table.oldest() is None
    list(gists_since(ledger.directory.parent, 0))
    ledger.store.close()


# --- what must not pass for it


def test_records_that_are_not_what_was_signed_stay(ledger: Kept) -> None:
    path = find_segments(ledger.directory)[1]
    data = bytearray(path.read_bytes())
    at = data.index(b"rule.deny", 3000)
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(RetentionError):
        propose(ledger.directory, OLD, NOW)
    assert not (ledger.directory / "retention").exists()


def test_dropping_without_a_word_is_damage(ledger: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """As somebody would who wants to be rid of records: segments replaced, and no tombstone."""
    for path in find_segments(ledger.directory)[:3]:
        path.write_bytes(retention.stub(path))
    assert ledger.exeat("verify") == 1
    assert "are gone, and no record says so" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["tile", "root", "middle"])
def test_what_is_wrong_with_what_is_left_is_named(ledger: Kept, what: str) -> None:
    first = ledger.drop()
    paths = find_segments(ledger.directory)
    if what == "tile":
        path = ledger.directory / "tile" / "0" / "001"
        data = bytearray(path.read_bytes())
        data[5] ^= 1
        expected = "tiles of the dropped records"
    elif what == "root":
        path = paths[0]
        for path in paths:
            if not gone(path):
                break
            last = path
        path = last
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        expected = ""
    else:
        path = paths[-2]
        data = bytearray(retention.stub(path))
        expected = "missing or out of order"
    path.write_bytes(data)
    report = verify(ledger.directory)
    assert not report.ok
    assert expected in report.problems[0].what
    assert first


def test_tiles_are_made_anew_from_the_lowest_row(ledger: Kept) -> None:
    """After power loss only what was synced is sure to be there."""
    ledger.drop()
    dropped = dropped_before(ledger.directory)
    shutil.rmtree(ledger.directory / "tile" / "1")
    for path in (ledger.directory / "tile" / "0").iterdir():
        if path.name > f"{dropped // 256:03d}":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    ledger.fill(99, 40)
    assert verify(ledger.directory).ok
    assert fsck.check(ledger.directory, repair=False) == []
    (ledger.directory / "tile" / "0" / "000").unlink()
    shutil.rmtree(ledger.directory / "tile" / "1")
    (found,) = fsck.check(ledger.directory, repair=True)
    assert "bring it back" in found
    with pytest.raises(publish.PublishError, match="bring it back"):
        Publisher(ledger.directory)


class CrashError(Exception):
    pass


def test_a_crash_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename or removal that does not happen any more; then the next start goes on with it."""
    template = Kept(tmp_path / "t" / "ledger" / "x")
    template.fill(50, 300)
    template.fill(95, 600)
    template.store.close()
    ends = set()
    for step in range(100):
        directory = tmp_path / f"{step}" / "ledger" / "x"
        shutil.copytree(template.directory, directory)
        ledger = Kept.__new__(Kept)
        ledger.directory, ledger.oldest = directory, None
        ledger.store = Store.open(directory, NOW, segment_bytes=16384)
        ledger.dropping = Dropping(directory, lambda: None, lambda ledger=ledger: ledger.store.size)
        done = 0
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink"):
                real = getattr(Path, name)

                def counted(
                    path: Path, *args: object, real: object = real, step: int = step, **named: object
                ) -> object:
                    nonlocal done
                    if path.suffix != ".tmp" and path.name not in ("retention",) and "seg" not in str(path):
                        return real(path, *args, **named)  # type: ignore[operator]
                    if done >= step:
                        raise CrashError
                    done += 1
                    return real(path, *args, **named)  # type: ignore[operator]

                patch.setattr(Path, name, counted)
            try:
                ledger.drop()
                crashed = False
            except CrashError:
                crashed = True
        ledger.store.close()
        ledger.store = Store.open(directory, NOW, segment_bytes=16384)
        ledger.dropping = Dropping(directory, lambda: None, lambda ledger=ledger: ledger.store.size)
        ledger.publish()
        report = verify(directory)
        assert report.problems == []
        ends.add(report.dropped)
        assert ledger.drop() > 0
        assert verify(directory).problems == []
        ledger.store.close()
        shutil.rmtree(directory)
        if not crashed:
            break
    else:
        raise AssertionError("dropping takes more steps than this test enumerates")
    assert len(ends) > 2  # whole, in the middle, done


def test_word_of_what_should_go_counts_for_its_own_ledger_only(
    ledger: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older copy was put back below it: the number of segments is another, or what they hold is."""
    propose(ledger.directory, OLD, NOW)
    word = ledger.directory / "retention"
    index, size, root = word.read_text().split()
    records = ledger.store.size
    for other in (
        f"999 {size} {root}",
        f"{index} {size} {'00' * 32}",
        f"{int(index) + 1} {size} {root}",
        f"{index} {int(size) + 1} {root}",
    ):
        word.write_text(f"{other}\n")
        ledger.run_errands()
        assert not word.exists()
        assert "does not fit" in capsys.readouterr().err
    assert ledger.store.size == records  # no tombstone
    assert ledger.drop() == int(size)


def test_a_running_ledger_drops_by_itself(tmp_path: Path) -> None:
    ledger = Kept(tmp_path / "state" / "ledger" / ledger_settings(tmp_path).directory.name)
    ledger.fill(50, 600)
    ledger.fill(95, 300)
    ledger.store.close()
    daemon = start(ledger_settings(tmp_path, rules=Rules(keep_days=10), segment_bytes=16384))
    append_blocking(daemon.path, [deny()])
    wait_for(lambda: dropped_before(ledger.directory) > 500, "old segments go", seconds=30)
    assert daemon.stop() == 0
    report = verify(ledger.directory)
    assert report.problems == []
    assert report.dropped == dropped_before(ledger.directory)
    assert report.origin == ORIGIN
    assert time.time_ns() > NOW


def test_the_configuration_keeps_what_budgets_count(tmp_path: Path) -> None:
    path = tmp_path / "exeat.toml"
    path.write_text("[ledger]\nkeep_days = 7\n")
    with pytest.raises(ConfigError, match="keep_at_least_days"):
        load(path)
    path.write_text("[ledger]\nkeep_days = 7\nkeep_at_least_days = 7\nkeep_bytes = 1000000\n")
    assert load(path).ledger.keep_days == 7


def test_a_clock_that_was_set_back_makes_nothing_old(tmp_path: Path) -> None:
    """As after a start without a clock of its own: records of day 95, then some that say day 2."""
    directory = tmp_path / "l"
    store = Store.create(directory, ORIGIN, 95 * DAY_NS, segment_bytes=16384)
    for day, times in ((95, 1), (2, 20), (96, 20)):
        for _ in range(times):
            store.append([deny(n) for n in range(20)], day * DAY_NS)
    store.close()
    assert due(directory, OLD, 97 * DAY_NS) == 0
    assert due(directory, Rules(keep_bytes=1, at_least_days=3), 97 * DAY_NS) == 0
    assert due(directory, OLD, 120 * DAY_NS) == len(find_segments(directory)) - 1


class Time:
    """Both clocks, for the test to move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot, self.wall = 10**9, NOW
        monkeypatch.setattr(time, "time_ns", lambda: self.wall)
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _clock: self.boot)

    def passes(self, by_ns: int) -> None:
        self.boot, self.wall = self.boot + by_ns, self.wall + by_ns


def test_a_clock_that_jumps_ahead_is_believed_a_day_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = Time(monkeypatch)
    now = Wary()
    both.passes(DAY_NS // 2)
    assert now.now_ns() == both.wall
    both.wall += 30 * 10**9  # as clocks are set
    assert now.now_ns() == both.wall
    before = both.wall
    both.wall += 400 * DAY_NS
    assert now.now_ns() == before
    both.passes(DAY_NS - 1)
    assert now.now_ns() == before + DAY_NS - 1
    assert capsys.readouterr().err.count("not believed for a day") == 1
    both.wall -= 400 * DAY_NS  # put right
    assert now.now_ns() == both.wall
    both.wall += 400 * DAY_NS
    assert now.now_ns() == both.wall - 400 * DAY_NS  # doubted anew
    both.passes(DAY_NS)
    assert now.now_ns() == both.wall
    both.wall -= 800 * DAY_NS
    assert now.now_ns() == both.wall


@pytest.mark.parametrize("error", [ArchiveError("a batch is missing"), RecursionError(), ValueError("x")])
def test_nothing_about_dropping_ends_signing(
    ledger: Kept, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def archived() -> int:
        raise error

    publish._propose(ledger.directory, OLD._replace(archived=archived), Wary())
    assert "no record is dropped" in capsys.readouterr().err
    assert not (ledger.directory / "retention").exists()
