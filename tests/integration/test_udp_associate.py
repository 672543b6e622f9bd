"""SOCKS5 UDP ASSOCIATE through the proxy process: a rule or lease for UDP, and every byte on the ledger."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

import pytest
from tests.support import quic_client as quic
from tests.support.proxy_world import _PROXY, HOME, World, in_namespace
from tests.unit.proxy.test_client_hello import extension, hello, sni

from exeat.ledger.records import Kind
from exeat.policy.leases import Lease
from exeat.policy.scopes import parse_ports, parse_scope
from exeat.proxy import socks5
from exeat.proxy.accepting import SPARE_FDS
from exeat.proxy.associate import MAX_REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.ledger.records import Record

pytestmark = pytest.mark.root

PORT = 7000
POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: echo, to: [www.example.org, 203.0.113.1], ports: [7000, 443], proto: udp}
  - {id: metered, to: metered.example.org, ports: 7000, proto: udp, budget: small}
  - {id: tcp, to: tcp.example.org, ports: 7000}
budgets:
  small: {bytes: 1000/1d}
"""
TCP_ONLY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: tcp, to: www.example.org, ports: 7000}
"""
NAMES = {f"{name}.example.org": [HOME] for name in ("www", "metered", "tcp", "leased")}
HELLO = hello(sni(b"www.example.org"), session=b"")
HIDDEN = hello(sni(b"www.example.org"), extension(0xFE0D, b"x"), session=b"")


class Echo(threading.Thread):
    """A UDP origin that says everything twice."""

    def __init__(self, port: int = PORT) -> None:
        super().__init__(daemon=True)
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((HOME, port))
        self.heard: list[bytes] = []
        self.start()

    def run(self) -> None:
        while True:
            data, peer = self._sock.recvfrom(65535)
            if data == b"stop":
                return
            self.heard.append(data)
            with contextlib.suppress(OSError):
                self._sock.sendto(data + data, peer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"stop", self._sock.getsockname())
        self.join(30)
        self._sock.close()


class Client:
    """An association, and the socket that uses it."""

    def __init__(self, made: World) -> None:
        self.tcp = made.connect()
        self.tcp.sendall(b"\x05\x01\x00")
        assert self.tcp.recv(2) == b"\x05\x00"
        self.tcp.sendall(b"\x05\x03\x00\x01\0\0\0\0\0\0")
        self.reply = self.tcp.recv(10)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.settimeout(30)

    def send(self, host: str, payload: bytes, port: int = PORT) -> None:
        head = b"\0\0\0\x03" + bytes((len(host),)) + host.encode() + port.to_bytes(2, "big")
        self.raw(head + payload)

    def raw(self, data: bytes) -> None:
        at = socket.inet_ntop(socket.AF_INET, self.reply[4:8]), int.from_bytes(self.reply[8:10], "big")
        self.udp.sendto(data, at)

    def receive(self) -> bytes:
        return socks5.read_datagram(self.udp.recv(65535)).payload

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tcp.close()
        self.udp.close()


def world(tmp_path: Path, body: Callable[[World], None], policy: str = POLICY, **settings: float) -> None:
    def run() -> None:
        with World(tmp_path, policy, **settings) as made:
            made.guard.names = dict(NAMES)
            body(made)

    in_namespace(run)


def refusal(made: World, code: str) -> Record:
    return made.wait_record(lambda record: record.kind is Kind.DENY and record.reason_code == code)


def test_datagrams_there_and_back_are_on_the_ledger(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Echo() as echo, Client(made) as client:
            for payload in (b"one", b"", b"three" * 100):
                client.send("www.example.org", payload)
                assert client.receive() == 2 * payload
            assert echo.heard == [b"one", b"", b"three" * 100]
            client.tcp.close()
            [close] = made.closes()
        assert (close.bytes_out, close.bytes_in) == (503, 1006)
        assert close.close_reason == "eof"
        assert close.dest is not None
        assert close.dest[:3] == ("www.example.org", PORT, "udp")
        opened = made.wait_record(lambda record: record.kind is Kind.OPEN)
        assert opened.rule_id == "echo"
        assert made.guard.asked == ["www.example.org"]

    world(tmp_path, body)


def test_an_address_is_a_destination_too(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Echo(), Client(made) as client:
            client.raw(b"\0\0\0\x01" + socket.inet_aton(HOME) + PORT.to_bytes(2, "big") + b"x")
            assert client.receive() == b"xx"

    world(tmp_path, body)


def test_each_destination_is_a_flow_of_its_own(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Echo(), Echo(53) as dns, Client(made) as client:
            client.send("tcp.example.org", b"no")
            client.send("evil.example.net", b"no")
            client.send("www.example.org", b"no", 53)
            client.send("127.0.0.1", b"no")
            client.raw(b"\0\0\1\x01" + socket.inet_aton(HOME) + PORT.to_bytes(2, "big") + b"a fragment")
            client.raw(b"\0\0\0\x03\x04ev\0l\x1b\x58no")
            client.raw(b"short")
            client.send("www.example.org", b"yes")
            assert client.receive() == b"yesyes"
            for code, host in (
                ("posture.default_deny", "tcp.example.org"),
                ("posture.default_deny", "evil.example.net"),
                ("meta.dns_bypass", "www.example.org"),
                ("meta.loopback", "127.0.0.1"),
            ):
                assert made.wait_record(
                    lambda record, code=code, host=host: (  # type: ignore[misc]
                        record.reason_code == code and record.dest is not None and record.dest.host == host
                    )
                )
            assert dns.heard == []
        assert made.guard.asked == ["www.example.org"]

    world(tmp_path, body)


def test_a_refused_destination_is_recorded_once_for_a_while(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Echo(), Client(made) as client:
            for _ in range(100):
                client.send("evil.example.net", b"no")
            client.send("www.example.org", b"yes")
            assert client.receive() == b"yesyes"
            assert len([record for record in made.records() if record.kind is Kind.DENY]) == 1

    world(tmp_path, body)


def test_refusals_of_one_association_are_bounded(tmp_path: Path) -> None:
    """A datagram costs its sender less than its refusal costs the ledger."""

    def body(made: World) -> None:
        with Echo(), Client(made) as client:
            for number in range(MAX_REFUSED + 100):
                if number % 50 == 0:  # all before have been heard: none is lost in a full queue
                    client.send("www.example.org", b"one")
                    assert client.receive() == b"oneone"
                client.send(f"n{number}.evil.example.net", b"no")
            client.send("www.example.org", b"two")
            assert client.receive() == b"twotwo"
            assert refusal(made, "posture.default_deny")
            client.tcp.close()
            made.closes()
            refused = [record for record in made.records() if record.kind is Kind.DENY]
            assert len(refused) == MAX_REFUSED

    world(tmp_path, body)


def test_the_last_descriptors_are_not_for_datagrams(tmp_path: Path) -> None:
    class Narrow(World):
        proxy_code = (
            f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({2 * SPARE_FDS + 40},) * 2);" + _PROXY
        )

    def run() -> None:
        with Narrow(tmp_path, POLICY) as made, Echo(), Client(made) as client:
            made.guard.names = dict(NAMES)
            for number in range(128):  # spelled in many ways, one destination is as many flows
                name = "".join(
                    c.upper() if number >> (at - 4) % 7 & 1 else c for at, c in enumerate("www.example.org")
                )
                client.send(name, b"x")
            assert refusal(made, "limit.descriptors")
            status, _, _ = made.ask(b"CONNECT tcp.example.org:7000 HTTP/1.1\r\n\r\n")
            assert status == 502, "nobody listens there; it was dialled all the same"

    in_namespace(run)


def test_without_a_rule_or_lease_for_udp_there_is_no_association(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Client(made) as client:
            assert client.reply == socks5.reply(socks5.COMMAND_NOT_SUPPORTED)
            assert refusal(made, "socks.command")

    world(tmp_path, body, TCP_ONLY)


def test_a_lease_opens_and_its_end_cuts(tmp_path: Path) -> None:
    lease = Lease(
        "p/a/1",
        "p",
        (parse_scope("leased.example.org"),),
        ports=parse_ports(["7000"]),
        protocols=("udp",),
        exp_ms=4_000_000_000_000,
    )

    def body(made: World) -> None:
        made.policy(TCP_ONLY, leases=[lease])
        with Echo() as echo, Client(made) as client:
            client.send("leased.example.org", b"hello")
            assert client.receive() == b"hellohello"
            made.policy(TCP_ONLY, leases=[lease], revoked=["p/a/1"])
            [close] = made.closes()
            assert close.close_reason == "lease.revoked"
            assert close.lease_id == "p/a/1"
            client.send("leased.example.org", b"too late")
            client.udp.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.udp.recv(100)
            assert echo.heard == [b"hello"]

    world(tmp_path, body)


def test_a_budget_is_never_overspent(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Echo() as echo, Client(made) as client:
            for _ in range(40):
                client.send("metered.example.org", b"x" * 100)
            [close] = made.closes()
            assert close.close_reason == "budget.exceeded"
            assert 0 < close.bytes_out + close.bytes_in <= 1000
            assert sum(map(len, echo.heard)) == close.bytes_out

    world(tmp_path, body)


def test_the_kill_switch_ends_it_and_its_association(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Echo(), Client(made) as client:
            client.send("www.example.org", b"hello")
            assert client.receive() == b"hellohello"
            made.control.send({"t": "cut", "all": True, "reason": "kill"})
            [close] = made.closes()
            assert close.close_reason == "kill"
            assert client.tcp.recv(1) == b""

    world(tmp_path, body)


def test_the_kill_switch_refuses_datagrams_and_associations(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Echo() as echo, Client(made) as client:
            client.send("www.example.org", b"hello")
            assert client.receive() == b"hellohello"
            made.policy(POLICY, killed=["p"])
            [close] = made.closes()
            assert close.close_reason == "kill"
            assert client.tcp.recv(1) == b"", "the association is over"
            with Client(made) as other:
                assert other.reply[:2] == b"\x05\x02"  # not allowed, RFC 1928 section 6
            assert echo.heard == [b"hello"]

    world(tmp_path, body)


def test_nothing_listens_there(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Client(made) as client:
            client.send("www.example.org", b"hello")
            [close] = made.closes()
            assert close.close_reason == "dial.refused"

    world(tmp_path, body)


def test_a_jail_that_ends_takes_its_datagrams_with_it(tmp_path: Path) -> None:
    def body(made: World) -> None:
        with Echo(), Client(made) as client:
            client.send("www.example.org", b"hello")
            assert client.receive() == b"hellohello"
            made.control.send({"t": "jail.remove", "jail": "job-1"})
            made.control.wait(lambda message: message["t"] == "jail.removed")
            [close] = made.closes()
            assert close.close_reason == "jail.removed"

    world(tmp_path, body)


# -- QUIC


def test_a_quic_hello_for_the_destination_passes(tmp_path: Path) -> None:
    first = quic.initial(quic.crypto(0, HELLO[:60]))
    rest = quic.initial(quic.crypto(60, HELLO[60:]), number=1)

    def body(made: World) -> None:
        with Echo(443) as echo, Client(made) as client:
            client.send("www.example.org", rest, 443)
            client.send("www.example.org", first, 443)
            assert {client.receive(), client.receive()} == {2 * first, 2 * rest}
            client.send("www.example.org", b"\x40 of the connection", 443)
            client.receive()
            other = hello(sni(b"evil.example.net"), session=b"")
            client.send("www.example.org", quic.initial(quic.crypto(0, other), destination=b"another!"), 443)
            [close] = made.closes()
            assert close.close_reason == "quic.second_connection"
            assert close.dest is not None
            assert close.dest.sni == "www.example.org"
            assert echo.heard == [rest, first, b"\x40 of the connection"]

    world(tmp_path, body)


@pytest.mark.parametrize(
    ("datagram", "code"),
    [
        (quic.initial(quic.crypto(0, hello(sni(b"evil.example.net"), session=b""))), "sni.mismatch"),
        (
            quic.initial(
                quic.crypto(0, hello(sni(b"www.example.org"), extension(0xFE0D, b"x"), session=b""))
            ),
            "tls.ech",
        ),
        (b"anything else", "quic.not_quic"),
        (b"\xc0\xff\0\0\x1d" + bytes(1200), "quic.version"),
        (quic.initial(quic.crypto(0, HELLO[:60])), "tls.timeout"),
    ],
)
def test_nothing_else_goes_to_a_tls_port(tmp_path: Path, datagram: bytes, code: str) -> None:
    def body(made: World) -> None:
        with Echo(443) as echo, Client(made) as client:
            client.send("www.example.org", datagram, 443)
            assert refusal(made, code)
            assert echo.heard == []

    world(tmp_path, body, hello_timeout_s=0.5)
