"""Clients that say who they are: asked where nothing else tells, never believed against the kernel."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import HOME, Origin, in_namespace, read_all, read_head
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind
from exeat.proxy.credentials import FAILURES

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: {0}
posture: allowlist
allow:
  - {{id: site, to: {0}.example.org, ports: 7000}}
  - {{id: datagrams, to: {0}.example.org, ports: 7000, proto: udp}}
"""
IDENTITIES = """
[[identity]]
source = "127.0.0.7"
project = "other"
agent = "by-address"
[[identity]]
source = "user:ci"
project = "builds"
agent = "ci"
"""
ZONE = [(f"{name}.example.org", 60, "A", HOME) for name in ("builds", "other")]


def alone(body: Callable[[Standalone, str], None]) -> None:
    """Run `body` with a gateway that knows `ci`, whose password is given."""

    def run() -> None:
        with name_server(zone_handler(ZONE)) as server:
            policies = {name: POLICY.format(name) for name in ("builds", "other")}
            made = Standalone(server.address, policies, IDENTITIES)
            try:
                text = made.config.read_text()
                line = f'[proxy]\ncredentials = "{made.base}/credentials"\n'
                made.config.write_text(text.replace("[proxy]\n", line))
                added = made.exeat("identity", "add", "ci")
                assert added.returncode == 0, added.stderr
                name, _, password = added.stdout.strip().partition(":")
                assert name == "ci"
                made.up()
                body(made, password)
                assert made.down() == 0
                secret = password.encode()
                kept = [path for path in made.base.rglob("*") if path.is_file()]
                assert not [path for path in kept if secret in path.read_bytes()]
            finally:
                made.close()
                Origin.close_all()

    in_namespace(run)


def answer_once(sock: socket.socket) -> None:
    head = read_head(sock)
    assert b"uthoriz" not in head
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def basic(name: str, password: str) -> bytes:
    token = b64encode(f"{name}:{password}".encode())
    return b"Proxy-Authorization: Basic " + token + b"\r\n"


def request(host: bytes, more: bytes = b"") -> bytes:
    return b"GET http://%b.example.org:7000/ HTTP/1.1\r\nHost: x\r\n%b\r\n" % (host, more)


def get(host: bytes, more: bytes = b"", source: str = "127.0.0.1") -> bytes:
    with socket.create_connection(("127.0.0.1", 3128), 10, source_address=(source, 0)) as sock:
        sock.sendall(request(host, more + b"Connection: close\r\n"))
        return read_all(sock)


def socks(name: bytes, password: bytes, methods: bytes = b"\x02") -> bytes:
    """What the SOCKS door says until the answer of the tunnel, which carries one HTTP exchange."""
    with socket.create_connection(("127.0.0.1", 1080), 10) as sock:
        sock.sendall(bytes((5, len(methods))) + methods)
        got = sock.recv(2)
        if got != b"\x05\x02":
            return got
        sock.sendall(bytes((1, len(name))) + name + bytes((len(password),)) + password)
        got = sock.recv(2)
        if got != b"\x01\x00":
            return got
        sock.sendall(b"\x05\x01\x00\x03\x12builds.example.org" + struct.pack(">H", 7000))
        return got + sock.recv(10)


def test_a_name_and_password_say_who_it_is() -> None:
    def body(made: Standalone, password: str) -> None:
        Origin(7000, answer_once)
        good = basic("ci", password)
        answer = get(b"builds")
        assert answer.startswith(b"HTTP/1.1 407 ")
        assert b'\r\nProxy-Authenticate: Basic realm="exeat", charset="UTF-8"\r\n' in answer
        assert b"auth.required" in answer
        assert get(b"builds", good).endswith(b"hi")
        assert b"posture.default_deny" in get(b"other", good)
        assert b"auth.failed" in get(b"builds", basic("ci", "wrong"))
        assert b"auth.failed" in get(b"builds", basic("other", password))
        opened = next(record for record in made.records() if record.kind is Kind.OPEN)
        assert (opened.project, opened.agent) == ("builds", "ci")
        assert opened.src.startswith("127.0.0.1:")

    alone(body)


def test_each_request_says_it_again_and_the_kernel_knows_better() -> None:
    def body(made: Standalone, password: str) -> None:
        Origin(7000, answer_once)
        good = basic("ci", password)
        with socket.create_connection(("127.0.0.1", 3128), 10) as sock:
            for more, status in ((b"", b"407"), (good, b"200"), (b"", b"407"), (good, b"200")):
                sock.sendall(request(b"builds", more))
                head = read_head(sock)
                assert head.split(b" ")[1] == status
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                sock.recv(length, socket.MSG_WAITALL)
        # From an address that is somebody's, a password changes nothing, right or wrong.
        for more in (b"", good, basic("ci", "wrong")):
            assert get(b"other", more, "127.0.0.7").endswith(b"hi")
            assert b"posture.default_deny" in get(b"builds", more, "127.0.0.7")

    alone(body)


def test_the_same_for_socks_and_for_curl() -> None:
    def body(made: Standalone, password: str) -> None:
        Origin(7000, answer_once)
        secret = password.encode()
        assert socks(b"ci", secret) == b"\x01\x00\x05\x00\x00\x01" + bytes(6)
        assert socks(b"ci", secret, b"\x00\x02")[:4] == b"\x01\x00\x05\x00"
        assert socks(b"ci", b"wrong") == b"\x01\x01"
        assert socks(b"", b"", b"\x00") == b"\x05\xff"
        for scheme, door in (("http", "3128"), ("socks5h", "1080")):
            words = ["curl", "-sS", "--noproxy", "", "-x", f"{scheme}://ci:{password}@127.0.0.1:{door}"]
            done = subprocess.run(
                [*words, "http://builds.example.org:7000/"], capture_output=True, timeout=30, check=False
            )
            assert done.stdout == b"hi", done.stderr

    alone(body)


def test_datagrams_carry_no_password_so_their_port_must_be_named() -> None:
    """Anybody at the client's address could send to an association that takes the first who comes."""
    head = b"\0\0\0\x03\x12builds.example.org" + struct.pack(">H", 7000)

    def ask(sock: socket.socket, password: str, port: int) -> bytes:
        sock.sendall(b"\x05\x01\x02")
        assert sock.recv(2) == b"\x05\x02"
        sock.sendall(b"\x01\x02ci" + bytes((len(password),)) + password.encode())
        assert sock.recv(2) == b"\x01\x00"
        sock.sendall(b"\x05\x03\x00\x01" + bytes(4) + struct.pack(">H", port))
        return sock.recv(10)

    def body(_made: Standalone, password: str) -> None:
        with contextlib.ExitStack() as stack:
            origin, mine, other = (
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)
            )
            for sock, place in ((origin, (HOME, 7000)), (mine, ("127.0.0.1", 0)), (other, ("127.0.0.1", 0))):
                sock.bind(place)
                sock.settimeout(30)
            first, second = (
                stack.enter_context(socket.create_connection(("127.0.0.1", 1080), 10)) for _ in range(2)
            )
            assert ask(first, password, 0) == b"\x05\x07\0\x01" + bytes(6)
            reply = ask(second, password, mine.getsockname()[1])
            assert reply[:4] == b"\x05\0\0\x01"
            at = ("127.0.0.1", int.from_bytes(reply[8:], "big"))
            other.sendto(head + b"not its own", at)
            mine.sendto(head + b"hello", at)
            assert origin.recv(100) == b"hello"

    alone(body)


def test_guessing_ends_and_a_removed_name_opens_nothing() -> None:
    def body(made: Standalone, password: str) -> None:
        Origin(7000, answer_once)
        good = basic("ci", password)
        for _ in range(FAILURES):
            assert b"auth.failed" in get(b"builds", basic("ci", "wrong"), "127.0.0.2")
        answer = get(b"builds", good, "127.0.0.2")
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nRetry-After: " in answer
        assert get(b"builds", good).endswith(b"hi"), "others are not kept out"
        assert made.exeat("identity", "ls").stdout == "ci\n"
        again = made.exeat("identity", "add", "ci")
        assert (again.returncode, "rm it first" in again.stderr) == (1, True)
        with (
            socket.create_connection(("127.0.0.1", 3128), 10) as tunnel,
            socket.create_connection(("127.0.0.1", 3128), 10, source_address=("127.0.0.7", 0)) as other,
        ):
            for sock, name, said in ((tunnel, b"builds", good), (other, b"other", b"")):
                sock.sendall(b"CONNECT %b.example.org:7000 HTTP/1.1\r\n%b\r\n" % (name, said))
                assert read_head(sock).startswith(b"HTTP/1.1 200 ")
                sock.sendall(b"GET / HTTP/1.1\r\n")  # not all of it: the origin waits
            made.wait_records(2, "rule.allow")
            assert made.exeat("identity", "rm", "ci").returncode == 0
            with contextlib.suppress(ConnectionResetError):
                assert tunnel.recv(1) == b""
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.recv(1)
        (closed,) = wait_for(lambda: [r for r in made.records() if r.close_reason == "auth.failed"])
        assert (closed.kind, closed.agent) == (Kind.CLOSE, "ci")
        assert b"auth.failed" in get(b"builds", good)
        assert made.exeat("identity", "rm", "ci").returncode == 1

    alone(body)
