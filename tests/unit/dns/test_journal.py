"""What the guard owes the ledger: evidence first, counts complete, nothing kept for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.dns import journal as module
from exeat.dns.journal import Journal, Lookup, Sight
from exeat.dns.judge import Binding
from exeat.ledger.limits import TokenBucket
from exeat.ledger.records import Kind, RecordError, decode
from exeat.ledger.tally import Tally
from exeat.policy.model import Decision, Subject, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exeat.ledger.records import Record

SUBJECT = Subject("p", "a", "j", "", "n")


class Loop:
    """A loop whose time the test turns."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.calls.append((seconds, callback))

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.calls.append((0, callback))

    def turn(self) -> None:
        """Everything that is due, and what that wants done soon."""
        due, self.calls = self.calls, []
        while due:
            for _, call in due:
                call()
            due = [each for each in self.calls if not each[0]]
            self.calls = [each for each in self.calls if each[0]]


class Ledger:
    """A ledger client that answers when, and as, the test says."""

    def __init__(self) -> None:
        self.available = True
        self.records: list[Record] = []
        self.asked: list[tuple[list[Record], Callable[[bool], None]]] = []

    def append(self, records: Sequence[bytes], on_done: Callable[[bool], None]) -> None:
        assert sum(len(record) + 2 for record in records) <= 65000
        self.asked.append(([decode(record) for record in records], on_done))

    def settle(self, *, durable: bool = True) -> None:
        asked, self.asked = self.asked, []
        for records, done in asked:
            if durable:
                self.records += records
            done(durable)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def journal(loop: Loop, ledger: Ledger) -> Journal:
    return Journal(loop, ledger)  # type: ignore[arg-type]


def lookup(host: str = "a.test", subject: Subject = SUBJECT, rule: str = "r") -> Lookup:
    decision = Decision(Verdict.ALLOW, "rule.allow", rule)
    return Lookup.of(subject, host, decision, "dns", Binding("ab" * 32, "allowlist"))


def first_sight(journal: Journal, ledger: Ledger, wanted: Lookup) -> Sight:
    """The sight of `wanted`, once it is durable."""
    seen: list[Sight | None] = []
    journal.note(wanted, seen.append)
    ledger.settle()
    assert seen[0] is not None
    return seen[0]


def total(ledger: Ledger) -> int:
    return sum(record.count for record in ledger.records)


def test_nothing_happens_before_the_first_sight_is_durable(journal: Journal, ledger: Ledger) -> None:
    done: list[Sight | None] = []
    for _ in range(3):
        journal.note(lookup(), done.append)
    assert done == []
    assert len(ledger.asked) == 1
    ledger.settle()
    assert len(done) == 3
    assert None not in done
    (record,) = ledger.records
    assert (record.kind, record.count, record.decision, record.rule_id) == (Kind.DNS, 1, "allow", "r")


def test_what_could_not_be_recorded_is_not_counted(journal: Journal, loop: Loop, ledger: Ledger) -> None:
    done: list[Sight | None] = []
    for _ in range(3):
        journal.note(lookup(), done.append)
    ledger.settle(durable=False)
    assert done == [None] * 3
    assert not journal.known(lookup())
    loop.turn()
    assert ledger.asked == []


def test_counts_are_flushed_each_second(journal: Journal, loop: Loop, ledger: Ledger) -> None:
    done: list[Sight | None] = []
    journal.note(lookup(), done.append)
    ledger.settle()
    for _ in range(99):
        journal.note(lookup(), done.append)
    assert len(done) == 100
    loop.turn()
    ledger.settle()
    assert [record.count for record in ledger.records] == [1, 99]
    loop.turn()
    assert ledger.asked == []


def test_a_failed_flush_is_made_again(journal: Journal, loop: Loop, ledger: Ledger) -> None:
    sight = first_sight(journal, ledger, lookup())
    journal.count(sight)
    loop.turn()
    journal.count(sight)
    ledger.settle(durable=False)
    ledger.available = False
    loop.turn()
    assert ledger.asked == []
    ledger.available = True
    loop.turn()
    ledger.settle()
    assert total(ledger) == 3


def test_a_new_generation_takes_none_of_the_old_counts(journal: Journal, loop: Loop, ledger: Ledger) -> None:
    journal.turn(4)
    sight = first_sight(journal, ledger, lookup())
    journal.count(sight)
    journal.turn(5)
    journal.count(sight)
    loop.turn()
    ledger.settle()
    assert [(record.generation, record.count) for record in ledger.records] == [(4, 1), (4, 1), (5, 1)]


def test_the_memory_is_bounded_and_loses_no_count(
    journal: Journal, loop: Loop, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SIGHTS", 5)
    monkeypatch.setattr(module, "MAX_SUBJECTS", 3)
    for project in "abcdef":
        for number in range(20):
            wanted = lookup(f"h{number}.test", SUBJECT._replace(project=project))
            for _ in range(3):
                journal.note(wanted, lambda _: None)
                ledger.settle()
    assert len(journal._sights) <= 3
    assert all(len(table) <= 5 for table in journal._sights.values())
    loop.turn()
    ledger.settle()
    assert total(ledger) == 6 * 20 * 3


def test_large_flushes_are_cut_into_datagrams(journal: Journal, loop: Loop, ledger: Ledger) -> None:
    long = "x" * 60 + "." + "y" * 60 + "." + "z" * 60
    for number in range(1000):
        sight = first_sight(journal, ledger, lookup(f"h{number}.{long}", rule="r" * 128))
        journal.count(sight)
    journal.turn(5)  # all at once, where the tick does it a few at a time
    assert len(ledger.asked) > 1
    ledger.settle()
    assert total(ledger) == 2000


def test_a_jail_is_gone_when_all_of_it_is_durable(journal: Journal, loop: Loop, ledger: Ledger) -> None:
    gone: list[str] = []
    seen: list[Sight | None] = []
    journal.note(lookup(), seen.append)
    journal.forget("j", lambda: gone.append("first"))
    assert gone == []  # the first sight itself is on its way
    ledger.settle()
    (sight,) = seen
    assert sight is not None
    journal.count(sight)
    loop.turn()
    assert gone == []
    ledger.settle(durable=False)  # the flush failed: try again
    loop.turn()
    loop.turn()
    assert gone == []
    ledger.settle()
    loop.turn()
    assert gone == ["first"]
    assert total(ledger) == 2
    assert not journal.known(lookup())
    journal.forget("other", lambda: gone.append("other"))
    assert gone == ["first", "other"]


def test_a_subject_that_no_record_can_hold_is_refused(
    journal: Journal, loop: Loop, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Sight | None] = []
    journal.note(lookup(subject=SUBJECT._replace(project="x\ny")), done.append)
    loop.turn()
    assert done == [None]
    assert ledger.asked == []
    assert "forbidden character" in capsys.readouterr().err


def test_a_bucket_fills_with_time_up_to_its_burst() -> None:
    bucket = TokenBucket(10, 3, 100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(100.15) for _ in range(2)] == [True, False]
    assert [bucket.take(500.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(400.0)  # a clock that steps back gives nothing


TEXTS = st.sampled_from(["", "a", "a" * 23, "b" * 24, "a" * 40, "b" * 40, "c" * 64, "d" * 128])


@given(
    host=st.one_of(
        st.text("ab.-_x", max_size=255), st.sampled_from(["\n", "\u00e9", "x" * 255, "a" * 40, "b" * 40])
    ),
    subject=st.builds(Subject, TEXTS, TEXTS, st.sampled_from(["", "j", "k" * 64]), TEXTS, TEXTS),
    rule=TEXTS,
    shadow=st.sampled_from(["", "deny"]),
    count=st.integers(1, 1 << 33),
    generation=st.sampled_from([0, 1, 23, 24, 70000]),
)
def test_a_record_put_together_is_the_record_encoded(
    host: str, subject: Subject, rule: str, shadow: str, count: int, generation: int
) -> None:
    decision = Decision(Verdict.ALLOW, "rule.allow", rule)
    wanted = Lookup.of(subject, host, decision, "dns", Binding("ab" * 32, "allowlist"), shadow)
    real, boot = 5, 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "stamps", lambda: (real, boot))
        try:
            whole = module._whole_record(wanted, count, generation)
        except RecordError:
            with pytest.raises(RecordError):
                module._record(wanted, count, generation)
        else:
            assert module._record(wanted, count, generation) == whole


def test_what_is_kept_of_records_is_bounded(journal: Journal, ledger: Ledger) -> None:
    for i in range(module.MAX_FRAMES + 10):
        first_sight(journal, ledger, lookup(rule=f"r{i}"))
    assert len(module._frames) <= module.MAX_FRAMES


def test_answers_from_memory_are_in_the_metrics_once_whatever_the_ledger_says(
    loop: Loop, ledger: Ledger
) -> None:
    tally = Tally()
    journal = Journal(loop, ledger, tally)  # type: ignore[arg-type]
    sight = first_sight(journal, ledger, lookup())
    journal.note(lookup(), lambda _sight: None)  # counted by who answers it
    for _ in range(5):
        journal.count(sight)
    for durable in (False, False, True):
        loop.turn()
        ledger.settle(durable=durable)
        assert tally.counts == {("dns_queries_total", SUBJECT.project, "NOERROR", "allow"): 5}
    journal.count(sight)
    loop.turn()
    assert tally.counts == {("dns_queries_total", SUBJECT.project, "NOERROR", "allow"): 6}
