"""The whole appliance with a resolver and an authority that other people wrote: unbound over TLS, nsd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from tests.support.guard_rig import answers, ask, ede
from tests.support.proxy_world import in_namespace
from tests.support.real_dns import AUTHORITY, AUTHORITY_PORT, real_dns
from tests.support.running import wait_for
from tests.support.standalone import Standalone

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.real_dns import RealDns

pytestmark = pytest.mark.root

DOOR = ("127.0.0.1", 53)
POLICY = """
egress: v1
project: builds
posture: allowlist
allow: [{to: [.example.org, www.example.net]}, {to: mail.example.org, records: true}]
deny: [{to: [secret.example.org, .bad.example.net]}]
"""
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "builds"\n'
ZONES = {
    "example.org": (
        "www A 203.0.113.10\n"
        "www AAAA 2001:db8:1::10\n"
        "bogus A 203.0.113.11\n"
        "cdn CNAME edge.example.net.\n"
        'mail MX 10 mx.example.org.\nmail TXT "v=spf1 -all"\n'
        'mail HTTPS 1 . alpn="h2,h3" ipv4hint="203.0.113.10"\n'
        "trap CNAME x.bad.example.net.\n"
        "inside CNAME inside.example.net.\n"
        "dn DNAME tree.example.net.\n"
        "dnbad DNAME bad.example.net.\n"
    )
    + "".join(f"many A 203.0.113.{n}\n" for n in range(100, 160)),
    "example.net": (
        "www A 203.0.113.12\nedge 1 CNAME e1.edge\ne1.edge 1 A 203.0.113.21\n"
        "x.bad A 203.0.113.66\ninside A 10.1.2.3\nleaf.tree A 203.0.113.30\nother A 203.0.113.31\n"
    ),
}


def world(body: Callable[[Standalone, RealDns], None], *, plain: bool = False) -> None:
    """`body` with an appliance that asks unbound over TLS, or with `plain` nsd in the clear."""

    def run() -> None:
        made = Standalone((AUTHORITY, AUTHORITY_PORT), {"builds": POLICY}, IDENTITY)
        try:
            (made.base / "dns").mkdir()
            with real_dns(made.base / "dns", ZONES, signed="example.org", spoil="bogus") as servers:
                if not plain:
                    (made.base / "conf.d").mkdir()
                    (made.base / "conf.d" / "dns.toml").write_text(
                        f'[dns]\nupstream = ["{servers.upstream}"]\nupstream_ca = "{servers.folder}/ca.pem"\n'
                    )
                made.up()
                body(made, servers)
                assert made.down() == 0
        finally:
            made.close()

    in_namespace(run)


def checked(name: str, *, tcp: bool = False, wants: bool = True) -> dns.message.Message:
    """A lookup by a client that understands the AD bit (or does not)."""
    query = dns.message.make_query(name, "A", use_edns=0)
    if wants:
        query.flags |= dns.flags.AD
    return (dns.query.tcp if tcp else dns.query.udp)(query, DOOR[0], 8, DOOR[1])


def test_real_answers_come_over_tls_and_denied_names_stay_here() -> None:
    def body(made: Standalone, servers: RealDns) -> None:
        before = servers.sent("authority"), servers.sent("resolver")
        denied = ("other.example.net", "secret.example.org", "www.example.com", "Other.Example.NET")
        for name in denied:
            for tcp in (False, True):
                assert ask(DOOR, name, tcp=tcp).rcode() is dns.rcode.NXDOMAIN
        assert (servers.sent("authority"), servers.sent("resolver")) == before

        assert answers(ask(DOOR, "www.example.org")) == {"203.0.113.10"}
        assert answers(ask(DOOR, "www.example.org", "AAAA", tcp=True)) == {"2001:db8:1::10"}
        assert answers(ask(DOOR, "cdn.example.org")) == {"203.0.113.21"}
        assert answers(ask(DOOR, "leaf.dn.example.org")) == {"203.0.113.30"}
        assert len(answers(ask(DOOR, "many.example.org", tcp=True))) == 60
        assert ask(DOOR, "many.example.org", edns=False).flags & dns.flags.TC
        assert ask(DOOR, "nothing.example.org").rcode() is dns.rcode.NXDOMAIN
        assert servers.sent("resolver") > before[1]
        for name, why in (
            ("trap.example.org", "rule.deny"),
            ("x.dnbad.example.org", "rule.deny"),
            ("inside.example.org", "address.not_public"),
        ):
            assert ede(ask(DOOR, name)) == [(15, why)], name

        assert answers(ask(DOOR, "mail.example.org", "MX")) == {"10 mx.example.org."}
        assert answers(ask(DOOR, "mail.example.org", "TXT")) == {'"v=spf1 -all"'}
        assert answers(ask(DOOR, "mail.example.org", "HTTPS")) == {'1 . alpn="h2"'}
        assert answers(ask(DOOR, "10.113.0.203.in-addr.arpa", "PTR")) == {"www.example.org."}
        unasked = servers.sent("resolver")
        assert not ask(DOOR, "www.example.org", "MX").answer
        assert servers.sent("resolver") == unasked

        # The upstream checked the signatures: said to those who understand it, and only them.
        for tcp in (False, True):
            assert checked("www.example.org", tcp=tcp).flags & dns.flags.AD
        assert not checked("www.example.org", wants=False).flags & dns.flags.AD
        assert not checked("www.example.net").flags & dns.flags.AD  # not signed
        assert checked("bogus.example.org").rcode() is dns.rcode.SERVFAIL
        assert not made.exeat("dns", "pins", "--name", "bogus.example.org").stdout.startswith("builds")

    world(body)


def test_a_denied_name_leaves_no_packet() -> None:
    """In the clear, so that every byte of a question can be seen: by the packet filter and on the wire."""

    def body(_made: Standalone, servers: RealDns) -> None:
        before = servers.sent("authority")
        for name in (
            "secret.example.org",
            "stolen-data.example.com",
            "a.bad.example.net",
            "com",
            "x.internal",
        ):
            for kind in ("A", "AAAA", "TXT", "HTTPS", "ANY", "NULL"):
                for tcp in (False, True):
                    assert not ask(DOOR, name, kind, tcp=tcp).answer
        assert servers.sent("authority") == before
        assert answers(ask(DOOR, "www.example.org")) == {"203.0.113.10"}
        assert servers.sent("authority") == before + 1
        to_authority = AUTHORITY_PORT.to_bytes(2, "big")
        asked = [packet for packet in servers.packets if packet[22:24] == to_authority]
        assert any(b"\x03www\x07example\x03org" in packet.lower() for packet in asked)
        for label in (b"secret", b"stolen-data", b"internal", b"\x03bad"):
            assert not any(label in packet.lower() for packet in asked), label
        assert not checked("www.example.org").flags & dns.flags.AD  # in the clear nobody is believed

    world(body, plain=True)


def test_rotation_behind_an_alias_does_not_break_an_allowed_name() -> None:
    def body(_made: Standalone, servers: RealDns) -> None:
        seen = answers(ask(DOOR, "cdn.example.org"))
        assert seen == {"203.0.113.21"}
        servers.rewrite("example.net", "edge 1 CNAME e2.edge\ne2.edge 1 A 203.0.113.22\n")
        wait_for(lambda: answers(ask(DOOR, "cdn.example.org")) == {"203.0.113.22"})
        servers.rewrite("example.net", "edge 1 CNAME x.bad\nx.bad 1 A 203.0.113.66\n")
        wait_for(lambda: ede(ask(DOOR, "cdn.example.org")) == [(15, "rule.deny")])

    world(body)
