"""Leases `via: direct`, end to end: what opens, what it moves, and everything that ends it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.integration.test_host_pinholes import how_it_ended, talking
from tests.support.direct_world import NAME, in_direct_world
from tests.support.host_world import OUT4
from tests.support.running import wait_for

from exeat.ledger import conntrack
from exeat.ledger.direct_books import DirectBooks
from exeat.ledger.reader import read_records
from exeat.ledger.records import Kind
from exeat.sandbox.rules import MARK

if TYPE_CHECKING:
    from tests.support.direct_world import DirectWorld

pytestmark = pytest.mark.root

SSH = ("tcp", OUT4, 22)
CLOSED = "EHOSTUNREACH"
WATCH = ("ledger", "reconcile", "--watch", "12")


def test_a_lease_opens_counts_and_ends_with_whatever_ends_it() -> None:
    def body(world: DirectWorld) -> None:
        refused(world)
        assert world.agent(SSH) == [CLOSED]
        lease = world.lease(f"{NAME}:22", "--bytes", "1MiB")
        (row,) = world.open(lease)
        assert (row["member"], row["to"], row["reserved"]) == ("agents/host", f"{NAME}:22/tcp", 1 << 20)
        (opened,) = world.of_kind(Kind.OPEN)
        assert (opened.reserved, opened.lease_id, opened.agent) == (1 << 20, lease, "host")
        assert opened.policy_digest
        seq = next(n for n, r in read_records(world.made.base / "state" / "ledger") if r == opened)
        assert world.json("ledger", "why", str(seq))["result"] == "same"
        with talking(world, OUT4, 22) as process:
            (shown,) = wait_for(lambda: [r for r in world.call("flow.ls")["flows"] if r["bytes_in"] > 100])
            assert (shown["flow"], shown["lease"], shown["proto"]) == (row["flow"], lease, "tcp")
            assert world.call("lease.show", lease=lease)["lease"]["bytes_out"] == shown["bytes_out"]
            world.exeat("flow", "cut", row["flow"][:8])
            assert how_it_ended(process) == "ECONNABORTED"
        (closed,) = world.closed()
        assert (closed.flow, closed.close_reason) == (opened.flow, "cut")
        assert closed.bytes_out >= shown["bytes_out"] > 0
        assert closed.bytes_out + closed.bytes_in < 1 << 20
        wait_for(lambda: [each for each in world.open(lease) if each["flow"] != row["flow"]])
        with talking(world, OUT4, 22) as process:
            world.exeat("kill", "on", "--project", "agents")
            assert how_it_ended(process) == "ECONNABORTED"
        assert world.agent(SSH) == [CLOSED]
        world.exeat("kill", "off", "--project", "agents")
        world.open(lease)
        with talking(world, OUT4, 22) as process:
            world.exeat("lease", "revoke", lease, "--as", "ben")
            assert how_it_ended(process) == "ECONNABORTED"
        assert world.agent(SSH) == [CLOSED]
        other = world.lease(f"{NAME}:22")
        world.open(other)
        with talking(world, OUT4, 22) as process:
            policy = world.made.base / "policies" / "agents.yaml"
            policy.write_text(policy.read_text() + f"deny:\n  - {{id: no, to: {NAME}}}\n")
            world.exeat("policy", "reload")
            assert how_it_ended(process) == "ECONNABORTED"
        reasons = [record.close_reason for record in world.closed(4)]
        assert reasons == ["cut", "kill", "lease.revoked", "rule.deny"]

    in_direct_world(body)


def refused(world: DirectWorld) -> None:
    """What cannot be direct is refused with the reason, and an approver may take it away."""

    def said(*words: str) -> str:
        done = world.made.exeat("lease", "request", "--project", "agents", "--direct", *words)
        assert done.returncode == 1
        return done.stderr

    assert "for one host or address, not for many" in said("*.example.org:22")
    assert "nobody of project agents has a way past the proxy" in said(f"{NAME}:22", "--agent", "run")
    asked = ("lease", "request", f"{NAME}:22", "--project", "agents", "--direct", "--as", "ann")
    name = world.json(*asked)["id"]
    row = world.json("lease", "approve", name, "--as", "ben", "--no-direct", "--bytes", "10MB")
    assert (row["speech"], row["max_bytes"]) == ([], 10_000_000)
    assert "direct" not in world.call("lease.show", lease=name)["lease"]
    assert not world.of_kind(Kind.OPEN)


def test_bytes_and_budgets_end_it_and_a_name_is_followed() -> None:
    def body(world: DirectWorld) -> None:
        conntrack.SWITCH.write_text("1")
        second_book, books = conntrack.Conntrack(), DirectBooks(lambda number: MARK | number)
        lease = world.lease(f"{NAME}:51820", "--udp", "--bytes", "4KiB")
        (row,) = world.open(lease)
        assert row["reserved"] == 4096
        found = world.agent(*[("udp", OUT4, 51820)] * 60)
        assert found[0] == "internet"
        assert "EPERM" in found
        (closed,) = world.closed()
        assert closed.close_reason == "lease.exhausted"
        assert 4000 < closed.bytes_out + closed.bytes_in <= 4096
        assert closed.cost_nano_usd == closed.bytes_out + closed.bytes_in
        wait_for(lambda: world.shut(lease) == ["lease.exhausted"])
        other = world.lease(f"{NAME}:22", "--bytes", "1MiB")
        (row,) = world.open(other)
        assert row["reserved"] == 65536 - closed.bytes_out - closed.bytes_in  # what the budget has left
        with talking(world, OUT4, 22) as process:
            world.zone[:] = [(NAME, 1, "A", "198.51.100.3")]
            assert world.agent(("tcp", "198.51.100.3", 22)) == [CLOSED]
            assert wait_for(lambda: "198.51.100.3" in world.looked_up(NAME))
            assert world.agent(("tcp", "198.51.100.3", 22)) == ["internet"]
            assert world.agent(SSH) == ["internet"]  # until its own time is over
            assert process.poll() is None
            world.exeat("lease", "revoke", other, "--as", "ben")
            assert how_it_ended(process) == "ECONNABORTED"
        world.closed(2)
        for seq, record in read_records(world.made.base / "state" / "ledger"):
            books.record(seq, record)
        udp, tcp = books.settle([*second_book.ended(), *second_book.living(MARK, 0xFFFF0000)])
        second_book.close()
        assert udp.refused is not None
        assert tcp.refused is not None
        assert (udp.unexplained, tcp.unexplained) == (0, 0)
        assert tcp.record.bytes_out > 0

    in_direct_world(body, "budgets: {default: {bytes: 64KiB/1d}}")


def test_money_that_is_left_is_all_that_may_pass() -> None:
    def body(world: DirectWorld) -> None:
        conntrack.SWITCH.write_text("1")
        watch = subprocess.Popen(
            [sys.executable, "-I", "-m", "exeat", "--config", str(world.made.config), *WATCH],
            stdout=subprocess.PIPE,
            text=True,
        )
        lease = world.lease(f"{NAME}:51820", "--udp")
        (row,) = world.open(lease)
        assert row["reserved"] == 3000
        assert "EPERM" in world.agent(*[("udp", OUT4, 51820)] * 60)
        (closed,) = world.closed()
        assert closed.close_reason == "budget.exceeded"
        wait_for(lambda: world.shut(lease) == ["budget.exceeded"])
        assert 2900 < closed.bytes_out + closed.bytes_in == closed.cost_nano_usd <= 3000
        said, _ = watch.communicate(timeout=60)
        assert not watch.returncode
        assert re.search(r"direct: [01] of 1 flows are the same in conntrack; \d+ bytes more", said)

    in_direct_world(body, "budgets: {default: {usd: 0.000003/1d}}")


def test_a_crash_settles_it_and_a_lease_in_force_opens_again() -> None:
    def body(world: DirectWorld) -> None:
        lease = world.lease(f"{NAME}:22", "--bytes", "1MiB")
        (first,) = world.open(lease)
        assert world.agent(SSH) == ["internet"]
        for process in ("warden", "ledger"):
            world.made.kill(process)
            wait_for(lambda: world.made.exeat("status").returncode == 0)
            (row,) = world.open(lease)
            assert row["flow"] == first["flow"]
        assert not world.of_kind(Kind.ORPHAN)
        left, flow = 1 << 20, first["flow"]
        for count, process in enumerate(("control", "proxy"), 1):
            world.made.kill(process)
            closed = world.closed(count)[-1]
            assert (closed.flow.hex(), closed.close_reason) == (flow, "gateway.stopped")
            left -= closed.bytes_out + closed.bytes_in
            (row,) = wait_for(lambda: [each for each in world.open(lease) if each["flow"] != flow])  # noqa: B023
            assert row["reserved"] == left
            assert world.agent(SSH) == ["internet"]
            flow = row["flow"]
        subprocess.run(["nft", "delete", "table", "inet", "exeat"], check=True)
        wait_for(lambda: [each for each in world.of_kind(Kind.ORPHAN) if each.flow.hex() == flow])
        orphan = world.of_kind(Kind.ORPHAN)[-1]
        assert orphan.reserved == left  # counters that are gone: all of it counts
        wait_for(lambda: world.shut(lease) == ["lease.exhausted"])
        assert world.agent(SSH) == [CLOSED]

    in_direct_world(body)
