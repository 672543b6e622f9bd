"""The normative cases whose counters real flows can bring about: spent through the door, then asked.

`test_policy_through_doors.py` states counters by a seam. Here nothing but the clock is set: what a
case says has been used is used, byte by byte and connection by connection, and then it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from tests.support.door_cases import ELSEWHERE, DoorCase, load_cases
from tests.support.policy_world import CLOCK_ONLY_PROXY, PolicyWorld, every_address_is_here, hello_for
from tests.support.proxy_world import in_namespace, read_head

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    import socket
    from pathlib import Path

pytestmark = pytest.mark.root

CASES = {case.id: case for case in load_cases() if set(case.state) - {"revoked", "min_epoch"}}
NO_MONEY = {"AG-07", "BU-04", "BU-05", "BU-06"}  # nothing that flows costs money yet
CORRUPT = {"DB-14", "N-098", "N-100", "N-115"}  # no flow makes a counter negative or text
TEN_BYTES = {"N-111", "N-112", "N-113", "N-114"}  # less than a ClientHello: no flow uses just these
SPENDABLE = [i for i in CASES if i not in NO_MONEY | CORRUPT | TEN_BYTES]
# Allowed, and then the one byte that the lease has left is less than a ClientHello.
ONE_BYTE_LEFT = {"N-104": {"decision": "deny", "reason": "lease.exhausted"}}
HOSTS = {"default": "packages.example.com", "soft": "soft.example.org"}  # whose flows charge a budget
HELLO = len(hello_for("packages.example.com"))
BLOCK = bytes(1 << 20)


class SpendingWorld(PolicyWorld):
    """Its origins take what they are sent and keep nothing."""

    proxy_code: ClassVar[str] = CLOCK_ONLY_PROXY

    def _keep(self, sock: socket.socket) -> None:
        room = bytearray(len(BLOCK))
        while size := sock.recv_into(room):
            if size < len(BLOCK):
                self.reached.put(bytes(room[:HELLO]))

    def flow(self, case: DoorCase, host: str, size: int) -> None:
        """One flow to `host` that ends after `size` bytes of the client, a ClientHello first."""
        self.guard.names[host] = [ELSEWHERE]
        sock = self.open_client(case)
        sock.sendall(b"CONNECT %s:443 HTTP/1.1\r\n\r\n" % host.encode())
        assert b" 200 " in read_head(sock)
        sock.sendall(hello_for(host))
        assert self.judged().kind is Kind.OPEN
        left = size - HELLO
        while left:
            left -= sock.send(BLOCK[:left])
        sock.close()
        assert self.closed().bytes_out == size

    def spend(self, case: DoorCase, host: str, *, size: int, flows: int) -> None:
        """`size` bytes in so many flows."""
        for _ in range(flows - 1):
            self.flow(case, host, HELLO)
        self.flow(case, host, size - (flows - 1) * HELLO)


def spend_all(world: SpendingWorld, case: DoorCase) -> None:
    """Bring about the counters of the case."""
    for lease in case.leases:
        uses = case.state.get("lease_uses", {}).get(lease.id, 1)
        size = case.state.get("lease_bytes", {}).get(lease.id, uses * HELLO)
        if case.state.keys() & {"lease_uses", "lease_bytes"}:
            world.spend(case, case.host, size=size, flows=uses)
    budgets = case.state.get("budgets", {})
    spent = 0
    for name in ("soft", "default"):
        if name in budgets:
            flows = budgets[name].get("connections", 1) - spent
            size = budgets[name].get("bytes_up", flows * HELLO)
            world.spend(case, HOSTS[name], size=size, flows=flows)
            spent += flows


def test_which_cases_flows_can_bring_about() -> None:
    assert (len(SPENDABLE), len(CASES)) == (13, 25)


@pytest.mark.parametrize("name", SPENDABLE)
def test_what_is_spent_by_flows_counts(tmp_path: Path, name: str) -> None:
    case = CASES[name]

    def body() -> None:
        every_address_is_here()
        with SpendingWorld(tmp_path, {443}) as world:
            world.show(case)
            spend_all(world, case)
            world.guard.names[case.host] = list(case.resolved)
            while not world.reached.empty():
                world.reached.get()
            got = world.connect_case(case)
        expected = {**case.expect, **ONE_BYTE_LEFT.get(name, {})}
        assert got.record.reason_code == expected["reason"]
        assert got.record.rule_id == expected.get("rule", got.record.rule_id)
        assert got.told == ("" if case.allowed else case.expect["reason"])
        assert got.record.kind is (Kind.OPEN if expected["decision"] == "allow" else Kind.DENY)

    in_namespace(body)
