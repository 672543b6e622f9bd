"""The proxy world with every address inside it, for asking a real proxy the normative cases."""

from __future__ import annotations

import queue
import select
import socket
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tests.support.door_cases import Steering
from tests.support.proxy_world import Origin, World, client_hello, listening, read_all, read_head

from exeat.ledger.reader import Follower, find_ledgers
from exeat.ledger.records import Kind, Record, decode
from exeat.policy.model import Sni
from exeat.proxy.first_bytes import TLS_PORTS

if TYPE_CHECKING:
    from tests.support.door_cases import DoorCase

    from exeat.policy.model import Subject

_ROOT = str(Path(__file__).parents[2])
CLOCK_ONLY_PROXY = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {_ROOT!r})
from tests.support.door_cases import SteeredClock, SteeredUsage, Steering
from exeat.proxy import gateway, server, spending
base = Path(sys.argv[1])
read = Steering(base / "steering.json").read
gateway.Clock = lambda: SteeredClock(read)
s = server.ProxySettings(base, "n1", os.getuid(), **eval(sys.argv[2]))
sys.exit(server.serve(s, lambda: os.write(1, b"r") and None))
"""
_STEERED_PROXY = CLOCK_ONLY_PROXY.replace("s =", "spending.Usage = lambda: SteeredUsage(read)\ns =", 1)
PLAIN = b"\x00ping"  # neither TLS nor HTTP


@dataclass(frozen=True)
class Seen:
    """What one question came to. `told` is the refusal the client got, "" once it has its tunnel."""

    told: str
    status: int
    record: Record
    reached: bytes


def every_address_is_here() -> None:
    """Make the whole address space local to this namespace, so that any dial ends in the test."""
    for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        subprocess.run(["ip", family, "route", "add", "local", everything, "dev", "lo"], check=True)


class PolicyWorld(World):
    """Must be made and used inside `in_namespace`, after `every_address_is_here`."""

    proxy_code: ClassVar[str] = _STEERED_PROXY

    def __init__(self, base: Path, ports: set[int]) -> None:
        self.steering = Steering(base / "steering.json")
        self.steering.set({"now_ms": 0})
        self.shown = ""
        self._listeners: dict[Subject, socket.socket] = {}
        super().__init__(base, "egress: v1\nproject: p")
        self.reached: queue.Queue[bytes] = queue.Queue()
        self.origins = {port: Origin(port, self._keep, "::") for port in sorted(ports)}
        (folder,) = find_ledgers(base / "state")
        self._follower = Follower(folder)
        self._judged: deque[Record] = deque()
        self._closed: deque[Record] = deque()

    def _keep(self, sock: socket.socket) -> None:
        while data := sock.recv(65536):
            self.reached.put(data)

    def show(self, case: DoorCase) -> None:
        """Make the case's policy, leases, instant and spending the proxy's."""
        self.steering.set(case.steering())
        self.shown = case.id
        self.generation += 1
        self.control.tell("snapshot", case.snapshot(self.generation))
        if case.subject not in self._listeners:
            self._add_jail(case.subject)
        self._sync()
        self.guard.names = {case.target: list(case.resolved)} if isinstance(case.target, str) else {}

    def _add_jail(self, subject: Subject) -> None:
        listener = self._listeners[subject] = listening("127.0.0.1", 0)
        name = f"jail-{len(self._listeners)}"
        message = {
            "t": "jail.add", "jail": name, "subject": subject._asdict(), "sockets": ["proxy4"], "hold_ms": 1
        }  # fmt: skip
        self.control.tell(name, message, [listener.fileno()])

    def _sync(self) -> None:
        """Return when the proxy has handled everything sent so far."""
        name = f"nobody-{self.generation}"
        self.control.send({"t": "jail.remove", "jail": name})
        self.control.wait(lambda m: m["t"] == "jail.removed" and m["jail"] == name)

    def judged(self) -> Record:
        """The next record that opens or refuses a flow."""
        return self._next(self._judged)

    def closed(self) -> Record:
        """The next record that closes a flow."""
        return self._next(self._closed)

    def _next(self, wanted: deque[Record]) -> Record:
        deadline = time.monotonic() + 30
        while not wanted:
            assert time.monotonic() < deadline, "the ledger has no record of it"
            for _, data in self._follower.poll():
                record = decode(data)
                if record.kind in (Kind.OPEN, Kind.DENY):
                    self._judged.append(record)
                elif record.kind is Kind.CLOSE:
                    self._closed.append(record)
            select.select([], [], [], 0 if wanted else 0.002)
        return wanted.popleft()

    def open_client(self, case: DoorCase) -> socket.socket:
        sock = socket.create_connection(self._listeners[case.subject].getsockname(), 10)
        self._clients.append(sock)
        return sock

    def connect_case(self, case: DoorCase) -> Seen:
        """Ask by HTTP CONNECT."""
        sock = self.open_client(case)
        sock.sendall(f"CONNECT {case.host}:{port_text(case.port)} HTTP/1.1\r\n\r\n".encode())
        head = read_head(sock)
        status = int(head.split(b" ")[1])
        if status == 200:
            return self._go_on(case, sock, status)
        said = head.split(b'details="')[1].split(b'"')[0].decode()
        return Seen(said, status, self.judged(), self._nothing(sock))

    def socks_case(self, case: DoorCase, target: bytes) -> Seen:
        """Ask by SOCKS5; `target` is address type and address."""
        sock = self.open_client(case)
        sock.sendall(b"\x05\x01\x00\x05\x01\x00" + target + case.port.to_bytes(2, "big"))
        reply = b""
        while len(reply) < 12:
            reply += sock.recv(12 - len(reply))
        status = reply[3]
        if status == 0:
            return self._go_on(case, sock, status)
        record = self.judged()
        return Seen(record.reason_code, status, record, self._nothing(sock))

    def _go_on(self, case: DoorCase, sock: socket.socket, status: int) -> Seen:
        """The tunnel is there: say what an honest client of the case would, and see what becomes of it."""
        tls = case.port in TLS_PORTS or "sni" in case.request
        first = hello_for(case.sni) if tls else PLAIN
        sock.sendall(first)
        record = self.judged()
        if record.kind is Kind.OPEN and case.port not in TLS_PORTS and tls:
            record = self._refused_later(record)
        if record.kind is Kind.DENY:
            return Seen("", status, record, self._nothing(sock))
        reached = b""
        while len(reached) < len(first):
            reached += self.reached.get(timeout=30)
        sock.close()
        return Seen("", status, record, reached)

    def _refused_later(self, opened: Record) -> Record:
        """Where the server may speak first, the hello is judged in a flow that is open."""
        refused = self.judged()
        assert refused.flow == opened.flow
        return refused

    def _nothing(self, sock: socket.socket) -> bytes:
        """What a refused flow let through: the socket is at its end, so nothing more can come."""
        read_all(sock)
        sock.close()
        return b"" if self.reached.empty() else self.reached.get()

    def close(self) -> None:
        super().close()
        for listener in self._listeners.values():
            listener.close()


def port_text(port: object) -> str:
    return str(port).lower()


def socks_name(case: DoorCase) -> bytes:
    """The host as it is given, as a domain name."""
    raw = str(case.host).encode()
    return b"\x03" + bytes((len(raw),)) + raw


def socks_address(case: DoorCase) -> bytes:
    """The host as a packed address, as it is given: a mapped one stays IPv6."""
    text = str(case.host).strip("[]").removesuffix(".")
    family, kind = (socket.AF_INET6, b"\x04") if ":" in text else (socket.AF_INET, b"\x01")
    return kind + socket.inet_pton(family, text)


@cache
def hello_for(name: str | Sni) -> bytes:
    """A ClientHello by OpenSSL, also for names that OpenSSL would not send."""
    if isinstance(name, Sni):
        return client_hello(None)
    stand_in = "q" * len(name)
    made = client_hello(stand_in)
    assert made.count(stand_in.encode()) == 1
    return made.replace(stand_in.encode(), name.encode())
