"""A proxy process in a network namespace of its own: real ledger, real sockets, real origins.

Control and guard are played by the test over their real sockets (docs/architecture.md), because
the proxy may not know their code. Everything else is the product.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar, Self

from exeat.ledger import ipc
from exeat.ledger.reader import read_records
from exeat.ledger.records import Kind, Record
from exeat.policy.addresses import format_address, parse_address
from exeat.policy.document import Document, load_policy
from exeat.policy.model import Address
from exeat.policy.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from exeat.policy.leases import Lease

CLONE_NEWNET = 0x40000000
NODE = "n1"
HOME = "203.0.113.1"
PUBLIC = ("203.0.113.0/24", "2001:db8:1::/64")


class Suffixes:
    """The public suffixes these tests need."""

    def is_broad(self, name: str) -> bool:
        return "." not in name


def enter_namespace() -> None:
    """Move this thread (and what it starts) into a new network namespace with some addresses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    for words in (
        "link set lo up",
        "addr add 203.0.113.1/24 dev lo",
        "addr add 203.0.113.2/24 dev lo",
        "-6 addr add 2001:db8:1::1/64 dev lo nodad",
    ):
        subprocess.run(["ip", *words.split()], check=True)


def in_namespace(body: Callable[[], None]) -> None:
    """Run `body` in a thread with a network of its own; what it raises is raised here."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            enter_namespace()
            body()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


class Control(threading.Thread):
    """The hub's other end. Sends everything again on each connection, as control does."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._listener = ipc.listen(path)
        self._listener.setblocking(True)
        self._lock = threading.Condition()
        self._channel: ipc.Channel | None = None
        self.standing: dict[str, tuple[dict[str, Any], list[int]]] = {}
        self.heard: list[dict[str, Any]] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with contextlib.suppress(ipc.IpcError, OSError), sock:
                    self._serve(ipc.Channel(sock))

    def _serve(self, channel: ipc.Channel) -> None:
        with self._lock:
            self._channel = channel
            for message, fds in self.standing.values():
                channel.send(message, fds)
        while True:
            message, _ = channel.next()
            with self._lock:
                self.heard.append(message)
                self._lock.notify_all()

    def tell(self, name: str, message: dict[str, Any], fds: Iterable[int] = ()) -> None:
        """Send now and again after a reconnect; `name` says what a later message replaces."""
        with self._lock:
            self.standing[name] = (message, list(fds))
            if self._channel is not None:
                self._channel.send(message, list(fds))

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            assert self._channel is not None
            self._channel.send(message)

    def wait(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 5) -> dict[str, Any]:
        """The first message heard, past or future, that is wanted."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while True:
                for message in self.heard:
                    if wanted(message):
                        return message
                left = deadline - time.monotonic()
                assert left > 0, f"control never heard it; it heard {self.heard}"
                self._lock.wait(left)

    def close(self) -> None:
        _stop(self, self._listener)


class Guard(threading.Thread):
    """Answers from a table of names; counts the questions."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._listener = ipc.listen(path)
        self._listener.setblocking(True)
        self.names: dict[str, list[str]] = {}
        self.pins: dict[str, list[str]] = {}  # address -> the names it was answered for
        self.asked: list[str] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with contextlib.suppress(ipc.IpcError, OSError), sock:
                    self._serve(ipc.Channel(sock))

    def _serve(self, channel: ipc.Channel) -> None:
        while True:
            question, _ = channel.next()
            if question["verb"] == "names":
                address = Address(question["address"]["family"], int(question["address"]["value"]))
                names = self.pins.get(format_address(address), [])
                channel.send({"id": question["id"], "ok": True, "names": names})
                continue
            self.asked.append(question["host"])
            channel.send({"id": question["id"], **self._answer(question["host"])})

    def _answer(self, host: str) -> dict[str, Any]:
        found = [parse_address(text) for text in self.names.get(host, [])]
        if not found:
            return {"ok": False, "error": "dns.nxdomain", "message": "no such name"}
        return {
            "ok": True,
            "addresses": [{"family": a.family, "value": str(a.value), "ttl": 60} for a in found],
        }

    def close(self) -> None:
        _stop(self, self._listener)


def _stop(thread: threading.Thread, listener: socket.socket) -> None:
    """End an accept loop whose peers are gone already."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(30)
    listener.close()


def _spawn(code: str, *words: str) -> subprocess.Popen[bytes]:
    """A Python process that writes `r` to its stdout when it is ready."""
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"r", "did not start"
    return process


_LEDGER = """
import os, sys
from pathlib import Path
from exeat.ledger.daemon import LedgerSettings, serve
base = Path(sys.argv[1])
sys.exit(serve(LedgerSettings(base / "state", base, "n1", {os.getuid(): "gateway"}, segment_bytes=4 << 20),
               lambda: os.write(1, b"r") and None))
"""
_PROXY = """
import os, sys
from pathlib import Path
from exeat.proxy.server import ProxySettings, serve
s = ProxySettings(Path(sys.argv[1]), "n1", os.getuid(), **eval(sys.argv[2]))
sys.exit(serve(s, lambda: os.write(1, b"r") and None))
"""


class World:
    """Must be made and used inside `in_namespace`."""

    proxy_code: ClassVar[str] = _PROXY

    def __init__(self, base: Path, policy: str, **settings: float | str) -> None:
        self.base = base
        self._clients: list[socket.socket] = []
        for name in ("state", "ledger", "control", "guard"):
            (base / name).mkdir(exist_ok=True)
        self.control = Control(base / "control" / "hub.sock")
        self.guard = Guard(base / "guard" / "guard.sock")
        self.ledger = _spawn(_LEDGER, str(base))
        self.generation = 0
        self.listener = listening("127.0.0.1", 0)
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(base / "proxy.sock"))
        self.unix.listen(64)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.policy(policy)
        self.jail()
        self.proxy = _spawn(self.proxy_code, str(base), repr(settings))
        self.control.wait(lambda m: m["t"] == "hello")

    def policy(self, text: str, *, leases: Iterable[Lease] = (), **more: Any) -> Document:
        """Load a policy and make it the snapshot."""
        self.generation += 1
        document = load_policy(text, file="test", suffixes=Suffixes())
        message = Snapshot.message(
            generation=self.generation,
            fresh_ms=more.pop("fresh_ms", 60_000),
            documents=[document],
            projects={document.project: document.digest},
            treat_as_public=PUBLIC,
            leases=leases,
            **more,
        )
        self.control.tell("snapshot", message)
        return document

    def jail(self, name: str = "job-1", hold_ms: int = 300) -> None:
        subject = {"project": "p", "agent": "a", "job": name, "episode": "e", "node": NODE}
        message = {
            "t": "jail.add",
            "jail": name,
            "subject": subject,
            "sockets": ["proxy4", "proxyu", "udp4"],
            "hold_ms": hold_ms,
        }
        sockets = (self.listener, self.unix, self.udp)
        self.control.tell(f"jail {name}", message, [sock.fileno() for sock in sockets])

    def connect(self) -> socket.socket:
        sock = socket.create_connection(self.listener.getsockname(), 10)
        self._clients.append(sock)
        return sock

    def connect_unix(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        self._clients.append(sock)
        sock.settimeout(30)
        sock.connect(str(self.base / "proxy.sock"))
        return sock

    def ask(self, request: bytes) -> tuple[int, bytes, socket.socket]:
        """Send a request; status, whole head, and the socket with the rest unread."""
        sock = self.connect()
        sock.sendall(request)
        head = read_head(sock)
        return int(head.split(b" ")[1]) if head else 0, head, sock

    def tunnel(self, host: str, port: int, early: bytes = b"") -> socket.socket:
        status, head, sock = self.ask(b"CONNECT %s:%d HTTP/1.1\r\n\r\n" % (host.encode(), port) + early)
        assert status == 200, head
        return sock

    def records(self) -> list[Record]:
        return [record for _, record in read_records(self.base / "state" / "ledger")]

    def wait_record(self, wanted: Callable[[Record], bool], seconds: float = 30) -> Record:
        """The first record that is wanted; the ledger is read as a stranger reads it."""
        deadline = time.monotonic() + seconds
        while True:
            for record in self.records():
                if wanted(record):
                    return record
            assert time.monotonic() < deadline, [(r.kind.label, r.reason_code) for r in self.records()]
            select.select([], [], [], 0.02)

    def closes(self, count: int = 1) -> list[Record]:
        """The first `count` close records."""
        deadline = time.monotonic() + 30
        while True:
            found = [record for record in self.records() if record.kind is Kind.CLOSE]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, [r.kind.label for r in self.records()]
            select.select([], [], [], 0.02)

    def close(self) -> None:
        for process in (self.proxy, self.ledger):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(30)
            if process.stdout:
                process.stdout.close()
        for sock in self._clients:
            sock.close()
        Origin.close_all()
        self.control.close()
        self.guard.close()
        self.listener.close()
        self.unix.close()
        self.udp.close()

    def restart_ledger(self) -> None:
        if self.ledger.stdout:
            self.ledger.stdout.close()
        self.ledger = _spawn(_LEDGER, str(self.base))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def listening(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(512)
    return sock


def read_head(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        try:
            byte = sock.recv(1)
        except ConnectionResetError:
            break
        if not byte:
            break
        data += byte
    return data


def read_all(sock: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            parts.append(data)
    return b"".join(parts)


class Origin(threading.Thread):
    _made: ClassVar[list[Origin]] = []

    """Accepts on an address of the namespace; `serve(sock)` per connection, in its own thread."""

    def __init__(self, port: int, serve: Callable[[socket.socket], None], address: str = HOME) -> None:
        super().__init__(daemon=True)
        self._listener = listening(address, port)
        self.port = self._listener.getsockname()[1]
        self._serve = serve
        self.connections = 0
        self.received = bytearray()
        self._workers: list[threading.Thread] = []
        self._made.append(self)
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                worker = threading.Thread(target=self._guarded, args=(sock,), daemon=True)
                self._workers.append(worker)
                worker.start()

    def _guarded(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            self._serve(sock)

    def record(self, sock: socket.socket) -> None:
        """Keep everything that arrives, say nothing."""
        while data := sock.recv(65536):
            self.received += data

    def narrow(self, octets: int) -> None:
        """Whoever connects from now on finds a receive buffer of so many bytes."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)

    def finish(self) -> None:
        """Wait until every connection has been served."""
        for worker in self._workers:
            worker.join(30)

    @classmethod
    def close_all(cls) -> None:
        """At the end of a world, when the proxy is gone and every connection with it."""
        for origin in cls._made:
            with contextlib.suppress(OSError):
                origin._listener.shutdown(socket.SHUT_RDWR)
            origin.join(30)
            origin._listener.close()
            for worker in origin._workers:
                worker.join(30)
        cls._made.clear()


def client_hello(name: str | None) -> bytes:
    """A hello made by OpenSSL itself, so that it is one that real servers see."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()
