"""Jails that flood, and one beside them that only asks: it is answered. No clocks are compared."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import dns.message
import pytest
from tests.support.dns_servers import zone_handler
from tests.support.guard_rig import Rig, answers, ask, guard_rig

from exeat.dns.responder import MAX_PENDING
from exeat.dns.upstream import MAX_IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = "{egress: v1, project: p, posture: allowlist, allow: [{to: .wild.net}]}"
HONEST = zone_handler([("www.wild.net", 1, "A", "203.0.113.1"), ("api.wild.net", 1, "A", "203.0.113.2")])


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Before a resolver that says nothing about names below slow.wild.net."""

    def handle(query: dns.message.Message, udp: bool) -> list[bytes]:
        return [] if "slow" in query.question[0].name.to_text().lower() else HONEST(query, udp)

    with guard_rig(tmp_path, handle) as made:
        made.snapshot(POLICY)
        yield made


def pending(rig: Rig) -> list[int]:
    """The unanswered lookups of each jail."""
    return list(rig.loop.call(lambda: [state.pending for state, _ in rig.guard._jails.values()]))


def test_lookups_that_never_end_leave_room_for_others(rig: Rig) -> None:
    """Each flooding jail asks for more than it may: together they could hold every question upstream."""
    floods = [rig.jail(f"flood{i}", "p") for i in range(4)]
    quiet = rig.jail("quiet", "p")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for i, flood in enumerate(floods):
            for n in range(300):
                sock.sendto(dns.message.make_query(f"n{i}-{n}.slow.wild.net", "A").to_wire(), flood.udp)
                if n % 50 == 49:
                    rig.sync()
        waiting = pending(rig)
        assert sum(waiting) < MAX_IN_FLIGHT
        assert max(waiting) <= MAX_PENDING
        for name in ("www.wild.net", "api.wild.net"):
            assert answers(ask(quiet.udp, name))


@pytest.mark.parametrize("known", [True, False])
def test_a_flood_does_not_silence_another_jail(rig: Rig, known: bool) -> None:
    """A heap of datagrams is there before each lookup: of one remembered name, or of ever new denied ones."""
    flood, quiet = rig.jail("flood", "p"), rig.jail("quiet", "p")
    query = dns.message.make_query("www.wild.net", "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(4000):
            one = query if known else dns.message.make_query(f"x{number}.evil.org", "A").to_wire()
            sock.sendto(one, flood.udp)
            if number % 400 == 399:
                assert answers(ask(quiet.udp, "www.wild.net")) == {"203.0.113.1"}
                assert answers(ask(quiet.tcp, "api.wild.net", tcp=True)) == {"203.0.113.2"}
