"""A damaged database of control: what comes back, what does not, and a rebuilding that is broken off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from exeat.appliance.control import rebuild
from exeat.appliance.control.rebuild import Known, opened
from exeat.appliance.control.store import MIGRATIONS, Store, StoreError
from exeat.ledger.records import Kind, Record
from exeat.policy.snapshot import EVERYONE

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.appliance.config import Config


def record(kind: Kind, decision: str, at_ms: int, **more: Any) -> Record:
    return Record(kind=kind, t_real_ns=at_ms * 1_000_000, decision=decision, **more)


def config(folder: Path) -> Config:
    (folder / "control").mkdir(exist_ok=True)
    made = SimpleNamespace(state_dir=folder, run_dir=folder, node=SimpleNamespace(name="n1"))
    return cast("Config", made)


def database(folder: Path) -> Path:
    return folder / "control" / "control.sqlite"


def test_what_is_stopped_and_what_runs_is_what_did_not_end() -> None:
    known = Known(
        [
            record(Kind.POLICY, "kill.on", 1, project="a", actor="alice", detail="why"),
            record(Kind.POLICY, "kill.on", 2, project="b"),
            record(Kind.POLICY, "kill.off", 3, project="b"),
            record(Kind.POLICY, "kill.on", 4),
            record(Kind.POLICY, "narrows", 5, project="c"),
            record(Kind.JOB, "start", 9, job="j1", project="a"),
            record(Kind.JOB, "start", 8, job="j2", project="a"),
            record(Kind.JOB, "exit", 8, job="j1"),
        ]
    )
    assert sorted(known.stops) == sorted(["a", EVERYONE])
    assert (known.stops["a"].by, known.stops["a"].reason, known.stops["a"].jobs) == ("alice", "why", True)
    assert list(known.jobs) == ["j2"]
    assert known.latest_ms == 9


def test_without_a_ledger_everything_is_stopped(tmp_path: Path) -> None:
    made = config(tmp_path)
    database(tmp_path).write_bytes(b"not a database" * 100)
    store = opened(made)
    assert [scope for scope, _ in store.load_kills()] == [EVERYONE]
    assert len(store.load_owed()) == 1
    store.close()
    [aside] = database(tmp_path).parent.glob("control.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"not a database")
    store = opened(made)  # it is whole now
    assert len(store.load_owed()) == 1


def test_a_ledger_without_its_beginning_does_not_tell_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = record(Kind.POLICY, "kill.on", 1, project="a")
    monkeypatch.setattr(rebuild, "find_ledgers", lambda _: [tmp_path])
    monkeypatch.setattr(rebuild, "read_records", lambda _: iter([(7, stopped)]))
    scopes = {}
    for dropped in (0, 7):
        monkeypatch.setattr(rebuild, "dropped_before", lambda _, dropped=dropped: dropped)
        database(tmp_path).parent.mkdir(exist_ok=True)
        database(tmp_path).write_bytes(b"not a database" * 100)
        store = opened(config(tmp_path))
        scopes[dropped] = {scope for scope, _ in store.load_kills()}
        store.close()
    assert scopes == {0: {"a"}, 7: {"a", EVERYONE}}


@pytest.mark.parametrize("at", ["Evidence", "_put_in_place"])
def test_a_rebuilding_that_is_broken_off_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    made = config(tmp_path)
    database(tmp_path).write_bytes(b"not a database" * 100)

    def killed(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, at, killed)
        with pytest.raises(InterruptedError):
            opened(made)
    store = opened(made)
    assert [scope for scope, _ in store.load_kills()] == [EVERYONE]
    store.close()
    assert {path.name.partition(".damaged")[0] for path in database(tmp_path).parent.iterdir()} == {
        "control.sqlite"
    }


def test_one_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    made = config(tmp_path)
    Store(database(tmp_path), (*MIGRATIONS, "CREATE TABLE later (x TEXT) STRICT")).close()
    with pytest.raises(StoreError, match="newer version"):
        opened(made)
    assert [path.name for path in database(tmp_path).parent.iterdir()] == ["control.sqlite"]


@pytest.mark.parametrize("whole", [True, False], ids=["the ledger is read", "the ledger cannot be read"])
def test_a_database_that_was_deleted_forgets_no_kill_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    made = config(tmp_path)
    (tmp_path / "control" / "documents").mkdir()
    (tmp_path / "control" / "documents" / "kept").touch()
    records = [(1, record(Kind.POLICY, "kill.on", 1, project="a"))] if whole else []
    monkeypatch.setattr(rebuild, "find_ledgers", lambda _: [tmp_path] if whole else [])
    monkeypatch.setattr(rebuild, "read_records", lambda _: iter(records))
    monkeypatch.setattr(rebuild, "dropped_before", lambda _: 0)
    store = opened(made)
    assert [scope for scope, _ in store.load_kills()] == (["a"] if whole else [EVERYONE])
    assert len(store.load_owed()) == 1, "an anomaly says so"
    store.close()


def test_where_there_was_no_control_before_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path)
    for records in ([], [(1, record(Kind.BOOT, "", 1))]):
        monkeypatch.setattr(rebuild, "find_ledgers", lambda _, found=records: [tmp_path] if found else [])
        monkeypatch.setattr(rebuild, "read_records", lambda _, found=records: iter(found))
        monkeypatch.setattr(rebuild, "dropped_before", lambda _: 0)
        store = opened(made)
        assert not list(store.load_kills())
        assert not store.load_owed()
        store.close()
        database(tmp_path).unlink()
