"""What counts as data in names, what ordinary names look like beside it, and that memory is bounded."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ordinary_names import ordinary

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.dns.screen import SUSPECTED, TUNNEL, Screen, Warned, two_labels
from exeat.dns.tunnels import (
    ALERT_OCTETS,
    CODED_NAMES,
    DENY_OCTETS,
    MAX_ENTRIES,
    MAX_NAMES,
    ODD_TYPES,
    WINDOW_S,
    Alert,
    Tunnels,
    entropy,
)
from exeat.policy.model import Decision, Subject, Verdict

ALLOWED = Decision(Verdict.ALLOW, "rule.allow", rule="r")
SUBJECT = Subject("p", "a", "j", "", "n")


def look(tunnels: Tunnels, *names: str, domain: str = "evil.com", now: float = 0.0) -> list[bool]:
    return [tunnels.look("s", domain, f"{name}.{domain}", now)[0] for name in names]


def words(count: int, size: int) -> list[str]:
    return [f"{i:0{size}d}" for i in range(count)]


def test_the_budget_is_octets_of_new_names() -> None:
    tunnels = Tunnels()
    names = words(2000, 9)  # ten octets each with its length
    assert sum(look(tunnels, *names)) == DENY_OCTETS // 10  # the one that reaches the budget is refused
    assert look(tunnels, "www", names[0]) == [False, False]
    assert look(tunnels, *names, domain="other.com")[0]


def test_a_name_seen_before_costs_nothing() -> None:
    tunnels = Tunnels()
    for _ in range(1000):
        assert all(look(tunnels, *words(40, 30)))


def test_budgets_are_each_subjects_own() -> None:
    tunnels = Tunnels()
    look(tunnels, *words(900, 9))
    assert look(tunnels, "www") == [False]
    assert tunnels.look("other", "evil.com", "www.evil.com", 0.0)[0]


def test_the_window_slides() -> None:
    tunnels = Tunnels()
    assert all(look(tunnels, *words(800, 9), now=0.0))
    assert look(tunnels, "x" * 250, now=WINDOW_S - 1) == [False]
    assert look(tunnels, "y", now=2 * WINDOW_S - 2) == [False]
    assert look(tunnels, "y", now=2 * WINDOW_S + 1) == [True]


def test_what_is_spread_over_hours_is_bounded_by_the_hour() -> None:
    tunnels = Tunnels()
    names = iter(words(100_000, 15))
    passed = [t for t in range(0, 24 * 3600, 2) if look(tunnels, next(names), now=float(t))[0]]
    for start in range(0, 24 * 3600, 600):
        assert sum(16 for t in passed if start <= t < start + WINDOW_S - 600) <= DENY_OCTETS


def test_long_coded_names_end_after_a_few() -> None:
    tunnels, source = Tunnels(), random.Random(1)
    names = [
        ".".join(hashlib.sha256(source.randbytes(8)).hexdigest()[:40] for _ in range(3)) for _ in range(20)
    ]
    assert sum(look(tunnels, *names)) == CODED_NAMES - 1


def alerts(tunnels: Tunnels, names: list[str]) -> list[Alert]:
    found = (tunnels.look("s", "evil.com", f"{name}.evil.com", 0.0)[1] for name in names)
    return [alert for alert in found if alert is not None]


@pytest.mark.parametrize(
    ("names", "signal"),
    [
        ([f"{i}{'x' * 50}" for i in range(6)], "labels"),
        ([f"{i}{'x' * 20}.{'y' * 20}" for i in range(21)], "length"),
        (words(ALERT_OCTETS // 10 + 1, 9), "octets"),
    ],
)
def test_an_alert_comes_once_and_does_not_refuse(names: list[str], signal: str) -> None:
    (alert,) = alerts(Tunnels(), names)
    assert (alert.denied, alert.domain, alert.signals) == (False, "evil.com", (signal,))


def test_names_too_long_for_anything_else_end_after_a_few() -> None:
    """Whatever they are spelled like: iodine's probes repeat themselves."""
    tunnels = Tunnels()
    names = [f"{i}{'.'.join(['a' * 49] * 4)}"[:150] for i in range(CODED_NAMES + 1)]
    assert look(tunnels, *names) == [True] * (CODED_NAMES - 1) + [False] * 2


def test_an_alert_and_a_cut_are_two() -> None:
    first, second = alerts(Tunnels(), words(2000, 9))
    assert (first.denied, second.denied) == (False, True)
    assert first.octets >= ALERT_OCTETS
    assert second.octets >= DENY_OCTETS


def test_types_that_only_tunnels_want_are_noticed() -> None:
    tunnels = Tunnels()
    found = [tunnels.odd_type("s", "evil.com", 0.0) for _ in range(3 * ODD_TYPES)]
    (alert,) = [each for each in found if each is not None]
    assert (alert.denied, alert.signals) == (False, ("types",))


def test_memory_is_bounded_and_a_spent_budget_cannot_be_washed_away() -> None:
    tunnels = Tunnels()
    look(tunnels, *words(900, 9))
    for i in range(3 * MAX_ENTRIES):
        look(tunnels, "a", "b", domain=f"d{i}.com")
    assert len(tunnels._entries) <= MAX_ENTRIES
    assert look(tunnels, "www") == [False]


def test_names_are_bounded() -> None:
    tunnels = Tunnels()
    for i in range(MAX_NAMES // 1000 + 40):
        look(tunnels, *words(1000, 3), domain=f"d{i}.com")
        assert len(tunnels) <= MAX_NAMES
    assert len(tunnels) == sum(entry.count for entry in tunnels._entries.values())


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.text("abc.", max_size=40), st.floats(0, 2000, allow_nan=False)),
        max_size=200,
    )
)
def test_the_bound_holds_whatever_is_asked(steps: list[tuple[str, str, float]]) -> None:
    """New octets that pass in one slot stay below the budget, and the count of names is true."""
    tunnels, now, passed = Tunnels(), 0.0, 0
    seen: set[tuple[str, str]] = set()
    for subject, part, wait in steps:
        now += wait / 200
        name = part.strip(".") * 20
        host = f"{name}.e.com" if name else "e.com"
        if tunnels.look(subject, "e.com", host, now)[0] and subject == "a" and (subject, host) not in seen:
            passed += len(host) - len("e.com")
        seen.add((subject, host))
        assert len(tunnels) == sum(entry.count for entry in tunnels._entries.values())
    assert passed <= DENY_OCTETS * (1 + now // WINDOW_S)


def test_entropy_is_bits_per_character() -> None:
    assert entropy("") == 0
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("www.example.com", "example.com"),
        ("example.com", "example.com"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("co.uk", "co.uk"),
        ("com", "com"),
        ("x.user.github.io", "user.github.io"),
        ("d111111abcdef8.cloudfront.net", "d111111abcdef8.cloudfront.net"),
        ("i-1.eu-west-1.compute.amazonaws.com", "i-1.eu-west-1.compute.amazonaws.com"),
        ("a.b.ck", "a.b.ck"),
        ("x.www.ck", "www.ck"),
        ("x.y.unheard-of", "y.unheard-of"),
        ("deep.city.kawasaki.jp", "city.kawasaki.jp"),
    ],
)
def test_domains_by_the_public_suffix_list(host: str, domain: str) -> None:
    assert bundled_suffixes().registrable(host) == domain


@pytest.mark.parametrize("seed", [1, 2])
def test_ordinary_names_are_never_refused(seed: int) -> None:
    """A share of the million of `bench/dns_ordinary.py`."""
    told: list[Warned] = []
    clock = [0.0]
    screen = Screen(lambda: clock[0], bundled_suffixes().registrable, told.append)
    count = 0
    for now, host, exists in ordinary(seed, hours=24):
        clock[0] = now
        assert screen.look(SUBJECT, host, ALLOWED, strict=True) is ALLOWED, host
        screen.heard(SUBJECT, host, ALLOWED, exists=exists, strict=True)
        count += 1
    # Names tried below a search list are new names below one domain: people hear of that.
    assert {(each.domain, each.decision.reason) for each in told} == {("vendor.io", SUSPECTED)}
    assert count > 40_000


def test_the_screen_refuses_and_tells() -> None:
    told: list[Warned] = []
    screen = Screen(lambda: 0.0, two_labels, told.append)
    reasons = [screen.look(SUBJECT, f"{name}.evil.com", ALLOWED).reason for name in words(2000, 9)]
    assert set(reasons) == {"rule.allow", TUNNEL}
    assert [(each.decision.reason, each.decision.rule, each.decision.allowed) for each in told] == [
        (SUSPECTED, "r", True),
        (TUNNEL, "r", False),
    ]
