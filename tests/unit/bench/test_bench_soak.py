"""bench.soak finds what it looks for: planted leaks, and flows that the ledger lost or counted wrong."""

from __future__ import annotations

import pytest
from bench.soak import BYTES, PROCESSES, REMEMBERED, Check, Sample, evidence, leaks

from exeat.ledger.records import Kind, Record

HELD = Sample(dict.fromkeys(PROCESSES, 20_000), dict.fromkeys(PROCESSES, 20), 10, 0, 0)


def found(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.met]


def judged(late: Sample, after: Sample, *, warmed: int = REMEMBERED, passed: int = 3) -> list[Check]:
    return leaks(HELD, HELD, late, after, warmed=warmed, passed=passed)


def test_nothing_leaks() -> None:
    assert found(judged(HELD, HELD)) == []


@pytest.mark.parametrize("process", PROCESSES)
def test_growth_under_load_is_a_leak(process: str) -> None:
    heavy = HELD._replace(kib={**HELD.kib, process: 30_000})
    assert found(judged(heavy, HELD)) == [f"{process}: KiB grown under load"]
    many = HELD._replace(fds={**HELD.fds, process: 40})
    assert found(judged(many, many)) == [
        f"{process}: descriptors grown under load",
        f"{process}: descriptors kept",
    ]


def test_growth_that_a_long_run_may_show_is_small_beside_its_tunnels() -> None:
    """A kibibyte for each tunnel is found, however long the run."""
    passed = 60_000
    heavy = HELD._replace(kib={**HELD.kib, "proxy": 20_000 + passed})
    assert found(judged(heavy, HELD, passed=passed)) == ["proxy: KiB grown under load"]


def test_the_ledger_may_grow_until_it_remembers_all_it_wants() -> None:
    heavy = HELD._replace(kib={**HELD.kib, "ledger": 30_000})
    assert found(judged(heavy, HELD, warmed=0, passed=20_000)) == []
    assert found(judged(heavy, HELD, warmed=REMEMBERED, passed=20_000)) == ["ledger: KiB grown under load"]


@pytest.mark.parametrize("what", ["sockets", "conntrack", "set_elements"])
def test_what_the_kernel_keeps(what: str) -> None:
    kept = HELD._replace(**{what: 100})
    assert found(judged(HELD, kept)) == [f"{what.replace('_', ' ')} kept"]


def flow(number: int) -> list[Record]:
    name = number.to_bytes(16, "big")
    return [Record(Kind.OPEN, flow=name), Record(Kind.CLOSE, flow=name, bytes_out=BYTES, bytes_in=BYTES)]


def three() -> list[Record]:
    return [record for number in range(3) for record in flow(number)]


def test_a_sound_ledger() -> None:
    assert found(evidence(three(), 3, verified=True)) == []
    assert found(evidence(three(), 3, verified=False)) == ["ledger verify"]


def test_a_ledger_with_a_fault() -> None:
    whole = three()
    first, short = flow(0)[0], Record(Kind.CLOSE, flow=flow(0)[0].flow, bytes_out=BYTES, bytes_in=1)
    assert found(evidence(whole[:-1], 3, verified=True)) == ["flows never closed"]
    assert found(evidence(whole[:-2], 3, verified=True)) == ["flows opened"]
    assert found(evidence([*whole, first], 3, verified=True)) == ["flows opened twice"]
    assert found(evidence([*whole, flow(1)[1]], 3, verified=True)) == ["flows closed twice or never opened"]
    assert found(evidence([first, short, *whole[2:]], 3, verified=True)) == ["closes with other byte counts"]
    for kind in (Kind.ORPHAN, Kind.GAP, Kind.DENY):
        odd = Record(kind, flow=first.flow)
        assert found(evidence([*whole, odd], 3, verified=True)) == ["orphans, gaps and denials"]
