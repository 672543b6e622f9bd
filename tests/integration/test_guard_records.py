"""Records other than addresses: by a rule or lease that says `records`, judged like addresses, never more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.flags
import dns.rcode
import pytest
from tests.support.dns_servers import zone_handler
from tests.support.guard_rig import Ports, Rig, answers, ask, ede, guard_rig

from exeat.policy.leases import Lease
from exeat.policy.scopes import parse_scope

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: mail, to: [.mail.net, 9.113.0.203.in-addr.arpa], ports: 25, records: true}
  - {id: web, to: .web.net}
deny: [{to: .evil.net}]
budgets: {default: {lookups: 1000/1h}}
"""
ZONE = [
    ("mail.net", 60, "MX", "10 mx1.mail.net."),
    ("mail.net", 60, "MX", "20 mx2.elsewhere.org."),
    ("mail.net", 60, "TXT", '"v=spf1 -all"'),
    ("mail.net", 60, "A", "203.0.113.5"),
    ("alias.mail.net", 60, "CNAME", "mail.net."),
    ("bad.mail.net", 60, "CNAME", "x.evil.net."),
    ("x.evil.net", 60, "TXT", '"instructions"'),
    ("svc.mail.net", 60, "HTTPS", '1 . alpn="h2,h3" ipv4hint="10.0.0.1" ech="AAT+DQAA"'),
    ("svcevil.mail.net", 60, "HTTPS", "0 x.evil.net."),
    ("big.mail.net", 60, "TXT", " ".join(['"' + "x" * 250 + '"'] * 4)),
    ("huge.mail.net", 60, "TXT", " ".join(['"' + "x" * 250 + '"'] * 5)),
    ("9.113.0.203.in-addr.arpa", 60, "PTR", "host.mail.net."),
    ("www.web.net", 60, "A", "203.0.113.6"),
    ("www.web.net", 60, "TXT", '"not for you"'),
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with guard_rig(tmp_path, zone_handler(ZONE)) as made:
        made.snapshot(POLICY)
        yield made


@pytest.fixture
def jail(rig: Rig) -> Ports:
    return rig.jail("j", "p")


def test_a_rule_that_says_so_lets_other_records_be_looked_up(rig: Rig, jail: Ports) -> None:
    assert answers(ask(jail.udp, "Mail.net", "MX")) == {"10 mx1.mail.net.", "20 mx2.elsewhere.org."}
    assert answers(ask(jail.tcp, "mail.net", "TXT", tcp=True)) == {'"v=spf1 -all"'}
    reply = ask(jail.udp, "alias.mail.net", "TXT")
    assert answers(reply) == {'"v=spf1 -all"'}
    assert {rrset.name.to_text() for rrset in reply.answer} == {"alias.mail.net."}
    assert 1 <= reply.answer[0].ttl <= 30
    assert answers(ask(jail.udp, "9.113.0.203.in-addr.arpa", "PTR")) == {"host.mail.net."}
    nothing = ask(jail.udp, "mail.net", "SRV")
    assert nothing.rcode() is dns.rcode.NOERROR
    assert not nothing.answer
    assert nothing.authority
    assert ask(jail.udp, "no.mail.net", "TXT").rcode() is dns.rcode.NXDOMAIN
    records = rig.wait_for_records(lambda records: any(r.detail == "type MX" for r in records))
    (mx,) = [record for record in records if record.detail == "type MX"]
    assert (mx.decision, mx.rule_id, mx.dest.host if mx.dest else "") == ("allow", "mail", "mail.net")


def test_without_the_word_nothing_is_asked(rig: Rig, jail: Ports) -> None:
    for kind in ("TXT", "MX", "SRV", "CAA", "NS", "SOA", "HTTPS", "SVCB"):
        reply = ask(jail.udp, "www.web.net", kind)
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert ede(ask(jail.udp, "x.evil.net", "TXT")) == [(15, "rule.deny")]
    for kind in ("NULL", "ANY", "NAPTR", "KEY", "TYPE65400"):
        assert ask(jail.udp, "mail.net", kind).rcode() is dns.rcode.NOTIMP
    assert not rig.server.seen


def test_a_lease_opens_them_and_its_end_closes_them(rig: Rig, jail: Ports) -> None:
    lease = Lease("L", "p", (parse_scope("www.web.net"),), records=True, exp_ms=1 << 45)
    rig.snapshot(POLICY, leases=[lease])
    assert answers(ask(jail.udp, "www.web.net", "TXT")) == {'"not for you"'}
    rig.snapshot(POLICY, leases=[lease], revoked=["L"])
    reply = ask(jail.udp, "www.web.net", "TXT")
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert rig.server.seen["www.web.net", "TXT"] == 1


def test_where_they_lead_is_judged(rig: Rig, jail: Ports) -> None:
    assert ede(ask(jail.udp, "bad.mail.net", "TXT")) == [(15, "rule.deny")]
    assert ede(ask(jail.udp, "svcevil.mail.net", "HTTPS")) == [(15, "rule.deny")]
    assert answers(ask(jail.udp, "svc.mail.net", "HTTPS")) == {'1 . alpn="h2"'}


def test_they_are_bounded_in_size(rig: Rig, jail: Ports) -> None:
    short = ask(jail.udp, "big.mail.net", "TXT", edns=False)
    assert short.flags & dns.flags.TC
    assert not short.answer
    assert len(answers(ask(jail.tcp, "big.mail.net", "TXT", tcp=True))) == 1
    huge = ask(jail.tcp, "huge.mail.net", "TXT", tcp=True)
    assert (huge.rcode(), ede(huge)) == (dns.rcode.NXDOMAIN, [(15, "dns.refused")])


def test_they_are_remembered_and_charged(rig: Rig, jail: Ports) -> None:
    other = rig.jail("k", "p")
    for where in (jail, other, jail):
        assert ask(where.udp, "mail.net", "MX").answer
    assert rig.server.seen["mail.net", "MX"] == 1
    rig.snapshot(POLICY.replace("1000/1h", "2/1h"))
    assert ask(jail.udp, "mail.net", "TXT").answer
    assert ede(ask(jail.udp, "alias.mail.net", "MX")) == [(15, "budget.exceeded")]


def test_the_name_of_an_address_that_was_answered_is_known_without_asking(rig: Rig, jail: Ports) -> None:
    reverse = "6.113.0.203.in-addr.arpa"
    assert ede(ask(jail.udp, reverse, "PTR")) == [(15, "posture.default_deny")]
    assert answers(ask(jail.udp, "www.web.net")) == {"203.0.113.6"}
    assert answers(ask(jail.udp, reverse.upper(), "PTR")) == {"www.web.net."}
    assert ede(ask(rig.jail("k", "p").udp, reverse, "PTR")) == [(15, "posture.default_deny")]  # told another
    rig.snapshot(POLICY.replace("deny: [{to: .evil.net}]", "deny: [{to: [.evil.net, .web.net]}]"))
    assert ede(ask(jail.udp, reverse, "PTR")) == [(15, "posture.default_deny")]
    assert {name for name, _ in rig.server.seen} == {"www.web.net"}
