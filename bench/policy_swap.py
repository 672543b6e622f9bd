"""How long the loop of a gateway stands still while it takes over a large policy.

A process in control's place sends snapshots over a real hub socket; the loop does nothing but turn
and decide, so the longest turn is what a running flow would have waited.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import policy_world as world

from exeat.ledger.hub import HubClient
from exeat.ledger.ipc import listen
from exeat.ledger.reactor import Reactor
from exeat.ledger.snapshots import SnapshotLoader
from exeat.policy.model import Request, Subject
from exeat.policy.snapshot import Snapshot
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    import socket

    from exeat.ledger.ipc import Message
    from exeat.policy.document import Document

WAIT_S = 0.0005  # the longest a turn may wait for events of its own accord
_CONTROL = """
import json, sys, socket
from exeat.ledger.ipc import Channel
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
channel = Channel(sock)
channel.next()
for path in sys.argv[2:]:
    channel.send(json.load(open(path)))
    sys.stdin.readline()
"""


class _Gateway:
    """A hub client that takes snapshots over as proxy and guard do."""

    def __init__(self, reactor: Reactor, run_dir: Path) -> None:
        self.snapshot: Snapshot | None = None
        self._loader = SnapshotLoader(reactor, "bench", self._apply)
        HubClient(reactor, run_dir / "hub.sock", "proxy", self, os.getuid())

    def on_snapshot(self, message: Message) -> None:
        self._loader.offer(message, self.snapshot)

    def _apply(self, snapshot: Snapshot, message: Message | None) -> None:
        self.snapshot = snapshot

    def on_jail(
        self, jail: str, subject: Subject, sockets: dict[str, socket.socket], message: Message
    ) -> None: ...
    def on_jail_removed(self, jail: str) -> None: ...
    def on_cut(self, message: Message) -> None: ...
    def on_other(self, message: Message) -> None: ...


def stalls(rules: int) -> tuple[float, float]:
    """Seconds of the longest turn: while a small policy gives way to one of `rules`, and while that
    one gives way to another of the same size."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{generation}.json" for generation in (1, 2, 3)]
        for generation, (size, seed) in enumerate(((10, 1), (rules, 3), (rules, 5)), 1):
            _write(Path(paths[generation - 1]), generation, world.document(size, seed))
        gc.collect()  # a gateway does not carry what was needed to write the files
        return _watch(Path(folder), paths)


def _write(path: Path, generation: int, document: Document) -> None:
    message = Snapshot.message(
        generation=generation,
        fresh_ms=3_600_000,
        documents=[document],
        projects={world.PROJECT: document.digest},
        leases=world.leases(1000, 10),
    )
    path.write_text(json.dumps(message), encoding="ascii")


def _watch(folder: Path, paths: list[str]) -> tuple[float, float]:
    reactor = Reactor()
    listener = listen(folder / "hub.sock")
    gateway = _Gateway(reactor, folder)
    sock = _accepted(reactor, listener)
    command = [sys.executable, "-c", _CONTROL, str(sock.fileno()), *paths]
    control = subprocess.Popen(command, pass_fds=[sock.fileno()], stdin=subprocess.PIPE, text=True)
    sock.close()
    assert control.stdin is not None
    longest = []
    for generation in range(1, len(paths) + 1):
        longest.append(_until(reactor, gateway, generation))
        control.stdin.write("\n")
        control.stdin.flush()
    control.stdin.close()
    control.wait()
    reactor.close()
    return longest[1], longest[2]


def _accepted(reactor: Reactor, listener: socket.socket) -> socket.socket:
    """The client connects once its loop turns."""
    for _ in range(1000):
        reactor.turn(0.01)
        with contextlib.suppress(BlockingIOError):
            return listener.accept()[0]
    raise SystemExit("nobody connects")


def _until(reactor: Reactor, gateway: _Gateway, generation: int) -> float:
    """Turn until the snapshot is in force, and for a second more; the longest turn."""
    longest, end = 0.0, float("inf")
    request, usage = Request(Subject(world.PROJECT, "agent-1"), world.host_name(1), 443), Usage()
    while (start := time.perf_counter()) < end:
        reactor.turn(WAIT_S)
        snapshot = gateway.snapshot
        if snapshot is not None:
            snapshot.decide(request, world.NOW_MS, usage)
            if snapshot.generation == generation and end == float("inf"):
                end = time.perf_counter() + 1
        longest = max(longest, time.perf_counter() - start)
    return longest
