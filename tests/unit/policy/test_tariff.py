"""Estimated costs: integers, first match, rounded up, the digest of what they came from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.policy.addresses import parse_address
from exeat.policy.scopes import parse_scope
from exeat.policy.tariff import Price, Tariff, Wire

GB = 1_000_000_000


def price(name: str, *scopes: str, out: int = 0, into: int = 0, flow: int = 0) -> Price:
    return Price(name, tuple(parse_scope(text) for text in scopes), out, into, flow)


TARIFF = Tariff(
    (
        price("free", "mirror.example.org", "10.0.0.0/8"),
        price("cloud", "*.cloud.example", "storage.example.net:443", out=90_000_000, into=10_000_000),
        price("six", "2001:db8::/32", out=GB),
        price("rest", "*", flow=7),
    )
)


@pytest.mark.parametrize(
    ("host", "address", "port", "wire", "wanted"),
    [
        ("mirror.example.org", None, 443, Wire(GB, GB), 0),
        ("a.cloud.example", None, 443, Wire(GB, 0), 90_000_000),
        ("a.cloud.example", None, 443, Wire(GB, 2 * GB), 110_000_000),
        ("a.cloud.example", None, 443, Wire(1, 0), 1),  # 0.09, rounded up
        ("a.cloud.example", None, 443, Wire(0, 0), 0),
        ("cloud.example", None, 443, Wire(GB, 0), 7),  # the name itself is not below it
        ("storage.example.net", None, 443, Wire(GB, 0), 90_000_000),
        ("storage.example.net", None, 80, Wire(GB, 0), 7),
        ("inside.example.com", "10.1.2.3", 443, Wire(GB, 0), 0),  # by the address that was dialled
        ("x.example.com", "2001:db8::1", 443, Wire(28, 0, 1), 100),  # 72 bytes of header
        ("a.cloud.example", "192.0.2.1", 443, Wire(GB - 104, 0, 2), 90_000_000),  # 52 each
        ("a.cloud.example", None, 443, Wire(2**64 - 1, 2**64 - 1), 1_844_674_407_370_955_162),
    ],
)
def test_the_first_price_that_fits_counts(
    host: str, address: str | None, port: int, wire: Wire, wanted: int
) -> None:
    assert TARIFF.cost(host, parse_address(address) if address else None, port, wire) == wanted


def test_a_destination_without_a_price_has_no_cost() -> None:
    assert Tariff(TARIFF.prices[:2]).cost("example.com", None, 443, Wire(GB, GB)) is None


def test_a_sum_always_fits_into_a_record() -> None:
    dear = Tariff((price("dear", "*", out=10**15),))
    assert dear.cost("x.example", None, 1, Wire(2**64 - 1, 0)) == 2**64 - 1


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 10**10))
def test_never_less_than_exact_and_less_than_one_more(out: int, into: int, per_gb: int) -> None:
    tariff = Tariff((price("p", "*", out=per_gb, into=per_gb),))
    found = tariff.cost("x.example", None, 1, Wire(out, into))
    assert found is not None
    assert found * GB >= (out + into) * per_gb > (found - 1) * GB


def test_the_digest_changes_with_each_part() -> None:
    base = price("p", "a.example", out=1, into=2, flow=3)
    others = [
        base._replace(name="q"),
        base._replace(scopes=(parse_scope("b.example"),)),
        base._replace(out_per_gb=2),
        base._replace(in_per_gb=1),
        base._replace(per_flow=0),
    ]
    digests = {Tariff((each,)).digest for each in (base, *others)}
    assert len(digests) == 6
    assert Tariff((base,)).digest == Tariff((base,)).digest
    assert Tariff((base, others[0])).digest != Tariff((others[0], base)).digest
    assert len(Tariff((base,)).digest) == 64  # what the record's field holds


RATES = st.integers(0, 10**15)


@given(RATES, RATES, st.integers(0, 2**50), st.integers(-(10**12), 2**60))
def test_what_a_sum_affords_costs_no_more_than_that(out: int, into: int, split: int, nano: int) -> None:
    found = price("x", "*", out=out, into=into)
    count = found.affords(nano)
    assert found.reserve(count) <= max(0, nano)
    if nano > 0 and (out or into):
        assert found.reserve(count + 1) > nano
    passed = min(count, split)
    assert found.of(Wire(passed, count - passed), 52) <= max(0, nano)
