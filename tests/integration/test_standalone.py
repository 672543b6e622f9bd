"""The gateway started alone with a configuration file: whose connection is whose, and what stays shut."""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
from typing import TYPE_CHECKING

import dns.message
import dns.query
import dns.rcode
import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import HOME, Origin, client_hello, in_namespace, read_all, read_head
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind, Record
from exeat.policy.identity import NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.dns_servers import NameServer

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: builds
posture: allowlist
hold: 300ms
allow:
  - {id: site, to: [www.example.org, .wild.example.org], ports: [80, 443, 7000]}
  - {id: datagrams, to: www.example.org, ports: 7000, proto: udp}
ask:
  - {id: clone, to: git.example.org, ports: 7000}
deny:
  - {id: bad-net, to: 203.0.113.64/26}
  - {id: bad-name, to: .evil.example.net}
"""
OTHER = """
egress: v1
project: other
posture: allowlist
allow:
  - {id: home, to: home.example.net, ports: 7000}
"""
IDENTITIES = """
[[identity]]
source = "127.0.0.0/8"
project = "builds"
agent = "local"
[[identity]]
source = "127.0.0.7"
project = "other"
[[identity]]
source = "127.0.0.8"
project = "unbound"
[[identity]]
source = "uid:65533"
project = "other"
agent = "by-uid"
"""
ZONE = [
    *((f"{name}", 60, "A", HOME) for name in ("www.example.org", "git.example.org", "home.example.net")),
    ("net.wild.example.org", 60, "A", "203.0.113.77"),
    ("alias.wild.example.org", 60, "CNAME", "www.evil.example.net."),
    ("www.evil.example.net", 60, "A", HOME),
    ("inside.wild.example.org", 60, "A", "10.7.7.7"),
]
DOOR = ("127.0.0.1", 3128)
GET = b"GET http://%s:7000/ HTTP/1.1\r\nHost: %s:7000\r\nConnection: close\r\n\r\n"


def alone(body: Callable[[Standalone, NameServer], None]) -> None:
    """Run `body` with a started gateway and an origin that says what it got."""

    def run() -> None:
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, {"builds": POLICY, "other": OTHER}, IDENTITIES)
            try:
                made.up()
                body(made, server)
                assert made.down() == 0
            finally:
                made.close()
                Origin.close_all()

    in_namespace(run)


def answer_once(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def get(host: bytes, source: str = "127.0.0.1", door: tuple[str, int] = DOOR) -> bytes:
    """The whole answer to an absolute-form request from `source`."""
    with socket.create_connection(door, 10, source_address=(source, 0)) as sock:
        sock.sendall(GET % (host, host))
        return read_all(sock)


def test_the_source_says_who_it_is() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        Origin(7000, answer_once)
        assert get(b"www.example.org").endswith(b"hi")
        assert b"403" in get(b"home.example.net").split(b"\r\n")[0]
        assert get(b"home.example.net", "127.0.0.7").endswith(b"hi")  # the longer prefix
        assert b"403" in get(b"www.example.org", "127.0.0.7").split(b"\r\n")[0]
        assert b"meta.project" in get(b"www.example.org", "127.0.0.8")
        opens = [record for record in made.records() if record.kind is Kind.OPEN]
        assert [(r.project, r.agent, r.job, r.node) for r in opens] == [
            ("builds", "local", "", "n1"),
            ("other", "client", "", "n1"),
        ]
        assert opens[1].src.startswith("127.0.0.7:")
        assert opens[1].src.endswith(" 127.0.0.1:3128")

    alone(body)


def test_who_is_not_known_is_refused_and_recorded() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        origin = Origin(7000, answer_once)
        answer = get(b"www.example.org", "::1", ("::1", 3128))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"meta.attribution" in answer
        assert b"exeat " not in answer  # a stranger gets no command, and hears of no project
        with made.unix(65534) as sock:
            sock.sendall(GET % (b"www.example.org", b"www.example.org"))
            assert b"meta.attribution" in read_all(sock)
        by_tcp, by_uid = made.wait_records(2, "meta.attribution")
        assert (by_tcp.project, by_tcp.agent) == (NOBODY.project, NOBODY.agent)
        assert by_tcp.kind is Kind.DENY
        assert by_tcp.src.startswith("[::1]:")
        assert by_uid.src.endswith("proxy.sock uid 65534")
        assert not server.seen  # nothing was looked up for them
        assert not origin.connections

    alone(body)


def test_the_kernel_names_the_uid_on_a_unix_socket() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        Origin(7000, answer_once)
        with made.unix(65533) as sock:
            sock.sendall(GET % (b"home.example.net", b"home.example.net"))
            assert read_all(sock).endswith(b"hi")
        (opened,) = [record for record in made.records() if record.kind is Kind.OPEN]
        assert (opened.project, opened.agent) == ("other", "by-uid")

    alone(body)


def test_every_door_speaks_every_protocol() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        hello = client_hello("www.example.org")
        origin = Origin(443, lambda sock: sock.sendall(b"T" if sock.recv(65536) == hello else b"F"))
        for door in (DOOR, ("127.0.0.1", 1080)):
            with socket.create_connection(door, 10) as sock:
                sock.sendall(b"CONNECT www.example.org:443 HTTP/1.1\r\n\r\n")
                assert read_head(sock).startswith(b"HTTP/1.1 200 ")
                sock.sendall(hello)
                assert read_all(sock) == b"T"
            with socket.create_connection(door, 10) as sock:
                sock.sendall(b"\5\1\0")
                assert sock.recv(2) == b"\5\0"
                sock.sendall(b"\5\1\0\3\x0fwww.example.org\x01\xbb")
                assert sock.recv(10)[:2] == b"\5\0"
                sock.sendall(hello)
                assert read_all(sock) == b"T"
        assert origin.connections == 4
        with socket.create_connection(DOOR, 10) as sock:
            sock.sendall(b"CONNECT www.example.org:443 HTTP/1.1\r\n\r\n")
            read_head(sock)
            sock.sendall(client_hello("evil.example.org"))
            read_all(sock)
        assert made.wait_records(1, "sni.mismatch")

    alone(body)


def test_the_guard_answers_what_policy_lets_each_client_resolve() -> None:
    def ask(name: str, source: str = "127.0.0.1", tcp: bool = False) -> dns.message.Message:
        query = dns.message.make_query(name, "A")
        send = dns.query.tcp if tcp else dns.query.udp
        return send(query, "127.0.0.1", timeout=10, source=source)

    def body(made: Standalone, server: NameServer) -> None:
        for tcp in (False, True):
            answer = ask("www.example.org", tcp=tcp).answer
            assert [item.address for item in answer[0]] == [HOME]
            assert ask("home.example.net", tcp=tcp).rcode() == dns.rcode.NXDOMAIN
            assert ask("home.example.net", "127.0.0.7", tcp).rcode() == dns.rcode.NOERROR
        stranger = dns.query.udp(dns.message.make_query("www.example.org", "A"), "::1", timeout=30)
        assert stranger.rcode() == dns.rcode.NXDOMAIN
        (refused,) = made.wait_records(1, "meta.attribution")
        assert refused.kind is Kind.DNS
        assert server.names == {"www.example.org", "home.example.net"}

    alone(body)


def test_asks_are_held_as_the_policy_says_and_named() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        Origin(7000, answer_once)
        first = get(b"git.example.org").split(b"\r\n")[0]
        assert b"exeat lease approve builds/local/" in first
        request = first.split(b"approve ")[1].split(b" ")[0].decode()
        assert made.exeat("lease", "approve", request).returncode == 0
        assert get(b"git.example.org").endswith(b"hi")

    alone(body)


def test_an_approval_lets_every_client_resolve_also_those_just_denied() -> None:
    def rcode(source: str, edns: bool, tcp: bool) -> int:
        query = dns.message.make_query("git.example.org", "A", use_edns=0 if edns else -1)
        send = dns.query.tcp if tcp else dns.query.udp
        return int(send(query, "127.0.0.1", timeout=10, source=source).rcode())

    ways = [
        (f"127.0.0.{last}", edns, tcp)
        for last in (1, 2, 3)
        for edns in (False, True)
        for tcp in (False, True)
    ]

    def body(made: Standalone, server: NameServer) -> None:
        for _ in range(3):  # the denial is remembered by now, for far longer than is waited here
            assert {rcode(*way) for way in ways} == {dns.rcode.NXDOMAIN}
        assert "git.example.org" not in server.names
        asked = made.exeat(
            "lease", "request", "git.example.org:7000", "--project", "builds", "--json", "--as", "ada"
        )
        request = json.loads(asked.stdout)["id"]
        assert made.exeat("lease", "approve", request).returncode == 0
        wait_for(lambda: {rcode(*way) for way in ways} == {dns.rcode.NOERROR}, 3)

    alone(body)


def test_what_a_name_leads_to_is_refused_by_its_own_rule_and_not_told() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        origin = Origin(7000, answer_once)
        for host, rule in ((b"net.wild.example.org", "bad-net"), (b"alias.wild.example.org", "bad-name")):
            assert f"operator must change rule {rule} [rule.deny]".encode() in get(host).split(b"\r\n")[0]
        inside = get(b"inside.wild.example.org")
        assert b"address.not_public" in inside
        assert b"10.7.7.7" not in inside
        assert not origin.connections

        def denied() -> list[Record]:
            return [record for record in made.records() if record.kind is Kind.DENY]

        wait_for(lambda: len(denied()) == 3)  # a refusal does not wait for its record
        assert [(r.reason_code, r.rule_id) for r in denied()] == [
            ("rule.deny", "bad-net"),
            ("rule.deny", "bad-name"),
            ("address.not_public", "site"),
        ]

    alone(body)


def test_nothing_reaches_our_own_doors() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        for place in (b"127.0.0.1:3128", b"[::1]:3128", b"127.0.0.1:1080"):
            with socket.create_connection(DOOR, 10) as sock:
                sock.sendall(b"CONNECT %s HTTP/1.1\r\n\r\n" % place)
                assert read_head(sock).startswith(b"HTTP/1.1 403 ")

    alone(body)


def test_clients_wait_while_the_proxy_is_started_again() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        Origin(7000, answer_once)
        old = made.pid_of("proxy")
        made.kill("proxy")
        wait_for(lambda: made.pid_of("proxy") != old)
        assert get(b"www.example.org").endswith(b"hi")
        made.kill("guard")
        wait_for(lambda: get(b"www.example.org").endswith(b"hi"))

    alone(body)


def test_it_is_the_same_after_a_restart() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        Origin(7000, answer_once)
        assert get(b"www.example.org").endswith(b"hi")
        assert made.down() == 0
        with contextlib.suppress(OSError):
            assert not get(b"www.example.org")
        made.up()
        assert get(b"www.example.org").endswith(b"hi")
        assert made.exeat("ledger", "verify", "--state-dir", str(made.base / "state")).returncode == 0

    alone(body)


def test_a_taken_port_is_one_line_and_nothing_else() -> None:
    def body() -> None:
        made = Standalone(("127.0.0.1", 9), {"builds": POLICY}, IDENTITIES)
        try:
            with socket.create_server(("127.0.0.1", 1080)):
                done = made.exeat("up")
            assert done.returncode == 3
            line = done.stderr.splitlines()[-1]
            assert line == "exeat: [proxy] cannot listen on 127.0.0.1:1080: Address already in use"
            assert sorted(path.name for path in made.base.iterdir()) == ["exeat.toml", "policies"]
        finally:
            made.close()

    in_namespace(body)


def test_status_shows_the_doors() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        said = made.exeat("status").stdout
        assert "http door  127.0.0.1:3128, [::1]:3128" in said
        assert f"unix door  {made.base}/proxy.sock" in said
        second = made.exeat("up")
        assert second.returncode == 3
        assert "another exeat is running" in second.stderr

    alone(body)


def associate(sock: socket.socket) -> tuple[socket.socket, bytes]:
    """Ask for a UDP association; the connection and the reply."""
    sock.sendall(bytes.fromhex("050100 05030001 00000000 0000"))
    assert sock.recv(2) == b"\x05\x00"
    return sock, sock.recv(64)


def test_datagrams_belong_to_the_host_that_asked() -> None:
    head = b"\0\0\0\x03\x0fwww.example.org" + (7000).to_bytes(2, "big")

    def body(made: Standalone, server: NameServer) -> None:
        with contextlib.ExitStack() as stack:
            datagram = (socket.AF_INET, socket.SOCK_DGRAM)
            origin, mine, other = (stack.enter_context(socket.socket(*datagram)) for _ in range(3))
            for sock, address in (
                (origin, (HOME, 7000)),
                (mine, ("127.0.0.1", 0)),
                (other, ("127.0.0.9", 0)),
            ):
                sock.bind(address)
                sock.settimeout(30)
            tcp, reply = associate(socket.create_connection(DOOR, 10))
            stack.enter_context(tcp)
            assert reply[:8] == b"\x05\0\0\x01\x7f\0\0\x01"
            at = ("127.0.0.1", int.from_bytes(reply[8:], "big"))
            other.sendto(head + b"not its own", at)
            mine.sendto(head + b"hello", at)
            said, upstream = origin.recvfrom(100)
            assert said == b"hello"
            origin.sendto(b"answer", upstream)
            assert mine.recv(100) == head + b"answer"
            tcp.close()
            assert wait_for(lambda: any(record.kind is Kind.CLOSE for record in made.records()))
            [close] = [record for record in made.records() if record.kind is Kind.CLOSE]
            assert (close.bytes_out, close.bytes_in, close.close_reason) == (5, 6, "eof")

    alone(body)


def test_a_port_that_another_uid_has_taken_over_ends_the_association() -> None:
    head = b"\0\0\0\x03\x0fwww.example.org" + (7000).to_bytes(2, "big")

    def body(made: Standalone, server: NameServer) -> None:
        datagram = (socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(*datagram) as origin:
            origin.bind((HOME, 7000))
            origin.settimeout(30)
            tcp, reply = associate(socket.create_connection(DOOR, 10))
            at = ("127.0.0.1", int.from_bytes(reply[8:], "big"))
            with socket.socket(*datagram) as mine:
                mine.bind(("127.0.0.1", 0))
                port = mine.getsockname()[1]
                mine.sendto(head + b"hello", at)
                said, upstream = origin.recvfrom(100)
                assert said == b"hello"
            with tcp, made_by(65533, *datagram) as other:
                other.bind(("127.0.0.1", port))
                other.settimeout(0)
                tcp.settimeout(0.05)
                for _ in range(200):
                    with contextlib.suppress(OSError):
                        other.sendto(head + b"not its own", at)
                    with contextlib.suppress(TimeoutError):
                        assert tcp.recv(1) == b""
                        break
                origin.sendto(b"answer", upstream)
                with pytest.raises(BlockingIOError):
                    other.recv(100)
            assert wait_for(lambda: any(record.kind is Kind.CLOSE for record in made.records()))
            [close] = [record for record in made.records() if record.kind is Kind.CLOSE]
            assert close.close_reason == "client.gone"

    alone(body)


def made_by(uid: int, family: int, kind: int) -> socket.socket:
    """A socket that belongs to `uid`, as if a process of its own had made it."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(uid)  # of this thread only
    try:
        return socket.socket(family, kind)
    finally:
        libc.setfsuid(0)


def test_no_association_without_a_rule_or_by_a_unix_socket() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        other = socket.create_connection(DOOR, 10, source_address=("127.0.0.7", 0))
        for door in (other, made.unix(0)):
            sock, reply = associate(door)
            with sock:
                assert reply == b"\x05\x07\0\x01" + bytes(6)

    alone(body)
