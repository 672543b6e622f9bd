"""The event journal: numbers that only grow, two bounded series, replay, and what a crash leaves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from exeat.appliance.console import journal
from exeat.appliance.console.journal import Follower, Journal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def names(events: Sequence[journal.Event]) -> list[str]:
    return [str(event.data["n"]) for event in events]


def write(to: Journal, topic: str, *numbers: int) -> int:
    return to.append_all([(topic, {"n": str(number)}) for number in numbers])


def test_numbers_follow_each_other_and_since_gives_what_came_after(tmp_path: Path) -> None:
    events = Journal(tmp_path, lambda: 1000)
    first = events.append("requests", {"n": "1"})
    assert first == 1001
    assert write(events, "flows", 2, 3) == 1003
    assert names(events.since(0).events) == ["1", "2", "3"]
    assert names(events.since(first).events) == ["2", "3"]
    assert names(events.since(0, {"requests"}).events) == ["1"]
    assert events.since(1003) == ([], 1003, False)


def test_a_page_that_is_full_says_where_the_next_one_begins(tmp_path: Path) -> None:
    events = Journal(tmp_path)
    write(events, "jobs", *range(5))
    page = events.since(0, limit=2)
    found = names(page.events)
    while page.events:
        page = events.since(page.next, limit=2)
        found += names(page.events)
    assert found == list("01234")


def test_a_quiet_topic_does_not_make_the_next_page_begin_too_early(tmp_path: Path) -> None:
    events = Journal(tmp_path)
    write(events, "flows", *range(9))
    assert events.since(0, {"admin"}).next == events.last


@pytest.mark.parametrize("clock", [lambda: 0, lambda: 10**12])
def test_numbers_grow_across_restarts_whatever_the_clock_says(tmp_path: Path, clock: object) -> None:
    before = Journal(tmp_path)
    last = write(before, "jobs", 1, 2)
    after = Journal(tmp_path, clock)  # type: ignore[arg-type]
    assert write(after, "flows", 3) > last
    assert names(after.since(0).events) == ["1", "2", "3"]
    assert names(after.since(last).events) == ["3"]


def test_a_lost_folder_does_not_give_a_number_again(tmp_path: Path) -> None:
    last = write(Journal(tmp_path / "a", lambda: 5000), "jobs", 1)
    assert Journal(tmp_path / "b", lambda: 6000).append("jobs", {}) > last


def test_what_is_no_longer_in_memory_comes_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RECENT", 3)
    events = Journal(tmp_path)
    start = events.last
    for number in range(8):
        write(events, "flows" if number % 2 else "leases", number)
    assert names(events.since(start).events) == list("01234567")
    assert names(events.since(start + 2).events) == list("234567")
    assert names(events.since(start + 6).events) == ["6", "7"]


def test_many_flows_do_not_push_out_what_people_decided(tmp_path: Path) -> None:
    events = Journal(tmp_path, file_bytes=300)
    start = events.append("leases", {"n": "decided"})
    for number in range(100):
        write(events, "flows", number)
    assert len(list(tmp_path.glob("busy-*"))) == journal.FILES["busy"]
    assert names(journal.read(tmp_path, 0, {"leases"}).events) == ["decided"]
    page = journal.read(tmp_path, start, {"flows"})
    assert page.lost
    assert names(page.events)[-1] == "99"
    assert not journal.read(tmp_path, start, {"leases"}).lost


def test_half_a_line_of_a_crash_is_cut_and_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    write(Journal(tmp_path), "jobs", 1, 2)
    (file,) = tmp_path.glob("quiet-*")
    with file.open("ab") as broken:
        broken.write(b'\x00\xff\n[]\n{"id":1,"topic":"no","at_ms":1,"data":{}}\n{"id": 12')
    again = Journal(tmp_path)
    write(again, "jobs", 3)
    assert names(Journal(tmp_path).since(0).events) == ["1", "2", "3"]


@pytest.mark.parametrize(("topic", "data"), [("nonsense", {}), ("jobs", {"n": "x" * journal.MAX_EVENT})])
def test_what_is_no_event_is_refused_and_nothing_of_its_batch_kept(
    tmp_path: Path, topic: str, data: dict[str, str]
) -> None:
    events = Journal(tmp_path)
    with pytest.raises(ValueError, match="no event"):
        events.append_all([("jobs", {"n": "1"}), (topic, data)])
    assert events.since(0).events == []


def test_a_disk_that_fails_does_not_end_the_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "events"
    events = Journal(folder)
    start = events.last
    folder.rmdir()
    write(events, "jobs", 1)
    write(events, "jobs", 2)
    assert names(events.since(start).events) == ["1", "2"]
    assert capsys.readouterr().err.count("not kept") == 1
    folder.mkdir()
    write(events, "jobs", 3)
    assert names(journal.read(folder, 0).events) == ["3"]


def test_a_follower_reads_what_another_process_writes_across_files(tmp_path: Path) -> None:
    events = Journal(tmp_path, file_bytes=200)
    write(events, "jobs", 1)
    later, all_of_it = Follower(tmp_path, None), Follower(tmp_path, 0, {"jobs"})
    assert later.poll() == []
    for number in range(2, 7):
        write(events, "jobs", number)
        write(events, "flows", number)
        assert names(later.poll()) == [str(number)] * 2
    assert names(all_of_it.poll()) == list("123456")
    assert all_of_it.poll() == later.poll() == []


def test_a_follower_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    events = Journal(tmp_path)
    watcher = Follower(tmp_path, 0)
    write(events, "jobs", 1)
    (file,) = tmp_path.glob("quiet-*")
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert watcher.poll() == []
    file.write_bytes(whole)
    assert names(watcher.poll()) == ["1"]


def test_who_waits_is_woken_by_the_next_event(tmp_path: Path) -> None:
    async def watch() -> list[str]:
        events = Journal(tmp_path)
        start = events.last
        async with asyncio.TaskGroup() as group, asyncio.timeout(10):
            waiting = group.create_task(events.wait(start))
            await asyncio.sleep(0)
            assert not waiting.done()
            write(events, "jobs", 1)
        await events.wait(start)  # already there
        return names(events.since(start).events)

    assert asyncio.run(watch()) == ["1"]
