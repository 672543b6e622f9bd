"""Which names an address was answered for: until their end, per subject, within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exeat.dns import pins
from exeat.dns.pins import LEAST_S, Pins
from exeat.policy.addresses import parse_address
from exeat.policy.model import Address, Subject

if TYPE_CHECKING:
    import pytest

ALICE, BOB = Subject("p", "alice"), Subject("p", "bob")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def at(text: str) -> Address:
    return parse_address(text)


def test_a_name_is_known_until_its_answer_ends() -> None:
    clock = Clock()
    book = Pins(clock)
    book.note(ALICE, "a.example", [at("192.0.2.1"), at("2001:db8::1")], 300)
    for address in ("192.0.2.1", "2001:db8::1"):
        assert book.names(ALICE, at(address)) == ["a.example"]
    assert book.names(ALICE, at("192.0.2.2")) == []
    clock.now += 300
    assert book.names(ALICE, at("192.0.2.1")) == []


def test_a_short_answer_is_known_for_a_while() -> None:
    clock = Clock()
    book = Pins(clock)
    book.note(ALICE, "a.example", [at("192.0.2.1")], 0)
    clock.now += LEAST_S - 1
    assert book.names(ALICE, at("192.0.2.1")) == ["a.example"]


def test_nobody_sees_what_another_was_told() -> None:
    book = Pins(Clock())
    book.note(ALICE, "a.example", [at("192.0.2.1")], 300)
    assert book.names(BOB, at("192.0.2.1")) == []
    book.forget(ALICE)
    book.forget(BOB)
    assert book.names(ALICE, at("192.0.2.1")) == []


def test_several_names_of_one_address_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "MAX_NAMES", 2)
    book = Pins(Clock())
    for name in ("a", "b", "a", "c"):
        book.note(ALICE, f"{name}.example", [at("192.0.2.1")], 300)
    assert book.names(ALICE, at("192.0.2.1")) == ["a.example", "c.example"]


def test_a_subject_fills_only_its_own_book(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "MAX_ADDRESSES", 3)
    book = Pins(Clock())
    book.note(BOB, "b.example", [at("192.0.2.1")], 300)
    for number in (1, 2, 1, 3, 4):
        book.note(ALICE, "a.example", [at(f"192.0.2.{number}")], 300)
    known = [number for number in range(1, 5) if book.names(ALICE, at(f"192.0.2.{number}"))]
    assert known == [1, 3, 4]
    assert book.names(BOB, at("192.0.2.1")) == ["b.example"]
