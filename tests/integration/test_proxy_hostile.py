"""Classes of hostile input through the whole proxy, beside the legitimate ones that must pass.

Nothing refused may cause a question to the guard for the refused name, and no origin may see a
byte of it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from tests.support.proxy_world import (
    HOME,
    Origin,
    World,
    client_hello,
    in_namespace,
    read_all,
)

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

EVIL = "203.0.113.2"
POLICY = """
egress: v1
project: p
posture: allowlist
preset: strict
allow:
  - {id: wild, to: .wild.example.org, ports: [443, 80]}
  - {id: other, to: other.example.org, ports: [443, 22]}
deny:
  - {id: blocked, to: [blocked.wild.example.org]}
"""
NAMES = {
    "www.wild.example.org": [HOME],
    "other.example.org": [HOME],
    "private.wild.example.org": ["10.0.0.5"],
    "meta.wild.example.org": ["169.254.169.254"],
    "nat64.wild.example.org": ["64:ff9b::a9fe:a9fe"],
    "mixed.wild.example.org": [HOME, "192.168.0.1"],
    "evil.example.net": [EVIL],
    "blocked.wild.example.org": [EVIL],
}

HOSTS = [
    b"blocked.wild.example.org",
    b"BLOCKED.wild.example.org",
    b"blocked.wild.example.org.",
    b"blocked..wild.example.org",
    b"evil.example.net",
    b"evil\0.wild.example.org",
    b"evil%00.wild.example.org",
    b"blocked%2ewild.example.org",
    b"[www.wild.example.org]",
    "\uff42locked.wild.example.org".encode(),
    "blo\u212aked.wild.example.org".encode(),
    "blocked\u3002wild.example.org".encode(),
    "blo\u00adcked.wild.example.org".encode(),
    b"www.wild.example.org@evil.example.net",
    b"evil.example.net@www.wild.example.org",
    b"evil.example.net#.wild.example.org",
    b"evil.example.net/.wild.example.org",
    b"evil.example.net\\.wild.example.org",
    b"evil.example.net?.wild.example.org",
    b"evil.example.net\t.wild.example.org",
    b"evilwild.example.org",
    b"www.wild.example.org.evil.example.net",
    b"",
    b"2130706433",
    b"0x7f000001",
    b"0177.0.0.1",
    b"127.1",
    b"0",
    b"127.0.0.1",
    b"[::1]",
    b"[::ffff:127.0.0.1]",
    b"[64:ff9b::7f00:1]",
    b"[2002:7f00:1::]",
    b"[::ffff:1.2.3.4%x.wild.example.org]",
    b"169.254.169.254",
    b"169.254.169.254.",
    b"10.0.0.1",
    b"203.0.113.1",
    b"private.wild.example.org",
    b"meta.wild.example.org",
    b"nat64.wild.example.org",
    b"mixed.wild.example.org",
]
PORTS = [b"0", b"65979", b"+443", b"443 ", b" 443", b"4_43", b"-443", b"0443", b"25", b"22", b"53", b"5432"]
W = b"www.wild.example.org"
HTTP = [
    b"GET http://%b:25/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (W, W),
    b"GET http://%b:443/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (W, W),
    b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\nHost: evil.example.net\r\n\r\n" % (W, W),
    b"GET http://%b/ HTTP/1.1\r\nHost:\r\n evil.example.net\r\n\r\n" % W,
    b"POST http://%b/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    % W,
    b"POST http://%b/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" % W,
    b"POST http://%b/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345" % W,
    b"GET http://%b/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" % W,
    b"GET http://%b/ HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n" % W,
    b"GET http://%b/\r\n" % W,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET http://evil.example.net/ HTTP/1.1\r\nHost: %b\r\n\r\n" % W,
    b"GET http://%b@evil.example.net/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (W, W),
    b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % W,
    b"CONNECT %b:443 HTTP/1.1\nHost: x\n\n" % W,
    b"CONNECT %b:443 evil.example.net:443 HTTP/1.1\r\n\r\n" % W,
    b"CONNECT %b:443\r\nHost: evil.example.net\r\n\r\n" % W,
]


def test_targets_heads_and_literals(tmp_path: Path) -> None:
    def body() -> None:
        with World(tmp_path, POLICY) as w:
            w.guard.names = dict(NAMES)
            origins = [Origin(port, lambda s: None, ip) for ip in (HOME, EVIL) for port in (443, 80, 22, 25)]
            requests = [b"CONNECT %b:443 HTTP/1.1\r\nHost: %b\r\n\r\n" % (host, W) for host in HOSTS]
            requests += [b"CONNECT %b:%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (W, port, W) for port in PORTS]
            opened = []
            for request in [*requests, *HTTP]:
                status, head, _ = w.ask(request)
                if not 400 <= status < 600:
                    opened.append((request, head))
            assert opened == []
            for host in HOSTS:
                if len(host) < 256 and not host.startswith(b"www.wild.example.org@"):
                    sock = w.connect()
                    sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(host),)) + host + b"\x01\xbb")
                    answer = read_all(sock)
                    assert answer[:2] == b"\x05\x00", host
                    assert answer[3] in (2, 4), host
            assert [origin.connections for origin in origins] == [0] * 8
            permitted = {"private", "meta", "nat64", "mixed"}
            assert {name.partition(".")[0] for name in w.guard.asked} <= permitted
            assert not [r for r in w.records() if r.kind is Kind.OPEN]
            wanted = len(requests) + len(HTTP)
            w.wait_record(lambda _: len([r for r in w.records() if r.kind is Kind.DENY]) >= wanted)

    in_namespace(body)


def alter(name: str, old: bytes, new: bytes) -> bytes:
    hello = client_hello(name)
    assert old in hello
    assert len(old) == len(new)
    return hello.replace(old, new)


NAME = b"www.wild.example.org"
GOOD = client_hello(NAME.decode())
FIRST = {
    "wrong name": client_hello("evil.example.net"),
    "another allowed name": client_hello("other.example.org"),
    "no name": client_hello(None),
    "NUL": alter(NAME.decode(), NAME, b"www\0wild.example.org"),
    "trailing dot": alter(NAME.decode() + "x", NAME + b"x", NAME + b"."),
    "address": alter("1270a0b0c1x", b"1270a0b0c1x", b"127.0.0.001"),
    "name type 7": alter(NAME.decode(), b"\x00\x00\x14" + NAME, b"\x07\x00\x14" + NAME),
    "ssh": b"SSH-2.0-OpenSSH\r\n",
    "plain http": b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n",
    "nested connect": b"CONNECT evil.example.net:443 HTTP/1.1\r\n\r\n",
    "sslv2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\x01" * 40,
    "alert first": b"\x15\x03\x01\x00\x02\x01\x00" + GOOD,
    "data first": b"\x17\x03\x03\x00\x01x" + GOOD,
    "cut hello then data": GOOD[:5] + GOOD[5:100],
}


@pytest.mark.parametrize("early", [True, False])
def test_first_bytes_in_a_tunnel(tmp_path: Path, early: bool) -> None:
    def body() -> None:
        with World(tmp_path, POLICY, hello_timeout_s=0.5) as w:
            w.guard.names = dict(NAMES)
            origin = Origin(443, lambda sock: origin.record(sock))
            for what, data in FIRST.items():
                sock = w.tunnel(NAME.decode(), 443, data if early else b"")
                if not early:
                    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                        for at in range(0, len(data), 37):
                            sock.sendall(data[at : at + 37])
                answer = read_all(sock)
                assert answer == b"" or answer.startswith(b"\x15\x03\x03\x00\x02\x02"), what
            assert bytes(origin.received) == b""
            assert not [r for r in w.records() if r.kind is Kind.OPEN]
            good = w.tunnel(NAME.decode(), 443, GOOD[:1])
            for at in range(1, len(GOOD), 37):
                good.sendall(GOOD[at : at + 37])
            good.sendall(b"rest")
            good.shutdown(socket.SHUT_WR)
            read_all(good)
            assert bytes(origin.received) == GOOD + b"rest"

    in_namespace(body)


def test_tls_with_a_wrong_name_on_a_raw_port(tmp_path: Path) -> None:
    def body() -> None:
        with World(tmp_path, POLICY) as w:
            w.guard.names = dict(NAMES)
            origin = Origin(22, lambda sock: origin.record(sock))
            sock = w.tunnel("other.example.org", 22)
            sock.sendall(client_hello("evil.example.net"))
            with contextlib.suppress(ConnectionResetError):
                read_all(sock)
            denied = w.wait_record(lambda r: r.kind is Kind.DENY)
            assert denied.reason_code == "sni.mismatch"
            assert w.closes()[0].bytes_out == 0
            assert bytes(origin.received) == b""

    in_namespace(body)


def test_http_in_a_tunnel_to_port_80_names_its_target(tmp_path: Path) -> None:
    def body() -> None:
        with World(tmp_path, POLICY) as w:
            w.guard.names = dict(NAMES)
            origin = Origin(80, lambda sock: origin.record(sock))
            for head in (
                b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n",
                b"GET / HTTP/1.1\nHost: evil.example.net\n\n",
                b"CONNECT evil.example.net:443 HTTP/1.1\r\n\r\n",
            ):
                sock = w.tunnel(NAME.decode(), 80)
                sock.sendall(head)
                with contextlib.suppress(ConnectionResetError):
                    assert read_all(sock) == b""
            assert bytes(origin.received) == b""
            good = b"GET / HTTP/1.1\r\nHost: www.wild.example.org\r\n\r\n"
            sock = w.tunnel(NAME.decode(), 80, good)
            sock.shutdown(socket.SHUT_WR)
            read_all(sock)
            assert bytes(origin.received) == good

    in_namespace(body)


def test_socks_commands_and_versions(tmp_path: Path) -> None:
    def body() -> None:
        with World(tmp_path, POLICY) as w:
            tail = b"\x03\x14" + NAME + struct.pack(">H", 443)
            for command in (b"\x02", b"\x03", b"\x00", b"\xff"):
                sock = w.connect()
                sock.sendall(b"\x05\x01\x00\x05" + command + b"\x00" + tail)
                assert read_all(sock)[:4] == b"\x05\x00\x05\x07"
            for opening in (b"\x04\x01\x01\xbb\xcb\x00\x71\x01\x00", b"\x16\x03\x01", b"\x00"):
                sock = w.connect()
                sock.sendall(opening)
                answer = read_all(sock)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
            sock = w.connect()
            sock.sendall(b"\x05\x01\x00")
            assert sock.recv(2) == b"\x05\x00"
            sock.sendall(b"\x05\x01\x00\x03\x00\x01\xbb")
            assert read_all(sock)[:2] == b"\x05\x02"
            status, _, _ = w.ask(b"X" * 20_000)
            assert status == 431

    in_namespace(body)
