"""The guard as bench.dns runs it: guard and ledger are processes of their own, control is played here."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING

from bench.dns_load import LOAD_CPU, SERVER_CPU, SERVICES, ZONE, running, wait_until
from bench.dns_peers import TLS_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.dns_peers import Authority

NODE = "bench"
FRESH_MS = 3_600_000


class Control:
    """Control's end of the hub; `jail` opens a door of the guard and gives its port."""

    def __init__(self, listener: socket.socket, pid: int, ledger_pid: int) -> None:
        from exeat.ledger.ipc import Channel
        from exeat.policy.document import load_policy
        from exeat.policy.snapshot import Snapshot

        self.pid, self.ledger_pid = pid, ledger_pid
        sock, _ = listener.accept()
        sock.settimeout(20)
        self._channel = Channel(sock)
        self._channel.next()
        names = ", ".join(f".svc{i}.{ZONE}" for i in range(SERVICES))
        policy = f"{{egress: v1, project: p, posture: allowlist, allow: [{{to: [{names}]}}]}}"
        document = load_policy(policy, file="bench", suffixes=_NoSuffixes())
        self._channel.send(
            Snapshot.message(
                generation=1, fresh_ms=FRESH_MS, documents=[document], projects={"p": document.digest},
                treat_as_public=["198.51.100.0/24"],
            )
        )  # fmt: skip

    def jail(self, name: str) -> int:
        from exeat.policy.model import Subject

        subject = Subject("p", "a", name, "", NODE)._asdict()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            udp.setblocking(False)
            message = {
                "t": "jail.add", "jail": name, "subject": subject, "sockets": ["dnsu4"], "hold_ms": 1,
            }  # fmt: skip
            self._channel.send(message, (udp.fileno(),))
            port: int = udp.getsockname()[1]
            return port

    def close(self) -> None:
        self._channel.close()


class _NoSuffixes:
    def is_broad(self, name: str) -> bool:
        return False


@contextmanager
def guard(folder: Path, where: Authority, *, limited: bool) -> Iterator[Control]:
    """Guard and ledger with their folders below `folder`; `limited`: with the limit on misses."""
    from exeat.ledger.ipc import listen

    for name in ("ledger", "control", "guard"):
        (folder / "run" / name).mkdir(parents=True)
    listener = listen(folder / "run" / "control" / "hub.sock")
    listener.setblocking(True)
    listener.settimeout(20)
    me = [
        sys.executable, "-m", "bench.dns", "--folder", str(folder), "--authority", str(where.tls_port),
        "--ca", str(where.ca), *(["--limited"] if limited else []),
    ]  # fmt: skip
    with listener, running([*me, "--child", "ledger"], LOAD_CPU, folder, "ledger") as ledger:
        wait_until((folder / "run" / "ledger" / "ledger.sock").exists, "the ledger")
        with running([*me, "--child", "guard"], SERVER_CPU, folder, "guard") as process:
            control = Control(listener, process.pid, ledger.pid)
            yield control
            control.close()


def run_ledger(folder: Path) -> None:
    from exeat.ledger.daemon import LedgerSettings, serve

    serve(LedgerSettings(folder / "state", folder / "run", NODE, {os.getuid(): "gateway"}), lambda: None)


def run_guard(folder: Path, port: int, ca: Path, *, limited: bool) -> None:
    from exeat.dns import responder
    from exeat.dns.guard import GuardSettings, serve
    from exeat.dns.upstream import Server

    if not limited:
        responder.MISS_RATE = responder.MISS_BURST = 1e9
    registrable = lambda host: ".".join(host.rsplit(".", 3)[-3:])  # noqa: E731  as if ZONE were a suffix
    uid = os.getuid()
    upstreams = (Server("127.0.0.1", port, TLS_NAME),)
    settings = GuardSettings(
        folder / "run", upstreams, NODE, uid, uid, upstream_ca=ca, registrable=registrable
    )
    serve(settings, lambda: None)


def pin_times(count: int = 20_000) -> list[float]:
    """Microseconds of noting an answer of four addresses before it is sent, in a full book; sorted."""
    from exeat.dns.pins import MAX_ADDRESSES, Pins
    from exeat.policy.model import Address, Subject

    clock = iter(range(10**9))
    pins = Pins(lambda: float(next(clock)))
    subject = Subject("p", "a", "j", "", NODE)
    found = []
    for i in range(count + MAX_ADDRESSES):
        addresses = [Address(4, 0xC6336400 + (i * 4 + n) % (2 * MAX_ADDRESSES)) for n in range(4)]
        before = perf_counter_ns()
        pins.note(subject, f"n{i % 4096}.example.org", addresses, 30)
        found.append((perf_counter_ns() - before) / 1000)
    return sorted(found[MAX_ADDRESSES:])
