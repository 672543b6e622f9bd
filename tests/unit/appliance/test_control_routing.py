"""What of a `routing.status` gets on the ledger, and how often."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from exeat.appliance.config import Config
from exeat.appliance.control.aio import Requester
from exeat.appliance.control.evidence import Evidence
from exeat.appliance.control.routing import TRIES_S, Routing
from exeat.appliance.control.store import Store
from exeat.ledger.records import Kind, Record, decode


class Kept(Evidence):
    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), "n1", Store(Path(":memory:")))
        self.kept: list[Record] = []

    async def owe(self, record: bytes) -> None:
        self.kept.append(decode(record))


def status(repairs: int = 0, failed: str = "", **counts: int) -> dict[str, Any]:
    member = {"label": "builds/host", "dns": 0, "bypass": 0, "quic": 0, "rejected": 0, **counts}
    return {"digest": "d", "repairs": repairs, "note": "gone", "failed": failed, "members": [member]}


def judged(*replies: tuple[dict[str, Any], float]) -> list[tuple[str, str, str, int]]:
    evidence = Kept()
    routing = Routing(Config(), Requester(Path("/nowhere"), "warden"), evidence)

    async def run() -> None:
        for reply, now in replies:
            await routing.judge(reply, now)

    asyncio.run(run())
    assert all(record.kind is Kind.ANOMALY for record in evidence.kept)
    return [(r.decision, r.detail, f"{r.project}/{r.agent}", r.count) for r in evidence.kept]


def test_a_repair_is_recorded_once() -> None:
    assert judged((status(), 0), (status(2), 1), (status(2), 2), (status(3), 3)) == [
        ("repaired", "2 times: gone", "/", 1),
        ("repaired", "1 times: gone", "/", 1),
    ]


def test_a_warden_that_was_started_again_counts_from_the_beginning() -> None:
    assert [what for what, *_ in judged((status(2), 0), (status(0), 1), (status(1), 2))] == ["repaired"] * 2


def test_a_failure_is_recorded_when_it_begins() -> None:
    found = judged(
        (status(failed="nft: x"), 0), (status(failed="nft: x"), 1), (status(), 2), (status(failed="y"), 3)
    )
    assert [detail for _, detail, _, _ in found] == ["nft: x", "y"]


def test_attempts_are_summed_up_with_the_name_of_who_tried() -> None:
    first, later = 100.0, 100.0 + TRIES_S
    assert judged((status(dns=3, bypass=1), first), (status(dns=9), first + 1), (status(dns=10), later)) == [
        ("attempts", "packets: dns 3 bypass 1", "builds/host", 4),
        ("attempts", "packets: dns 10", "builds/host", 10),  # the table was made anew: bypass fell
    ]
    assert judged(
        (status(dns=3), first), (status(dns=5, quic=1), later), (status(dns=5, quic=1), later * 2)
    ) == [
        ("attempts", "packets: dns 3", "builds/host", 3),
        ("attempts", "packets: dns 2 quic 1", "builds/host", 3),
    ]
