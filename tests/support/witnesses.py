"""Real witnesses on loopback, and a ledger that is published without a process of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from tests.support.ledgers import deny

from exeat.ledger import keys, note, records
from exeat.ledger.publish import Publisher
from exeat.ledger.published import read_checkpoint
from exeat.ledger.records import Kind, Record
from exeat.ledger.retention import Dropping
from exeat.ledger.store import Store
from exeat.ledger.upkeep import Upkeep
from exeat.ledger.witness_client import Peer
from exeat.ledger.witness_http import Place, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.ledger.witness import Witness
    from exeat.ledger.witness_tls import DoorTls

ORIGIN = "exeat/n1"


def own(kind: Kind, **fields: object) -> Record:
    return Record(kind, actor="ledger", **fields)  # type: ignore[arg-type]


class Ledger:
    """A store, a publisher for each checkpoint, and the errands of the ledger's process."""

    def __init__(self, directory: Path, *, segment_bytes: int = 65536) -> None:
        self.directory = directory
        self.store = Store.create(directory, ORIGIN, 1, segment_bytes=segment_bytes)
        keys.ensure(directory, ORIGIN)
        boot = own(Kind.BOOT, data=keys.verifier(directory).public)
        self.store.append([records.encode(boot), deny()], 1)
        self.publish()

    def publish(self) -> str:
        Publisher(self.directory).publish(self.store.size, self.store.root())
        return read_checkpoint(self.directory) or ""

    def grow(self, count: int, first: int = 0) -> str:
        self.store.append([deny(first + number) for number in range(count)], 1)
        return self.publish()

    def run_errands(self) -> None:
        dropping = Dropping(self.directory, lambda: None, lambda: self.store.size)
        for record in Upkeep(self.directory, own, dropping).due():
            self.store.append([records.encode(record)], 1)

    def rotate(self, until_s: int) -> note.Verifier:
        new = keys.prepare(self.directory, until_s)
        self.run_errands()
        self.publish()
        return new


@contextlib.contextmanager
def serving(witness: Witness, tls: DoorTls | None = None, **place: Any) -> Iterator[Peer]:
    """The witness on a free port of loopback; `place` is how its clients see it, if not plainly."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        port = listener.getsockname()[1]
        thread = threading.Thread(target=Server(listener, witness, tls).run, daemon=True)
        thread.start()
        seen = Place(f"127.0.0.1:{port}", "", ("127.0.0.1", port), tls=tls is not None)._replace(**place)
        yield Peer(seen, witness.verifier)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
