"""The process beside the ledger that has a network: sends checkpoints to witnesses, is one for others.

It reads the published checkpoint and tiles, and holds no key of the ledger's. That a witness began
or ceased to cosign is a `witness` record; where that lasts, and where a ledger that is watched here has
fallen silent, there is an `anomaly`.
"""

from __future__ import annotations

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
from exeat.ledger.supervised import beat
from exeat.ledger.watched import SILENT, Watch
from exeat.ledger.witness import Witness
from exeat.ledger.witness_client import TIMEOUT_S, Rounds
from exeat.ledger.witness_http import Server
from exeat.ledger.witness_tls import DoorTls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.ledger.note import Verifier
    from exeat.ledger.witness_client import Peer, Standing
    from exeat.ledger.witness_tls import Identity

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
    alarm_s: float = 60.0  # so long a witness may be without answer
    silent_after_s: float = 300.0  # and a log that is watched here without a checkpoint
    own: Identity | None = None  # what `listen` shows by TLS; without it HTTP is plain
    clients_ca: Path | None = None

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
    ending = threading.Event()
    if listeners:
        _open(settings, listeners, ending)
    asking = threading.Thread(target=_ask, args=(settings, ending), daemon=True)
    if settings.peers:
        asking.start()
    beat(reactor)
    ready()
    reactor.run()
    reactor.close()
    ending.set()
    if settings.peers:
        asking.join(2 * TIMEOUT_S)
    for listener in listeners:
        listener.close()
    return 0


def _open(settings: WitnessSettings, listeners: list[socket.socket], ending: threading.Event) -> None:
    """Be a witness on these sockets."""
    folder = settings.state_dir / "witness" / "logs"
    folder.mkdir(mode=0o750, exist_ok=True)
    tls = DoorTls(settings.own, settings.clients_ca) if settings.own is not None else None
    witness = Witness(folder, settings.name, settings.logs)
    for listener in listeners:
        threading.Thread(target=Server(listener, witness, tls).run, daemon=True).start()
    watch = Watch(folder, witness, settings.silent_after_s)
    threading.Thread(target=_watch, args=(settings, watch, ending), daemon=True).start()


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
                over = not standing.trouble
                _print(_words(standing, over=over), code)
                _tell(settings, Kind.WITNESS, code, _words(standing, over=over), standing.seen, over=over)
            for standing in rounds.standings:
                _alarm(settings, standing)
        except Exception as error:  # whatever a witness answered, the others are asked again
            if str(error) != said:
                said = str(error)
                print(f"exeat: witness: {error}", file=sys.stderr, flush=True)


def _alarm(settings: WitnessSettings, standing: Standing) -> None:
    """Say on the ledger that trouble with a witness has lasted too long, and when that is over."""
    alarm = standing.trouble if standing.overdue(settings.alarm_s) else ""
    if alarm == standing.alarmed:
        return
    code, words = alarm or standing.alarmed, _words(standing, over=not alarm)
    if _tell(settings, Kind.ANOMALY, code, words, standing.seen, over=not alarm):
        standing.alarmed = alarm  # else it is tried again in the next round


def _words(standing: Standing, *, over: bool) -> str:
    name = standing.vkey.partition("+")[0]
    return f"{name} cosigns again" if over else f"{name}: {standing.what}"


def _print(detail: str, code: str) -> None:
    print(f"exeat: witness: {detail} [{code}]", file=sys.stderr, flush=True)


def _watch(settings: WitnessSettings, watch: Watch, ending: threading.Event) -> None:
    """Look after the logs that are watched here, about once a second."""
    said = ""
    while not ending.wait(ROUND_S):
        try:
            for log in watch.look():
                detail = f"{log.origin} is heard of again"
                if log.alarm:
                    detail = f"{log.origin} has sent no checkpoint for {log.silent_s} s: stopped, or cut off"
                _print(detail, SILENT)
                _tell(settings, Kind.ANOMALY, SILENT, detail, log.size, over=not log.alarm)
        except OSError as error:  # a log whose memory is damaged is not cosigned either; the others are
            if str(error) != said:
                said = str(error)
                print(f"exeat: witness: {error}", file=sys.stderr, flush=True)


def _tell(settings: WitnessSettings, kind: Kind, code: str, detail: str, size: int, *, over: bool) -> bool:
    """Whether it is on the ledger; the status says it all the same."""
    record = Record(
        kind,
        *stamps(),
        node=settings.node,
        actor="witness",
        decision="over" if over else "began",
        reason_code=code,
        count=size,
        detail=records.printable(detail)[:512],
    )
    try:
        append_blocking(settings.run_dir / "ledger" / "ledger.sock", [records.encode(record)])
    except (LedgerError, OSError):
        return False
    return True
