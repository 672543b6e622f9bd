"""A node that falls silent is missed by its witness, and a witness by the node, though no record is new."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.witnesses import ORIGIN, Ledger, serving

from exeat.appliance.cli import main
from exeat.appliance.config import load
from exeat.appliance.ledger_seals import watched
from exeat.ledger import clock, keys, note, witness_client, witnessing
from exeat.ledger import watched as watched_logs
from exeat.ledger import witness as witness_module
from exeat.ledger.records import Kind, decode
from exeat.ledger.watched import SILENT, Log, Watch, read_status
from exeat.ledger.witness import Witness
from exeat.ledger.witness_client import FORK, HEARTBEAT_S, UNREACHABLE, Rounds, Standing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Time:
    """Stands still until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = clock.boot_s()
        for module in (watched_logs, witness_module, witness_client):
            monkeypatch.setattr(module, "boot_s", lambda: self.now)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "l")
    yield made
    made.store.close()


@pytest.fixture
def witness(tmp_path: Path, ledger: Ledger, at: Time) -> Witness:
    folder = tmp_path / "state" / "witness" / "logs"
    folder.mkdir(parents=True)
    return Witness(folder, "witness.test/w1", [keys.verifier(ledger.directory)])


@pytest.fixture
def seals(tmp_path: Path) -> Path:
    (tmp_path / "seals").mkdir()
    return tmp_path / "seals"


def test_a_checkpoint_that_is_not_new_is_sent_once_a_minute(
    at: Time, ledger: Ledger, witness: Witness, seals: Path
) -> None:
    began = at.now
    with serving(witness) as peer:
        rounds = Rounds(ledger.directory, seals, [peer])
        for later, heard in ((0, 0), (1, 0), (HEARTBEAT_S - 1, 0), (HEARTBEAT_S, HEARTBEAT_S)):
            at.now = began + later
            assert rounds.run() == []
            assert witness.heard(ORIGIN) == began + heard
        at.now += 1
        Rounds(ledger.directory, seals, [peer]).run()  # and when the process starts
        assert witness.heard(ORIGIN) == at.now
    found = note.parse((seals / "cosigned").read_text())
    assert len(found.signatures) == 2  # the log's and one of the witness, however often it was asked


def test_a_witness_that_goes_is_missed_though_nothing_is_new(
    at: Time, ledger: Ledger, witness: Witness, seals: Path
) -> None:
    with serving(witness) as peer:
        rounds = Rounds(ledger.directory, seals, [peer])
        rounds.run()
    at.now += HEARTBEAT_S
    ((standing, code),) = rounds.run()
    assert (standing.trouble, code) == (UNREACHABLE, UNREACHABLE)


def test_a_log_that_falls_silent_is_told_once_and_once_that_it_is_back(
    at: Time, ledger: Ledger, witness: Witness, seals: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "state" / "witness" / "logs"
    watch = Watch(folder, witness, 300)
    assert watch.look() == []
    at.now += 300
    assert watch.look() == []  # it has that long from the start on
    at.now += 1
    assert [(log.origin, log.alarm, log.silent_s) for log in watch.look()] == [(ORIGIN, True, 301)]
    assert watch.look() == []
    with serving(witness) as peer:
        Rounds(ledger.directory, seals, [peer]).run()
    assert [(log.alarm, log.size) for log in watch.look()] == [(False, ledger.store.size)]
    status = read_status(folder)
    assert status is not None
    assert status[1] == [Log(ORIGIN, ledger.store.size, 0)]


def test_the_status_shows_who_is_silent_who_was_rewritten_and_that_nobody_looks(
    at: Time, witness: Witness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "state" / "witness" / "logs"
    path = tmp_path / "exeat.toml"
    path.write_text(
        f'[paths]\nstate_dir = "{tmp_path}/state"\n[witness]\nlisten = ["127.0.0.1:9"]\nname = "w.test/w"\n'
    )
    show = ["--config", str(path), "ledger", "witness"]
    (alarm,) = watched(load(path))
    assert "does `exeat serve witness` run?" in alarm
    Watch(folder, witness, 300).look()
    assert watched(load(path)) == []
    assert main(show) == 0
    assert capsys.readouterr().out.startswith("watching ")
    at.now += 400
    (folder / keys_hash() / "forks").mkdir(parents=True)
    (folder / keys_hash() / "forks" / "1-x").write_text("")
    watch = Watch(folder, witness, 300)
    watch.look()
    silent, forked = watched(load(path))
    assert f"{ORIGIN} has sent no checkpoint for 400 s" in silent
    assert f"REWRITTEN? {ORIGIN} showed 1 histories" in forked
    assert main([*show, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["watched"] == [silent, forked]
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "time_s": status["time_s"] - 3600}))
    assert "does `exeat serve witness` run?" in watched(load(path))[0]


def keys_hash() -> str:
    from hashlib import sha256

    return sha256(ORIGIN.encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"logs": []}', '{"time_s": "1", "logs": []}', '{"time_s": 1, "logs": [1]}'),
        '{"time_s": 1, "logs": [{"origin": 1}]}',
        '{"time_s": 1, "logs": [{"origin": "x", "more": 1}]}',
        "[" * 100_000,
    ],
)
def test_a_status_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path) is None


def test_what_lasts_is_an_anomaly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where another history is held, else after a while; also over what the ledger did not take."""
    told: list[Any] = []
    down = [True]

    def append(_path: Path, data: list[bytes]) -> None:
        if down:
            down.pop()
            raise OSError("not there")
        told.extend(map(decode, data))

    monkeypatch.setattr(witnessing, "append_blocking", append)
    settings = witnessing.WitnessSettings(tmp_path, tmp_path, "n1", alarm_s=60)
    now = time.time()
    standing = Standing("w.test/w+0+x", trouble=UNREACHABLE, what="no route", since_s=now - 30)
    witnessing._alarm(settings, standing)
    assert not down[1:]
    assert not told
    standing.since_s = now - 61
    for _ in range(3):
        witnessing._alarm(settings, standing)
    standing.trouble = FORK
    witnessing._alarm(settings, standing)
    standing.trouble = ""
    for _ in range(2):
        witnessing._alarm(settings, standing)
    assert [(each.kind, each.decision, each.reason_code) for each in told] == [
        (Kind.ANOMALY, "began", UNREACHABLE),
        (Kind.ANOMALY, "began", FORK),
        (Kind.ANOMALY, "over", FORK),
    ]
    assert "no route" in told[0].detail
    assert told[-1].detail == "w.test/w cosigns again"
    assert SILENT == "witness.silent"
