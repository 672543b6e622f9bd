"""Each way to tamper with a ledger, by somebody who has the real key: who notices, and where.

The history is written anew with everything in order: frames, roots, head, tiles, checkpoint. Alone it
verifies. What gives it away is what others kept: a checkpoint, a bundle, a witness.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import deny
from tests.support.witnesses import ORIGIN, Ledger, serving

from exeat.appliance.cli import main
from exeat.ledger import bundle, keys, verify_offline
from exeat.ledger.published import read_checkpoint
from exeat.ledger.reader import read
from exeat.ledger.store import Store
from exeat.ledger.verify import verify
from exeat.ledger.witness import Witness
from exeat.ledger.witness_client import FORK, Rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OTHER = deny(31337)
AT = 123  # where it is tampered with
TAMPERING: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "flip": lambda r: [*r[:AT], bytes((*r[AT][:-1], r[AT][-1] ^ 1)), *r[AT + 1 :]],
    "replace": lambda r: [*r[:AT], OTHER, *r[AT + 1 :]],
    "drop": lambda r: [*r[:AT], *r[AT + 1 :]],
    "swap": lambda r: [*r[:AT], r[AT + 1], r[AT], *r[AT + 2 :]],
    "insert": lambda r: [*r[:AT], OTHER, *r[AT:]],
    "cut": lambda r: r[:AT],
    "cut and go on": lambda r: [*r[:AT], *(deny(5000 + n) for n in range(400))],
}


class World:
    """A ledger of 402 records, a witness that cosigned 302 and 402, and a checkpoint kept at 302."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.ledger = Ledger(base / "state" / "ledger" / "x", segment_bytes=16384)
        self.directory = self.ledger.directory
        self.ledger.grow(300)
        self.kept = base / "kept"
        self.kept.write_text(read_checkpoint(self.directory) or "")
        (base / "w").mkdir()
        self.witness = Witness(base / "w", "witness.test/w", [keys.verifier(self.directory)])
        (base / "seals").mkdir()
        self.ask()
        shutil.copytree(self.directory, base / "old")
        self.ledger.grow(100, 300)
        assert self.ask() == ""
        self.key = str(keys.verifier(self.directory))

    def ask(self) -> str:
        """What the witness says now, as the ledger's side hears it."""
        with serving(self.witness) as peer:
            rounds = Rounds(self.directory, self.base / "seals", [peer])
            rounds.run()
            return rounds.standings[0].trouble

    def rewrite(self, records: list[bytes]) -> None:
        """The same origin and key, another history; then a little more, as it goes on."""
        self.ledger.store.close()
        for name in ("seg", "tile"):
            shutil.rmtree(self.directory / name)
        for name in ("head", "checkpoint"):
            (self.directory / name).unlink()
        self.ledger.store = Store.create(self.directory, ORIGIN, 1, segment_bytes=16384)
        for first in range(0, len(records), 50):
            self.ledger.store.append(records[first : first + 50], 1)
        self.ledger.publish()

    def set_back(self) -> None:
        """The old copy in place of the ledger."""
        self.ledger.store.close()
        shutil.rmtree(self.directory)
        shutil.copytree(self.base / "old", self.directory)
        self.ledger.store = Store.open(self.directory, 1, segment_bytes=16384)

    def verify(self, *argv: str) -> int:
        return main(["--state-dir", str(self.base / "state"), "ledger", "verify", *argv])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.ledger.store.close()


@pytest.mark.parametrize("name", TAMPERING)
def test_a_rewritten_history_is_noticed_by_everyone_who_kept_something(
    world: World, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [data for _, data in read(world.directory)]
    world.rewrite(TAMPERING[name](before))
    assert world.verify() == 0
    capsys.readouterr()
    assert world.verify("--checkpoint", str(world.kept)) == 1
    said = capsys.readouterr().out
    assert "are gone" in said if name == "cut" else "record 301" in said  # the newest that was kept

    assert world.ask() == FORK
    out = world.base / "out"
    kept = None if name == "cut" else world.kept.read_text()
    bundle.export(world.directory, out, since=kept)
    assert verify_offline.main([str(out), "--key", world.key]) == 0
    capsys.readouterr()
    assert verify_offline.main([str(out), "--key", world.key, "--checkpoint", str(world.kept)]) == 1
    said = capsys.readouterr().out
    assert "older than yours" in said if name == "cut" else "was rewritten" in said


def test_an_old_copy_put_back_is_noticed_by_who_saw_more(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = world.base / "newest"
    newest.write_text(read_checkpoint(world.directory) or "")
    world.set_back()
    assert world.verify() == 0
    assert world.verify("--checkpoint", str(world.kept)) == 0  # as far as that goes
    assert world.verify("--checkpoint", str(newest)) == 1
    assert "records 302 to 401 are gone" in capsys.readouterr().out
    assert world.ask() == FORK
    bundle.export(world.directory, world.base / "out")
    argv = [str(world.base / "out"), "--key", world.key, "--checkpoint", str(newest)]
    assert verify_offline.main(argv) == 1


def test_without_the_key_the_checkpoint_gives_it_away(world: World) -> None:
    """The segments alone, in order in themselves: what was signed is not what they make."""
    before = [data for _, data in read(world.directory)]
    checkpoint, signed = world.directory / "checkpoint", read_checkpoint(world.directory) or ""
    world.rewrite(TAMPERING["replace"](before))
    checkpoint.write_text(signed)
    assert world.verify() == 1
    assert verify(world.directory).ok  # which was told of no checkpoint


def test_a_stranger_needs_nothing_but_python(world: World) -> None:
    """The stand-alone verifier in an environment without any package, and without exeat in sight."""
    bundle.export(world.directory, world.base / "out", since=world.kept.read_text())
    program = Path(verify_offline.__file__)
    alone = shutil.copy(program, world.base / "verify_offline.py")
    argv = [sys.executable, "-I", "-S", alone, world.base / "out", "--key", world.key]
    done = subprocess.run(
        [*argv, "--checkpoint", world.kept], cwd="/", env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
