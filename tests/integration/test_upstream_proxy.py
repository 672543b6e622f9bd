"""Through a corporate proxy: what it is asked, what it may refuse, and that nobody else gets to it."""

from __future__ import annotations

import os
import pwd
import socket
import threading
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import HOME, Origin, client_hello, in_namespace, read_all, read_head
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.records import Record

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: builds
posture: allowlist
allow:
  - {id: site, to: [.example.org], ports: [22, 80, 443, 7000]}
  - {id: the-proxy, to: 203.0.113.2, ports: 8080, private: true}
"""
IDENTITIES = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "builds"\n'
PROXY = "203.0.113.2"
ZONE = [
    ("www.example.org", 60, "A", HOME),
    ("direct.example.org", 60, "A", HOME),
    ("two.example.org", 60, "AAAA", "2001:db8:1::77"),
    ("two.example.org", 60, "A", HOME),
]
SECRET = "corp:s3cret"
GOOD = b"HTTP/1.1 200 Connection established\r\nVia: corp\r\n\r\n"


class Corporate(Origin):
    """Takes CONNECT, keeps what it was asked, answers with `answer` and, when that is a yes, relays."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.answers: list[bytes] = []
        super().__init__(8080, self._serve, PROXY)

    @property
    def asked(self) -> list[str]:
        return [head.split(b" ")[1].decode() for head in self.heads]

    def _serve(self, sock: socket.socket) -> None:
        head = read_head(sock)
        self.heads.append(head)
        answer = self.answers.pop(0) if self.answers else GOOD
        sock.sendall(answer)
        if GOOD not in answer:
            return
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        with socket.create_connection((HOME, port), 10) as far:
            back = threading.Thread(target=_pour, args=(far, sock), daemon=True)
            back.start()
            _pour(sock, far)
            back.join(30)


def _pour(source: socket.socket, sink: socket.socket) -> None:
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def chained(body: Callable[[Standalone, Corporate], None], more: str = "") -> None:
    def run() -> None:
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, {"builds": POLICY}, IDENTITIES)
            try:
                secret = made.base / "corp"
                secret.write_text(SECRET + "\n")
                secret.chmod(0o640)
                os.chown(secret, 0, pwd.getpwnam("exeat").pw_gid)
                lines = (
                    f'[proxy]\nupstream = "http://{PROXY}:8080"\nupstream_credentials = "{secret}"\n'
                    f'no_upstream = ["direct.example.org"]\n{more}'
                )
                made.config.write_text(made.config.read_text().replace("[proxy]\n", lines))
                corporate = Corporate()
                made.up()
                body(made, corporate)
                assert made.down() == 0
                token = b64encode(SECRET.encode())
                assert all(b"\r\nProxy-Authorization: Basic " + token in head for head in corporate.heads)
                kept = [path for path in (made.base / "state").rglob("*") if path.is_file()]
                assert not [path for path in kept if token in path.read_bytes()]
            finally:
                made.close()
                Origin.close_all()

    in_namespace(run)


def connect(place: str) -> tuple[bytes, socket.socket]:
    sock = socket.create_connection(("127.0.0.1", 3128), 10)
    sock.sendall(f"CONNECT {place} HTTP/1.1\r\n\r\n".encode())
    return read_head(sock), sock


def closed(made: Standalone, count: int) -> list[Record]:
    def found() -> list[Record]:
        closes = [record for record in made.records() if record.kind is Kind.CLOSE]
        return closes if len(closes) >= count else []

    return wait_for(found)


def test_the_upstream_gets_vetted_addresses() -> None:
    def body(made: Standalone, corporate: Corporate) -> None:
        def speak_first(sock: socket.socket) -> None:
            sock.sendall(b"SSH-2.0-x\r\n")
            sock.sendall(sock.recv(10))

        def answer(sock: socket.socket) -> None:
            read_head(sock)
            sock.sendall(b"HTTP/1.1 204 No\r\n\r\n")

        Origin(22, speak_first)
        Origin(80, answer)
        head, sock = connect("www.example.org:22")
        assert head.startswith(b"HTTP/1.1 200 ")
        with sock:
            assert sock.recv(11, socket.MSG_WAITALL) == b"SSH-2.0-x\r\n"
            sock.sendall(b"hello")
            assert read_all(sock) == b"hello"
        (record,) = closed(made, 1)
        assert (record.bytes_out, record.kernel_out, record.bytes_in, record.kernel_in) == (5, 5, 16, 16)
        assert record.dest is not None
        assert (record.dest.host, record.dest.ip) == ("www.example.org", socket.inet_aton(HOME))
        with socket.create_connection(("127.0.0.1", 3128), 10) as sock:
            sock.sendall(b"GET http://www.example.org/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_all(sock).startswith(b"HTTP/1.1 204 ")
        assert corporate.asked == [f"{HOME}:22", f"{HOME}:80"]
        head, sock = connect("direct.example.org:80")
        sock.close()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert len(corporate.heads) == 2
        head, sock = connect("www.example.org:443")  # its server name is judged as ever
        with sock:
            sock.sendall(client_hello("evil.example.net"))
            assert read_all(sock)[:1] == b"\x15"
        head, sock = connect(f"{PROXY}:8080")
        sock.close()
        assert b"meta.control_plane" in head

    chained(body)


def test_what_the_upstream_refuses_has_a_reason() -> None:
    def body(made: Standalone, corporate: Corporate) -> None:
        for answer, code in (
            (b"HTTP/1.1 407 Say\r\nProxy-Authenticate: Basic\r\n\r\n", b"upstream.credentials"),
            (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", b"upstream.refused"),
            (b"HTTP/1.1 502 Bad\r\n\r\n", b"upstream.unreachable"),
            (b"HTTP/1.1 101 Other\r\n\r\n", b"upstream.malformed"),
            (b"HTTP/1.1 200 OK\n\n", b"upstream.malformed"),
            (b"SSH-2.0-x\r\n", b"upstream.malformed"),
            (b"HTTP/1.1 20", b"upstream.malformed"),
            (b"", b"upstream.malformed"),
        ):
            corporate.answers = [answer]
            head, sock = connect("www.example.org:7000")
            sock.close()
            assert head.startswith(b"HTTP/1.1 502 "), (answer, head)
            assert b"[" + code + b"]" in head
        corporate.answers = [b"HTTP/1.1 503 No route\r\n\r\n", b"HTTP/1.1 103 Early\r\n\r\n" + GOOD + b"late"]
        Origin(7000, lambda sock: sock.sendall(b" and more"))
        head, sock = connect("two.example.org:7000")
        with sock:
            assert read_all(sock) == b"late and more"
        assert sorted(corporate.asked[-2:]) == sorted(["[2001:db8:1::77]:7000", f"{HOME}:7000"])
        opened = [record.dest for record in made.records() if record.kind is Kind.OPEN]
        assert [dest.host for dest in opened if dest] == ["two.example.org"]

    chained(body)


def test_an_upstream_that_resolves_gets_names() -> None:
    def body(made: Standalone, corporate: Corporate) -> None:
        Origin(7000, lambda sock: sock.sendall(b"hi"))
        head, sock = connect("internet-only.example.org:7000")  # the guard would find no address
        with sock:
            assert head.startswith(b"HTTP/1.1 200 ")
            assert read_all(sock) == b"hi"
        assert corporate.asked == ["internet-only.example.org:7000"]
        head, sock = connect("www.example.net:7000")
        sock.close()
        assert b"posture.default_deny" in head
        assert len(corporate.heads) == 1

    chained(body, "upstream_resolves = true\n")
