"""What the proxy under test can reach, in one process: a name server, real origins, a packet trap.

Started inside a namespace by `arena.py`, as a script: standard library only. Every connection,
byte, datagram and question is kept until the judge asks (`mark` on the control socket), and a
mark answers only after everything that the kernel holds already has been taken in. The loop is
single-threaded, so what a mark returns is complete and belongs to what was done before it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import socket
import ssl
import struct
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

IP_TRANSPARENT = 19  # linux/in.h; not in Python's socket module before 3.14
KEPT_BYTES = 64 * 1024  # of one connection
BODY = b"served by the red-team origin\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
A, NS, CNAME, TXT, AAAA, HTTPS = 1, 2, 5, 16, 28, 65
TYPES = {"A": A, "AAAA": AAAA, "CNAME": CNAME, "TXT": TXT, "HTTPS": HTTPS}


class Zones:
    """Answers from the arena's table. A name may change its answer with every question (`then`)."""

    def __init__(self, names: dict[str, dict[str, Any]]) -> None:
        self._names = names
        self._asked: dict[str, int] = {}

    def reset(self) -> None:
        self._asked.clear()

    def answer(self, query: bytes) -> tuple[bytes, str, int]:
        """The reply to one query, with the name as it was spelled, and the type."""
        name, end = _read_name(query, 12)
        (qtype,) = struct.unpack_from(">H", query, end)
        records = self._records(name.lower().rstrip("."), qtype)
        rcode = 3 if records is None else 0
        found = records or []
        head = query[:2] + struct.pack(">HHHHH", 0x8580 | rcode, 1, len(found), 0, 0)
        return head + query[12 : end + 4] + b"".join(found), name, qtype

    def _records(self, name: str, qtype: int) -> list[bytes] | None:
        """None: no such name."""
        entry = self._entry(name)
        if entry is None:
            return None
        ttl = entry.get("ttl", 60)
        if "CNAME" in entry:
            target = entry["CNAME"]
            chain = self._records(target, qtype) or []
            return [_record(name, CNAME, ttl, _write_name(target)), *chain]
        if "then" in entry and qtype == A:
            turn = self._asked.get(name, 0)
            self._asked[name] = turn + 1
            values = entry["A"] if turn == 0 else entry["then"]
        else:
            values = next((entry[t] for t, number in TYPES.items() if number == qtype and t in entry), [])
        return [_record(name, qtype, ttl, _rdata(qtype, value)) for value in values]

    def _entry(self, name: str) -> dict[str, Any] | None:
        if name in self._names:
            return self._names[name]
        parent = name.partition(".")[2]
        while parent:
            if f"*.{parent}" in self._names:
                return self._names[f"*.{parent}"]
            parent = parent.partition(".")[2]
        return None


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    labels = []
    while length := message[at]:
        labels.append(message[at + 1 : at + 1 + length].decode("latin-1"))
        at += 1 + length
    return ".".join(labels), at + 1


def _write_name(name: str) -> bytes:
    labels = [label.encode("latin-1") for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def _record(name: str, rtype: int, ttl: int, data: bytes) -> bytes:
    return _write_name(name) + struct.pack(">HHIH", rtype, 1, ttl, len(data)) + data


def _rdata(rtype: int, value: str) -> bytes:
    if rtype == A:
        return socket.inet_pton(socket.AF_INET, value)
    if rtype == AAAA:
        return socket.inet_pton(socket.AF_INET6, value)
    if rtype == HTTPS:
        return bytes.fromhex(value)
    return bytes((len(value),)) + value.encode("latin-1")


@dataclass
class Seen:
    """One connection as the far side saw it."""

    number: int
    host: str
    port: int
    data: bytearray = field(default_factory=bytearray)
    told: int = -1  # how much of it a mark has returned; -1: not even that it exists

    def news(self) -> dict[str, Any] | None:
        if self.told == len(self.data):
            return None
        first, start = self.told < 0, max(0, self.told)
        self.told = len(self.data)
        text = self.data[start:].decode("latin-1")
        return {"n": self.number, "host": self.host, "port": self.port, "new": first, "data": text}


class Observer:
    def __init__(self, spec: dict[str, Any], control: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._zones = Zones(spec.get("names", {}))
        self._context: ssl.SSLContext | None = None
        if spec.get("certificate"):
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(spec["certificate"], spec["key"])
        self._connections: list[Seen] = []
        self._count = 0
        self._questions: list[dict[str, Any]] = []
        self._packets: list[dict[str, Any]] = []
        self._datagrams: list[dict[str, Any]] = []
        for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for port in spec["tcp"]:
                self._listen(family, everywhere, port)
        for address, ports in spec.get("udp", {}).items():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for port in ports:
                sock = self._datagram_socket(family, address, port)
                self._watch(sock, partial(self._echo, sock, address, port))
        for address in spec.get("dns", []):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = self._datagram_socket(family, address, 53)
            self._watch(sock, partial(self._resolve, sock))
        if spec.get("packets"):
            # Below every listener: a dial to a port where nobody listens is a dial all the same.
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            packets.bind((spec["packets"], 3))
            self._watch(packets, lambda: self._packet(packets))
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind(control)
        door.listen(8)
        self._watch(door, lambda: self._accept_judge(door))

    # -- sockets

    def _watch(self, sock: socket.socket, handler: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, handler)

    def _drop(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    def _listen(self, family: int, host: str, port: int) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)  # to answer from any address
        sock.bind((host, port))
        sock.listen(512)
        self._watch(sock, lambda: self._accept(sock))

    def _datagram_socket(self, family: int, host: str, port: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        return sock

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        host, port = sock.getsockname()[:2]
        self._count += 1
        seen = Seen(self._count, host, port)
        self._connections.append(seen)
        speaker = Speaker(sock, seen, self._context if port in (443, 8443) else None)
        if port == 22:
            with contextlib.suppress(OSError):  # it may be gone already
                sock.send(b"SSH-2.0-redteam\r\n")
        if port == 53:
            speaker.reply = self._resolve_tcp
        self._watch(sock, lambda: None if speaker.hear() else self._drop(sock))

    # -- names and datagrams

    def _echo(self, sock: socket.socket, host: str, port: int) -> None:
        data, peer = sock.recvfrom(65535)
        self._datagrams.append({"host": host, "port": port, "data": data.decode("latin-1")})
        sock.sendto(BODY, peer)

    def _resolve(self, sock: socket.socket) -> None:
        query, peer = sock.recvfrom(65535)
        reply = self._answer(query, "udp")
        if reply:
            sock.sendto(reply, peer)

    def _resolve_tcp(self, data: bytes) -> bytes:
        reply = self._answer(data[2:], "tcp")
        return struct.pack(">H", len(reply)) + reply

    def _answer(self, query: bytes, over: str) -> bytes:
        try:
            reply, name, qtype = self._zones.answer(query)
        except (IndexError, struct.error):
            self._questions.append({"name": query.hex(), "type": 0, "over": over})
            return b""
        self._questions.append({"name": name, "type": qtype, "over": over})
        return reply

    def _packet(self, sock: socket.socket) -> None:
        packet, (_device, protocol, direction, *_rest) = sock.recvfrom(128)
        found = describe(packet, protocol) if direction == socket.PACKET_HOST else None
        if found is not None:
            self._packets.append(found)

    # -- the judge

    def _accept_judge(self, door: socket.socket) -> None:
        sock, _ = door.accept()
        self._watch(sock, lambda: self._hear_judge(sock))

    def _hear_judge(self, sock: socket.socket) -> None:
        word = sock.recv(64)
        if not word:
            self._drop(sock)
            return
        self._take_all(sock)
        if word == b"reset\n":
            self._zones.reset()
        sock.setblocking(True)
        sock.sendall(json.dumps(self._news()).encode() + b"\n")
        sock.setblocking(False)

    def _take_all(self, but: socket.socket) -> None:
        """Hear everything that has arrived, until nothing is left."""
        while ready := [key for key, _ in self._selector.select(0) if key.fileobj is not but]:
            self._handle(ready)

    def _handle(self, ready: list[selectors.SelectorKey]) -> None:
        for key in ready:
            # What a judge's mark has taken in meanwhile may be closed, or have nothing left.
            if key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
                with contextlib.suppress(BlockingIOError):
                    key.data()

    def _news(self) -> dict[str, Any]:
        news = {
            "tcp": [found for seen in self._connections if (found := seen.news())],
            "dns": self._questions,
            "packets": self._packets,
            "udp": self._datagrams,
        }
        self._questions, self._packets, self._datagrams = [], [], []
        self._connections = self._connections[-256:]
        return news

    def run(self) -> None:
        while True:
            self._handle([key for key, _ in self._selector.select()])


def describe(packet: bytes, protocol: int) -> dict[str, Any] | None:
    """A TCP connection being begun, or any other packet that is not housekeeping of the link."""
    if protocol == 0x0800 and len(packet) >= 20:
        start, upper, target = (
            (packet[0] & 15) * 4,
            packet[9],
            socket.inet_ntop(socket.AF_INET, packet[16:20]),
        )
    elif protocol == 0x86DD and len(packet) >= 40:
        start, upper, target = 40, packet[6], socket.inet_ntop(socket.AF_INET6, packet[24:40])
    else:
        return None
    if upper in (0, 58):  # multicast listeners, neighbour discovery
        return None
    if upper == 6 and (len(packet) < start + 14 or packet[start + 13] & 0x12 != 0x02):
        return None
    port = int.from_bytes(packet[start + 2 : start + 4], "big") if upper in (6, 17) else 0
    return {"protocol": upper, "host": target, "port": port}


class Speaker:
    """The far side of one connection: TLS where the port says so, HTTP on top, else an echo."""

    def __init__(self, sock: socket.socket, seen: Seen, context: ssl.SSLContext | None) -> None:
        self._sock = sock
        self._seen = seen
        self._text = b""
        self._switched = False  # to WebSocket: an echo from there on
        self.reply: Callable[[bytes], bytes] | None = None
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    def hear(self) -> bool:
        """Take what has come; False when the connection is over."""
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        if len(self._seen.data) < KEPT_BYTES:
            self._seen.data += data
        try:
            return self._secure(data) if self._tls else self._say(self._plain(data))
        except (ssl.SSLError, OSError):
            with contextlib.suppress(OSError):
                self._say(self._out.read() if self._tls else b"")
            return False

    def _secure(self, data: bytes) -> bool:
        tls = self._tls
        if tls is None:
            raise RuntimeError("no TLS here")
        self._in.write(data)
        try:
            tls.do_handshake()
            while text := tls.read(65536):
                tls.write(self._plain(text))
        except ssl.SSLWantReadError:
            pass
        return self._say(self._out.read())

    def _plain(self, data: bytes) -> bytes:
        if self.reply is not None:
            return self.reply(data)
        if self._seen.port not in (80, 443, 8080, 8443):
            return data
        if self._switched:
            return data
        self._text += data
        answer = b""
        while b"\r\n\r\n" in self._text:
            head, _, self._text = self._text.partition(b"\r\n\r\n")
            if b"\r\nupgrade: websocket" in head.lower():
                self._switched = True
                return answer + SWITCH + self._text
            answer += ANSWER
        return answer

    def _say(self, data: bytes) -> bool:
        if data:
            self._sock.setblocking(True)
            self._sock.settimeout(2.0)
            self._sock.sendall(data)
            self._sock.setblocking(False)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", required=True)
    parser.add_argument("--spec", required=True, type=Path)
    args = parser.parse_args()
    observer = Observer(json.loads(args.spec.read_text()), args.control)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    observer.run()


if __name__ == "__main__":
    main()
