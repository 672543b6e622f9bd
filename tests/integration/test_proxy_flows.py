"""The proxy process end to end: real ledger, real namespace, control and guard played by the test."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.proxy_world import (
    HOME,
    Origin,
    World,
    client_hello,
    in_namespace,
    read_all,
    read_head,
)

from exeat.ledger.records import Kind
from exeat.policy.leases import Lease
from exeat.policy.scopes import parse_ports, parse_scope
from exeat.proxy.relays import BUILT, COMPILED, PYTHON

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: web, to: www.example.org, ports: [443, 80, 22, 7000]}
  - {id: metered, to: metered.example.org, ports: 7000, budget: small}
  - {id: thrice, to: thrice.example.org, ports: 7000, budget: three}
ask:
  - {id: clone, to: git.example.org, ports: 7000}
deny:
  - {id: paste, to: paste.example.org}
budgets:
  small: {bytes: 300000/1d}
  three: {connections: 3/1d}
"""
NAMES = {f"{name}.example.org": [HOME] for name in ("www", "metered", "thrice", "git", "paste", "leased")}
HOUR = 3_600_000
both_relays = pytest.mark.parametrize("relay", (PYTHON, COMPILED) if BUILT else (PYTHON,))


def world(tmp_path: Path, body: Callable[[World], None], **settings: float | str) -> None:
    """Run `body` with a fresh proxy; a clean ledger is part of every test."""

    def run() -> None:
        with World(tmp_path, POLICY, **settings) as made:
            made.guard.names = dict(NAMES)
            body(made)

    in_namespace(run)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def read_on(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def lease(host: str, seconds: float = 3600, **changes: object) -> Lease:
    made = Lease(
        "p/1",
        "p",
        (parse_scope(host),),
        ports=parse_ports(["7000"]),
        nbf_ms=now_ms() - 1000,
        exp_ms=now_ms() + int(seconds * 1000),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@both_relays
def test_one_tunnel_in_both_books(tmp_path: Path, relay: str) -> None:
    def body(w: World) -> None:
        origin = Origin(7000, echo)
        sock = w.tunnel("www.example.org", 7000, b"early ")
        threading.Thread(target=lambda: (sock.sendall(b"x" * 500_000), sock.shutdown(socket.SHUT_WR))).start()
        assert read_all(sock) == b"early " + b"x" * 500_000
        (closed,) = w.closes()
        size = 500_006
        assert (closed.bytes_out, closed.bytes_in) == (size, size)
        assert (closed.kernel_out, closed.kernel_in) == (size, size)
        assert (closed.client_kernel_out, closed.client_kernel_in) == (size, size)
        assert closed.close_reason == "eof"
        assert closed.reserved >= 2 * size
        assert closed.dest is not None
        assert (closed.dest.host, closed.dest.port) == ("www.example.org", 7000)
        assert (closed.decision, closed.rule_id, closed.job) == ("allow", "web", "job-1")
        mine = [r for r in w.records() if r.flow == closed.flow]
        assert mine[0].kind is Kind.OPEN
        reserved = [r.reserved for r in mine if r.kind in (Kind.OPEN, Kind.RESERVE)]
        assert reserved[0] == 65536
        assert len(reserved) > 1
        assert reserved == sorted(set(reserved))
        assert origin.connections == 1

    world(tmp_path, body, relay=relay)


@pytest.mark.parametrize("door", ["socks", "socks-password", "unix"])
def test_other_doors(tmp_path: Path, door: str) -> None:
    def body(w: World) -> None:
        Origin(7000, echo)
        if door == "unix":
            sock = w.connect_unix()
            sock.sendall(b"CONNECT www.example.org:7000 HTTP/1.1\r\n\r\n")
            assert read_head(sock).startswith(b"HTTP/1.1 200 ")
        else:
            sock = w.connect()
            sock.sendall(b"\x05\x01\x00" if door == "socks" else b"\x05\x01\x02\x01\x01u\x01p")
            assert sock.recv(2) == (b"\x05\x00" if door == "socks" else b"\x05\x02")
            assert door == "socks" or sock.recv(2) == b"\x01\x00"
            sock.sendall(b"\x05\x01\x00\x03\x0fwww.example.org" + struct.pack(">H", 7000))
            assert sock.recv(10) == b"\x05\x00\x00\x01" + bytes(6)
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        sock.close()
        (closed,) = w.closes()
        assert (closed.bytes_out, closed.bytes_in, closed.kernel_out, closed.kernel_in) == (5, 5, 5, 5)
        if door != "unix":
            assert (closed.client_kernel_out, closed.client_kernel_in) == (5, 5)

    world(tmp_path, body)


def test_socks_refusal_is_a_code(tmp_path: Path) -> None:
    def body(w: World) -> None:
        sock = w.connect()
        sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03\x11paste.example.org\x01\xbb")
        assert read_all(sock) == b"\x05\x00" + b"\x05\x02\x00\x01" + bytes(6)

    world(tmp_path, body)


def test_the_server_may_speak_first(tmp_path: Path) -> None:
    def body(w: World) -> None:
        def banner(sock: socket.socket) -> None:
            sock.sendall(b"SSH-2.0-lab\r\n")
            echo(sock)

        Origin(22, banner)
        sock = w.tunnel("www.example.org", 22)
        assert sock.recv(100) == b"SSH-2.0-lab\r\n"
        sock.sendall(b"SSH-2.0-me\r\n")
        assert sock.recv(100) == b"SSH-2.0-me\r\n"

    world(tmp_path, body)


@both_relays
def test_tls_is_judged_and_recorded(tmp_path: Path, relay: str) -> None:
    def body(w: World) -> None:
        origin = Origin(443, echo)
        hello = client_hello("www.example.org")
        sock = w.tunnel("www.example.org", 443)
        for at in range(0, len(hello), 37):
            sock.sendall(hello[at : at + 37])
        assert sock.recv(10_000, socket.MSG_WAITALL)[:3] == hello[:3]
        sock.close()
        opened = w.wait_record(lambda r: r.kind is Kind.OPEN)
        assert opened.dest is not None
        assert opened.dest.sni == "www.example.org"
        assert origin.connections == 1

    world(tmp_path, body, relay=relay)


@both_relays
def test_a_chunked_upload_passes(tmp_path: Path, relay: str) -> None:
    def body(w: World) -> None:
        got = bytearray()

        def http(sock: socket.socket) -> None:
            while not got.endswith(b"0\r\n\r\n"):
                got.extend(sock.recv(65536))
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndone")

        Origin(80, http)
        chunk = b"4000\r\n" + b"c" * 0x4000 + b"\r\n"
        sock = w.connect()
        sock.sendall(b"PUT http://www.example.org/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            sock.sendall(chunk)
        sock.sendall(b"0\r\n\r\n")
        assert read_all(sock).endswith(b"done")
        assert bytes(got).endswith(chunk * 40 + b"0\r\n\r\n")

    world(tmp_path, body, relay=relay)


def test_a_refused_client_reads_its_whole_answer(tmp_path: Path) -> None:
    def body(w: World) -> None:
        sock = w.connect()
        sock.sendall(b"CONNECT paste.example.org:443 HTTP/1.1\r\n\r\n" + b"x" * 100_000)
        answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b'"reason_code":"rule.deny"' in answer
        denied = w.wait_record(lambda r: r.kind is Kind.DENY)
        assert (denied.reason_code, denied.rule_id, denied.decision) == ("rule.deny", "paste", "deny")
        assert w.guard.asked == []

    world(tmp_path, body)


def test_an_ask_is_held_coalesced_and_approved(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Origin(7000, echo)
        w.jail("job-2", hold_ms=5000)
        request = b"CONNECT git.example.org:7000 HTTP/1.1\r\n\r\n"
        w.control.tell("jail job-1", {"t": "jail.remove", "jail": "job-1"})
        w.control.wait(lambda m: m["t"] == "jail.removed")
        first, second = w.connect(), w.connect()
        first.sendall(request)
        second.sendall(request)
        ask = w.control.wait(lambda m: m["t"] == "ask")
        assert (ask["key"], ask["rule"]) == ("p/a/git.example.org:7000/tcp", "clone")
        w.policy(POLICY, leases=[lease("git.example.org")])
        for sock in (first, second):
            assert read_head(sock).startswith(b"HTTP/1.1 200 ")
        assert len([m for m in w.control.heard if m["t"] == "ask"]) == 1
        opened = w.wait_record(lambda r: r.kind is Kind.OPEN)
        assert (opened.reason_code, opened.lease_id) == ("lease.active", "p/1")

    world(tmp_path, body)


def test_an_ask_nobody_answers_names_its_request(tmp_path: Path) -> None:
    def body(w: World) -> None:
        sock = w.connect()
        sock.sendall(b"CONNECT git.example.org:7000 HTTP/1.1\r\n\r\n")
        ask = w.control.wait(lambda m: m["t"] == "ask")
        w.control.send({"t": "ask.pending", "key": ask["key"], "request": "p/a/77"})
        head = read_head(sock)
        assert head.startswith(b"HTTP/1.1 403 ")
        assert b"exeat lease approve p/a/77" in head
        assert b"\r\nRetry-After: " in head
        assert w.wait_record(lambda r: r.kind is Kind.DENY).corr_id == "p/a/77"

    world(tmp_path, body)


@both_relays
@pytest.mark.parametrize("how", ["revoked", "expired", "gone", "cut", "policy", "kill", "switch"])
def test_what_ends_a_live_flow(tmp_path: Path, how: str, relay: str) -> None:
    def body(w: World) -> None:
        def pour(sock: socket.socket) -> None:
            while True:
                sock.sendall(b"d" * 65536)

        Origin(7000, pour)
        granted = lease("leased.example.org", seconds=1.0 if how == "expired" else 3600)
        w.policy(POLICY, leases=[granted])
        host = "www.example.org" if how in ("policy", "kill", "switch") else "leased.example.org"
        sock = w.tunnel(host, 7000)
        assert sock.recv(1)
        began = time.monotonic()
        if how == "revoked":
            w.policy(POLICY, leases=[granted], revoked=["p/1"])
        elif how == "gone":
            w.policy(POLICY)
        elif how == "switch":
            w.policy(POLICY, killed=["*"])
        elif how == "policy":
            w.policy(POLICY.replace("www.example.org", "web.example.org"))
        elif how in ("cut", "kill"):
            scope = {"lease": "p/1"} if how == "cut" else {"all": True}
            w.control.send({"t": "cut", "reason": "lease.revoked" if how == "cut" else "kill", **scope})
        with pytest.raises(ConnectionResetError):
            read_on(sock)
        took = time.monotonic() - began
        (closed,) = w.closes()
        reasons = {"expired": "lease.expired", "policy": "policy.changed", "kill": "kill", "switch": "kill"}
        assert closed.close_reason == reasons.get(how, "lease.revoked")
        assert took < 3, "a bound against hanging, not a measurement"
        assert closed.bytes_in == closed.kernel_in == closed.client_kernel_in
        assert closed.bytes_in <= closed.reserved

    world(tmp_path, body, relay=relay)


def test_the_kill_switch_ends_what_waits_and_is_cut_by_a_snapshot_alone(tmp_path: Path) -> None:
    def body(w: World) -> None:
        w.jail("job-2", hold_ms=50_000)
        w.control.tell("jail job-1", {"t": "jail.remove", "jail": "job-1"})
        w.control.wait(lambda m: m["t"] == "jail.removed")
        kept, asked = w.connect(), w.connect()
        kept.sendall(b"GET http://paste.example.org/ HTTP/1.1\r\nHost: paste.example.org\r\n\r\n")
        assert b"[rule.deny]" in read_head(kept)  # and may ask again on this connection
        asked.sendall(b"CONNECT git.example.org:7000 HTTP/1.1\r\n\r\n")
        w.control.wait(lambda m: m["t"] == "ask")
        w.policy(POLICY, killed=["p"])
        assert b"stopped by the kill switch [kill]" in read_head(asked)
        kept.settimeout(30)
        assert read_all(kept).endswith(b"}\n"), "its connection is closed"
        _, head, _ = w.ask(b"CONNECT www.example.org:7000 HTTP/1.1\r\n\r\n")
        assert b"exeat kill off" in head
        w.policy(POLICY)
        status, _, _ = w.ask(b"CONNECT nowhere.example.org:7000 HTTP/1.1\r\n\r\n")
        assert status == 403, "not by the switch any more"
        w.wait_record(lambda record: record.dest is not None and record.dest.host == "nowhere.example.org")
        assert [r.reason_code for r in w.records() if r.kind is Kind.DENY].count("kill") == 2

    world(tmp_path, body)


@both_relays
def test_bytes_of_a_lease_are_exact(tmp_path: Path, relay: str) -> None:
    def body(w: World) -> None:
        Origin(7000, lambda sock: sock.sendall(b"d" * 3_000_000))
        w.policy(POLICY, leases=[lease("leased.example.org", max_bytes=1_000_000)])
        got = 0
        sock = w.tunnel("leased.example.org", 7000)
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(65536):
                got += len(data)
        assert w.closes()[0].close_reason == "lease.exhausted"
        assert w.closes()[0].bytes_in == 1_000_000
        status, _, _ = w.ask(b"CONNECT leased.example.org:7000 HTTP/1.1\r\n\r\n")
        assert status == 403

    world(tmp_path, body, relay=relay)


@both_relays
def test_a_byte_budget_ends_flows_together(tmp_path: Path, relay: str) -> None:
    def body(w: World) -> None:
        Origin(7000, lambda sock: sock.sendall(b"d" * 1_000_000))
        socks = [w.tunnel("metered.example.org", 7000) for _ in range(4)]
        for sock in socks:
            with contextlib.suppress(ConnectionResetError):
                read_all(sock)
        # Those that came when nothing was left were refused; they never opened.
        closes = w.closes(len([r for r in w.records() if r.kind is Kind.OPEN]))
        assert {closed.close_reason for closed in closes} == {"budget.exceeded"}
        assert sum(closed.bytes_in for closed in closes) == 300_000

    world(tmp_path, body, relay=relay)


def test_parallel_connections_do_not_overspend(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Origin(7000, echo)
        socks = [w.connect() for _ in range(12)]
        for sock in socks:
            sock.sendall(b"CONNECT thrice.example.org:7000 HTTP/1.1\r\n\r\nx")
        carried = 0
        for sock in socks:
            if read_head(sock).startswith(b"HTTP/1.1 200 "):
                with contextlib.suppress(ConnectionResetError):
                    carried += sock.recv(1) == b"x"
        assert carried == 3
        assert len([r for r in w.records() if r.kind is Kind.OPEN]) == 3

    world(tmp_path, body)


def test_no_ledger_no_flow_and_back_again(tmp_path: Path) -> None:
    def body(w: World) -> None:
        origin = Origin(7000, echo)
        sock = w.tunnel("www.example.org", 7000)
        sock.sendall(b"one")
        assert sock.recv(3) == b"one"
        w.ledger.kill()
        w.ledger.wait()
        sock.sendall(b"two")
        assert sock.recv(3) == b"two", "reserved bytes still pass"
        deadline = time.monotonic() + 30
        while True:
            status, head, _ = w.ask(b"CONNECT www.example.org:7000 HTTP/1.1\r\n\r\n")
            if status == 503:
                break
            assert time.monotonic() < deadline
        assert b"ledger.unavailable" in head
        sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 4_000_000:
                sent += sock.send(b"y" * 32768)
                sock.recv(1 << 20)
        sock.settimeout(30)
        connections = origin.connections
        w.restart_ledger()
        deadline = time.monotonic() + 30
        while True:
            status, _, again = w.ask(b"CONNECT www.example.org:7000 HTTP/1.1\r\n\r\n")
            if status == 200:
                break
            assert time.monotonic() < deadline
        again.sendall(b"z")
        assert again.recv(1) == b"z"
        again.close()
        assert origin.connections > connections
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)
        closes = w.closes(2)
        first = next(r for r in closes if r.bytes_out > 10)
        assert first.close_reason == "eof"
        assert first.bytes_out == first.bytes_in == first.kernel_out == sent + 6
        assert any(r.kind is Kind.RESUME and r.flow == first.flow for r in w.records())
        assert not any(r.kind is Kind.ORPHAN for r in w.records())

    world(tmp_path, body)


def test_a_silent_ledger_lets_no_byte_out(tmp_path: Path) -> None:
    def body(w: World) -> None:
        origin = Origin(7000, lambda sock: origin.record(sock))
        w.ledger.send_signal(signal.SIGSTOP)
        try:
            sock = w.tunnel("www.example.org", 7000, b"secret")
            assert read_all(sock) == b""
        finally:
            w.ledger.send_signal(signal.SIGCONT)
        assert bytes(origin.received) == b""

    world(tmp_path, body)


def test_time_limits(tmp_path: Path) -> None:
    def body(w: World) -> None:
        origin = Origin(443, lambda sock: origin.record(sock))
        sock = w.tunnel("www.example.org", 443)
        assert read_all(sock) == b""
        assert w.wait_record(lambda r: r.reason_code == "tls.timeout")
        sock = w.tunnel("www.example.org", 443, client_hello("www.example.org")[:50])
        assert read_all(sock) == b"\x15\x03\x03\x00\x02\x02\x31"
        sock = w.connect()
        sock.sendall(b"CONNECT www.exam")
        assert read_head(sock).startswith(b"HTTP/1.1 408 ")
        assert bytes(origin.received) == b""

    world(tmp_path, body, hello_timeout_s=0.4, head_timeout_s=0.4)


@both_relays
def test_an_idle_tunnel_ends(tmp_path: Path, relay: str) -> None:
    def body(w: World) -> None:
        Origin(7000, echo)
        sock = w.tunnel("www.example.org", 7000, b"x")
        assert sock.recv(1) == b"x"
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert w.closes()[0].close_reason == "idle"

    world(tmp_path, body, relay=relay, idle_timeout_s=0.5)


def test_dialling(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Origin(7000, echo)
        w.guard.names["www.example.org"] = ["203.0.113.9", "2001:db8:1::9", HOME]
        sock = w.tunnel("www.example.org", 7000, b"x")
        assert sock.recv(1) == b"x"
        sock.close()
        closed = w.closes()[0]
        assert closed.dest is not None
        assert closed.dest.ip == socket.inet_aton(HOME)
        w.guard.names["metered.example.org"] = ["203.0.113.9"]
        status, head, _ = w.ask(b"CONNECT metered.example.org:7000 HTTP/1.1\r\n\r\n")
        assert (status, b"dial.refused" in head) == (502, True)
        del w.guard.names["metered.example.org"]
        status, head, _ = w.ask(b"CONNECT metered.example.org:7000 HTTP/1.1\r\n\r\n")
        assert (status, b"dns.nxdomain" in head) == (502, True)
        w.guard.names["metered.example.org"] = ["10.0.0.5"]
        status, head, _ = w.ask(b"CONNECT metered.example.org:7000 HTTP/1.1\r\n\r\n")
        assert (status, b"address.not_public" in head) == (403, True)
        w.guard.names["metered.example.org"] = [HOME, "169.254.169.254"]
        status, _, _ = w.ask(b"CONNECT metered.example.org:7000 HTTP/1.1\r\n\r\n")
        assert status == 403

    world(tmp_path, body)


def test_a_hot_name_is_asked_for_once_and_again_after_every_change(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Origin(7000, echo)

        def asked() -> int:
            """How often the guard is asked for two flows to one name in a row."""
            before = len(w.guard.asked)
            for _ in range(2):
                sock = w.tunnel("www.example.org", 7000, b"x")
                assert sock.recv(1) == b"x"
                sock.close()
            return len(w.guard.asked) - before

        def at_once(count: int) -> bool:
            """A second may pass between two flows on a busy machine; not every time."""
            return any(asked() == count for _ in range(5))

        assert at_once(0)  # what the first round asked for is used again
        before = len(w.guard.asked)
        w.policy(POLICY)
        w.control.wait(lambda m: m["t"] == "flows")
        deadline = time.monotonic() + 30
        while len(w.guard.asked) == before:
            assert time.monotonic() < deadline
            asked()
        w.guard.names.clear()
        w.control.send({"t": "cut", "reason": "test", "all": True})
        status = 200
        while status == 200:
            assert time.monotonic() < deadline
            status, head, sock = w.ask(b"CONNECT www.example.org:7000 HTTP/1.1\r\n\r\n")
            sock.close()
        assert b"dns.nxdomain" in head

    world(tmp_path, body)


def test_a_flow_that_the_ledger_settled_meanwhile_is_cut(tmp_path: Path) -> None:
    def body(w: World) -> None:
        origin = Origin(7000, echo)
        sock = w.tunnel("www.example.org", 7000, b"x")
        assert sock.recv(1) == b"x"
        w.proxy.send_signal(signal.SIGSTOP)
        w.ledger.kill()
        w.ledger.wait(30)
        w.restart_ledger()
        orphan = w.wait_record(lambda r: r.kind is Kind.ORPHAN, 10)
        w.proxy.send_signal(signal.SIGCONT)
        assert read_all(sock) == b""
        (closed,) = w.closes()
        assert (closed.flow, closed.close_reason) == (orphan.flow, "ledger.orphaned")
        assert (closed.bytes_out, closed.bytes_in) == (1, 1)
        assert origin.connections == 1

    world(tmp_path, body)


def test_a_jail_has_a_limit_of_connections(tmp_path: Path) -> None:
    def body(w: World) -> None:
        idle = [w.connect() for _ in range(256)]
        sock = w.connect()
        assert b"limit.connections" in read_head(sock)
        idle.pop().close()
        sock.close()
        deadline = time.monotonic() + 30
        status = 0
        while status != 403:
            assert time.monotonic() < deadline
            status, _, sock = w.ask(b"CONNECT paste.example.org:443 HTTP/1.1\r\n\r\n")
            sock.close()  # one that was refused for the limit counts until it is gone

    world(tmp_path, body)


def test_jail_removed_comes_after_the_last_close(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Origin(7000, echo)
        sock = w.tunnel("www.example.org", 7000, b"x")
        assert sock.recv(1) == b"x"
        w.control.send({"t": "jail.remove", "jail": "job-1"})
        w.control.wait(lambda m: m["t"] == "jail.removed")
        closed = [r for r in w.records() if r.kind is Kind.CLOSE]
        assert [r.close_reason for r in closed] == ["jail.removed"]
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    world(tmp_path, body)


def test_stale_policy_opens_nothing(tmp_path: Path) -> None:
    def body(w: World) -> None:
        w.policy(POLICY, fresh_ms=200)
        deadline = time.monotonic() + 30
        status, head = 0, b""
        while b"policy.expired" not in head:
            assert time.monotonic() < deadline
            status, head, sock = w.ask(b"CONNECT www.example.org:7000 HTTP/1.1\r\n\r\n")
            sock.close()
        assert status == 503

    world(tmp_path, body)


def test_a_killed_proxy_leaves_orphans(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Origin(7000, echo)
        sock = w.tunnel("www.example.org", 7000, b"x")
        assert sock.recv(1) == b"x"
        w.proxy.kill()
        w.proxy.wait()
        assert read_all(sock) == b""
        orphan = w.wait_record(lambda r: r.kind is Kind.ORPHAN)
        assert orphan.reserved == 65536

    world(tmp_path, body)
