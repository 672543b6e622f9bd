"""What a subject's lookups are like as a whole: the score, its window, and that memory is bounded."""

from __future__ import annotations

import pytest

from exeat.dns import habits
from exeat.dns.habits import ALERT, DENY, NOWHERE, TYPES, VOLUME, WINDOW_S, Habits, Notice
from exeat.dns.screen import ANOMALY, UNUSUAL, Screen, Warned, two_labels
from exeat.policy.model import Decision, Subject, Verdict

ALLOWED = Decision(Verdict.ALLOW, "posture.public", rule="r")
SUBJECT = Subject("p", "a", "j", "", "n")


def storm(
    watch: Habits, count: int, *, now: float = 0.0, exists: bool = False, first: int = 0
) -> list[Notice]:
    """`count` questions, each about another domain."""
    found = (watch.heard("s", f"d{first + i}.com", now, exists=exists) for i in range(count))
    return [notice for notice in found if notice is not None]


def test_domains_that_do_not_exist_make_a_score() -> None:
    watch = Habits()
    alert, denied = storm(watch, NOWHERE)
    assert (alert.denied, alert.signals) == (False, ("nowhere",))
    assert ALERT <= alert.score < DENY <= denied.score
    assert denied.questions < NOWHERE
    assert watch.cut("s", WINDOW_S - 1)
    assert not watch.cut("s", WINDOW_S)
    assert not watch.cut("t", 0.0)


def test_many_wrong_names_below_few_domains_are_a_search_list() -> None:
    watch = Habits()
    assert [watch.heard("s", f"d{i % 40}.com", 0.0, exists=False) for i in range(4000)] == [None] * 4000


def test_more_domains_that_exist_than_not_are_a_crawl() -> None:
    watch = Habits()
    assert storm(watch, 2 * NOWHERE + 2, exists=True) == []
    assert storm(watch, NOWHERE, first=10_000) == []


def test_volume_alone_is_no_reason() -> None:
    watch = Habits()
    assert storm(watch, 3 * VOLUME, exists=True) == []
    assert storm(watch, NOWHERE, first=10**6, now=1.0) == []  # few of so many


def test_features_add_up() -> None:
    """Each by itself says nothing yet; together they do."""
    apart = Habits()
    assert storm(apart, NOWHERE // 2) == []
    assert all(apart.odd_type("t", 0.0) is None for _ in range(TYPES // 2))
    both = Habits()
    assert storm(both, NOWHERE // 2) == []
    told = [each for each in (both.odd_type("s", 0.0) for _ in range(TYPES // 2)) if each is not None]
    assert told[0].signals == ("nowhere", "types")


def test_the_window_slides() -> None:
    watch = Habits()
    per_slot = NOWHERE // 5
    for step in range(0, 20, 4):  # each stays for a window, so at most three are in it
        assert storm(watch, per_slot, now=step * WINDOW_S / 10, first=step * 1000) == []


def test_memory_is_bounded_and_a_cut_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(habits, "MAX_SUBJECTS", 16)
    watch = Habits()
    storm(watch, NOWHERE)
    for i in range(100):
        watch.heard(i, "a.com", 1.0, exists=True)
        assert len(watch) <= 16
    assert watch.cut("s", 1.0)
    monkeypatch.setattr(habits, "MAX_DOMAINS", 8)
    entry, slot = watch._slot("t", 2.0)
    for i in range(100):
        watch.heard("t", f"x{i}.com", 2.0, exists=False)
    assert entry.questions == 100
    assert len(slot.domains) == len(slot.nowhere) == 8


@pytest.mark.parametrize(("strict", "reason"), [(True, ANOMALY), (False, UNUSUAL)])
def test_only_a_strict_preset_refuses(strict: bool, reason: str) -> None:
    told: list[Warned] = []
    screen = Screen(lambda: 5.0, two_labels, told.append)
    for i in range(NOWHERE):
        screen.heard(SUBJECT, f"www.d{i}.com", ALLOWED, exists=False, strict=strict)
    assert [each.decision.reason for each in told] == [UNUSUAL, reason]
    assert (told[1].domain, told[1].decision.allowed) == ("", not strict)
    assert told[1].score >= DENY
    decision = screen.look(SUBJECT, "www.example.org", ALLOWED, strict=strict)
    assert decision.allowed is not strict
    assert decision.reason == (ANOMALY if strict else ALLOWED.reason)
