"""Byte-level tables for the DNS reader and builder (RFC 1035, 6891, 8914)."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from exeat.dns.build import build_error, build_query, build_question, build_reply, randomise_case
from exeat.dns.wire import (
    Ede,
    Qtype,
    Rcode,
    WireError,
    host_text,
    parse_answer,
    parse_query,
    printable,
    read_name,
    split_labels,
    wire_name,
)
from exeat.policy.model import Address

HEAD = bytes.fromhex("1234 0100 0001 0000 0000 0000")
HEAD_OPT = bytes.fromhex("1234 0100 0001 0000 0000 0001")
NAME = b"\x03www\x07example\x03org\x00"
QUESTION = NAME + b"\x00\x01\x00\x01"
OPT = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"


def query(head: bytes = HEAD, rest: bytes = QUESTION) -> bytes:
    return head + rest


def header(ident: int = 0x1234, flags: int = 0x0100, *counts: int) -> bytes:
    counts = counts or (1, 0, 0, 0)
    return b"".join(value.to_bytes(2, "big") for value in (ident, flags, *counts))


def test_a_plain_query_is_read() -> None:
    parsed = parse_query(header() + b"\x03wWw\x07EXAMPLE\x03org\x00\x00\x1c\x00\x01")
    assert (parsed.id, parsed.name, parsed.qtype, parsed.qclass) == (0x1234, NAME, Qtype.AAAA, 1)
    assert parsed.question == b"\x03wWw\x07EXAMPLE\x03org\x00\x00\x1c\x00\x01"
    assert parsed.opt is None
    assert parsed.udp_limit == 512


@pytest.mark.parametrize(("size", "limit"), [(0, 512), (511, 512), (1000, 1000), (1232, 1232), (65535, 1232)])
def test_the_udp_limit_is_the_clients_within_ours(size: int, limit: int) -> None:
    opt = b"\x00\x00\x29" + size.to_bytes(2, "big") + bytes(6)
    assert parse_query(HEAD_OPT + QUESTION + opt).udp_limit == limit


def test_opt_with_options_is_read_and_forgotten() -> None:
    options = b"\x00\x0a\x00\x08abcdefgh" + b"\x00\x0c\x00\x02\x00\x00"
    opt = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00" + len(options).to_bytes(2, "big") + options
    parsed = parse_query(HEAD_OPT + QUESTION + opt)
    assert parsed.opt is not None
    assert parsed.opt.dnssec_ok
    assert parsed.opt.version == 0


BAD = {
    "empty": (b"", None),
    "eleven octets": (HEAD[:11], None),
    "a response": (header(1, 0x8100) + QUESTION, None),
    "a response with opcode": (header(1, 0xA900) + QUESTION, None),
    "opcode 1": (header(1, 0x0900) + QUESTION, Rcode.NOTIMP),
    "opcode 4 (notify)": (header(1, 0x2100) + QUESTION, Rcode.NOTIMP),
    "opcode 5 (update)": (header(1, 0x2900) + QUESTION, Rcode.NOTIMP),
    "truncated query": (header(1, 0x0300) + QUESTION, Rcode.FORMERR),
    "rcode in a query": (header(1, 0x0103) + QUESTION, Rcode.FORMERR),
    "no question": (header(1, 0x0100, 0, 0, 0, 0), Rcode.FORMERR),
    "two questions": (header(1, 0x0100, 2, 0, 0, 0) + QUESTION * 2, Rcode.FORMERR),
    "an answer": (header(1, 0x0100, 1, 1, 0, 0) + QUESTION, Rcode.FORMERR),
    "an authority": (header(1, 0x0100, 1, 0, 1, 0) + QUESTION, Rcode.FORMERR),
    "two additionals": (header(1, 0x0100, 1, 0, 0, 2) + QUESTION + OPT * 2, Rcode.FORMERR),
    "bytes after": (HEAD + QUESTION + b"\x00", Rcode.FORMERR),
    "bytes after OPT": (HEAD_OPT + QUESTION + OPT + b"\x00", Rcode.FORMERR),
    "question cut": (HEAD + QUESTION[:-1], Rcode.FORMERR),
    "name cut": (HEAD + b"\x03ww", Rcode.FORMERR),
    "name without end": (HEAD + b"\x03www", Rcode.FORMERR),
    "pointer to itself": (HEAD + b"\xc0\x0c\x00\x01\x00\x01", Rcode.FORMERR),
    "pointer after a label": (HEAD + b"\x03www\xc0\x0c\x00\x01\x00\x01", Rcode.FORMERR),
    "label type 01": (HEAD + b"\x41" + b"a" * 65 + b"\x00\x00\x01\x00\x01", Rcode.FORMERR),
    "label type 10": (HEAD + b"\x80a\x00\x00\x01\x00\x01", Rcode.FORMERR),
    "label of 64": (HEAD + b"\x40" + b"a" * 64 + b"\x00\x00\x01\x00\x01", Rcode.FORMERR),
    "name of 256": (HEAD + b"\x01a" * 127 + b"\x01" + b"\x00\x00\x01\x00\x01\x00", Rcode.FORMERR),
    "OPT not at root": (HEAD_OPT + QUESTION + b"\x01a" + OPT, Rcode.FORMERR),
    "TSIG instead of OPT": (HEAD_OPT + QUESTION + b"\x00\x00\xfa" + bytes(8), Rcode.FORMERR),
    "OPT cut": (HEAD_OPT + QUESTION + OPT[:-1], Rcode.FORMERR),
    "option cut": (HEAD_OPT + QUESTION + OPT[:-1] + b"\x03\x00\x0a\x00", Rcode.FORMERR),
    "option too long": (HEAD_OPT + QUESTION + OPT[:-1] + b"\x05\x00\x0a\x00\x02\x00", Rcode.FORMERR),
    "OPT missing": (HEAD_OPT + QUESTION, Rcode.FORMERR),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_a_query_is_refused(case: str) -> None:
    data, rcode = BAD[case]
    with pytest.raises(WireError) as caught:
        parse_query(data)
    assert caught.value.rcode == rcode


def test_the_longest_name_is_a_name() -> None:
    name = b"\x3f" + b"a" * 63 + b"\x3f" + b"b" * 63 + b"\x3f" + b"c" * 63 + b"\x3d" + b"d" * 61 + b"\x00"
    assert len(name) == 255
    assert parse_query(HEAD + name + b"\x00\x01\x00\x01").name == name


def test_every_prefix_of_a_query_is_refused() -> None:
    whole = HEAD_OPT + QUESTION + OPT[:-1] + b"\x04\x00\x0c\x00\x00"
    parse_query(whole)
    for end in range(len(whole)):
        with pytest.raises(WireError):
            parse_query(whole[:end])


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (b"www", "www"),
        (b"_dmarc", "_dmarc"),
        (b"a\x00b", None),
        (b"\xc3\xa9", None),
        (b"\x80" * 63, None),
        (b"a.b", None),
        (b"a b", None),
        (b"a@b", None),
        (b"*", None),
        (b"a\nb", None),
        (b"a%2eb", None),
    ],
)
def test_only_host_bytes_become_text(label: bytes, text: str | None) -> None:
    name = bytes([len(label)]) + label + b"\x03org\x00"
    assert host_text(name) == (f"{text}.org" if text else None)
    shown = printable(name)
    assert shown.isascii()
    assert shown.isprintable()


def test_printable_names_differ_when_names_do() -> None:
    assert printable(b"\x03a.b\x00") == "a\\046b"
    assert printable(b"\x01a\x01b\x00") == "a.b"
    assert printable(b"\x00") == "."


def test_wire_name_is_the_inverse_of_host_text() -> None:
    assert wire_name("www.example.org") == NAME
    assert host_text(wire_name("_a-b.example")) == "_a-b.example"
    assert split_labels(NAME) == [b"www", b"example", b"org"]


@pytest.mark.parametrize("host", ["", ".", "a..b", "a" * 64, ".".join(["a" * 63] * 4) + ".b", "a."])
def test_wire_name_refuses_what_does_not_fit(host: str) -> None:
    with pytest.raises(WireError):
        wire_name(host)


def test_compressed_names_are_followed_backwards_only() -> None:
    data = header() + NAME + b"\x04mail\xc0\x10" + b"\xc0\x1d"
    assert read_name(data, 29) == (b"\x04mail\x07example\x03org\x00", 36)
    assert read_name(data, 36) == (b"\x04mail\x07example\x03org\x00", 38)


@pytest.mark.parametrize(
    "tail",
    [
        b"\xc0\x1d",  # to itself
        b"\xc0\x1f",  # forward
        b"\x01a\xc0\x1d",  # to its own beginning: a loop
        b"\xc0\x00",  # into the header
        b"\xc0",  # cut
        b"\xff\xff",
        b"\x05abc",
        b"\x40" + b"a" * 64 + b"\x00",
    ],
)
def test_hostile_compression_is_refused(tail: bytes) -> None:
    with pytest.raises(WireError):
        read_name(header() + NAME + tail, 29)


def test_long_pointer_chains_end() -> None:
    data = header() + b"\x01a\x00"
    for _ in range(500):
        data += b"\x01b" + (0xC000 | (12 if len(data) == 15 else len(data) - 4)).to_bytes(2, "big")
    with pytest.raises(WireError):
        read_name(data, len(data) - 4)  # over 255 octets long before over 500 pointers


def answer(*records: bytes, flags: int = 0x8180, counts: tuple[int, int, int] | None = None) -> bytes:
    an, ns, ar = counts or (len(records), 0, 0)
    return header(7, flags, 1, an, ns, ar) + QUESTION + b"".join(records)


def record(rtype: int, data: bytes, ttl: int = 60, owner: bytes = b"\xc0\x0c", rclass: int = 1) -> bytes:
    fixed = b"".join(v.to_bytes(n, "big") for v, n in ((rtype, 2), (rclass, 2), (ttl, 4), (len(data), 2)))
    return owner + fixed + data


SOA_DATA = b"\x01m\x00\x01r\x00" + b"".join(v.to_bytes(4, "big") for v in (1, 2, 3, 4, 17))


def test_an_answer_is_read() -> None:
    parsed = parse_answer(
        answer(
            record(5, b"\x03cdn\xc0\x10", 300),
            record(1, bytes([192, 0, 2, 1]), 0xFFFFFFFF, b"\x03cdn\xc0\x10"),
            record(28, bytes(15) + b"\x01"),
            record(16, b"\x02hi"),
        )
    )
    assert parsed.question == QUESTION
    assert [r.rtype for r in parsed.records] == [5, 1, 28, 16]
    assert parsed.records[0].value == b"\x03cdn\x07example\x03org\x00"
    assert parsed.records[1].value == Address(4, 0xC0000201)
    assert parsed.records[1].ttl == 0  # RFC 2181 section 8
    assert parsed.records[2].value == Address(6, 1)
    assert parsed.records[3].value is None


def test_the_negative_ttl_is_the_smaller_of_soa_ttl_and_minimum() -> None:
    for ttl, expected in ((5, 5), (600, 17)):
        parsed = parse_answer(answer(record(6, SOA_DATA, ttl), flags=0x8183, counts=(0, 1, 0)))
        assert (parsed.rcode, parsed.negative_ttl) == (Rcode.NXDOMAIN, expected)


def test_the_extended_rcode_of_opt_counts() -> None:
    opt = b"\x00\x00\x29\x04\xd0\x01\x00\x00\x00\x00\x00"
    assert parse_answer(answer(opt, counts=(0, 0, 1))).rcode == Rcode.BADVERS


def test_a_truncated_answer_is_not_read_further() -> None:
    parsed = parse_answer(answer(b"\xff\xff garbage", flags=0x8380, counts=(3, 0, 0)))
    assert parsed.truncated
    assert parsed.records == ()


BAD_ANSWERS = {
    "a query": query(),
    "opcode": answer(flags=0x8980),
    "two questions": header(7, 0x8180, 2, 0, 0, 0) + QUESTION * 2,
    "compressed question": header(7, 0x8180) + b"\xc0\x0c\x00\x01\x00\x01",
    "65 answers": answer(*[record(1, bytes(4))] * 65),
    "257 records": answer(*[record(1, bytes(4))] * 257, counts=(0, 257, 0)),
    "A of three octets": answer(record(1, bytes(3))),
    "A of five octets": answer(record(1, bytes(5))),
    "AAAA of four octets": answer(record(28, bytes(4))),
    "CNAME with more": answer(record(5, b"\xc0\x0c\x00")),
    "CNAME cut": answer(record(5, b"\x05abc")),
    "class CH": answer(record(1, bytes(4), rclass=3)),
    "missing record": answer(counts=(1, 0, 0)),
    "trailing": answer() + b"\x00",
    "data cut": answer(record(1, bytes(4)))[:-1],
    "SOA short": answer(record(6, SOA_DATA[:-1]), counts=(0, 1, 0)),
    "owner loops": answer(record(1, bytes(4), owner=b"\xc0\x21")),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_what_is_not_an_answer_is_refused(case: str) -> None:
    with pytest.raises(WireError):
        parse_answer(BAD_ANSWERS[case])


def test_every_prefix_of_an_answer_is_refused() -> None:
    whole = answer(record(5, b"\x03cdn\xc0\x10"), record(6, SOA_DATA), counts=(1, 1, 0))
    parse_answer(whole)
    for end in range(len(whole)):
        with pytest.raises(WireError):
            parse_answer(whole[:end])


def test_a_denial_is_nxdomain_with_soa_and_ede() -> None:
    reply = dns.message.from_wire(
        build_reply(
            parse_query(HEAD_OPT + QUESTION + OPT), Rcode.NXDOMAIN, ede=(Ede.BLOCKED, "lease required")
        )
    )
    assert reply.rcode() == dns.rcode.NXDOMAIN
    assert reply.flags & dns.flags.QR
    assert reply.flags & dns.flags.RA
    assert not reply.flags & dns.flags.AA
    (soa,) = reply.authority
    assert soa.rdtype == dns.rdatatype.SOA
    assert (soa.ttl, soa[0].minimum) == (5, 5)
    (option,) = reply.options
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, option.text) == (15, "lease required")


def test_no_opt_unless_the_client_sent_one() -> None:
    reply = dns.message.from_wire(build_reply(parse_query(query()), Rcode.NXDOMAIN, ede=(Ede.BLOCKED, "x")))
    assert reply.edns == -1


def test_addresses_are_answered_under_the_asked_name() -> None:
    asked = parse_query(header() + b"\x03wWw\x07Example\x03org\x00\x00\x1c\x00\x01")
    reply = dns.message.from_wire(
        build_reply(asked, Rcode.NOERROR, addresses=[Address(6, 1), Address(6, 2)], ttl=9)
    )
    (rrset,) = reply.answer
    assert rrset.name.to_text() == "wWw.Example.org."  # the echo keeps the client's case (0x20)
    assert [item.address for item in rrset] == ["::1", "::2"]
    assert rrset.ttl == 9
    assert not reply.authority


def test_an_answer_over_the_limit_becomes_an_empty_one_with_tc() -> None:
    asked = parse_query(HEAD_OPT + QUESTION + OPT)
    many = [Address(6, i) for i in range(64)]
    assert len(build_reply(asked, Rcode.NOERROR, addresses=many)) > 1232
    cut = build_reply(asked, Rcode.NOERROR, addresses=many, limit=1232)
    reply = dns.message.from_wire(cut)
    assert reply.flags & dns.flags.TC
    assert not reply.answer
    assert reply.edns == 0


def test_badvers_is_split_between_header_and_opt() -> None:
    reply = dns.message.from_wire(build_reply(parse_query(HEAD_OPT + QUESTION + OPT), Rcode.BADVERS))
    assert reply.rcode() == dns.rcode.BADVERS


def test_an_error_reply_is_a_header_only() -> None:
    data = build_error(header(0xABCD, 0x2900) + b"junk", Rcode.NOTIMP)
    assert data == bytes.fromhex("abcd a904 0000 0000 0000 0000")


def test_the_upstream_query_is_ours_alone() -> None:
    sent = dns.message.from_wire(build_query(0xBEEF, build_question(NAME, Qtype.A)))
    assert sent.id == 0xBEEF
    assert (sent.edns, sent.payload, sent.ednsflags, len(sent.options)) == (0, 1232, 0, 0)
    assert sent.flags == dns.flags.RD


def test_case_is_random_and_nothing_else() -> None:
    assert randomise_case(b"\x03a-1\x02zz\x00", b"\xff" * 8) == b"\x03A-1\x02ZZ\x00"
    assert randomise_case(b"\x03a-1\x02zz\x00", b"\x00" * 8) == b"\x03a-1\x02zz\x00"
