"""Chains of names: what is followed, what is refused, how long it holds."""

from __future__ import annotations

import pytest

from exeat.dns.vet import Chain, Status, dial_order, follow
from exeat.dns.wire import Answer, Qtype, Record, wire_name
from exeat.policy.model import Address

A, B, C, X = (wire_name(f"{label}.example.org") for label in "abcx")
ONE, TWO = Address(4, 0x01010101), Address(4, 0x01010102)
SIX = Address(6, 0x2600 << 112 | 1)


def answer(*records: Record, rcode: int = 0, negative_ttl: int | None = None) -> Answer:
    return Answer(1, rcode, False, b"", records, negative_ttl)


def alias(owner: bytes, target: bytes, ttl: int = 60) -> Record:
    return Record(owner, Qtype.CNAME, ttl, target)


def host(owner: bytes, address: Address = ONE, ttl: int = 60) -> Record:
    return Record(owner, Qtype.A if address.family == 4 else Qtype.AAAA, ttl, address)


def test_a_plain_answer() -> None:
    assert follow(answer(host(A), host(A, TWO), host(A)), A, Qtype.A) == Chain(
        Status.FOUND, (), (ONE, TWO), 30
    )


def test_a_chain_in_any_order() -> None:
    records = [alias(A, B), alias(B, C), host(C, ttl=7)]
    for order in (records, records[::-1]):
        assert follow(answer(*order), A, Qtype.A) == Chain(Status.FOUND, (B, C), (ONE,), 7)


@pytest.mark.parametrize(("ttl", "clamped"), [(0, 1), (1, 1), (29, 29), (30, 30), (86400, 30)])
def test_the_ttl_is_clamped(ttl: int, clamped: int) -> None:
    assert follow(answer(host(A, ttl=ttl)), A, Qtype.A).ttl == clamped


def test_other_types_are_not_looked_at() -> None:
    extra = Record(A, 16, 0, None)
    assert follow(answer(extra, host(A), host(A, SIX)), A, Qtype.A).addresses == (ONE,)
    assert follow(answer(extra), A, Qtype.A).status is Status.NODATA


HOSTILE = {
    "address of another name": [host(B)],
    "address beside the chain": [host(A), host(B)],
    "address before the end": [alias(A, B), host(A), host(B)],
    "address in the middle": [alias(A, B), alias(B, C), host(B)],
    "alias of another name": [alias(X, B), host(A)],
    "alias after the end": [alias(A, B), host(B), alias(X, C)],
    "fork": [alias(A, B), alias(A, C), host(B), host(C)],
    "loop of one": [alias(A, A)],
    "loop of two": [alias(A, B), alias(B, A)],
    "loop behind": [alias(A, B), alias(B, C), alias(C, B)],
    "too long": [alias(wire_name(f"h{i}.x"), wire_name(f"h{i + 1}.x")) for i in range(9)],
    "mapped": [host(A, Address(6, 0xFFFF << 32 | 0x08080808))],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_answers_no_honest_server_gives(case: str) -> None:
    name = wire_name("h0.x") if case == "too long" else A
    qtype = Qtype.AAAA if case == "mapped" else Qtype.A
    assert follow(answer(*HOSTILE[case]), name, qtype).status is Status.HOSTILE


def test_a_repeated_alias_is_one() -> None:
    assert follow(answer(alias(A, B), alias(A, B), host(B)), A, Qtype.A).status is Status.FOUND


def test_negative_answers_are_kept_for_what_the_soa_says_within_thirty_seconds() -> None:
    for minimum, kept in ((None, 0), (0, 0), (4, 4), (900, 30)):
        assert follow(answer(rcode=3, negative_ttl=minimum), A, Qtype.A) == Chain(
            Status.NXDOMAIN, (), (), kept
        )
        assert follow(answer(negative_ttl=minimum), A, Qtype.A) == Chain(Status.NODATA, (), (), kept)


def test_a_chain_that_ends_nowhere() -> None:
    assert follow(answer(alias(A, B), rcode=3), A, Qtype.A) == Chain(Status.NXDOMAIN, (B,), (), 0)
    assert follow(answer(alias(A, B)), A, Qtype.A) == Chain(Status.NODATA, (B,), (), 0)


def test_nxdomain_with_an_address_is_a_lie() -> None:
    assert follow(answer(host(A), rcode=3), A, Qtype.A).status is Status.HOSTILE


@pytest.mark.parametrize("rcode", [1, 2, 4, 5, 16, 23])
def test_other_codes_are_no_answer(rcode: int) -> None:
    assert follow(answer(host(A), rcode=rcode), A, Qtype.A).status is Status.UNAVAILABLE


def test_dial_order_alternates_families() -> None:
    four = Chain(Status.FOUND, (), (ONE, TWO), 3)
    six = Chain(Status.FOUND, (), (SIX,), 9)
    for chains in ([four, six], [six, four]):
        assert dial_order(chains) == ((ONE, 3), (SIX, 9), (TWO, 3))
    assert dial_order([Chain(Status.NODATA), six]) == ((SIX, 9),)
    assert dial_order([]) == ()
