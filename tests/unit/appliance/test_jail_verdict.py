"""Where a way out ended: judged from facts, so that each hole is seen to be one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exeat.appliance.jail import probes, verdict
from exeat.appliance.jail.picture import draw, summary
from exeat.appliance.jail.probes import JOB, ROOT, Probe
from exeat.appliance.jail.verdict import DOORS, Result, Seen, Wall, judge
from exeat.ledger.records import Dest, Kind, Record

TCP = Probe("dot4", "DNS over TLS", JOB, "tcp", "192.0.2.9", 853)
DNS = Probe("dns-udp4", "DNS", JOB, "udp", "192.0.2.10", 53)
DNS_TCP = Probe("dns-tcp4", "DNS", JOB, "tcp", "192.0.2.11", 53)
RAW = Probe("raw-dns4", "raw", ROOT, "dns", "192.0.2.12", 53)
PORTS = Probe("ports4", "ports", JOB, "ports", "127.0.0.1")
STOPPED = Seen(before=1, after=0)


def dns(rcode: int, answers: int = 0) -> str:
    return bytes([0, 1, 0x81, 0x80 | rcode, 0, 1, 0, answers, 0, 0, 0, 0]).hex()


def ports(*found: int) -> dict[str, Any]:
    return {"data": json.dumps(sorted(found)).encode().hex(), "stage": "connect"}


@pytest.mark.parametrize(
    ("probe", "tried", "seen", "wall"),
    [
        (TCP, {"errno": "ENOSYS", "stage": "socket"}, Seen(), Wall.SECCOMP),
        (TCP, {"errno": "ENETUNREACH", "stage": "connect"}, Seen(), Wall.KERNEL),
        (TCP, {"errno": "EPERM", "stage": "send"}, STOPPED, Wall.RULES),
        (TCP, {"errno": "EPERM", "stage": "send"}, Seen(before=1, after=1), Wall.KERNEL),
        (TCP, {"errno": "ECONNRESET", "stage": "receive"}, Seen(refusal="x.y"), Wall.GATEWAY),
        (TCP, {"data": "", "stage": "receive"}, Seen(refusal="x.y"), Wall.GATEWAY),
        (TCP, {"data": None, "stage": "receive"}, STOPPED, Wall.RULES),
        (DNS, {"data": dns(5), "stage": "receive"}, Seen(refusal="x.y"), Wall.GATEWAY),
        (DNS_TCP, {"data": "000c" + dns(3), "stage": "receive"}, Seen(refusal="x.y"), Wall.GATEWAY),
        (RAW, {"sent": 1}, STOPPED, Wall.RULES),
        (RAW, {"sent": 1}, Seen(), Wall.KERNEL),
        (PORTS, ports(*DOORS), Seen(), Wall.KERNEL),
    ],
)
def test_what_stopped_it(probe: Probe, tried: dict[str, Any], seen: Seen, wall: Wall) -> None:
    found = judge(probe, tried, seen)
    assert found.wall is wall
    assert found.blocked
    if seen.refusal:
        assert seen.refusal in found.evidence


@pytest.mark.parametrize(
    ("probe", "tried", "seen"),
    [
        (TCP, {"errno": "EPERM", "stage": "send"}, Seen(frames=("eth0",))),  # whatever it was told
        (TCP, {"data": "", "stage": "receive"}, Seen(frames=("eth0",), refusal="x.y")),
        (TCP, {}, STOPPED),  # its program died
        (TCP, {"data": "", "stage": "receive"}, Seen()),  # taken by somebody, and no record
        (TCP, {"data": "00", "stage": "receive"}, STOPPED),
        (DNS, {"data": dns(0, 1), "stage": "receive"}, Seen(refusal="x.y")),
        (DNS, {"data": dns(0), "stage": "receive"}, Seen(refusal="x.y")),
        (DNS, {"data": dns(5, 1), "stage": "receive"}, Seen(refusal="x.y")),
        (DNS, {"data": "0001", "stage": "receive"}, Seen(refusal="x.y")),
        (DNS_TCP, {"data": "000c" + dns(0, 1), "stage": "receive"}, Seen(refusal="x.y")),
        (DNS, {"data": None, "stage": "receive"}, Seen(before=1, after=1)),
        (RAW, {"sent": 1}, Seen(frames=("hole",), before=1)),
        (PORTS, ports(*DOORS, 8080), Seen()),
        (PORTS, {"errno": "EMFILE", "stage": "connect"}, Seen()),
    ],
)
def test_what_is_not_shown_to_be_stopped_got_out(probe: Probe, tried: dict[str, Any], seen: Seen) -> None:
    found = judge(probe, tried, seen)
    assert found.wall is Wall.OUT
    assert not found.blocked
    assert not found.document()["blocked"]


def test_a_refusal_is_found_by_address_by_literal_and_by_name() -> None:
    records = [
        Record(
            Kind.DENY, decision="deny", reason_code="by.ip", dest=Dest("", 853, "tcp", bytes((192, 0, 2, 9)))
        ),
        Record(Kind.DENY, decision="deny", reason_code="by.host", dest=Dest("192.0.2.12", 443)),
        Record(Kind.DNS, decision="deny", reason_code="by.name", dest=Dest(f"dns-udp4.{probes.ZONE}")),
        Record(Kind.DNS, decision="allow", reason_code="rule.allow", dest=Dest(f"dns-tcp4.{probes.ZONE}")),
        Record(Kind.OPEN, decision="allow", reason_code="rule.allow", dest=Dest("192.0.2.11", 53)),
        Record(Kind.BOOT),
    ]
    found = verdict.refusals(records)
    by = {probe.key: verdict.refusal_of(probe, found) for probe in (TCP, RAW, DNS, DNS_TCP, PORTS)}
    mapped = Probe("mapped", "mapped", JOB, "tcp", "::ffff:192.0.2.12", 443)
    assert verdict.refusal_of(mapped, found) == "by.host"
    assert by == {"dot4": "by.ip", "raw-dns4": "by.host", "dns-udp4": "by.name", "dns-tcp4": "", "ports4": ""}


def test_every_probe_can_be_told_from_every_other() -> None:
    """By its key and, where it has one, by an address that no other probe's frames hold."""
    listed = probes.every_probe({"control": "/run/x/control.sock"})
    assert len({probe.key for probe in listed}) == len(listed)
    addresses = [probe.packed for probe in listed if probe.packed and probe.how != "ports"]
    assert len(set(addresses)) == len(addresses)
    assert {len(address) for address in addresses} == {4, 16}
    assert {probe.who for probe in listed} == {JOB, ROOT}
    assert next(probe for probe in listed if probe.key == "mapped").packed[:2] == bytes((192, 0))


def test_the_payloads_are_what_they_claim_to_be() -> None:
    assert probes.client_hello()[:3] == b"\x16\x03\x01"
    assert len(probes.quic_initial()) == 1200
    assert probes.question("a.bc")[12:] == b"\x01a\x02bc\x00\x00\x01\x00\x01"


def test_an_arrow_ends_at_its_wall() -> None:
    results = [Result(TCP, wall, f"because of {wall}") for wall in Wall]
    head, *lines = draw(results).splitlines()
    for wall, line in zip(Wall, lines, strict=False):
        assert line.endswith(f"because of {wall}")
        end = line.index("OUT" if wall is Wall.OUT else "X")
        assert head.index(wall) <= end <= head.index(wall) + len(wall)
    assert summary(results) == (
        "5 ways out tried: stopped 1 by seccomp, 1 by kernel, 1 by rules, 1 by gateway; "
        "1 got out or were not proven"
    )
