"""Data of other types: passed on whole and uncompressed, stripped where it leads past us, or not at all."""

from __future__ import annotations

import contextlib

import dns.exception
import dns.message
import dns.rdata
import dns.rdataclass
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.dns.rdata import MAX_TXT, SERVED, read
from exeat.dns.reverse import reversed_address
from exeat.dns.wire import Qtype, WireError, parse_answer, wire_name
from exeat.policy.addresses import parse_address

NAME = "www.example.org."


def through(kind: str, *texts: str) -> list[str | None]:
    """What comes out of records that another library packed (with compression), as that library reads it."""
    query = dns.message.make_query(NAME, kind)
    reply = dns.message.make_response(query)
    reply.answer.append(dns.rrset.from_text(NAME, 60, "IN", kind, *texts))
    answer = parse_answer(reply.to_wire())
    out: list[str | None] = []
    for record in answer.records:
        data = read(answer.message, record.rtype, record.start, record.end)
        out.append(None if data is None else unpacked(kind, data.octets))
    return out


def unpacked(kind: str, octets: bytes) -> str:
    """The data alone: a pointer left in it could not be followed."""
    return str(dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.from_text(kind), octets, 0, len(octets)))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("NS", "ns.www.example.org."),
        ("PTR", "host.www.example.org."),
        ("MX", "10 mail.www.example.org."),
        ("MX", "0 ."),
        ("SRV", "1 2 443 srv.www.example.org."),
        ("SOA", "ns.www.example.org. host.example.org. 7 3600 600 86400 5"),
        ("TXT", '"v=spf1 -all" "second"'),
        ("TXT", '""'),
        ("CAA", '0 issue "ca.example.net"'),
        ("CAA", '128 iodef ""'),
        ("HTTPS", '1 . alpn="h2"'),
        ("HTTPS", '1 . alpn="h2" no-default-alpn port="8443"'),
        ("HTTPS", '1 . mandatory="alpn" alpn="h2"'),
        ("HTTPS", "0 other.www.example.org."),
        ("SVCB", '1 svc.www.example.org. port="853"'),
    ],
)
def test_what_leads_nowhere_else_comes_through(kind: str, text: str) -> None:
    assert through(kind, text) == [text]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('1 . alpn="h3,h2" ipv4hint="192.0.2.1" ech="AAT+DQAA" ipv6hint="2001:db8::1"', '1 . alpn="h2"'),
        ('1 . alpn="h3,h3-29"', "1 ."),
        ('1 . alpn="h3" no-default-alpn', None),  # it spoke nothing else
        ('1 . ech="AAT+DQAA"', "1 ."),
        ('1 . alpn="dot" dohpath="/dns-query{?dns}"', '1 . alpn="dot"'),
        ('1 . key65280="x" port="8443"', '1 . port="8443"'),
        ('1 . mandatory="ech" ech="AAT+DQAA"', None),  # whoever cannot read ECH must not use it
        ('1 . mandatory="ipv4hint" ipv4hint="192.0.2.1"', None),
    ],
)
def test_a_service_record_loses_what_leads_past_us(text: str, left: str | None) -> None:
    assert through("HTTPS", text) == through("SVCB", text) == [left]


@pytest.mark.parametrize(("text", "names"), [("0 x.evil.com.", 1), ("1 x.evil.com.", 1), ("1 .", 0)])
def test_the_target_of_a_service_record_is_an_alias_to_be_judged(text: str, names: int) -> None:
    octets = dns.rdata.from_text("IN", "HTTPS", text).to_wire() or b""
    data = read(octets, Qtype.HTTPS, 0, len(octets))
    assert data is not None
    assert data.names == (wire_name("x.evil.com"),) * names


@pytest.mark.parametrize(
    ("kind", "octets"),
    [
        ("TXT", b""),
        ("TXT", b"\x05abc"),
        ("TXT", (b"\xff" + b"x" * 255) * (MAX_TXT // 256 + 1)),
        ("MX", b"\x00"),
        ("MX", b"\x00\x0a\x01a\x00x"),
        ("SRV", b"\x00\x01\x00\x02\x01"),
        ("SOA", b"\x00\x00" + bytes(19)),
        ("NS", b""),
        ("CAA", b"\x00"),
        ("CAA", b"\x00\x00v"),
        ("CAA", b"\x00\x05iss"),
        ("CAA", b"\x00\x02i-v"),
        ("HTTPS", b"\x00"),
        ("HTTPS", b"\x00\x01\x00\x00\x03\x00\x02\x01"),
        ("HTTPS", b"\x00\x01\x00\x00\x03\x00\x02\x01\xbb\x00\x01\x00\x03\x02h2"),  # keys not in order
        ("HTTPS", b"\x00\x01\x00\x00\x01\x00\x03\x05h2"),
        ("HTTPS", b"\x00\x01\x00\x00\x01\x00\x01\x00"),
        ("HTTPS", b"\x00\x01\x00\x00\x00\x00\x01\x00"),
    ],
)
def test_malformed_data_is_an_error(kind: str, octets: bytes) -> None:
    with pytest.raises(WireError):
        read(octets, Qtype[kind], 0, len(octets))


@given(st.sampled_from(sorted(SERVED)), st.binary(max_size=64), st.binary(max_size=64))
def test_any_data_is_read_or_refused_and_what_is_read_stands_alone(
    rtype: int, before: bytes, body: bytes
) -> None:
    """Nothing else is raised, names point to nowhere outside, and to read it again changes nothing."""
    message = before + body
    try:
        data = read(message, rtype, len(before), len(message))
    except WireError:
        return
    if data is None:
        return
    assert read(data.octets, rtype, 0, len(data.octets)) == data
    with contextlib.suppress(dns.exception.DNSException):  # it judges values, too: a CAA tag, a SVCB key
        dns.rdata.from_wire(
            dns.rdataclass.IN, dns.rdatatype.RdataType(rtype), data.octets, 0, len(data.octets)
        )


@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::7", "::1"])
def test_a_reverse_name_means_its_address(text: str) -> None:
    address = parse_address(text)
    labels = (
        [str(byte) for byte in reversed(address.packed())] + ["in-addr"]
        if address.family == 4
        else [*reversed(address.packed().hex()), "ip6"]
    )
    assert reversed_address(".".join([*labels, "arpa"])) == address


@pytest.mark.parametrize(
    "host",
    [
        "", "example.org", "2.0.192.in-addr.arpa", "1.7.2.0.192.in-addr.arpa", "256.2.0.192.in-addr.arpa",
        "07.2.0.192.in-addr.arpa", "in-addr.arpa", "1.0.ip6.arpa", f"{'g.' * 32}ip6.arpa",
        f"{'00.' * 32}ip6.arpa",
    ],
)  # fmt: skip
def test_other_names_mean_none(host: str) -> None:
    assert reversed_address(host) is None
