"""Runs of the archive follow each other while the appliance is up, and end with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from exeat.appliance import archive_runs
from exeat.appliance.archive_runs import ArchiveRuns
from exeat.ledger.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reactor]:
    monkeypatch.setattr(archive_runs, "_FIRST_S", 0.0)
    made = Reactor()
    yield made
    made.close()


def _turn_until_it_runs(reactor: Reactor, runs: ArchiveRuns, other_than: int = 0) -> int:
    for _ in range(1000):
        if runs._process is not None and runs._process.pid != other_than:
            return runs._process.pid
        reactor.turn(0.1)
    raise AssertionError("no run began")


def test_a_run_follows_the_one_that_failed(reactor: Reactor, tmp_path: Path) -> None:
    runs = ArchiveRuns(reactor, ["--config", str(tmp_path / "none.toml")], 0.01)
    first = _turn_until_it_runs(reactor, runs)
    assert _turn_until_it_runs(reactor, runs, first) != first
    runs.stop()
    runs.stop()


def test_a_run_that_hangs_ends_with_the_appliance(reactor: Reactor, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never.toml")  # nobody writes: reading the configuration never ends
    runs = ArchiveRuns(reactor, ["--config", str(tmp_path / "never.toml")], 0.01)
    pid = _turn_until_it_runs(reactor, runs)
    runs.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_run_that_lasts_too_long_is_ended(
    reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_runs, "_MOST_S", 0.05)
    os.mkfifo(tmp_path / "never.toml")
    runs = ArchiveRuns(reactor, ["--config", str(tmp_path / "never.toml")], 0.01)
    first = _turn_until_it_runs(reactor, runs)
    assert _turn_until_it_runs(reactor, runs, first) != first
    runs.stop()


def test_no_process_to_be_had_is_tried_again(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[int] = []

    def popen(*_: object, **__: object) -> None:
        called.append(1)
        raise BlockingIOError("no process")

    monkeypatch.setattr(archive_runs.subprocess, "Popen", popen)
    runs = ArchiveRuns(reactor, [], 0.0)
    while len(called) < 3:
        reactor.turn(0.1)
    runs.stop()
    assert "no run: no process" in capsys.readouterr().err
