"""The reservation gate: nothing passes above a durable ceiling, and few reservations are needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from exeat.proxy.gate import FIRST_STEP, LAST_STEP, Gate


class Book:
    """Grants when told to; counts what was asked."""

    def __init__(self) -> None:
        self.wanted: list[int] = []
        self.gate = Gate(self.wanted.append)

    def grant(self) -> None:
        self.gate.grant(self.wanted[-1])


def started(waiting: int = 0) -> Book:
    book = Book()
    book.gate.grant(book.gate.first_ceiling(waiting))
    return book


def test_asks_when_half_of_the_rest_is_used() -> None:
    book = started()
    book.gate.take(FIRST_STEP // 2)
    assert book.wanted == []
    book.gate.take(1)
    assert book.wanted == [FIRST_STEP * 3]
    book.gate.take(1000)
    assert len(book.wanted) == 1, "one at a time"
    book.grant()
    assert book.gate.room == 3 * FIRST_STEP - FIRST_STEP // 2 - 1001


def test_stalls_while_the_ledger_is_silent() -> None:
    book = started()
    book.gate.take(book.gate.room)
    assert book.gate.room == 0
    book.gate.retry()
    assert book.wanted == [FIRST_STEP * 3] * 2
    book.grant()
    assert book.gate.room == 2 * FIRST_STEP


def test_an_exhausted_gate_asks_once_more_at_its_end() -> None:
    book = started()
    book.gate.take(FIRST_STEP - 10)
    book.gate.exhaust()
    book.gate.take(9)
    assert len(book.wanted) == 1
    book.gate.take(1)
    assert len(book.wanted) == 2


def test_a_gigabyte_needs_few_reservations() -> None:
    book = started()
    while book.gate.taken < 1 << 30:
        book.gate.take(min(65536, book.gate.room))
        if book.wanted and book.wanted[-1] > book.gate.reserved:
            book.grant()
    assert len(book.wanted) <= (1 << 30) // LAST_STEP + 8


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.booleans()), max_size=60), st.integers(0, 300_000))
def test_never_above_the_ceiling(moves: list[tuple[int, bool]], waiting: int) -> None:
    book = started(waiting)
    assert book.gate.room >= waiting
    for size, answer in moves:
        book.gate.take(min(size, book.gate.room))
        assert book.gate.taken <= book.gate.reserved
        if answer and book.wanted and book.wanted[-1] > book.gate.reserved:
            book.grant()
    assert book.wanted == sorted(book.wanted)
