"""One signing key follows another: announced under the old one, followed by everyone who checks, and
whole again after a crash at any step."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.ledgers import deny, running, wait_for

from exeat.appliance.cli import main
from exeat.ledger import bundle, fsck, keys, note, records, succession, verify_offline
from exeat.ledger.client import append_blocking
from exeat.ledger.publish import Publisher
from exeat.ledger.published import read_checkpoint
from exeat.ledger.reader import read
from exeat.ledger.records import Kind, Record
from exeat.ledger.retention import Dropping
from exeat.ledger.store import Store
from exeat.ledger.upkeep import Upkeep
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

ORIGIN = "exeat/n1"
FIRST, SECOND, THIRD = (note.Signer(ORIGIN, bytes((n,)) * 32) for n in (1, 2, 3))
LATER = 4_000_000_000  # a time that does not come


class Ledger:
    """A store, a publisher for each checkpoint, and the errands of its process."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "state" / "ledger" / "x"
        self.store = Store.create(self.directory, ORIGIN, 1)
        keys.ensure(self.directory, ORIGIN)
        boot = Record(Kind.BOOT, actor="ledger", data=keys.verifier(self.directory).public)
        self.store.append([records.encode(boot), deny()], 1)
        self.publish()

    def publish(self) -> str:
        Publisher(self.directory).publish(self.store.size, self.store.root())
        return read_checkpoint(self.directory) or ""

    def run_errands(self) -> None:
        own = lambda kind, **fields: Record(kind, actor="ledger", **fields)  # noqa: E731
        dropping = Dropping(self.directory, lambda: None, lambda: self.store.size)
        for record in Upkeep(self.directory, own, dropping).due():
            self.store.append([records.encode(record)], 1)

    def rotate(self, until_s: int = LATER) -> note.Verifier:
        new = keys.prepare(self.directory, until_s)
        self.run_errands()
        self.publish()
        return new

    def exeat(self, *argv: str) -> int:
        return main(["--state-dir", str(self.directory.parent.parent), *argv])


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr("exeat.appliance.commands.keys._WAIT_S", 0.1)  # nobody is there to take a key
    made = Ledger(tmp_path)
    yield made
    made.store.close()


def signed_by(text: str, *known: note.Verifier) -> list[note.Verifier]:
    return note.verify(note.parse(text), *known)


# --- statements


def test_a_statement_is_read_by_both_verifiers_as_it_was_made() -> None:
    text = succession.make(FIRST, SECOND, 17)
    assert succession.parse(text) == (ORIGIN, FIRST.verifier, SECOND.verifier, 17, True)
    former, new, vouched = verify_offline.read_statement(text)
    assert (former.vkey, new.vkey, vouched) == (str(FIRST.verifier), str(SECOND.verifier), True)


def test_a_statement_that_the_lost_key_could_not_sign() -> None:
    text = succession.make(FIRST.verifier, SECOND, 0)
    assert not succession.parse(text).vouched
    assert not verify_offline.read_statement(text)[2]


def damaged_statements() -> Iterator[tuple[str, str]]:
    whole = succession.make(FIRST, SECOND, 17)
    yield (
        "former signature wrong",
        succession.make(THIRD, SECOND, 17).replace(str(THIRD.verifier), str(FIRST.verifier)),
    )
    body, _, lines = whole.rpartition("\n\n")
    by_new, by_former, _ = lines.split("\n")
    yield "new did not sign", f"{body}\n\n{by_former}\n"
    yield "nobody signed", f"{body}\n\n{THIRD.line(body)}"
    yield "later time", whole.replace("until 17", "until 18")
    yield "another origin", note.sign(body.replace(f"\n{ORIGIN}\n", "\nexeat/n2\n") + "\n", SECOND, FIRST)
    yield "itself", succession.make(FIRST, FIRST, 17)
    yield "no number", note.sign(body.replace("until 17", "until 017") + "\n", SECOND, FIRST)
    yield "a line more", note.sign(body + "\nmore\n", SECOND, FIRST)
    assert by_new


@pytest.mark.parametrize(("name", "text"), tuple(damaged_statements()), ids=lambda text: text[:12])
def test_a_statement_that_is_refused_by_both(name: str, text: str) -> None:
    with pytest.raises(note.NoteError):
        succession.parse(text)
    if name != "itself":  # which leads nowhere, and changes nothing
        with pytest.raises(verify_offline.FalseError):
            verify_offline.read_statement(text)


def test_trust_goes_forward_only_and_ends_at_a_lost_key() -> None:
    statements = [succession.make(FIRST, SECOND, 1), succession.make(SECOND.verifier, THIRD, 0)]
    chain = succession.join(statements)
    assert succession.split(chain) == statements
    read_back = succession.parse_chain(chain)
    for start, leads_to in ((FIRST, [FIRST, SECOND]), (SECOND, [SECOND]), (THIRD, [THIRD])):
        expected = [signer.verifier for signer in leads_to]
        assert succession.follow(read_back, start.verifier) == expected
        found = verify_offline.follow(chain, verify_offline.read_key(str(start.verifier)))
        assert [each.vkey for each in found] == [str(each) for each in expected]
    with pytest.raises(note.NoteError, match="gap"):
        succession.parse_chain(succession.join(statements[1:] + statements[:1]))


# --- a change of keys


def test_both_keys_sign_for_a_time_and_the_record_says_so(ledger: Ledger) -> None:
    first = keys.verifier(ledger.directory)
    second = ledger.rotate()
    text = read_checkpoint(ledger.directory) or ""
    assert signed_by(text, first, second) == [second, first]
    announced = [records.decode(data) for _, data in read(ledger.directory)][-1]
    assert announced.kind is Kind.KEY
    assert succession.parse(announced.data.decode()) == (ORIGIN, first, second, LATER, True)
    assert keys.known(ledger.directory) == (first, second)
    for name in ("log.key", "old.key"):
        assert stat.S_IMODE((ledger.directory / "keys" / name).stat().st_mode) == 0o400
    report = verify(ledger.directory)
    assert report.ok
    assert report.key == second.public.hex()
    assert fsck.check(ledger.directory, repair=False) == []


def test_the_former_key_is_destroyed_when_its_time_is_over(ledger: Ledger) -> None:
    first = keys.verifier(ledger.directory)
    second = ledger.rotate(until_s=1)
    ledger.run_errands()
    assert not (ledger.directory / "keys" / "old.key").exists()
    ledger.store.append([deny(5)], 1)
    text = ledger.publish()
    assert signed_by(text, first, second) == [second]
    assert [records.decode(data).decision for _, data in read(ledger.directory)][2:] == [
        *("rotated", "retired"),
        "deny",
    ]
    assert ledger.rotate() not in (first, second)  # and so on
    assert verify(ledger.directory).ok


def test_a_second_change_waits_for_the_end_of_the_first(ledger: Ledger) -> None:
    keys.prepare(ledger.directory, LATER)
    with pytest.raises(keys.RotationError, match="waits already"):
        keys.prepare(ledger.directory, LATER)
    ledger.run_errands()
    with pytest.raises(keys.RotationError, match="not over"):
        keys.prepare(ledger.directory, LATER)


class CrashError(Exception):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Let the `step`-th change to a file of keys/ not happen, nor anything after it; what was done."""
    done: list[str] = []

    def counted(real: Any, name: str) -> Any:
        def call(path: Path, *args: Any, **named: Any) -> Any:
            if path.parent.name == "keys" and not path.name.endswith(".lock"):
                if len(done) == step:
                    raise CrashError
                done.append(f"{name} {path.name}")
            return real(path, *args, **named)

        return call

    monkeypatch.setattr(Path, "rename", counted(Path.rename, "rename"))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink, "unlink"))
    return done


@pytest.mark.parametrize("lost", [False, True])
def test_a_crash_at_each_step_leaves_a_usable_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Then the next start and the next second finish the change, or it was never begun."""
    ends = set[int]()
    for step in range(30):
        ledger = Ledger(tmp_path / f"{step}")
        first = keys.verifier(ledger.directory)
        if lost:
            (ledger.directory / "keys" / "log.key").unlink()
        with monkeypatch.context() as patch:
            done = crash_at(patch, step)
            try:
                keys.prepare(ledger.directory, 0 if lost else LATER, lost=lost)
                ledger.run_errands()
            except CrashError:
                pass
        keys.ensure(ledger.directory, ORIGIN)
        ledger.run_errands()
        ends.add(len(keys.known(ledger.directory)))
        if not (ledger.directory / "keys" / "log.key").exists():
            assert lost
            continue
        current = keys.verifier(ledger.directory)
        assert keys.signer(ledger.directory).verifier == current
        ledger.store.append([deny(1)], 1)
        text = ledger.publish()
        assert signed_by(text, current) == [current]
        if not lost:
            assert signed_by(text, first) == [first]
        report = verify(ledger.directory)
        assert report.ok
        assert report.key == current.public.hex()
        assert ledger.exeat("ledger", "verify") == 0
        ledger.store.close()
        if len(done) < step:
            break
    else:
        raise AssertionError("a change of keys takes more steps than this test enumerates")
    assert ends == {1, 2}


def test_a_lost_key_is_replaced_and_the_break_is_named(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ledger.exeat("keys", "new") == 2
    assert "not lost" in capsys.readouterr().err
    (ledger.directory / "keys" / "log.key").unlink()
    first = str(keys.verifier(ledger.directory))
    assert ledger.exeat("keys", "new") == 0
    ledger.run_errands()
    ledger.publish()
    capsys.readouterr()
    assert ledger.exeat("ledger", "verify") == 0
    assert "record 2: the key before was lost" in capsys.readouterr().out
    bundle.export(ledger.directory, tmp_path / "out")
    assert verify_offline.main([str(tmp_path / "out")]) == 0
    assert verify_offline.main([str(tmp_path / "out"), "--key", first]) == 1


def test_a_key_that_was_put_there_behind_the_records_is_named(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    other = note.Signer(ORIGIN, os.urandom(32))
    for name, text in (("log.vkey", str(other.verifier)), ("log.key", str(other))):
        (ledger.directory / "keys" / name).unlink()
        (ledger.directory / "keys" / name).write_text(text + "\n")
    (ledger.directory / "checkpoint").write_text(
        other.sign(note.Checkpoint(ORIGIN, ledger.store.size, ledger.store.root()).text())
    )
    assert ledger.exeat("ledger", "verify") == 1
    assert "not the key that the records name" in capsys.readouterr().out


def test_a_change_that_does_not_go_on_is_a_problem(ledger: Ledger) -> None:
    statement = succession.make(FIRST, SECOND, 1).encode()
    for data in (statement, b"nothing"):
        ledger.store.append([records.encode(Record(Kind.KEY, data=data))], 1)
    assert [(each.record, each.what.split(":")[0]) for each in verify(ledger.directory).problems] == [
        (2, "key"),
        (3, "key"),
    ]


# --- those who check


def test_old_proofs_and_new_ones_check_from_the_first_key_on(ledger: Ledger, tmp_path: Path) -> None:
    first = str(keys.verifier(ledger.directory))
    kept = tmp_path / "kept"
    kept.write_text(read_checkpoint(ledger.directory) or "")
    old = tmp_path / "old.tlog-proof"
    old.write_text(bundle.prove(ledger.directory, 1))
    ledger.rotate(until_s=1)
    ledger.run_errands()
    second = str(ledger.rotate(until_s=1))
    ledger.run_errands()
    ledger.store.append([deny(9)], 1)
    ledger.publish()
    assert verify_offline.main([str(old), "--key", first]) == 0

    new, chain = tmp_path / "new.tlog-proof", tmp_path / "chain"
    new.write_text(bundle.prove(ledger.directory, 1))
    chain.write_text(keys.chain(ledger.directory))
    assert verify_offline.main([str(new), "--key", first]) == 1
    assert verify_offline.main([str(new), "--key", first, "--chain", str(chain)]) == 0
    assert verify_offline.main([str(new), "--key", second]) == 0

    out = tmp_path / "out"
    bundle.export(ledger.directory, out, since=kept.read_text())
    assert verify_offline.main([str(out), "--key", first, "--checkpoint", str(kept)]) == 0
    chain.write_text(succession.make(FIRST, SECOND, 1))
    (out / "log.chain").write_text(chain.read_text())
    assert verify_offline.main([str(out), "--key", first]) == 1
    assert ledger.exeat("ledger", "verify", "--checkpoint", str(kept)) == 0


def test_the_commands_never_print_the_private_key(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger.exeat("keys", "rotate", "--overlap", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["in_force"] is False
    assert ledger.exeat("keys", "rotate") == 2
    assert "waits already" in capsys.readouterr().err
    assert ledger.exeat("keys", "show") == 0
    ledger.run_errands()
    assert ledger.exeat("keys", "show") == 0
    assert ledger.exeat("keys", "show", "--chain") == 0
    assert ledger.exeat("keys", "show", "--json") == 0
    printed = capsys.readouterr().out
    assert "PRIVATE" not in printed
    assert "waiting" in printed
    assert str(keys.verifier(ledger.directory)) in printed
    told = json.loads(printed.splitlines()[-1])
    assert told["both_until"] > time.time()
    assert [each["vkey"] for each in told["former"]] == [str(keys.known(ledger.directory)[0])]


def test_a_running_ledger_takes_the_new_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path) as daemon:
        directory = daemon.settings.directory
        append_blocking(daemon.path, [deny()])
        wait_for((directory / "checkpoint").exists, "a checkpoint")
        first = keys.verifier(directory)
        assert main(["--state-dir", str(tmp_path / "state"), "keys", "rotate", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["in_force"] is True
        second = keys.verifier(directory)
        both = [first, second]
        wait_for(
            lambda: len(signed_by(read_checkpoint(directory) or "", *both)) == 2, "both keys sign", seconds=10
        )
    assert verify(directory).ok
    assert verify(directory).key == second.public.hex()


@pytest.mark.parametrize("step", ["install", "retire"])
def test_a_step_that_fails_and_fails_is_on_record_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Once a second it is tried again; that must not be a record a second."""
    if step == "retire":
        ledger.rotate(until_s=1)
    else:
        keys.prepare(ledger.directory, LATER)
    own = lambda kind, **fields: Record(kind, actor="ledger", **fields)  # noqa: E731
    upkeep = Upkeep(
        ledger.directory, own, Dropping(ledger.directory, lambda: None, lambda: ledger.store.size)
    )

    def fail(_directory: Path) -> None:
        raise OSError(30, "Read-only file system")

    def run_errands() -> None:
        for record in upkeep.due():
            ledger.store.append([records.encode(record)], 1)

    before = ledger.store.size
    with monkeypatch.context() as patch:
        patch.setattr(keys, step, fail)
        for _ in range(5):
            run_errands()
    assert ledger.store.size == before + 1
    run_errands()
    assert ledger.store.size == before + 1
    assert not (ledger.directory / "keys" / ("old.key" if step == "retire" else "next.key")).exists()
    assert verify(ledger.directory).ok
