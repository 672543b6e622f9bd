"""The process beside the ledger that has a network: sends checkpoints to witnesses, is one for others.

It reads the published checkpoint and tiles, and holds no key of the ledger's. That a witness began
or ceased to cosign is a `witness` record.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from exeat.ledger import records
from exeat.ledger.client import LedgerError, append_blocking, stamps
from exeat.ledger.reactor import Reactor
from exeat.ledger.records import Kind, Record
from exeat.ledger.witness import Witness
from exeat.ledger.witness_client import TIMEOUT_S, Rounds
from exeat.ledger.witness_http import Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.ledger.note import Verifier
    from exeat.ledger.witness_client import Peer, Standing

ROUND_S: Final = 1.0


@dataclass(frozen=True)
class WitnessSettings:
    """`peers` witness this node's ledger; for the ledgers of `logs` this node is witness `name`."""

    state_dir: Path
    run_dir: Path
    node: str
    peers: tuple[Peer, ...] = ()
    name: str = ""
    listen: tuple[tuple[str, int], ...] = ()
    logs: tuple[Verifier, ...] = ()

    @property
    def origin_hash(self) -> str:
        return sha256(f"exeat/{self.node}".encode()).hexdigest()


def seals(state_dir: Path, origin_hash: str) -> Path:
    """The folder with what witnesses said of a ledger."""
    return state_dir / "witness" / "seals" / origin_hash


def serve(settings: WitnessSettings, ready: Callable[[], None]) -> int:
    """Run until SIGTERM. Raises OSError and NoteError if it cannot begin."""
    os.umask(0o027)
    reactor = Reactor()
    reactor.stop_on_signals()
    listeners = [_listener(place) for place in settings.listen]
    if listeners:
        folder = settings.state_dir / "witness" / "logs"
        folder.mkdir(mode=0o750, exist_ok=True)
        witness = Witness(folder, settings.name, settings.logs)
        for listener in listeners:
            threading.Thread(target=Server(listener, witness).run, daemon=True).start()
    ending = threading.Event()
    asking = threading.Thread(target=_ask, args=(settings, ending), daemon=True)
    if settings.peers:
        asking.start()
    ready()
    reactor.run()
    reactor.close()
    ending.set()
    if settings.peers:
        asking.join(2 * TIMEOUT_S)
    for listener in listeners:
        listener.close()
    return 0


def _listener(place: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(place)
    sock.listen(64)
    return sock


def _ask(settings: WitnessSettings, ending: threading.Event) -> None:
    """Round after round; one more when it ends, for the ledger's last checkpoint."""
    folder = seals(settings.state_dir, settings.origin_hash)
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    rounds = Rounds(settings.state_dir / "ledger" / settings.origin_hash, folder, settings.peers)
    said, last = "", False
    while not last:
        last = ending.wait(ROUND_S)
        try:
            for standing, code in rounds.run():
                _tell(settings, standing, code)
        except Exception as error:  # whatever a witness answered, the others are asked again
            if str(error) != said:
                said = str(error)
                print(f"exeat: witness: {error}", file=sys.stderr, flush=True)


def _tell(settings: WitnessSettings, standing: Standing, code: str) -> None:
    name = standing.vkey.partition("+")[0]
    over = not standing.trouble
    detail = f"{name} cosigns again" if over else f"{name}: {standing.what}"
    print(f"exeat: witness: {detail} [{code}]", file=sys.stderr, flush=True)
    record = Record(
        Kind.WITNESS,
        *stamps(),
        node=settings.node,
        actor="witness",
        decision="over" if over else "began",
        reason_code=code,
        count=standing.seen,
        detail=records.printable(detail)[:512],
    )
    with contextlib.suppress(LedgerError, OSError):  # the status says it all the same
        append_blocking(settings.run_dir / "ledger" / "ledger.sock", [records.encode(record)])
