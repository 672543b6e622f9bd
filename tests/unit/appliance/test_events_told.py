"""What control tells of its records and of the gateway's words, held against the AsyncAPI document."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from tests.support.events_spec import SPEC, valid

from exeat.appliance.console.journal import TOPICS
from exeat.appliance.control import feed as feeds
from exeat.appliance.control.direct_flow import EVENT
from exeat.appliance.control.feed import Feed
from exeat.appliance.control.flows import _NUMBERS, _WORDS
from exeat.appliance.told import told
from exeat.ledger.in_force import PLACE, lease_data
from exeat.ledger.records import Kind, Record, encode
from exeat.ledger.tally import Tally
from exeat.policy.leases import Lease
from exeat.policy.scopes import parse_scope

LEASE = Lease(id="p/a/1", project="p", to=(parse_scope("x.example.com:443"),), requester="a", reason="")


def record(kind: Kind, decision: str, **fields: Any) -> Record:
    return Record(kind, 1, 1, project="p", decision=decision, actor="ann", detail="why", node="n", **fields)


def lease(state: str) -> Record:
    return record(Kind.LEASE, state, lease_id="p/a/1", agent="a", data=lease_data(LEASE))


def feed(waiting: dict[str, int] | None = None) -> Feed:
    return Feed(Tally(), waiting or {}, lambda: 60_000)


def everything(made: Feed) -> list[tuple[str, Any]]:
    page = asyncio.run(made.verbs()["events.tail"]({"feed": "", "after": 0}, []))
    return [(event["topic"], event["data"]) for event in page["events"]]


def test_the_document_is_of_the_topics() -> None:
    assert tuple(SPEC["channels"]["events"]["messages"]) == TOPICS
    assert tuple(SPEC["components"]["messages"]) == TOPICS
    for schema in SPEC["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


RECORDS = [
    (record(Kind.POLICY, "kill.on"), ["admin"]),
    (record(Kind.POLICY, "cut"), ["admin"]),
    (record(Kind.POLICY, "widens", policy_digest=b"d" * 32), ["policy"]),
    (record(Kind.POLICY, PLACE), []),
    (record(Kind.JOB, "start", job="p-1"), ["jobs"]),
    (record(Kind.JOB, "exit", job="p-1", reason_code="exited", count=3), ["jobs"]),
    (record(Kind.ANOMALY, "repaired", count=1), ["alerts"]),
    (record(Kind.RECONCILE, "drift", count=1), ["alerts"]),
    (lease("requested"), ["requests"]),
    (lease("denied"), ["requests"]),
    (lease("active"), ["requests", "leases"]),
    (lease("revoked"), ["requests", "leases"]),
]


@pytest.mark.parametrize(("said", "topics"), RECORDS, ids=lambda value: getattr(value, "decision", ""))
def test_each_record_is_events_that_the_document_describes(said: Record, topics: list[str]) -> None:
    found = list(told(said, answered=True))
    assert [topic for topic, _ in found] == topics
    for topic, data in found:
        valid(topic, data)


def test_a_renewal_answers_no_request() -> None:
    made = feed()
    for state in ("requested", "requested", "active", "active", "revoked"):
        made.wrote([encode(lease(state))])
    assert [(topic, data["state"]) for topic, data in everything(made)] == [
        ("requests", "requested"),
        ("requests", "requested"),
        ("requests", "active"),
        ("leases", "active"),
        ("leases", "active"),
        ("leases", "revoked"),
    ]


def test_requests_are_counted_once_and_timed_until_they_are_granted() -> None:
    tally = Tally()
    made = Feed(tally, {"p/a/1": 50_000}, lambda: 60_000)  # it waited when control was started
    made.wrote([encode(lease("requested")), encode(lease("active")), encode(lease("active"))])
    other = replace(lease("requested"), lease_id="p/a/2")
    made.wrote([encode(other), encode(replace(other, decision="lapsed"))])
    counted = {labels: n for (name, _, *labels_), n in tally.counts.items() for labels in [(name, *labels_)]}
    assert counted == {
        ("lease_requests_total", "approved"): 1,
        ("lease_requests_total", "asked"): 1,
        ("lease_requests_total", "lapsed"): 1,
    }
    assert tally.time("lease_approval_duration_seconds", "p").seconds == 10.0


def test_jobs_policies_and_drifts_are_counted_from_their_records() -> None:
    tally = Tally()
    made = Feed(tally, {}, lambda: 0)
    said = [record(Kind.JOB, "exit", job="p-1", reason_code="oom"), record(Kind.JOB, "start", job="p-1")]
    said += [record(Kind.POLICY, "widens"), record(Kind.POLICY, "kill.on"), record(Kind.POLICY, PLACE)]
    said += [record(Kind.RECONCILE, "drift", count=1), record(Kind.RECONCILE, "drift", count=4)]
    made.wrote([encode(each) for each in said])
    assert tally.counts == {
        ("job_exits_total", "p", "oom"): 1,
        ("policy_reloads_total", "p", "widens"): 1,
        ("ledger_drifts_total",): 5,
    }


def test_what_the_guard_says_is_plain_and_described() -> None:
    made = feed()
    made.alert({"reason": "dns.tunnel\n", "subject": {"project": "p"}, "domain": "x" * 999, "score": 7})
    made.alert({"subject": "no subject", "names": "many"})
    made.lookups([["p", "a", "j", "host\x1b[2J", "deny", "posture.default_deny"], ["short"], 7])
    made.lookups("nonsense")
    found = everything(made)
    assert [topic for topic, _ in found] == ["alerts", "alerts", "dns"]
    for topic, data in found:
        valid(topic, data)
        assert all(len(value) <= 300 and value.isprintable() for value in data.values() if type(value) is str)


def test_a_reader_goes_on_where_it_was_and_hears_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "RECENT", 5)
    monkeypatch.setattr(feeds, "PAGE", 3)
    monkeypatch.setattr(feeds, "WATCH_S", 0.01)

    async def story() -> None:
        made = feed()
        tail = made.verbs()["events.tail"]
        begin = await tail({}, [])
        assert begin["events"] == []
        made.say("flows", [{"n": n} for n in range(2)])
        place = {"feed": begin["feed"], "after": begin["next"]}
        page = await tail(place, [])
        assert [event["data"]["n"] for event in page["events"]] == [0, 1]
        made.say("flows", [{"n": n} for n in range(2, 9)])  # two more than are kept
        page = await tail({**place, "after": page["next"]}, [])
        assert (page["lost"], [event["data"]["n"] for event in page["events"]]) == (2, [4, 5, 6])
        page = await tail({**place, "after": page["next"]}, [])
        assert (page["lost"], [event["data"]["n"] for event in page["events"]]) == (0, [7, 8])
        assert (await tail({**place, "after": page["next"]}, []))["events"] == []  # nothing within WATCH_S
        another = await tail({"feed": "another", "after": 10**9}, [])
        assert [event["data"]["n"] for event in another["events"]] == [4, 5, 6]

    asyncio.run(story())


def test_the_keys_of_flows_are_those_of_the_document() -> None:
    """Both who tell of flows: the proxy (as it is cleaned) and control, of flows past it."""
    flow = SPEC["components"]["schemas"]["flow"]["properties"].keys()
    assert set(EVENT) <= flow
    assert flow <= _WORDS | _NUMBERS
