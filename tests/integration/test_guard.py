"""The guard over real sockets: jails, upstream, ledger, proxy's resolve, and what fails closed."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from tests.support.dns_servers import zone_handler
from tests.support.guard_rig import Ports, Rig, answers, ask, ede, guard_rig

from exeat.dns import doors, responder
from exeat.ledger.ipc import Channel
from exeat.policy.addresses import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NX, OK, SERVFAIL = dns.rcode.NXDOMAIN, dns.rcode.NOERROR, dns.rcode.SERVFAIL
ZONE = [
    ("www.wild.net", 60, "A", "203.0.113.10"),
    ("www.wild.net", 60, "AAAA", "2001:db8::10"),
    ("four.wild.net", 60, "A", "203.0.113.4"),
    ("zero.wild.net", 0, "A", "203.0.113.5"),
    ("alias.wild.net", 60, "CNAME", "edge.cdn.net."),
    ("edge.cdn.net", 7, "A", "203.0.113.20"),
    ("tobad.wild.net", 60, "CNAME", "x.blocked.net."),
    ("x.blocked.net", 60, "A", "203.0.113.66"),
    ("inside.wild.net", 60, "CNAME", "db.internal."),
    ("db.internal", 60, "A", "10.0.0.5"),
    ("mixed.wild.net", 60, "A", "203.0.113.11"),
    ("mixed.wild.net", 60, "A", "10.0.0.1"),
    ("six.wild.net", 60, "A", "203.0.113.12"),
    ("six.wild.net", 60, "AAAA", "fd00::1"),
    ("lan.private.net", 60, "A", "10.9.9.9"),
    ("pg.wild.org", 60, "A", "203.0.113.30"),
    ("lease.asked.net", 60, "A", "203.0.113.40"),
    *[("big.wild.net", 60, "A", f"203.0.113.{i}") for i in range(1, 51)],
    *[("big.wild.net", 60, "AAAA", f"2001:db8::{i:x}") for i in range(1, 51)],
]
BAD_ADDRESSES = [
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "127.0.0.1",
    "0.0.0.0",
    "169.254.169.254",
    "169.254.1.1",
    "100.64.0.5",
    "198.18.0.1",
    "224.0.0.5",
    "255.255.255.255",
    "192.0.2.1",
    "192.0.0.192",
    "168.63.129.16",
    "100.100.100.200",
    "240.0.0.1",
    "192.88.99.1",
]
BAD_SIX = [
    "::",
    "::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "ff02::1",
    "fec0::1",
    "::ffff:10.0.0.5",
    "::ffff:203.0.113.1",
    "64:ff9b::a00:5",
    "64:ff9b:1::a00:5",
    "2002:a00:5::1",
    "2001:0:1:2:3:4:5:6",
    "::10.0.0.5",
    "100::1",
    "3fff::1",
]
ZONE += [(f"bad{i}.wild.net", 60, "A", text) for i, text in enumerate(BAD_ADDRESSES)]
ZONE += [(f"six{i}.wild.net", 60, "AAAA", text) for i, text in enumerate(BAD_SIX)]

POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: wild, to: .wild.net, ports: [80, 443]}
  - {id: pg, to: pg.wild.org, ports: 5432}
  - {id: lan, to: .private.net, private: true}
ask:
  - {id: asked, to: .asked.net}
deny:
  - {id: blocked, to: [.blocked.net, secret.wild.net]}
"""
OTHER = "{egress: v1, project: other, posture: allowlist, allow: [{to: four.wild.net}]}"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with guard_rig(tmp_path, zone_handler(ZONE)) as rig:
        rig.snapshot(POLICY, OTHER)
        yield rig


@pytest.fixture
def jail(rig: Rig) -> Ports:
    return rig.jail("j", "p")


@pytest.mark.parametrize("tcp", [False, True])
def test_an_allowed_name_resolves(rig: Rig, jail: Ports, tcp: bool) -> None:
    where = jail.tcp if tcp else jail.udp
    four = ask(where, "www.wild.net", tcp=tcp)
    assert answers(four) == {"203.0.113.10"}
    assert four.answer[0].ttl == 30
    assert answers(ask(where, "WWW.Wild.NET", "AAAA", tcp=tcp)) == {"2001:db8::10"}
    assert rig.server.seen == {("www.wild.net", "A"): 1, ("www.wild.net", "AAAA"): 1}


DENIED = [
    *[
        "evil.net",
        "www.evil.net",
        "x.blocked.net",
        "secret.wild.net",
        "a.secret.wild.net.evil.net",
        "wild.net.evil.net",
    ],
    *[
        "evilwild.net",
        "localhost",
        "net",
        "metadata.google.internal",
        "lease.asked.net",
        "asked.net",
        "10.0.0.1",
        "127.1",
    ],
    *[
        "use-application-dns.net",
        "mask.icloud.com",
        "mask-h2.icloud.com",
        "_dns.resolver.arpa",
        "resolver.arpa",
    ],
    *["4.3.2.1.in-addr.arpa", "2130706433", "0x7f.1", "1.0.0.127.in-addr.arpa"],
]


def test_denied_names_cause_no_upstream_query(rig: Rig, jail: Ports) -> None:
    for name in DENIED:
        for kind in ("A", "AAAA", "HTTPS", "TXT", "PTR", "ANY"):
            reply = ask(jail.udp, name, kind)
            assert reply.rcode() == NX, (name, kind)
            assert [(rrset.rdtype, rrset[0].minimum) for rrset in reply.authority] == [(dns.rdatatype.SOA, 5)]
            assert ede(reply)[0][0] == 15
    assert not rig.server.seen


def test_a_name_that_needs_a_lease_says_so(rig: Rig, jail: Ports) -> None:
    assert ede(ask(jail.udp, "lease.asked.net")) == [(15, "lease required")]
    assert ede(ask(jail.udp, "x.blocked.net")) == [(15, "rule.deny")]
    assert not ede(ask(jail.udp, "lease.asked.net", edns=False))


def raw(jail: Ports, name: bytes, qtype: int = 1) -> dns.message.Message:
    packet = struct.pack(">6H", 99, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", qtype, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.sendto(packet, jail.udp)
        return dns.message.from_wire(sock.recv(4096))


@pytest.mark.parametrize(
    "label", [b"\x00", b"\xff" * 63, b"a.b", b"evil\x00", b"a b", b"\n", b"*", b"-a", b"\xc3\xa9"]
)
def test_labels_that_are_no_host_are_denied_and_recorded_harmlessly(
    rig: Rig, jail: Ports, label: bytes
) -> None:
    reply = raw(jail, bytes([len(label)]) + label + b"\x04wild\x03net\x00")
    assert reply.rcode() == NX
    assert not rig.server.seen
    (record,) = rig.dns_records()
    assert record.reason_code.startswith("malformed.")
    assert record.dest is not None
    assert record.dest.host.isprintable()


@pytest.mark.parametrize("kind", ["HTTPS", "SVCB", "TXT", "MX", "SRV", "CAA", "NS", "SOA"])
def test_other_types_of_an_allowed_name_are_nodata(rig: Rig, jail: Ports, kind: str) -> None:
    reply = ask(jail.udp, "www.wild.net", kind)
    assert (reply.rcode(), reply.answer) == (OK, [])
    assert reply.authority[0].rdtype == dns.rdatatype.SOA
    assert not rig.server.seen


@pytest.mark.parametrize("kind", [10, 25, 35, 251, 252, 255, 65280, 65535])
def test_dangerous_types_are_not_served(rig: Rig, jail: Ports, kind: int) -> None:
    assert raw(jail, b"\x03www\x04wild\x03net\x00", kind).rcode() == dns.rcode.NOTIMP
    assert not rig.server.seen


def test_no_such_name_and_no_such_type(rig: Rig, jail: Ports) -> None:
    assert ask(jail.udp, "nope.wild.net").rcode() == NX
    assert ask(jail.udp, "four.wild.net", "AAAA").rcode() == OK
    assert ask(jail.udp, "nope.wild.net").rcode() == NX
    assert rig.server.seen["nope.wild.net", "A"] == 1  # remembered for the SOA's nine seconds


@pytest.mark.parametrize("name", [f"bad{i}.wild.net" for i in range(len(BAD_ADDRESSES))])
def test_an_allowed_name_must_not_lead_inside(rig: Rig, jail: Ports, name: str) -> None:
    reply = ask(jail.udp, name)
    assert (reply.rcode(), answers(reply)) == (NX, set())
    assert rig.resolve(name)["ok"] is False


@pytest.mark.parametrize("name", [f"six{i}.wild.net" for i in range(len(BAD_SIX))])
def test_nor_in_ipv6(rig: Rig, jail: Ports, name: str) -> None:
    reply = ask(jail.udp, name, "AAAA")
    assert (reply.rcode(), answers(reply)) == (NX, set())
    assert rig.resolve(name)["ok"] is False


def test_one_bad_address_spoils_the_answer(rig: Rig, jail: Ports) -> None:
    assert ask(jail.udp, "mixed.wild.net").rcode() == NX
    assert rig.resolve("mixed.wild.net")["error"] == "address.not_public"
    assert rig.resolve("six.wild.net")["error"] == "address.not_public"
    assert answers(ask(jail.udp, "six.wild.net")) == {"203.0.113.12"}


def test_private_addresses_need_a_rule_that_says_private(rig: Rig, jail: Ports) -> None:
    assert answers(ask(jail.udp, "lan.private.net")) == {"10.9.9.9"}


def test_a_name_allowed_on_an_odd_port_only_resolves(rig: Rig, jail: Ports) -> None:
    assert answers(ask(jail.udp, "pg.wild.org")) == {"203.0.113.30"}
    assert rig.resolve("pg.wild.org", port=5432)["ok"] is True
    assert rig.resolve("pg.wild.org", port=443)["error"] == "posture.default_deny"


def test_aliases_are_followed_unless_they_lead_to_a_denied_name(rig: Rig, jail: Ports) -> None:
    reply = ask(jail.udp, "alias.wild.net")
    assert answers(reply) == {"203.0.113.20"}
    assert (reply.answer[0].name.to_text(), reply.answer[0].ttl) == ("alias.wild.net.", 7)
    reply = ask(jail.udp, "tobad.wild.net")
    assert (reply.rcode(), ede(reply)) == (NX, [(15, "rule.deny")])
    assert rig.resolve("tobad.wild.net")["error"] == "rule.deny"
    assert ask(jail.udp, "inside.wild.net").rcode() == NX


def test_a_ttl_of_nothing_is_held_for_a_second(rig: Rig, jail: Ports) -> None:
    assert ask(jail.udp, "zero.wild.net").answer[0].ttl == 1
    assert answers(ask(jail.udp, "zero.wild.net")) == {"203.0.113.5"}
    assert rig.server.seen["zero.wild.net", "A"] == 1


def test_a_large_answer_is_cut_over_udp_and_whole_over_tcp(rig: Rig, jail: Ports) -> None:
    cut = ask(jail.udp, "big.wild.net", "AAAA")
    assert cut.flags & dns.flags.TC
    assert not cut.answer
    assert len(answers(ask(jail.tcp, "big.wild.net", "AAAA", tcp=True))) == 50
    assert ask(jail.udp, "big.wild.net", "A", edns=False).flags & dns.flags.TC  # 50 * 16 > 512
    assert len(answers(ask(jail.udp, "big.wild.net", "A"))) == 50


def test_each_jail_has_its_own_policy(rig: Rig, jail: Ports) -> None:
    second = rig.jail("k", "other")
    third = rig.jail("l", "unknown")
    assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}
    assert ask(second.udp, "www.wild.net").rcode() == NX
    assert answers(ask(second.udp, "four.wild.net")) == {"203.0.113.4"}
    assert ask(third.udp, "four.wild.net").rcode() == NX


def test_a_new_snapshot_counts_at_once(rig: Rig, jail: Ports) -> None:
    for _ in range(3):
        assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}
    rig.snapshot(POLICY.replace("secret.wild.net", "www.wild.net"))
    assert ask(jail.udp, "www.wild.net").rcode() == NX
    rig.snapshot(POLICY)
    assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}


def test_without_a_snapshot_nothing_resolves(tmp_path: Path) -> None:
    with guard_rig(tmp_path, zone_handler(ZONE)) as rig:
        jail = rig.jail("j", "p")
        for name in ("www.wild.net", "x.blocked.net", "use-application-dns.net"):
            assert ask(jail.udp, name).rcode() == SERVFAIL
        assert rig.resolve("www.wild.net")["error"] == "policy.expired"
        assert not rig.server.seen


def test_an_old_snapshot_is_none(rig: Rig, jail: Ports) -> None:
    rig.snapshot(POLICY, fresh_ms=0)
    assert ask(jail.udp, "www.wild.net").rcode() == SERVFAIL
    assert rig.resolve("www.wild.net")["error"] == "policy.expired"
    assert not rig.server.seen


def test_a_snapshot_that_does_not_load_leaves_the_old_one(
    rig: Rig, jail: Ports, capfd: pytest.CaptureFixture[str]
) -> None:
    rig.send({"t": "snapshot", "generation": "x"})
    rig.sync()
    assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}
    assert "not a snapshot" in capfd.readouterr().err


def test_what_cannot_be_recorded_does_not_happen(rig: Rig, jail: Ports) -> None:
    assert answers(ask(jail.udp, "four.wild.net")) == {"203.0.113.4"}
    rig.stop_ledger()
    for name in ("four.wild.net", "www.wild.net", "evil.net"):
        assert ask(jail.udp, name).rcode() == SERVFAIL
    assert rig.resolve("www.wild.net")["error"] == "dns.unavailable"
    assert rig.server.names == {"four.wild.net"}
    rig.start_ledger()
    for _ in range(500):
        if ask(jail.udp, "four.wild.net").rcode() == OK:
            break
        threading.Event().wait(0.01)
    assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}


def test_the_ledger_counts_every_lookup(rig: Rig, jail: Ports) -> None:
    for _ in range(40):
        ask(jail.udp, "www.wild.net")
        ask(jail.udp, "evil.net")
    rig.resolve("www.wild.net", job="j")

    def counts(records: list) -> dict[tuple[str, str, str], int]:
        out: dict[tuple[str, str, str], int] = {}
        for record in records:
            key = (record.dest.host, record.decision, record.name_source)
            out[key] = out.get(key, 0) + record.count
        return out

    expected = {
        ("www.wild.net", "allow", "dns"): 40,
        ("evil.net", "deny", "dns"): 40,
        ("www.wild.net", "allow", "proxy"): 1,
    }
    records = rig.wait_for_records(lambda found: counts(found) == expected)
    assert len(records) <= 9  # counted, not one by one
    first = records[0]
    assert (first.job, first.project, first.agent, first.node) == ("j", "p", "agent", "test-node")
    assert (first.reason_code, first.rule_id, first.posture) == ("rule.allow", "wild", "allowlist")
    assert len(first.policy_digest) == 32
    assert first.generation == 1


def test_a_removed_jail_is_silent_and_fully_recorded(rig: Rig, jail: Ports) -> None:
    for _ in range(10):
        ask(jail.udp, "www.wild.net")
    client = socket.create_connection(jail.tcp)
    rig.remove("j")
    assert sum(record.count for record in rig.dns_records()) == 10
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(jail.tcp)
    client.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    client.close()


def test_refused_addresses_are_recorded_with_the_reason(rig: Rig, jail: Ports) -> None:
    ask(jail.udp, "mixed.wild.net")
    seen = [(record.decision, record.reason_code) for record in rig.dns_records()]
    assert seen == [("allow", "rule.allow"), ("deny", "address.not_public")]


def test_a_flood_of_new_names_is_slowed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responder, "MISS_BURST", 50.0)
    monkeypatch.setattr(responder, "MISS_RATE", 0.001)  # so that a slow machine does not save tokens
    jail = rig.jail("slowed", "p")
    codes = [ask(jail.udp, f"n{i}.evil.net").rcode() for i in range(60)]
    assert codes == [NX] * 50 + [SERVFAIL] * 10
    assert ask(jail.udp, "n0.evil.net").rcode() == NX  # known names are not misses
    assert not rig.server.seen


# --- TCP


def framed(*names: str) -> bytes:
    queries = [dns.message.make_query(name, "A").to_wire() for name in names]
    return b"".join(len(query).to_bytes(2, "big") + query for query in queries)


def read_replies(client: socket.socket, count: int) -> list[dns.message.Message]:
    out = []
    with client.makefile("rb") as stream:
        for _ in range(count):
            size = int.from_bytes(stream.read(2), "big")
            out.append(dns.message.from_wire(stream.read(size)))
    return out


def test_tcp_queries_are_pipelined(rig: Rig, jail: Ports) -> None:
    names = ["www.wild.net", "evil.net", "four.wild.net", "alias.wild.net"] * 50
    with socket.create_connection(jail.tcp, timeout=30) as client:
        client.sendall(framed(*names))
        client.shutdown(socket.SHUT_WR)
        replies = read_replies(client, len(names))
        assert client.recv(1) == b""
    assert sorted(reply.question[0].name.to_text() for reply in replies) == sorted(n + "." for n in names)
    assert all((reply.rcode() == NX) == ("evil" in str(reply.question[0].name)) for reply in replies)


def test_tcp_byte_by_byte(rig: Rig, jail: Ports) -> None:
    with socket.create_connection(jail.tcp, timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in framed("www.wild.net"):
            client.sendall(bytes([byte]))
        assert answers(read_replies(client, 1)[0]) == {"203.0.113.10"}


@pytest.mark.parametrize("junk", [b"\xff\xff" + bytes(50), b"\x00\x05hello", b"\x00\x00"])
def test_tcp_junk_ends_the_connection(rig: Rig, jail: Ports, junk: bytes) -> None:
    with socket.create_connection(jail.tcp, timeout=30) as client:
        client.sendall(junk)
        assert client.recv(100) == b""
    assert answers(ask(jail.tcp, "www.wild.net", tcp=True)) == {"203.0.113.10"}


def test_tcp_connections_are_bounded(rig: Rig, jail: Ports) -> None:
    clients = [socket.create_connection(jail.tcp, timeout=30) for _ in range(33)]
    assert clients[32].recv(1) == b""
    clients[0].sendall(framed("www.wild.net"))
    assert answers(read_replies(clients[0], 1)[0]) == {"203.0.113.10"}
    for client in clients:
        client.close()
    rig.sync()
    assert answers(ask(jail.tcp, "www.wild.net", tcp=True)) == {"203.0.113.10"}


def test_an_idle_tcp_client_is_let_go(rig: Rig, jail: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "IDLE_S", 0.1)
    with socket.create_connection(jail.tcp, timeout=30) as client:
        client.sendall(framed("www.wild.net"))
        assert answers(read_replies(client, 1)[0]) == {"203.0.113.10"}
        client.sendall(b"\0")  # the beginning of a message that never comes
        assert client.recv(1) == b""


def test_a_tcp_client_that_does_not_read_is_not_read_and_then_let_go(
    rig: Rig, jail: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "IDLE_S", 0.3)
    ask(jail.tcp, "big.wild.net", "AAAA", tcp=True)
    query = dns.message.make_query("big.wild.net", "AAAA").to_wire()
    state = rig.guard._jails["j"][0]
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        client.connect_ex(jail.tcp)
        select.select([], [client], [], 5)
        with contextlib.suppress(OSError):  # its buffer is full, or the guard is done with it
            while True:
                client.send((len(query).to_bytes(2, "big") + query) * 64)
        for _ in range(500):
            if not state.connections:
                break
            threading.Event().wait(0.01)
    assert (state.connections, state.pending) == (0, 0)
    assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}


def unread(port: int) -> int:
    """How much waits in the UDP socket of this port (proc_net(5): tx_queue:rx_queue)."""
    with open("/proc/net/udp", encoding="ascii") as table:
        rows = [line.split() for line in table]
    return sum(int(row[4].split(":")[1], 16) for row in rows if row[1].endswith(f":{port:04X}"))


def test_noise_is_survived(rig: Rig, jail: Ports, capfd: pytest.CaptureFixture[str]) -> None:
    """Bitten and random packets by the thousand: no exception, no upstream query, and it still answers."""
    noise = random.Random(20)
    queries = [dns.message.make_query(name, kind).to_wire() for name in DENIED for kind in ("A", "TXT")]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(jail.udp)
        for _ in range(5000):
            packet = bytearray(noise.choice(queries) if noise.random() < 0.8 else noise.randbytes(60))
            for _ in range(noise.randrange(4)):
                packet[noise.randrange(len(packet))] = noise.randrange(256)
            client.send(packet[: noise.randrange(len(packet) + 1)] if noise.random() < 0.1 else packet)
    for _ in range(500):  # what is sent to a full socket is lost
        if not unread(jail.udp[1]):
            break
        threading.Event().wait(0.01)
    rig.sync()
    for _ in range(300):
        if ask(jail.udp, "www.wild.net").rcode() == OK:  # the flood has spent the jail's tokens
            break
        threading.Event().wait(0.01)
    assert rig.server.seen == {("www.wild.net", "A"): 1}
    assert "Traceback" not in capfd.readouterr().err


# --- the proxy's door


def test_the_proxy_gets_both_families_in_dial_order(rig: Rig) -> None:
    reply = rig.resolve("www.wild.net")
    assert reply["ok"] is True
    assert reply["addresses"] == [
        {"family": 4, "value": str(parse_address("203.0.113.10").value), "ttl": 30},
        {"family": 6, "value": str(parse_address("2001:db8::10").value), "ttl": 30},
    ]


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("evil.net", "posture.default_deny"),
        ("x.blocked.net", "rule.deny"),
        ("lease.asked.net", "rule.ask"),
        ("nope.wild.net", "dns.nxdomain"),
        ("203.0.113.1", "dns.refused"),
        ("127.1", "malformed.legacy_ip"),
        ("a\0.wild.net", "malformed.host"),
        ("\uff57ww.wild.net", "malformed.non_ascii_host"),
        ("", "malformed.host"),
    ],
)
def test_the_proxy_is_told_why_not(rig: Rig, host: str, error: str) -> None:
    reply = rig.resolve(host)
    assert (reply["ok"], reply["error"]) == (False, error)
    assert rig.server.names <= {"nope.wild.net"}


@pytest.mark.parametrize(
    "change",
    [
        {"verb": "exec"}, {"port": 0}, {"port": 65536}, {"port": "443"}, {"port": True}, {"proto": "icmp"},
        {"subject": None}, {"subject": {"project": 1}}, {"subject": {"root": ""}}, {"host": 7}, {"lease": []},
    ],
)  # fmt: skip
def test_requests_are_validated(rig: Rig, change: dict) -> None:
    assert rig.resolve(**{"host": "www.wild.net", **change})["error"] == "dns.refused"
    assert not rig.server.seen


@pytest.mark.parametrize("message", [{"verb": "resolve"}, {"id": "7"}, {"id": True}])
def test_a_request_without_an_id_ends_the_connection(rig: Rig, message: dict) -> None:
    channel = Channel.connect(rig.run_dir / "guard" / "guard.sock", timeout=30)
    channel.send(message)
    assert channel.sock.recv(10) == b""
    channel.close()


def lease(host: str) -> object:
    from exeat.policy.leases import Lease
    from exeat.policy.scopes import parse_scope

    return Lease("p/1", "p", (parse_scope(host),), exp_ms=1 << 45)


def test_a_lease_opens_the_name_and_its_end_closes_it(rig: Rig, jail: Ports) -> None:
    assert ask(jail.udp, "lease.asked.net").rcode() == NX
    rig.snapshot(POLICY, leases=[lease("lease.asked.net")])
    assert answers(ask(jail.udp, "lease.asked.net")) == {"203.0.113.40"}
    assert rig.resolve("lease.asked.net")["ok"] is True
    rig.snapshot(POLICY)
    assert ask(jail.udp, "lease.asked.net").rcode() == NX
    assert rig.resolve("lease.asked.net")["error"] == "rule.ask"


def test_the_proxy_may_hear_of_a_lease_first(rig: Rig) -> None:
    channel = Channel.connect(rig.run_dir / "guard" / "guard.sock", timeout=30)
    subject = {"project": "p", "agent": "agent", "job": "j", "episode": "", "node": "test-node"}
    channel.send(
        {"id": 1, "verb": "resolve", "subject": subject, "host": "lease.asked.net", "port": 443,
         "proto": "tcp", "lease": "p/1"}
    )  # fmt: skip
    rig.sync()
    rig.snapshot(POLICY, leases=[lease("lease.asked.net")])
    reply, _ = channel.next()
    assert reply["ok"] is True
    channel.close()
    assert rig.resolve("x.asked.net", lease="no/such")["error"] == "rule.ask"  # after the lag allowed


def test_equal_lookups_of_many_clients_are_one_upstream_query(rig: Rig, jail: Ports) -> None:
    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(40)]
    for number, client in enumerate(clients):
        client.settimeout(30)
        query = dns.message.make_query("www.wild.net", "A")
        query.id = number
        client.sendto(query.to_wire(), jail.udp)
    for number, client in enumerate(clients):
        reply = dns.message.from_wire(client.recv(4096))
        assert reply.id == number
        assert answers(reply) == {"203.0.113.10"}
        client.close()
    assert rig.server.seen == {("www.wild.net", "A"): 1}


def test_hot_answers_are_the_same_as_cold_ones(rig: Rig, jail: Ports) -> None:
    """The cache by exact bytes must not answer anything but the very same question."""

    def both(make: Callable[[], dns.message.Message]) -> list[tuple[int, set[str], int]]:
        out = []
        for _ in range(4):
            query = make()
            reply = dns.query.udp(query, jail.udp[0], timeout=30, port=jail.udp[1])
            assert reply.question == query.question
            out.append((reply.rcode(), answers(reply), reply.edns))
        return out

    for name, kind, edns in (("www.wild.net", "A", -1), ("wWw.wild.net", "A", 0), ("evil.net", "A", -1)):
        seen = both(lambda name=name, kind=kind, edns=edns: dns.message.make_query(name, kind, use_edns=edns))
        assert len({str(item) for item in seen}) == 1
        assert seen[0][2] == edns


def test_the_proxy_may_hear_of_a_job_first(rig: Rig) -> None:
    channel = Channel.connect(rig.run_dir / "guard" / "guard.sock", timeout=30)
    subject = {"project": "new", "agent": "agent", "job": "j", "episode": "", "node": "test-node"}
    request = {"id": 1, "verb": "resolve", "subject": subject, "host": "www.wild.net", "port": 443}
    channel.send({**request, "proto": "tcp", "lease": ""})
    rig.sync()
    rig.snapshot(POLICY.replace("project: p", "project: new"))
    assert channel.next()[0]["ok"] is True
    channel.close()


def test_a_lookups_budget_ends_lookups(rig: Rig, jail: Ports) -> None:
    rig.snapshot(POLICY + "budgets: {default: {lookups: 2/1h}}")
    codes = [ask(jail.udp, name).rcode() for name in ("www.wild.net", "four.wild.net", "zero.wild.net")]
    assert codes == [OK, OK, NX]
    assert rig.server.names == {"www.wild.net", "four.wild.net"}


@pytest.mark.parametrize(
    ("packet", "rcode"),
    [
        (b"\0\1\x29\0\0\1" + bytes(6), dns.rcode.NOTIMP),  # UPDATE
        (b"\0\1\1\0\0\2" + bytes(6) + b"\1a\0\0\1\0\1" * 2, dns.rcode.FORMERR),
        (b"\0\1\1\0\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1", dns.rcode.FORMERR),
        (b"\0\1\1\0\0\1" + bytes(5) + b"\1\1a\0\0\1\0\1\0\0\x29\4\xd0\0\1\0\0\0\0", dns.rcode.BADVERS),
    ],
)
def test_odd_messages_get_their_error(rig: Rig, jail: Ports, packet: bytes, rcode: dns.rcode.Rcode) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        for silent in (b"", b"x", packet[:2] + b"\x81" + packet[3:]):
            sock.sendto(silent, jail.udp)  # no header, or a response: never answered
        sock.sendto(packet, jail.udp)
        assert dns.message.from_wire(sock.recv(4096)).rcode() == rcode


def test_an_answer_with_a_stowaway_is_refused_and_recorded(tmp_path: Path) -> None:
    """A resolver (or someone on its path) that slips another name's address in."""
    honest = zone_handler(ZONE)

    def handle(query: dns.message.Message, udp: bool) -> list[bytes]:
        reply = dns.message.from_wire(honest(query, udp)[0])
        reply.answer.append(dns.rrset.from_text("bank.example.", 60, "IN", "A", "203.0.113.99"))
        return [reply.to_wire()]

    with guard_rig(tmp_path, handle) as rig:
        rig.snapshot(POLICY)
        jail = rig.jail("j", "p")
        reply = ask(jail.udp, "www.wild.net")
        assert (reply.rcode(), ede(reply)) == (NX, [(15, "dns.refused")])
        assert rig.resolve("www.wild.net")["error"] == "dns.refused"
        reasons = {(r.decision, r.reason_code, r.name_source) for r in rig.dns_records()}
        assert {("deny", "dns.refused", "dns"), ("deny", "dns.refused", "proxy")} <= reasons
