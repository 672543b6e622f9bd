"""A ledger, the process that sends its checkpoints, a witness, and a history rewritten with the real key."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.ledgers import Daemon, deny, running, settings, start, wait_for

from exeat.ledger import keys, note, witnessing
from exeat.ledger.client import append_blocking
from exeat.ledger.reader import read
from exeat.ledger.records import Kind, decode
from exeat.ledger.store import Store
from exeat.ledger.witness import own_key
from exeat.ledger.witness_client import FORK, Peer, read_standings
from exeat.ledger.witness_http import Place

if TYPE_CHECKING:
    from exeat.ledger.daemon import LedgerSettings

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
    """A ledger that runs, the process that sends its checkpoints, and a witness on loopback."""

    def __init__(self, base: Path, daemon: Daemon) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self.base, self.daemon = base, daemon
        self.settings: LedgerSettings = daemon.settings
        self.directory = daemon.settings.directory
        append_blocking(daemon.path, [deny()])
        wait_for((self.directory / "checkpoint").exists, "a checkpoint")
        (base / "w" / "witness" / "logs").mkdir(parents=True)
        self.key = own_key(base / "w" / "witness" / "logs", NAME).verifier
        self.witness = self.start_witness()
        peer = Peer(Place(f"127.0.0.1:{self.port}", "", ("127.0.0.1", self.port), tls=False), self.key)
        common = daemon.settings
        self.sending = witnessing.WitnessSettings(common.state_dir, common.run_dir, common.node, (peer,))
        self.seals = witnessing.seals(self.sending.state_dir, self.sending.origin_hash)
        self.client = self.start_client()

    def start_witness(self, **more: Any) -> Process:
        log = keys.verifier(self.directory)
        place = ("127.0.0.1", self.port)
        common = (self.base / "w", more.pop("run_dir", self.base), "other")
        return Process(witnessing.WitnessSettings(*common, (), NAME, (place,), (log,), **more))

    def start_client(self, **more: Any) -> Process:
        return Process(replace(self.sending, **more))

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

    def told(self, kind: Kind = Kind.WITNESS) -> list[tuple[str, str]]:
        found = [decode(data) for _, data in read(self.directory)]
        return [(each.decision, each.reason_code) for each in found if each.kind is kind]

    def anomalies(self) -> list[tuple[str, str]]:
        return self.told(Kind.ANOMALY)

    def rewrite(self) -> None:
        """Stop the ledger, put one record in another's place with the real key at hand, start it again."""
        self.daemon.stop()
        before = [data for _, data in read(self.directory)]
        for name in ("seg", "tile"):
            shutil.rmtree(self.directory / name)
        for name in ("head", "checkpoint"):
            (self.directory / name).unlink()
        store = Store.create(self.directory, self.settings.origin, 1)
        store.append([*before[:10], deny(666), *before[11:]], 1)
        store.close()
        self.daemon = start(settings(self.base))
        append_blocking(self.daemon.path, [deny(7)])

    def close(self) -> None:
        self.client.stop()
        self.witness.stop()
        self.daemon.stop()


def seconds_to_notice(seed: int) -> float:
    """How long after the rewritten ledger runs again its witness has refused it, and that is known here."""
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as daemon:
        world = World(Path(name), daemon)
        append_blocking(daemon.path, [deny(seed + n) for n in range(20)])
        wait_for(lambda: world.cosigned() >= 22, "it is cosigned")
        world.rewrite()
        began = time.monotonic()
        wait_for(lambda: world.trouble() == FORK, "the fork is reported", seconds=30)
        took = time.monotonic() - began
        world.close()
        return took
