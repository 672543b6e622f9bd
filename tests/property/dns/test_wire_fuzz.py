"""Nothing but WireError ever comes out, and where dnspython also accepts, the meaning is the same."""

from __future__ import annotations

import contextlib

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdatatype
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.dns_mutations import mutations, originals, read

from exeat.dns.build import build_error, build_reply, randomise_case
from exeat.dns.vet import follow
from exeat.dns.wire import (
    Answer,
    Query,
    Rcode,
    WireError,
    host_text,
    parse_answer,
    parse_query,
    printable,
    wire_name,
)
from exeat.policy.model import Address

labels = st.lists(st.binary(min_size=1, max_size=63), max_size=5).filter(
    lambda items: sum(len(item) + 1 for item in items) < 255
)
hosts = st.from_regex(r"[a-z0-9_-]{1,20}(\.[a-z0-9_-]{1,20}){0,4}", fullmatch=True)


@st.composite
def nearly_messages(draw: st.DrawFn, response: bool) -> bytes:
    """A real message made by dnspython, then bitten here and there."""
    name = dns.name.Name([*draw(labels), b""])
    message = dns.message.make_query(name, draw(st.sampled_from([1, 5, 6, 16, 28, 65, 255])))
    if draw(st.booleans()):
        message.use_edns(draw(st.integers(0, 1)), payload=draw(st.integers(0, 65535)))
    if response:
        message = dns.message.make_response(message)
        owner = name
        for kind, text in draw(
            st.lists(st.tuples(st.sampled_from(["A", "AAAA", "CNAME"]), hosts), max_size=4)
        ):
            value = {"A": "192.0.2.1", "AAAA": "2001:db8::1"}.get(kind, text + ".")
            message.answer.append(
                dns.rrset.from_text(owner, draw(st.integers(0, 2**31 - 1)), "IN", kind, value)
            )
            if kind == "CNAME":
                owner = dns.name.from_text(value)
    data = bytearray(message.to_wire(max_size=65535))
    for at, byte in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=3)):
        data[at] = byte
    cut = draw(st.one_of(st.none(), st.integers(0, len(data))))
    return bytes(data[:cut]) + draw(st.binary(max_size=2))


def theirs(data: bytes) -> dns.message.Message | None:
    with contextlib.suppress(dns.exception.DNSException, ValueError, OverflowError):
        return dns.message.from_wire(data)
    return None


def ours(data: bytes) -> Query | None:
    try:
        return parse_query(data)
    except WireError:
        return None


@given(st.one_of(st.binary(max_size=300), nearly_messages(response=False)))
@example(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02a.\x00\x00\x01\x00\x01")
def test_a_query_means_the_same_to_both(data: bytes) -> None:
    query = ours(data)
    if query is None:
        return
    other = theirs(data)
    if other is None:
        return
    (question,) = other.question
    assert other.id == query.id
    assert other.opcode() == dns.opcode.QUERY
    assert not other.flags & dns.flags.QR
    assert question.name.canonicalize().to_wire() == query.name
    assert (question.rdtype, question.rdclass) == (query.qtype, query.qclass)
    assert (other.edns >= 0) == (query.opt is not None)
    if query.opt is not None:
        assert (other.edns, other.payload) == (query.opt.version, query.opt.udp_size)


@given(nearly_messages(response=False), st.sampled_from(Rcode), st.integers(512, 1232))
def test_every_reply_is_one_that_both_read(data: bytes, rcode: Rcode, limit: int) -> None:
    query = ours(data)
    if query is None:
        return
    reply = build_reply(query, rcode, addresses=[Address(4, 1)] * 3, ttl=3, limit=limit)
    assert len(reply) <= limit
    answer = parse_answer(reply)
    assert (answer.id, answer.question) == (query.id, query.question)
    assert answer.rcode & 0xF == rcode & 0xF  # the upper bits are in OPT, if the client has one
    dns.message.from_wire(reply)


@given(st.binary(min_size=12, max_size=40), st.sampled_from([Rcode.FORMERR, Rcode.NOTIMP]))
def test_an_error_reply_is_always_a_response(data: bytes, rcode: Rcode) -> None:
    reply = build_error(data, rcode)
    assert len(reply) == 12
    assert reply[2] & 0x80
    assert reply[:2] == data[:2]


@given(st.one_of(st.binary(max_size=300), nearly_messages(response=True)))
def test_an_answer_means_the_same_to_both(data: bytes) -> None:
    answer = accepted(data)
    other = theirs(data) if answer is not None else None
    if answer is None or other is None or answer.truncated:
        return
    addresses = sorted(
        record.value.packed() for record in answer.records if isinstance(record.value, Address)
    )
    expected = sorted(
        rdata.to_wire()
        for rrset in other.answer
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
        for rdata in rrset
    )
    assert sorted(set(addresses)) == sorted(set(expected))
    assert other.id == answer.id


def accepted(data: bytes) -> Answer | None:
    try:
        return parse_answer(data)
    except WireError:
        return None


@given(nearly_messages(response=True))
def test_following_never_raises_and_never_invents(data: bytes) -> None:
    answer = accepted(data)
    if answer is None or answer.truncated:
        return
    name = answer.question[:-4].lower()
    chain = follow(answer, name, 1)
    known = {record.value for record in answer.records}
    assert set(chain.addresses) <= known
    assert set(chain.targets) <= known
    assert 0 <= chain.ttl <= 30


@given(labels)
def test_any_name_is_printable_and_host_text_is_exact(parts: list[bytes]) -> None:
    name = b"".join(bytes([len(part)]) + part for part in parts).lower() + b"\0"
    assert printable(name).isprintable()
    text = host_text(name)
    if text is not None:
        assert wire_name(text) == name


@given(hosts, st.binary(min_size=255, max_size=255))
def test_random_case_changes_only_case(host: str, noise: bytes) -> None:
    name = wire_name(host)
    assert randomise_case(name, noise).lower() == name


def test_bitten_messages_by_the_thousand() -> None:
    """A share of the million of `bench/dns_fuzz.py`: some are still taken, and nothing else is raised."""
    assert all(map(read, originals()))
    taken = sum(map(read, mutations(7, 60_000)))
    assert 4000 < taken < 56_000
