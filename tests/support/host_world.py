"""A host with agents on it: a namespace that is the host, one that is the Internet, one a container.

    internet (198.51.100.2, 2001:db8:2::2) == host (198.51.100.1) == sbh0 = container (10.231.0.2)

The gateway is played by plain listeners that say what they were asked for. `World.agent` runs a
probe as a process of the host in the agents' cgroup, `World.container` one behind the interface.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.proxy_world import CLONE_NEWNET

if TYPE_CHECKING:
    from collections.abc import Callable

OUT4, OUT6 = "198.51.100.2", "2001:db8:2::2"
AGENT_UID = 61_200
UNIFIED = Path("/sys/fs/cgroup/unified" if Path("/sys/fs/cgroup/unified").is_dir() else "/sys/fs/cgroup")
PREFIX = "unified/" if UNIFIED.name == "unified" else ""
TCP_PORTS = (22, 53, 80, 443, 853, 3129, 9999)
UDP_PORTS = (53, 443, 853, 8853, 51820)

# Reads [kind, address, port] lists as JSON and prints what each attempt brought.
PROBE = """
import errno, json, os, socket, struct, sys

def attempt(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if kind == "raw":
        proto = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
        sock = socket.socket(family, socket.SOCK_RAW, proto)
        four, six = bytes.fromhex("0800f7fd00010001"), bytes.fromhex("8000000000010001")
        request = six if family == socket.AF_INET6 else four
        sock.settimeout(0.5)
        sock.sendto(request, (address, 0))
        while True:
            data, peer = sock.recvfrom(2048)
            if peer[0] == address:
                return "answer"
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "udp*": socket.SOCK_DGRAM}
    with socket.socket(family, kinds[kind]) as sock:
        sock.settimeout(2)
        if kind == "udp*":
            sock.sendto(b"hello", (address, port))
            data, peer = sock.recvfrom(2048)
            return data.decode() + (" from the asked" if peer[0] == address else f" from {peer}")
        sock.connect((address, port))
        sock.send(b"hello")
        return sock.recv(2048).decode()

def outcome(words):
    try:
        return attempt(*words)
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

print(json.dumps([outcome(words) for words in json.loads(sys.argv[1])]))
"""


def ip(*words: str, inside: str = "") -> None:
    command = ["nsenter", f"--net={inside}", "ip", *words] if inside else ["ip", *words]
    subprocess.run(command, check=True, capture_output=True)


class Place(threading.Thread):
    """A network namespace of its own, with servers in it that answer each peer with one line."""

    def __init__(self, answer: Callable[[socket.socket, bytes], bytes], ports: tuple[Any, Any]) -> None:
        super().__init__(daemon=True)
        self._answer, self._ports = answer, ports
        self._loop = selectors.DefaultSelector()
        self._go, self._there, self._wake = threading.Event(), threading.Event(), os.pipe()
        self.path = ""
        self.heard: list[bytes] = []  # datagrams
        self.own = True
        self.addresses: tuple[str, ...] = ("0.0.0.0", "::")  # of UDP sockets

    def open(self) -> str:
        """Make it; the path of its namespace."""
        self.start()
        assert self._there.wait(10)
        return self.path

    def serve(self) -> None:
        self._there.clear()
        self._go.set()
        assert self._there.wait(10)

    def run(self) -> None:
        if self.own and ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        self.path = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
        self._there.set()
        self._go.wait()
        for kind, ports in zip((socket.SOCK_STREAM, socket.SOCK_DGRAM), self._ports, strict=True):
            for address in self.addresses if kind == socket.SOCK_DGRAM else ("0.0.0.0", "::"):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                for port in ports:
                    self._open(family, kind, address, port)
        self._loop.register(self._wake[0], selectors.EVENT_READ, None)
        self._there.set()
        while self._turn():
            pass
        for key in list(self._loop.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()

    def _turn(self) -> bool:
        heard = [self._hear(key.fileobj) for key, _ in self._loop.select()]
        return all(heard)

    def _open(self, family: int, kind: int, address: str, port: int) -> None:
        sock = socket.socket(family, kind)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        self._loop.register(sock, selectors.EVENT_READ)

    def _hear(self, sock: Any) -> bool:
        if not isinstance(sock, socket.socket):
            return False
        with contextlib.suppress(OSError):
            if sock.type == socket.SOCK_DGRAM:
                data, peer = sock.recvfrom(2048)
                self.heard.append(data)
                sock.sendto(self._answer(sock, data), peer)
            elif sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._loop.register(sock.accept()[0], selectors.EVENT_READ)
            elif data := sock.recv(2048):
                sock.send(self._answer(sock, data))
            else:
                self._loop.unregister(sock)
                sock.close()
        return True

    def close(self) -> None:
        self._go.set()
        os.write(self._wake[1], b"x")
        self.join(10)
        for fd in self._wake:
            os.close(fd)


def gateway_says(sock: socket.socket, _data: bytes) -> bytes:
    """Which door this is; for a redirected connection where it wanted to go."""
    port = sock.getsockname()[1]
    if port != 3129:
        return {3128: b"proxy", 5353: b"guard"}[port]
    six = sock.family == socket.AF_INET6 and not sock.getsockname()[0].startswith("::ffff:")
    raw = sock.getsockopt(socket.IPPROTO_IPV6 if six else socket.SOL_IP, 80, 28 if six else 16)
    (number,) = struct.unpack_from(">H", raw, 2)
    text = socket.inet_ntop(socket.AF_INET6, raw[8:24]) if six else socket.inet_ntop(socket.AF_INET, raw[4:8])
    return f"for {text} {number}".encode()


class World:
    """Made in a thread that has a namespace of its own (`proxy_world.in_namespace`): the host."""

    def __init__(self, slice_name: str) -> None:
        self.slice = UNIFIED / slice_name
        self.internet = Place(lambda _sock, _data: b"internet", (TCP_PORTS, UDP_PORTS))
        self.gateway = Place(gateway_says, ((3128, 3129, 5353), (5353,)))
        self.gateway.own = False
        # Not one socket for all: an answer must come from the address that was asked.
        self.gateway.addresses = ("127.0.0.1", "::1", "10.231.0.1", "fd5b:0:0:1::1")
        self.box = Place(lambda _sock, _data: b"box", ((), ()))
        internet, self.inside = self.internet.open(), self.box.open()
        self.gateway.open()
        self._link("out0", "198.51.100.1/24", "2001:db8:2::1/64", internet, (f"{OUT4}/24", f"{OUT6}/64"))
        self._link(
            "sbh0", "10.231.0.1/24", "fd5b:0:0:1::1/64", self.inside, ("10.231.0.2/24", "fd5b:0:0:1::2/64")
        )
        for family, via in (("-4", "10.231.0.1"), ("-6", "fd5b:0:0:1::1")):
            ip(family, "route", "add", "default", "via", via, inside=self.inside)
        ip("route", "add", "10.231.0.0/24", "via", "198.51.100.1", inside=internet)
        ip("-6", "route", "add", "fd5b::/16", "via", "2001:db8:2::1", inside=internet)
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            subprocess.run(["sysctl", "-qw", f"net.{key.replace('/', '.')}=1"], check=True)
        for place in (self.internet, self.gateway, self.box):
            place.serve()

    def _link(self, name: str, four: str, six: str, far: str, addresses: tuple[str, str]) -> None:
        ip("link", "add", name, "type", "veth", "peer", "name", "far0", "netns", far)
        for inside, device, both in (("", name, (four, six)), (far, "far0", addresses)):
            for address in both:
                ip(
                    "addr",
                    "add",
                    address,
                    "dev",
                    device,
                    *(["nodad"] if ":" in address else []),
                    inside=inside,
                )
            ip("link", "set", device, "up", inside=inside)
        ip("link", "set", "lo", "up", inside=far)

    def agent(
        self, *attempts: tuple[str, str, int], uid: int = AGENT_UID, cgroup: Path | None = None
    ) -> list[str]:
        """What a process of this uid in the agents' cgroup (or another) gets out of each attempt."""
        return self._probe(attempts, [], self.entering(uid, cgroup or self.slice))

    def container(self, *attempts: tuple[str, str, int]) -> list[str]:
        return self.probe_from(self.inside, *attempts)

    def probe_from(self, namespace: str, *attempts: tuple[str, str, int]) -> list[str]:
        """What a process with the network at this path gets out of each attempt."""
        return self._probe(attempts, ["nsenter", f"--net={namespace}"], None)

    def _probe(self, attempts: Any, before: list[str], enter: Callable[[], None] | None) -> list[str]:
        done = subprocess.run(
            [*before, sys.executable, "-I", "-c", PROBE, json.dumps(attempts)],
            capture_output=True, text=True, timeout=60, preexec_fn=enter, check=False,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        found: list[str] = json.loads(done.stdout)
        return found

    def entering(self, uid: int, cgroup: Path) -> Callable[[], None]:
        """For a child before its program starts: be this uid in this cgroup."""

        def enter() -> None:
            (cgroup / "cgroup.procs").write_text("0")
            os.setgroups([])
            os.setgid(65534)
            os.setuid(uid)

        return enter

    def close(self) -> None:
        for place in (self.internet, self.gateway, self.box):
            place.close()
        for folder in sorted(self.slice.glob("**/"), reverse=True):
            folder.rmdir()
