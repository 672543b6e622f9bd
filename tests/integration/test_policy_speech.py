"""`raw` and `ech` through the real proxy: what they let out, and that nothing else is."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest
from tests.redteam.hello import build
from tests.support.proxy_world import HOME, Origin, World, client_hello, in_namespace, read_all

from exeat.ledger.records import Kind
from exeat.policy.leases import Lease
from exeat.policy.scopes import parse_ports, parse_scope

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: p
allow:
  - {id: raw, to: raw.example.org, ports: [443, 80], raw: true}
  - {id: ech, to: ech.example.org, ports: [443, 7000], ech: true}
  - {id: none, to: none.example.org, ports: [443, 80, 7000]}
"""
SSH = b"SSH-2.0-test\r\n"


def world(tmp_path: Path, body: Callable[[World], None]) -> None:
    def run() -> None:
        with World(tmp_path, POLICY) as made:
            made.guard.names = {f"{name}.example.org": [HOME] for name in ("raw", "ech", "none", "leased")}
            body(made)

    in_namespace(run)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def banner(sock: socket.socket) -> None:
    sock.sendall(SSH)
    echo(sock)


def answered(made: World, host: str, port: int, first: bytes) -> bytes:
    """What comes back for these first bytes: themselves, or what a refusal says."""
    sock = made.tunnel(host, port)
    sock.sendall(first)
    with contextlib.suppress(OSError):  # a refusal may have closed it already
        sock.shutdown(socket.SHUT_WR)
    return read_all(sock)


def refused(made: World, reason: str) -> bool:
    return made.wait_record(lambda r: r.kind is Kind.DENY and r.reason_code == reason) is not None


def ech_hello(name: str) -> bytes:
    return build({"sni": name, "ech": True})


def test_raw_lets_any_bytes_out_on_a_tls_port_and_the_server_speak_first(tmp_path: Path) -> None:
    def body(made: World) -> None:
        Origin(443, banner)
        sock = made.tunnel("raw.example.org", 443)
        assert sock.recv(64) == SSH  # before the client has said anything
        sock.sendall(b"\0anything")
        assert sock.recv(64) == b"\0anything"
        early = made.tunnel("raw.example.org", 443, b"early")
        got = b""
        while len(got) < len(SSH) + 5:
            got += early.recv(64)
        assert got == SSH + b"early"
        other = client_hello("other.org")
        assert answered(made, "raw.example.org", 443, other) == SSH + other
        assert answered(made, "none.example.org", 443, SSH) == b""
        assert refused(made, "tls.not_tls")

    world(tmp_path, body)


def test_raw_lets_http_for_another_host_out_and_nothing_else_does(tmp_path: Path) -> None:
    odd = b"GET / HTTP/1.1\r\nHost: other.org\r\n\r\n"

    def body(made: World) -> None:
        Origin(80, echo)
        assert answered(made, "raw.example.org", 80, odd) == odd
        assert answered(made, "none.example.org", 80, odd) != odd
        assert refused(made, "http.host_mismatch")

    world(tmp_path, body)


@pytest.mark.parametrize("port", [443, 7000])
def test_ech_lets_a_hidden_name_out_if_the_outer_one_is_the_host(tmp_path: Path, port: int) -> None:
    def body(made: World) -> None:
        Origin(port, echo)
        good = ech_hello("ech.example.org")
        assert answered(made, "ech.example.org", port, good) == good
        bare = ech_hello("none.example.org")
        assert bare not in answered(made, "none.example.org", port, bare)
        assert refused(made, "tls.ech")
        other = ech_hello("x.org")
        assert other not in answered(made, "ech.example.org", port, other)
        assert refused(made, "sni.mismatch")
        if port == 443:
            assert answered(made, "ech.example.org", 443, SSH) == b""  # `ech` is not `raw`
            assert refused(made, "tls.not_tls")

    world(tmp_path, body)


def test_a_lease_carries_it(tmp_path: Path) -> None:
    def body(made: World) -> None:
        Origin(443, echo)
        made.policy(
            POLICY,
            leases=[
                Lease(
                    "L",
                    "p",
                    (parse_scope("leased.example.org"),),
                    parse_ports(["443"]),
                    raw=True,
                    exp_ms=time.time_ns() // 1_000_000 + 3_600_000,
                )
            ],
        )
        assert answered(made, "leased.example.org", 443, SSH) == SSH

    world(tmp_path, body)


def test_a_flow_ends_when_its_permission_does(tmp_path: Path) -> None:
    def body(made: World) -> None:
        Origin(443, echo)
        good = ech_hello("ech.example.org")
        raw, hidden, tls = (made.tunnel(f"{name}.example.org", 443) for name in ("raw", "ech", "ech"))
        first = {raw: SSH, hidden: good, tls: client_hello("ech.example.org")}
        for sock, data in first.items():
            sock.sendall(data)
            got = b""
            while len(got) < len(data):
                got += sock.recv(65536)
        made.policy(POLICY.replace(", raw: true", "").replace(", ech: true", ""))
        assert read_all(raw) == read_all(hidden) == b""
        tls.sendall(b"more")
        assert tls.recv(64) == b"more"  # it never needed more than any flow
        assert [record.close_reason for record in made.closes(2)] == ["policy.changed"] * 2

    world(tmp_path, body)
