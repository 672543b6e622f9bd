"""The demonstration's questions to the evidence: each must be able to say no."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

import pytest

from exeat.appliance.lab import demo_audit, demo_job
from exeat.ledger.records import Dest, Kind, Record, decode, encode

NORTH = Dest(
    "index.example.org", 443, "tcp", ipaddress.ip_address("203.0.113.10").packed, "index.example.org"
)


def opened(number: int, dest: Dest = NORTH) -> Record:
    return Record(Kind.OPEN, flow=bytes([number]) * 16, dest=dest, decision="allow", reason_code="rule.allow")


def closed(number: int, out: int, into: int, **changes: Any) -> Record:
    record = Record(
        Kind.CLOSE, flow=bytes([number]) * 16, bytes_out=out, bytes_in=into, close_reason="eof",
        reserved=65536, kernel_out=out, kernel_in=into, client_kernel_out=out, client_kernel_in=into,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def connection(received: int, sent: int, local: str = "203.0.113.10:443") -> dict[str, Any]:
    return {"ev": "close", "local": local, "received": received, "sent": sent}


def test_a_cut_flow_is_compared_with_the_kernel_too() -> None:
    cut = closed(1, 100, 2000, close_reason="lease.revoked", kernel_in=1999)
    assert len(demo_audit.against_kernel(demo_audit.flows([opened(1), cut]))["differ"]) == 1


def test_a_rewritten_request_differs_on_the_clients_side_only() -> None:
    plain = dataclasses.replace(opened(1), name_source="http")
    fine = closed(1, 100, 2000, client_kernel_out=140)
    assert demo_audit.against_kernel(demo_audit.flows([plain, fine]))["differ"] == []
    wrong = dataclasses.replace(fine, kernel_out=140)
    assert demo_audit.against_kernel(demo_audit.flows([plain, wrong]))["differ"]


def test_equal_counts_are_equal() -> None:
    found = demo_audit.flows([opened(1), closed(1, 100, 2000)])
    assert demo_audit.against_kernel(found)["differ"] == []
    far = demo_audit.against_origins(found, [connection(100, 2000)])
    assert (far["equal"], far["unexplained"]) == (1, [])


@pytest.mark.parametrize("field", ["kernel_out", "kernel_in", "client_kernel_out", "client_kernel_in"])
def test_one_byte_that_the_kernel_counted_otherwise_is_found(field: str) -> None:
    record = closed(1, 100, 2000)
    wrong = dataclasses.replace(record, **{field: getattr(record, field) + 1})
    assert len(demo_audit.against_kernel(demo_audit.flows([opened(1), wrong]))["differ"]) == 1


@pytest.mark.parametrize(("received", "sent"), [(101, 2000), (100, 1999), (100, 2001)])
def test_one_byte_that_the_far_side_counted_otherwise_is_found(received: int, sent: int) -> None:
    found = demo_audit.flows([opened(1), closed(1, 100, 2000)])
    assert demo_audit.against_origins(found, [connection(received, sent)])["unexplained"]


def test_a_connection_without_a_flow_and_a_flow_without_a_connection_are_found() -> None:
    found = demo_audit.flows([opened(1), closed(1, 100, 2000)])
    assert demo_audit.against_origins(found, [])["unexplained"] == [
        {"ledger": ["203.0.113.10:443", 100, 2000]}
    ]
    assert demo_audit.against_origins([], [connection(100, 2000)])["unexplained"]


def test_the_same_sizes_to_another_place_do_not_match() -> None:
    found = demo_audit.flows([opened(1), closed(1, 100, 2000)])
    assert demo_audit.against_origins(found, [connection(100, 2000, "198.51.100.20:443")])["unexplained"]


def test_two_equal_connections_need_two_flows() -> None:
    found = demo_audit.flows([opened(1), closed(1, 100, 2000)])
    assert demo_audit.against_origins(found, [connection(100, 2000)] * 2)["unexplained"]


@pytest.mark.parametrize(
    ("received", "sent", "fits"),
    [(100, 9000, True), (65_536, 2000, True), (65_537, 9000, False), (100, 1999, False)],
)
def test_a_cut_flow_bounds_what_the_far_side_may_say(received: int, sent: int, fits: bool) -> None:
    found = demo_audit.flows([opened(1), closed(1, 100, 2000, close_reason="lease.revoked")])
    assert demo_audit.against_origins(found, [connection(received, sent)])["within_bounds"] == int(fits)


def test_a_flow_that_never_ended_is_no_exact_one() -> None:
    reserve = Record(Kind.RESERVE, flow=b"\1" * 16, reserved=65536)
    (flow,) = demo_audit.flows([opened(1), reserve])
    assert (flow.whole, flow.reserved) == (False, 65536)


def test_a_connection_that_carried_nothing_needs_no_flow() -> None:
    far = demo_audit.against_origins([], [connection(0, 0)])
    assert (far["empty"], far["unexplained"]) == (1, [])


def test_verdicts_tell_flows_from_lookups() -> None:
    records = [
        opened(1),
        Record(
            Kind.DENY, dest=Dest("paste.example.net", 443, "tcp"), decision="deny", reason_code="rule.deny"
        ),
        Record(
            Kind.DNS,
            dest=Dest("paste.example.net", 0, "udp"),
            decision="deny",
            reason_code="rule.deny",
            count=2,
        ),
        Record(
            Kind.DNS, dest=Dest("index.example.org", 0, "udp"), decision="allow", reason_code="rule.allow"
        ),
    ]
    assert [decode(encode(record)) for record in records] == records
    assert demo_audit.verdicts(records, "index.example.org", 443) == ("rule.allow", [])
    assert demo_audit.verdicts(records, "index.example.org", 0) == ("rule.allow", [])
    assert demo_audit.verdicts(records, "paste.example.net", 443) == ("", ["rule.deny"])
    assert demo_audit.verdicts(records, "paste.example.net", 0) == ("", ["rule.deny"])
    by_lease = dataclasses.replace(opened(1), rule_id="downloads", lease_id="crawler/run/1")
    assert demo_audit.verdicts([by_lease], "index.example.org", 443) == ("lease crawler/run/1", [])
    nowhere = Record(Kind.DENY, decision="deny", reason_code="malformed.host")
    assert demo_audit.verdicts([*records, nowhere], "", 0) == ("", ["malformed.host"])
    assert demo_audit.verdicts(records, "index.example.org", 8443) == ("", [])


def test_a_leak_is_the_name_or_anything_below_it() -> None:
    events = [
        {"ev": "query", "name": name}
        for name in ("A.exfil.example.net", "exfil.example.net", "notexfil.example.net")
    ]
    asked = demo_audit.lookups([*events, {"ev": "garbage"}])
    assert sorted(demo_audit.leaks(asked, ["exfil.example.net"])) == [
        "a.exfil.example.net",
        "exfil.example.net",
    ]


def test_the_tour_asks_every_client_for_every_answer() -> None:
    """So that no later edit quietly empties the demonstration."""
    seen = {(attempt.client, attempt.want) for attempt in demo_job.ATTEMPTS}
    for client in ("curl", "requests", "urllib", "git", "pip"):
        assert {(client, demo_job.ALLOWED), (client, demo_job.REFUSED)} <= seen
    assert {("curl", demo_job.ASKED), ("requests", demo_job.ASKED)} <= seen
    assert all(bool(attempt.reason) == (attempt.want != demo_job.ALLOWED) for attempt in demo_job.ATTEMPTS)
