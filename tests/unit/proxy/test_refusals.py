"""Refusals are counted to the last one, and their records are few."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from exeat.ledger.records import Kind, decode
from exeat.policy.model import Decision, Subject, Verdict
from exeat.proxy.evidence import Evidence
from exeat.proxy.jails import Jail
from exeat.proxy.refusals import BURST, MAX_DESTS, RATE, Refusals

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.records import Record

WHO = Subject("p", "a", "job", "", "n1")


class Ledger:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, Callable[[bool], None]]] = []
        self.records: list[Record] = []

    def append(self, records: list[bytes], done: Callable[[bool], None]) -> None:
        (record,) = records
        self.waiting.append((record, done))

    def answer(self, *, durable: bool = True) -> None:
        waiting, self.waiting = self.waiting, []
        for record, done in waiting:
            if durable:
                self.records.append(decode(record))
            done(durable)


class Door:
    def __init__(self) -> None:
        self.now = 5.0
        self.ledger: Any = Ledger()
        self.settled: list[Jail] = []
        self.book = Refusals(self.ledger, lambda: self.now, self.settled.append)
        self.jail = Jail("j", WHO, None, {})

    def refuse(self, host: str = "x.org", reason: str = "rule.deny", rule: str = "r") -> None:
        verdict = Verdict.ASK if reason == "rule.ask" else Verdict.DENY
        evidence = Evidence(bytes(16), WHO, "test", host=host, port=443)
        evidence.decision = Decision(verdict, reason, rule)
        self.book.note(self.jail, evidence, reason)

    def flush(self, *, durable: bool = True) -> None:
        self.book.flush(self.jail)
        self.ledger.answer(durable=durable)

    def records(self) -> list[Record]:
        found: list[Record] = self.ledger.records
        return found


def total(records: list[Record]) -> int:
    return sum(max(record.count, 1) for record in records)


def test_the_first_are_told_one_by_one_and_what_is_more_in_sums() -> None:
    door = Door()
    for _ in range(int(BURST) + 7):
        door.refuse()
    door.ledger.answer()
    assert len(door.records()) == BURST
    assert door.jail.closing == 1
    door.flush()
    last = door.records()[-1]
    assert (last.kind, last.count, last.flow, last.reason_code, last.rule_id) == (
        Kind.DENY, 7, b"", "rule.deny", "r",
    )  # fmt: skip
    assert last.dest is not None
    assert (last.dest.host, last.project, last.job, last.node) == ("x.org", "p", "job", "n1")
    assert (door.jail.closing, door.settled) == (0, [door.jail])
    door.flush()
    assert total(door.records()) == BURST + 7
    door.now += 1.0
    for _ in range(int(RATE) + 1):
        door.refuse()
    door.flush()
    assert Counter(record.count for record in door.records()) == {0: BURST + RATE, 7: 1, 1: 1}


def test_many_destinations_are_one_sum_that_names_the_most_frequent() -> None:
    door = Door()
    for number in range(int(BURST) + MAX_DESTS):
        door.refuse(f"h{number}.org")
    for number in range(100):
        door.refuse(f"g{number}.org")
    door.refuse("g3.org")
    door.flush()
    sums = [record for record in door.records() if record.count]
    assert Counter(record.count for record in sums) == {1: MAX_DESTS, 101: 1}
    (many,) = [record for record in sums if record.count == 101]
    assert many.dest is None
    assert many.detail.startswith("g3.org:443 x2, g0.org:443 x1, ")
    assert many.detail.endswith(" and 56+ more places")
    assert many.duration_ms >= 0


def test_a_jail_has_not_ended_before_its_last_refusal_is_durable() -> None:
    door = Door()
    door.refuse()
    assert not door.jail.quiet
    door.ledger.answer(durable=False)
    assert not door.jail.quiet  # it is in a sum now
    door.flush()
    assert door.jail.quiet
    assert total(door.records()) == 1


def test_a_jail_whose_sums_are_not_durable_has_not_ended() -> None:
    door = Door()
    for _ in range(int(BURST) + 1):
        door.refuse()
    door.ledger.answer()
    door.book.flush(door.jail)
    door.refuse()
    assert door.jail.closing == 1
    door.ledger.answer(durable=False)
    assert (door.jail.closing, door.settled) == (1, [])
    door.flush()
    assert (door.jail.closing, door.settled) == (0, [door.jail])
    assert (total(door.records()), door.records()[-1].count) == (BURST + 2, 2)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("refuse"), st.integers(0, 400), st.integers(0, 60)),
        st.tuples(st.sampled_from(["durable", "lost", "flush", "second"])),
    ),
    max_size=25,
)


@given(STEPS)
def test_none_is_left_out_whatever_the_ledger_does(steps: list[tuple[Any, ...]]) -> None:
    door, refused = Door(), 0
    for step in steps:
        if step[0] == "refuse":
            for number in range(step[1]):
                door.refuse(f"h{number % (step[2] + 1)}.org", ("rule.deny", "rule.ask")[number % 2])
            refused += step[1]
        elif step[0] == "second":
            door.now += 1.0
        elif step[0] == "flush":
            door.book.flush(door.jail)
        else:
            door.ledger.answer(durable=step[0] == "durable")
    for _ in range(3):
        door.flush()
    assert total(door.records()) == refused
    assert door.jail.closing == 0
