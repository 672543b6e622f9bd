"""Rows as the API shows them, and events as a browser takes them."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance.console.auth.principal import Principal
from exeat.appliance.console.journal import Event
from exeat.appliance.console.lease_view import UNDO_MS, lease_row, request_row, ttl_choices, visible
from exeat.appliance.console.sse import messages
from exeat.appliance.control.lease_rows import Asked, row, version
from exeat.policy import leases as states
from exeat.policy.admin import Actor
from exeat.policy.leases import Lease, State
from exeat.policy.scopes import parse_ports, parse_scope

NOW = 1_800_000_000_000
ANNA = Principal("anna", "approver", frozenset(), "session")
OLGA = replace(ANNA, name="olga", role="operator")
FLOW = {"project": "p", "agent": "a1", "dest": "api.github.com:443", "proto": "tcp", "verdict": "ask"}


def lease(**changes: Any) -> Lease:
    to = changes.pop("to", "api.github.com:443")
    draft = Lease(
        id="p/a1/1",
        project="p",
        to=(parse_scope(to),),
        agents=frozenset({"a1"}),
        requester="a1",
        **changes,
    )
    return states.request(draft, NOW).lease


def shown(found: Lease, asked: Asked | None = None) -> dict[str, Any]:
    return row(found, NOW, asked)


@given(st.text(max_size=80))
def test_no_mark_that_deceives_is_shown(text: str) -> None:
    seen = visible(text)
    assert all(each == " " or unicodedata.category(each)[0] != "C" for each in seen)
    found = request_row(shown(lease(reason=text)), ())
    assert ("hidden_text" in found.flags) == (visible(text) != text)


def test_a_name_in_other_letters_is_shown_both_ways() -> None:
    found = request_row(shown(lease(to="xn--80ak6aa92e.com:443")), ())
    assert (found.punycode, found.unicode) == ("xn--80ak6aa92e.com", "аррӏе.com")  # noqa: RUF001
    assert found.dest.host == "xn--80ak6aa92e.com"
    assert "punycode" in found.flags
    assert request_row(shown(lease()), ()).flags == []


@pytest.mark.parametrize(
    ("to", "changes", "flag"),
    [
        ("192.0.2.7:443", {}, "address"),
        ("[2001:db8::1]:443", {}, "address"),
        (".github.com:443", {}, "wide"),
        ("api.github.com", {"ports": parse_ports(["443", "22"])}, "wide"),
        ("api.github.com:22", {"private": True}, "private"),
        ("api.github.com:22", {"raw": True}, "raw"),
        ("api.github.com:443", {"approvals_needed": 2}, "second_person"),
    ],
)
def test_what_needs_a_second_look_is_flagged(to: str, changes: dict[str, Any], flag: str) -> None:
    assert flag in request_row(shown(lease(to=to, **changes)), ()).flags


def test_who_waits_is_counted() -> None:
    flows = [
        {**FLOW, "state": "waiting"},
        {**FLOW, "state": "waiting"},
        {**FLOW, "state": "live"},
        {**FLOW, "state": "waiting", "verdict": "allow"},
        {**FLOW, "state": "waiting", "agent": "a2"},
        {**FLOW, "state": "waiting", "project": "q"},
        {**FLOW, "state": "waiting", "dest": "api.github.com:22"},
    ]
    asked = Asked("j1", "e1", "n1", "gh", 25, NOW + 5)
    found = request_row(shown(lease(), asked), flows)
    assert (found.waiting, found.tries, found.last_ms) == (2, 25, NOW + 5)
    assert (found.job_id, found.episode_id, found.node_id) == ("j1", "e1", "n1")
    assert found.flags == ["many_tries"]
    v6 = request_row(
        shown(lease(to="[2001:db8::1]:443")), [{**FLOW, "state": "waiting", "dest": "[2001:db8::1]:443"}]
    )
    assert v6.waiting == 1


@pytest.mark.parametrize("to", ["api.github.com:443", ".github.com:443", "*.github.com", "192.0.2.0/24:22"])
def test_each_rung_only_narrows(to: str) -> None:
    """The state machine takes every choice that is offered, and no wider one."""
    asked = lease(to=to)
    rungs = request_row(shown(asked), ()).ladder
    assert [rung.widest for rung in rungs] == [True] + [False] * (len(rungs) - 1)
    for rung in rungs:
        narrowing = states.Narrowing(to=(parse_scope(rung.scope),))
        outcome = states.approve(asked, Actor("anna", "approver"), NOW, narrowing)
        assert (outcome.reason, outcome.lease.state) == ("ok", State.ACTIVE), rung


@given(st.integers(1, 10**6))
def test_no_longer_time_than_asked_for_is_offered(longest: int) -> None:
    choices = ttl_choices(longest)
    assert choices == sorted(set(choices))
    assert choices[-1] == longest


def test_a_version_changes_with_every_change_and_only_so() -> None:
    asked = lease(approvals_needed=2)
    once = states.approve(asked, Actor("u1", "approver"), NOW).lease
    again = states.approve(once, Actor("u1", "approver"), NOW + 1).lease
    twice = states.approve(once, Actor("u2", "approver"), NOW).lease
    seen = [version(each, NOW) for each in (asked, once, twice)]
    assert len(set(seen)) == 3
    assert version(again, NOW) == version(once, NOW), "the same yes again says nothing new"
    assert version(asked, NOW) != version(asked, NOW + asked.request_ttl_ms), "time decides, too"


def test_what_can_be_done_about_a_lease() -> None:
    active = states.approve(lease(), Actor("anna", "approver"), NOW).lease
    found = lease_row(
        shown(active), ANNA, NOW + UNDO_MS, [{**FLOW, "lease": "p/a1/1", "bytes_out": 2, "bytes_in": 3}]
    )
    assert (found.can, found.live_flows, found.live_bytes) == (["revoke", "renew", "undo"], 1, 5)
    assert lease_row(shown(active), ANNA, NOW + UNDO_MS + 1).can == ["revoke", "renew"]
    assert lease_row(shown(active), replace(ANNA, name="bea"), NOW).can == ["revoke", "renew"]
    assert lease_row(shown(active), OLGA, NOW).can == [], "it is not hers"
    own = shown(replace(active, requester="olga"))
    assert lease_row(own, OLGA, NOW).can == ["revoke", "renew"]
    ended = states.revoke(active, Actor("anna", "approver"), NOW).lease
    assert (lease_row(shown(ended), ANNA, NOW).can, lease_row(shown(ended), ANNA, NOW).state) == ([], "ended")


def read(data: bytes) -> list[tuple[int, str, Any]]:
    found = []
    for text in data.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in text.split("\n"))
        found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


@given(
    st.lists(
        st.tuples(st.sampled_from(["flows", "leases", "admin"]), st.sampled_from(["p", "q", ""])), max_size=12
    )
)
def test_each_event_comes_once_in_order_to_who_may_see_it(made: list[tuple[str, str]]) -> None:
    events = [
        Event(n, NOW, topic, {"project": project, "n": n, "text": "a\nb\r\n\u2028"})
        for n, (topic, project) in enumerate(made, 1)
    ]
    for projects in (frozenset[str](), frozenset({"q"})):
        who = replace(ANNA, projects=projects)
        told = read(b"".join(messages(events, who)))
        assert [number for number, _, _ in told] == sorted({number for number, _, _ in told})
        seen = [
            each["n"] for _, topic, data in told for each in (data["events"] if topic == "flows" else [data])
        ]
        wanted = [
            event.id
            for event, (topic, project) in zip(events, made, strict=True)
            if not projects or project == "q" or (not project and topic == "admin")
        ]
        assert seen == wanted


def test_a_folder_is_shown_as_one_and_no_batch_takes_it() -> None:
    asked = states.request(
        Lease(id="p/a1/2", project="p", to=(), file="project:///srv/a:rw", requester="alice"), NOW
    ).lease
    found = request_row(shown(asked), ())
    assert (found.dest.host, found.dest.port, found.flags) == ("project:///srv/a:rw", 0, ["file"])
    assert "project:///srv/a:rw" in found.preview.widens
    assert lease_row(shown(replace(asked, state=State.ACTIVE)), ANNA, NOW).scope == "project:///srv/a:rw"
