"""A real guard on a real loop, with a real ledger and a real upstream; the test plays control.

The guard and the ledger run in threads so that tests can also look inside; what the guard is told
and asked goes over its own sockets only.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.query
import dns.rdatatype
from tests.support.dns_servers import Handler, NameServer, name_server

from exeat.dns.guard import Guard, GuardSettings
from exeat.ledger.daemon import Daemon, LedgerSettings
from exeat.ledger.ipc import Channel, listen
from exeat.ledger.reactor import Reactor
from exeat.ledger.reader import Follower, find_ledgers
from exeat.ledger.records import Kind, Record, decode
from exeat.policy.document import load_policy
from exeat.policy.model import Subject
from exeat.policy.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NODE = "test-node"
PUBLIC = ["203.0.113.0/24", "198.51.100.0/24", "2001:db8::/32"]


class NoSuffixes:
    """The tests' policies name no public suffix."""

    def is_broad(self, name: str) -> bool:
        return False


@dataclass(frozen=True)
class Ports:
    """Where a jail's DNS sockets listen."""

    udp: tuple[str, int]
    tcp: tuple[str, int]


class Loop:
    """A reactor in a thread of its own."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self._thread = threading.Thread(target=self.reactor.run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the loop and wait for its result."""
        done = threading.Event()
        out: list[Any] = []

        def run(_events: int = 0) -> None:
            os.read(read, 1)
            self.reactor.remove(read)
            out.append(function())
            done.set()

        read, write = os.pipe()
        self.reactor.add(read, 1, run)
        os.write(write, b"x")
        assert done.wait(30), "the loop does not turn"
        os.close(read)
        os.close(write)
        return out[0]

    def stop(self, last: Callable[[], None]) -> None:
        self.call(lambda: (last(), self.reactor.stop()))
        self._thread.join(30)
        self.reactor.close()


class Rig:
    """Control's part, and the questions of jails and proxy."""

    def __init__(self, folder: Path, upstreams: tuple[tuple[str, int], ...], server: NameServer) -> None:
        self.server = server
        self.run_dir, self.state_dir = folder / "run", folder / "state"
        for name in ("ledger", "control", "guard"):
            (self.run_dir / name).mkdir(parents=True)
        self.settings = GuardSettings(self.run_dir, upstreams, NODE, os.getuid(), os.getuid())
        self._listener = listen(self.run_dir / "control" / "hub.sock")
        self._listener.setblocking(True)
        self._listener.settimeout(30)
        self._generation = 0
        self._socks: list[socket.socket] = []
        self.hub: Channel | None = None
        self.start_ledger()

    def start_ledger(self) -> None:
        self.ledger_loop = Loop()
        settings = LedgerSettings(
            self.state_dir, self.run_dir, NODE, {os.getuid(): "gateway"}, segment_bytes=1 << 20
        )
        self.daemon = Daemon(settings, self.ledger_loop.reactor)
        self.ledger_loop.start()

    def stop_ledger(self) -> None:
        self.ledger_loop.stop(self.daemon.close)

    def start_guard(self) -> None:
        self.loop = Loop()
        self.guard = Guard(self.settings, self.loop.reactor)
        self.loop.start()
        self.accept()

    def accept(self) -> dict[str, Any]:
        """Take the guard's hub connection; its hello."""
        sock, _ = self._listener.accept()
        sock.settimeout(30)
        if self.hub is not None:
            self.hub.close()
        self.hub = Channel(sock)
        hello, _ = self.hub.next()
        return hello

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        assert self.hub is not None
        self.hub.send(message, fds)

    def sync(self) -> None:
        """Return when the guard has handled everything sent so far."""
        self.remove("nobody")

    def remove(self, jail: str) -> None:
        assert self.hub is not None
        self.send({"t": "jail.remove", "jail": jail})
        while (said := self.hub.next()[0])["t"] != "jail.removed":
            pass  # counts or an alert, which come when they come
        assert said["jail"] == jail

    def snapshot(self, *policies: str, fresh_ms: int = 60_000, **more: Any) -> dict[str, Any]:
        """Publish policies (each for the project it names)."""
        self._generation += 1
        documents = [load_policy(text, file="test", suffixes=NoSuffixes()) for text in policies]
        message = Snapshot.message(
            generation=self._generation,
            fresh_ms=fresh_ms,
            documents=documents,
            projects={document.project: document.digest for document in documents},
            treat_as_public=PUBLIC,
            **more,
        )
        self.send(message)
        self.sync()
        return message

    def jail(self, name: str, project: str) -> Ports:
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        spare = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        ports = Ports(udp.getsockname(), tcp.getsockname())
        self.add_jail(name, project, {"dnsu4": udp, "dnst4": tcp, "proxy4": spare})
        return ports

    def add_jail(self, name: str, project: str, sockets: dict[str, socket.socket]) -> None:
        """Hand over a jail's sockets (and close them here)."""
        subject = subject_of(name, project)
        self.send(
            {
                "t": "jail.add",
                "jail": name,
                "subject": subject._asdict(),
                "sockets": list(sockets),
                "hold_ms": 1,
            },
            tuple(sock.fileno() for sock in sockets.values()),
        )
        for sock in sockets.values():
            sock.close()
        self.sync()

    def resolve(self, host: str, project: str = "p", job: str = "j", **more: Any) -> dict[str, Any]:
        """Ask as the proxy does."""
        channel = Channel.connect(self.run_dir / "guard" / "guard.sock", timeout=30)
        request = {
            "id": 7, "verb": "resolve", "subject": subject_of(job, project)._asdict(),
            "host": host, "port": 443, "proto": "tcp", "lease": "", **more,
        }  # fmt: skip
        reply, _ = channel.call(request)
        channel.close()
        return reply

    def dns_records(self) -> list[Record]:
        """Every dns record that is on the ledger now."""
        (folder,) = find_ledgers(self.state_dir)
        records = [decode(data) for _, data in Follower(folder).poll()]
        return [record for record in records if record.kind is Kind.DNS]

    def wait_for_records(self, enough: Callable[[list[Record]], bool]) -> list[Record]:
        """The records, once there are enough (the guard flushes counts each second)."""
        for _ in range(3000):
            records = self.dns_records()
            if enough(records):
                return records
            threading.Event().wait(0.01)
        raise AssertionError(f"never came: {records}")

    def close_control(self) -> None:
        self._listener.close()
        if self.hub is not None:
            self.hub.close()

    def close(self) -> None:
        self.close_control()
        while self.guard.connected:
            threading.Event().wait(0.001)
        self.loop.stop(self.guard.close)
        self.stop_ledger()


def subject_of(job: str, project: str) -> Subject:
    return Subject(project, "agent", job, "", NODE)


@contextmanager
def guard_rig(folder: Path, handler: Handler) -> Iterator[Rig]:
    with name_server(handler) as server:
        rig = Rig(folder, (server.address,), server)
        rig.start_guard()
        try:
            yield rig
        finally:
            rig.close()


def ask(
    where: tuple[str, int], name: str, kind: str = "A", *, tcp: bool = False, edns: bool = True
) -> dns.message.Message:
    """One question of a client in a jail."""
    query = dns.message.make_query(name, kind, use_edns=0 if edns else -1)
    if tcp:
        return dns.query.tcp(query, where[0], timeout=30, port=where[1])
    return dns.query.udp(query, where[0], timeout=30, port=where[1])


def answers(message: dns.message.Message) -> set[str]:
    return {rdata.to_text() for rrset in message.answer for rdata in rrset}


def ede(message: dns.message.Message) -> list[tuple[int, str]]:
    return [(int(option.code), option.text) for option in message.options]  # type: ignore[attr-defined]
