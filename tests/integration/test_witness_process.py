"""The witness process of a real appliance: cosignatures by themselves, a fork reported within seconds."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import Daemon, deny, running, settings, start, wait_for

from exeat.appliance.cli import main
from exeat.ledger import keys, note, witnessing
from exeat.ledger.client import append_blocking
from exeat.ledger.daemon import ROLES
from exeat.ledger.reader import read
from exeat.ledger.records import Kind, decode
from exeat.ledger.store import Store
from exeat.ledger.witness import own_key
from exeat.ledger.witness_client import FORK, UNREACHABLE, Peer, read_standings
from exeat.ledger.witness_http import Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "witness.test/w1"


class Process:
    """`witnessing.serve` in a process of its own."""

    def __init__(self, chosen: witnessing.WitnessSettings) -> None:
        (chosen.state_dir / "witness").mkdir(parents=True, exist_ok=True)
        ready, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                code = witnessing.serve(chosen, lambda: os.write(told, b"r") and None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(told)
        with open(ready, "rb") as pipe:
            assert pipe.read(1) == b"r"

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.pid:
            os.kill(self.pid, number)
            os.waitpid(self.pid, 0)
            self.pid = 0


class World:
    """A ledger, the process that sends its checkpoints, and a witness on loopback."""

    def __init__(self, base: Path, daemon: Daemon, port: int) -> None:
        self.base, self.daemon, self.port = base, daemon, port
        self.directory = daemon.settings.directory
        append_blocking(daemon.path, [deny()])
        wait_for((self.directory / "checkpoint").exists, "a checkpoint")
        (base / "w" / "witness" / "logs").mkdir(parents=True)
        self.key = own_key(base / "w" / "witness" / "logs", NAME).verifier
        self.witness = self.start_witness()
        peer = Peer(Place(f"127.0.0.1:{port}", "", ("127.0.0.1", port), tls=False), self.key)
        common = daemon.settings
        chosen = witnessing.WitnessSettings(common.state_dir, common.run_dir, common.node, (peer,))
        self.seals = witnessing.seals(chosen.state_dir, chosen.origin_hash)
        self.client = Process(chosen)

    def start_witness(self) -> Process:
        log = keys.verifier(self.directory)
        place = ("127.0.0.1", self.port)
        return Process(
            witnessing.WitnessSettings(self.base / "w", self.base, "other", (), NAME, (place,), (log,))
        )

    def trouble(self) -> str:
        return "".join(each.trouble for each in read_standings(self.seals))

    def cosigned(self) -> int:
        path = self.seals / "cosigned"
        if not path.exists():
            return 0
        both = (keys.verifier(self.directory), self.key)
        found = note.parse(path.read_text())
        assert note.verify(found, *both) == list(both)
        return note.parse_checkpoint(found.text).size

    def told(self) -> list[tuple[str, str]]:
        found = [decode(data) for _, data in read(self.directory)]
        return [(each.decision, each.reason_code) for each in found if each.kind is Kind.WITNESS]

    def close(self) -> None:
        self.client.stop()
        self.witness.stop()


@pytest.fixture
def port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def world(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """One uid plays all: here the gateway may write what the witness process may."""
    monkeypatch.setitem(ROLES, "gateway", ROLES["gateway"] | ROLES["witness"])
    with running(tmp_path) as daemon:
        made = World(tmp_path, daemon, port)
        yield made
        made.close()


def test_checkpoints_are_cosigned_and_a_witness_that_goes_is_named(world: World) -> None:
    wait_for(lambda: world.cosigned() >= 2, "the first cosignature")
    append_blocking(world.daemon.path, [deny(n) for n in range(300)])
    wait_for(lambda: world.cosigned() >= 302, "a later one")
    world.witness.stop(signal.SIGKILL)
    append_blocking(world.daemon.path, [deny(1)])
    wait_for(lambda: world.trouble() == UNREACHABLE, "it is missed")
    world.witness = world.start_witness()
    wait_for(lambda: world.cosigned() >= 303, "it goes on from where it was")
    assert world.trouble() == ""
    wait_for(
        lambda: world.told() == [("began", UNREACHABLE), ("over", UNREACHABLE)], "both are on the ledger"
    )


def test_a_history_rewritten_with_the_real_key_is_reported(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append_blocking(world.daemon.path, [deny(n) for n in range(20)])
    wait_for(lambda: world.cosigned() >= 22, "it is cosigned")
    world.daemon.stop()
    before = [data for _, data in read(world.directory)]
    for name in ("seg", "tile"):
        shutil.rmtree(world.directory / name)
    for name in ("head", "checkpoint"):
        (world.directory / name).unlink()
    store = Store.create(world.directory, "exeat/n1", 1)
    store.append([*before[:10], deny(666), *before[11:]], 1)
    store.close()
    world.daemon = start(settings(tmp_path))
    append_blocking(world.daemon.path, [deny(7)])
    wait_for(lambda: world.trouble() == FORK, "the fork is reported")
    world.daemon.stop()
    state, log = tmp_path / "state", tmp_path / "w" / "witness" / "logs"
    config = tmp_path / "exeat.toml"
    config.write_text(
        f'[paths]\nstate_dir = "{state}"\n[node]\nname = "n1"\n[[ledger.witness]]\n'
        f'url = "http://127.0.0.1:{world.port}"\nvkey = "{world.key}"\n'
    )
    assert main(["--config", str(config), "ledger", "witness"]) == 1
    assert f"REWRITTEN? {NAME} refuses to cosign" in capsys.readouterr().out
    assert list(log.glob("*/forks/*"))
    assert main(["--state-dir", str(state), "ledger", "verify"]) == 0  # alone it looks sound
    kept = str(world.seals / "cosigned")
    assert main(["--state-dir", str(state), "ledger", "verify", "--checkpoint", kept]) == 1
