"""Real DNS tunnels in namespaces: the tool's server in one, its client in another that has only `lo`.

What the client sends to its port 53 goes either through a guard or, to see that the tool works
here at all, straight to the server. The relay to the server stands for an honest resolver on the
Internet: it passes on what it gets and counts the octets that the names below DOMAIN carried.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from exeat.sandbox import netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import dns.message

DOMAIN = "t.evil.com"
PASSWORD = "tunnel"
_CLONE_NEWNET = 0x40000000


class TunnelServer:
    """A tool's server in a namespace. `octets` is what the names it was asked for carried."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "server.ns"
        self.names: set[str] = set()
        self.octets = 0
        # No jail: where every lookup is redirected, dns2tcpd's own would come back to it.
        self.path.touch()
        subprocess.run(["unshare", f"--net={self.path}", "ip", "link", "set", "lo", "up"], check=True)

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        return inside(self.path, *argv)

    def handle(self, query: dns.message.Message, _udp: bool) -> list[bytes]:
        """As a resolver would: ask the tool's server, give back what it says."""
        name = query.question[0].name.to_text(omit_final_dot=True)
        if name.lower() not in self.names:
            self.names.add(name.lower())
            self.octets += max(0, len(name) - len(DOMAIN))
        reply = self.ask(query.to_wire())
        return [reply] if reply else []

    def ask(self, data: bytes) -> bytes:
        with self._socket() as sock:
            sock.settimeout(0.5)
            sock.connect(("127.0.0.1", 53))
            try:
                sock.send(data)
                return sock.recv(65535)
            except OSError:
                return b""

    def _socket(self) -> socket.socket:
        def work() -> socket.socket:
            with self.path.open() as handle:
                if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(work).result()

    def close(self) -> None:
        netns.destroy(self.path)


def inside(path: Path, *argv: str) -> subprocess.Popen[bytes]:
    """Start a program in the namespace at `path`; its output is one pipe."""
    command = ["nsenter", f"--net={path}", "--", *argv]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for(process: subprocess.Popen[bytes], words: bytes, seconds: float) -> tuple[bool, bytes]:
    """(whether `words` were written within `seconds`, what was written)."""
    assert process.stdout is not None
    end = threading.Event()
    timer = threading.Timer(seconds, end.set)
    timer.start()
    out = b""
    while words not in out and not end.is_set():
        if select.select([process.stdout], [], [], 0.05)[0]:
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            out += data
    timer.cancel()
    return words in out, out


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def client_namespace(folder: Path, name: str) -> Iterator[tuple[Path, dict[str, socket.socket]]]:
    """A namespace with only `lo`, and its DNS sockets for whoever shall answer there."""
    path = folder / f"{name}.ns"
    names = ("dnsu4", "dnst4")
    netns.create(path)
    try:
        yield path, dict(zip(names, netns.listen(path, folder, names), strict=True))
    finally:
        netns.destroy(path)


@contextmanager
def unguarded(server: TunnelServer, sockets: dict[str, socket.socket]) -> Iterator[None]:
    """Answer at `sockets` by asking `server`, with nobody in between."""
    sock = sockets["dnsu4"]
    sockets["dnst4"].close()
    sock.settimeout(0.1)
    end = threading.Event()

    def serve() -> None:
        while not end.is_set():
            try:
                data, peer = sock.recvfrom(65535)
            except TimeoutError:
                continue
            pool.submit(answer, data, peer)

    def answer(data: bytes, peer: tuple[str, int]) -> None:
        if reply := server.ask(data):
            sock.sendto(reply, peer)

    with ThreadPoolExecutor(8) as pool:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(5)
    sock.close()
