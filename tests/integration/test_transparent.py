"""Redirected connections end to end: a real jail's rules, the proxy, its ledger; the test plays the guard.

The sockets that the test connects are made inside the jail's namespace, as a job's are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.support.proxy_world import (
    HOME,
    NODE,
    Origin,
    World,
    client_hello,
    in_namespace,
    read_all,
    read_head,
)
from tests.support.running import wait_for

from exeat.ledger.records import Kind
from exeat.sandbox import netns

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.ledger.records import Record

pytestmark = pytest.mark.root

OTHER, SIX = "203.0.113.2", "2001:db8:1::1"
POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: web, to: www.example.org, ports: [443, 80, 8080, 22, 7000]}
  - {id: twin, to: twin.example.org, ports: [443, 7000]}
  - {id: block, to: 203.0.113.2, ports: [22, 25]}
ask:
  - {id: clone, to: git.example.org, ports: 443}
deny:
  - {id: paste, to: paste.example.org}
"""
NAMES = {
    "www.example.org": [HOME, SIX],
    "twin.example.org": [OTHER, HOME],
    "git.example.org": [HOME],
    "paste.example.org": [HOME],
}
HELLO = client_hello("www.example.org")
GET = b"GET /page HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive\r\n\r\n"
ALERT = b"\x15\x03\x03\x00\x02\x02"
_CLONE_NEWNET = 0x40000000


class JailedWorld(World):
    """A World whose job has the redirected doors of a real jail."""

    def jail(self, name: str = "job-1", hold_ms: int = 300) -> None:
        self.space = self.base / "net"
        netns.create(self.space)
        names = ["trans4", "trans6"]
        self.doors = netns.listen(self.space, self.base, names)
        subject = {"project": "p", "agent": "a", "job": name, "episode": "e", "node": NODE}
        message = {"t": "jail.add", "jail": name, "subject": subject, "sockets": names, "hold_ms": hold_ms}
        self.control.tell(f"jail {name}", message, [door.fileno() for door in self.doors])

    def close(self) -> None:
        super().close()
        for door in self.doors:
            door.close()
        netns.destroy(self.space)

    def inside(self, address: str, port: int) -> socket.socket:
        """A connection from inside the jail."""

        def make() -> socket.socket:
            with self.space.open() as handle:
                if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)

        with ThreadPoolExecutor(1) as thread:
            sock = thread.submit(make).result()
        self._clients.append(sock)
        sock.settimeout(30)
        sock.connect((address, port))
        return sock

    def denied(self, reason: str) -> Record:
        return self.wait_record(lambda r: r.kind is Kind.DENY and r.reason_code == reason)


def world(tmp_path: Path, body: Callable[[JailedWorld], None], **settings: float) -> None:
    def run() -> None:
        with JailedWorld(tmp_path, POLICY, **settings) as made:
            made.guard.names = dict(NAMES)
            body(made)

    in_namespace(run)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def greeting(sock: socket.socket) -> None:
    sock.sendall(b"SSH-2.0-origin\r\n")
    echo(sock)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def is_reset(sock: socket.socket) -> bool:
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def gets_a_reset(w: JailedWorld, address: str, port: int) -> bool:
    """Of a client that says nothing: on a busy machine the reset may be there before connect returns."""
    try:
        return is_reset(w.inside(address, port))
    except ConnectionResetError:
        return True


def is_over(sock: socket.socket) -> bool:
    """By an end of stream or by a reset, whichever the kernel makes of it."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def facts(record: Record) -> tuple[str, str, str, int]:
    assert record.dest is not None
    return record.name_source, record.rule_id, record.dest.host, record.dest.port


def test_tls_goes_by_its_server_name(tmp_path: Path) -> None:
    def tunnel(w: JailedWorld, address: str, count: int) -> None:
        Origin(443, echo, address)
        sock = w.inside(address, 443)
        for at in range(0, len(HELLO), 50):
            sock.sendall(HELLO[at : at + 50])
        assert exactly(sock, len(HELLO)) == HELLO
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
        closed = w.closes(count)[-1]
        assert facts(closed) == ("sni", "web", "www.example.org", 443)
        assert closed.dest is not None
        assert closed.dest.ip == socket.inet_pton(
            socket.AF_INET6 if ":" in address else socket.AF_INET, address
        )
        assert (closed.bytes_out, closed.bytes_in) == (len(HELLO), len(HELLO))
        assert (closed.client_kernel_out, closed.client_kernel_in) == (len(HELLO), len(HELLO))
        place = f"[{address}]:443" if ":" in address else f"{address}:443"
        assert closed.src.endswith(f" to {place}")

    def body(w: JailedWorld) -> None:
        tunnel(w, HOME, 1)
        tunnel(w, SIX, 2)

    world(tmp_path, body)


def test_a_name_is_dialled_where_the_guard_says_whatever_address_was_chosen(tmp_path: Path) -> None:
    """An allowed name on the way to an address of somebody else's: the name counts, the address does not."""

    def body(w: JailedWorld) -> None:
        origin = Origin(443, echo, HOME)
        elsewhere = Origin(443, echo, OTHER)
        sock = w.inside(OTHER, 443)
        sock.sendall(HELLO)
        assert exactly(sock, len(HELLO)) == HELLO
        assert (origin.connections, elsewhere.connections) == (1, 0)
        # With both vetted, the client's own choice comes first.
        hello = client_hello("twin.example.org")
        for address, counts in ((HOME, (2, 0)), (OTHER, (2, 1))):
            sock = w.inside(address, 443)
            sock.sendall(hello)
            assert exactly(sock, len(hello)) == hello
            assert (origin.connections, elsewhere.connections) == counts

    world(tmp_path, body)


REFUSED_HELLOS = (
    (client_hello("paste.example.org"), "rule.deny", ("sni", "paste", "paste.example.org", 443)),
    (client_hello("else.example.org"), "posture.default_deny", ("sni", "", "else.example.org", 443)),
    (client_hello(None), "ip_literal.denied", ("address", "", HOME, 443)),
)


def test_refused_tls_gets_an_alert(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        origin = Origin(443, echo, HOME)
        for hello, reason, why in REFUSED_HELLOS:
            sock = w.inside(HOME, 443)
            sock.sendall(hello)
            assert read_all(sock)[:6] == ALERT
            assert facts(w.denied(reason)) == why
        assert origin.connections == 0

    world(tmp_path, body)


def test_each_request_goes_by_its_own_host(tmp_path: Path) -> None:
    """On one connection, and the second and third already sent with the first."""

    def body(w: JailedWorld) -> None:
        def answer(sock: socket.socket) -> None:
            origin.received += read_head(sock)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            origin.record(sock)

        origin = Origin(8080, answer, HOME)
        sock = w.inside(HOME, 8080)
        hosts = (b"www.example.org:8080", b"paste.example.org:8080", b"www.example.org:8080")
        sock.sendall(b"".join(GET % host for host in hosts))
        for status in (b"200", b"403", b"200"):
            head = read_head(sock)
            assert head.split(b" ")[1] == status
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert len(exactly(sock, length)) == length
        sock.sendall(b"GET / HTTP/1.1\r\nHost: www.example.org:81\r\n\r\n")
        assert b"[http.host_mismatch]" in read_head(sock)
        assert [facts(record) for record in w.closes(2)] == [("host", "web", "www.example.org", 8080)] * 2
        assert facts(w.denied("rule.deny")) == ("host", "paste", "paste.example.org", 8080)
        assert bytes(origin.received).count(b"GET ") == 2
        assert b"paste" not in origin.received

    world(tmp_path, body)


REFUSED_REQUESTS = (
    (GET % b"paste.example.org", 403, "rule.deny"),
    (GET % HOME.encode(), 403, "ip_literal.denied"),
    (GET % b"203.0.113.77", 403, "http.host_mismatch"),
    (b"CONNECT www.example.org:443 HTTP/1.1\r\nHost: www.example.org\r\n\r\n", 403, "http.nested_connect"),
    (b"GET http://www.example.org/ HTTP/1.1\r\nHost: www.example.org\r\n\r\n", 400, "http.origin_form"),
    (GET % b"www.example.org\r\nHost: paste.example.org", 400, "http.host_twice"),
)


def test_refused_requests_get_an_answer(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        origin = Origin(80, echo, HOME)
        for said, status, reason in REFUSED_REQUESTS:
            sock = w.inside(HOME, 80)
            sock.sendall(said)
            head = read_head(sock)
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"[" + reason.encode() + b"]" in head
            assert w.denied(reason)
        assert origin.connections == 0

    world(tmp_path, body)


def test_a_server_may_speak_first_to_the_one_name_that_was_answered(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        Origin(22, greeting, HOME)
        w.guard.pins = {HOME: ["www.example.org"]}
        sock = w.inside(HOME, 22)
        assert exactly(sock, 16) == b"SSH-2.0-origin\r\n"
        sock.sendall(b"SSH-2.0-client\r\n")
        assert exactly(sock, 16) == b"SSH-2.0-client\r\n"
        opened = w.wait_record(lambda r: r.kind is Kind.OPEN)
        assert facts(opened) == ("dns", "web", "www.example.org", 22)

    world(tmp_path, body)


NO_NAME = (
    ([], 21, "ip_literal.denied", ("address", "", HOME, 21)),
    (["www.example.org", "twin.example.org"], 22, "ip_literal.denied", ("address", "", HOME, 22)),
    (["paste.example.org"], 23, "rule.deny", ("dns", "paste", "paste.example.org", 23)),
    (["www.example.org"], 25, "posture.default_deny", ("dns", "", "www.example.org", 25)),
    (["else.example.org"], 110, "posture.default_deny", ("dns", "", "else.example.org", 110)),
)


def test_a_silent_client_is_reset_where_no_name_is_allowed(tmp_path: Path) -> None:
    """Nobody asked; two names were asked; a denied name; not on this port; not allowed."""

    def body(w: JailedWorld) -> None:
        for pins, port, reason, why in NO_NAME:
            origin = Origin(port, greeting, HOME)
            w.guard.pins = {HOME: pins}
            assert gets_a_reset(w, HOME, port)
            assert facts(w.wait_record(lambda r, p=port: r.dest is not None and r.dest.port == p)) == why
            assert w.denied(reason)
            assert origin.connections == 0

    world(tmp_path, body)


def test_an_address_that_policy_allows_needs_no_name(tmp_path: Path) -> None:
    """Also when its one name is not allowed on this port: the rule is about the address."""

    def body(w: JailedWorld) -> None:
        Origin(25, greeting, OTHER)
        for pins in ([], ["www.example.org"]):
            w.guard.pins = {OTHER: pins}
            assert exactly(w.inside(OTHER, 25), 16) == b"SSH-2.0-origin\r\n"
        opened = [facts(record) for record in w.records() if record.kind is Kind.OPEN]
        assert opened == [("address", "block", OTHER, 25)] * 2

    world(tmp_path, body)


def test_first_bytes_name_what_two_names_leave_open(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        Origin(7000, echo, HOME)
        w.guard.pins = {HOME: ["www.example.org", "twin.example.org"]}
        sock = w.inside(HOME, 7000)
        sock.sendall(HELLO)
        assert exactly(sock, len(HELLO)) == HELLO
        opened = w.wait_record(lambda r: r.kind is Kind.OPEN)
        assert facts(opened) == ("sni", "web", "www.example.org", 7000)

    world(tmp_path, body)


def test_a_hello_without_a_name_goes_by_the_one_that_was_answered(tmp_path: Path) -> None:
    """As far as the policy's preset lets such a hello out at all."""

    def body(w: JailedWorld) -> None:
        Origin(443, echo, HOME)
        w.guard.pins = {HOME: ["www.example.org"]}
        hello = client_hello(None)
        sock = w.inside(HOME, 443)
        sock.sendall(hello)
        assert exactly(sock, len(hello)) == hello
        opened = w.wait_record(lambda r: r.kind is Kind.OPEN)
        assert facts(opened) == ("dns", "web", "www.example.org", 443)
        w.policy(POLICY + "preset: strict\n")
        assert is_reset(sock)  # the new policy is in force
        sock = w.inside(HOME, 443)
        sock.sendall(hello)
        assert read_all(sock)[:6] == ALERT
        assert facts(w.denied("sni.missing")) == ("dns", "", "www.example.org", 443)

    world(tmp_path, body)


def test_a_name_that_was_answered_binds_what_is_said_next(tmp_path: Path) -> None:
    """The flow was let through by a name; a hello or a request for another one does not go out."""

    def body(w: JailedWorld) -> None:
        origin = Origin(7000, lambda sock: origin.record(sock), HOME)
        w.guard.pins = {HOME: ["www.example.org"]}
        for said, reason in (
            (client_hello("twin.example.org"), "sni.mismatch"),
            (GET % b"twin.example.org:7000", "http.host_mismatch"),
        ):
            sock = w.inside(HOME, 7000)
            w.wait_record(lambda r: r.kind is Kind.OPEN)
            sock.sendall(said)
            read_all(sock)
            assert w.denied(reason)
        assert origin.received == b""

    world(tmp_path, body)


def test_silence_on_a_tls_port_ends(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        origin = Origin(443, greeting, HOME)
        w.guard.pins = {HOME: ["www.example.org"]}
        assert gets_a_reset(w, HOME, 443)
        assert facts(w.denied("tls.timeout")) == ("address", "", HOME, 443)
        assert origin.connections == 0

    world(tmp_path, body, hello_timeout_s=0.5)


def test_half_a_hello_on_another_port_ends_with_an_alert(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        sock = w.inside(HOME, 7000)
        sock.sendall(HELLO[:100])
        assert read_all(sock)[:6] == ALERT
        assert w.denied("tls.timeout")

    world(tmp_path, body, hello_timeout_s=0.5)


def test_an_ask_is_held_and_then_refused(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        sock = w.inside(HOME, 443)
        sock.sendall(client_hello("git.example.org"))
        assert w.control.wait(lambda m: m["t"] == "ask")["host"] == "git.example.org"
        assert read_all(sock)[:6] == ALERT
        assert facts(w.denied("rule.ask"))[:3] == ("sni", "clone", "git.example.org")

    world(tmp_path, body)


def test_who_only_knocks_is_on_the_ledger(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        for port in (443, 9999):
            w.inside(HOME, port).close()
        gone = [
            w.wait_record(lambda r, p=port: r.dest is not None and r.dest.port == p) for port in (443, 9999)
        ]
        assert {record.kind for record in gone} == {Kind.DENY}

    world(tmp_path, body)


def test_the_port_itself_is_no_destination(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        for address in ("127.0.0.1", "::1"):
            with pytest.raises(ConnectionResetError):
                w.inside(address, 3129).recv(1)
        wait_for(lambda: [r.reason_code for r in w.records()].count("transparent.direct") == 2)

    world(tmp_path, body)


def test_too_many_connections_of_one_jail(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        Origin(443, echo, HOME)
        for _ in range(256):
            w.inside(HOME, 443)
        with contextlib.suppress(ConnectionResetError):  # perhaps before connect returns
            w.inside(HOME, 443)
        assert w.denied("limit.connections")

    world(tmp_path, body)


def test_a_killed_proxy_leaves_silence(tmp_path: Path) -> None:
    def body(w: JailedWorld) -> None:
        for door in w.doors:
            door.close()  # as control and the warden do at once
        w.control.standing.clear()
        sock = w.inside(HOME, 443)
        os.kill(w.proxy.pid, signal.SIGKILL)
        w.proxy.wait(30)
        assert is_over(sock)
        for address in (HOME, OTHER, SIX):
            for port in (443, 80, 25):
                with pytest.raises(ConnectionRefusedError):
                    w.inside(address, port)

    world(tmp_path, body)
