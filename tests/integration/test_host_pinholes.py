"""Pinholes in the host's table: one member, a few places, so long, so many bytes; and then nothing."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.test_host_routing import REFUSED, door, on_host, status
from tests.support.host_world import AGENT_UID, OUT4, OUT6

from exeat.policy.addresses import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host_world import World
    from tests.support.warden_rig import WardenRig

pytestmark = pytest.mark.root

HOST, BOX = "builds/agents", "ext/box"
IP_UDP, SAID, HEARD = 28, len(b"hello"), len(b"internet")  # bytes: headers over IPv4, payloads

# Speaks and listens in turn until the connection ends; then says how.
TALK = """
import errno, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    sock.settimeout(30)
    try:
        sock.send(b"hello")
        print(sock.recv(100).decode(), flush=True)
        print("end" if not sock.recv(100) else "data", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


def boot() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def pinhole(member: str, *targets: tuple[str, str, int], number: int = 1, **changes: Any) -> dict[str, Any]:
    listed = [[parse_address(text).packed().hex(), proto, port] for text, proto, port in targets]
    values = {"number": number, "member": member, "targets": listed, "quota": 1 << 30, "end": boot() + 600}
    return {**values, **changes}


def opened(rig: WardenRig, *pinholes: dict[str, Any]) -> list[dict[str, Any]]:
    reply = rig.call("routing.set", pinholes=list(pinholes))
    assert reply["ok"], reply.message
    rows: list[dict[str, Any]] = reply["pinholes"]
    return rows


@contextmanager
def talking(world: World, address: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """An agent with a live connection, which has had its first answer."""
    enter = world.entering(AGENT_UID, world.slice)
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", TALK, address, str(port)],
        stdout=subprocess.PIPE, text=True, preexec_fn=enter,
    )  # fmt: skip
    with process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "internet\n"
            yield process
        finally:
            process.kill()


def how_it_ended(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    assert select.select([process.stdout], [], [], 30)[0], "the connection is still there"
    return process.stdout.readline().strip()


def test_a_pinhole_is_for_one_member_and_its_targets_and_counts_every_byte() -> None:
    def body(world: World, rig: WardenRig) -> None:
        hole = pinhole(HOST, (OUT4, "udp", 51820), (OUT6, "tcp", 22))
        opened(rig, hole)
        before = [("udp", OUT4, 51820), ("udp*", OUT4, 51820), ("tcp", OUT6, 22)]
        assert world.agent(*before) == ["internet", "internet from the asked", "internet"]
        closed = world.agent(("udp", OUT6, 51820), ("udp", OUT4, 8853), ("udp", OUT4, 443))
        assert all(what in REFUSED for what in closed), closed
        assert world.agent(("tcp", OUT4, 22), ("udp", OUT4, 53)) == [f"for {OUT4} 22", "guard"]
        assert all(what in (*REFUSED, "silence") for what in world.container(("udp", OUT4, 51820)))
        counted = opened(rig, pinhole(HOST, (OUT4, "udp", 51820), number=2), hole)
        assert [row["number"] for row in counted] == [2, 1]
        assert counted[0] == {"number": 2, "out": 0, "in": 0, "over": ""}
        world.agent(("udp", OUT4, 51820))
        assert opened(rig, hole)[0]["out"] == counted[1]["out"]  # the first of two counted it
        assert opened(rig) == []
        assert world.agent(("udp", OUT4, 51820)) == ["EPERM"]

    on_host(body)


def test_a_container_goes_out_under_the_hosts_address() -> None:
    def body(world: World, rig: WardenRig) -> None:
        opened(rig, pinhole(BOX, (OUT4, "udp", 51820)))
        assert world.container(("udp", OUT4, 51820), ("udp*", OUT4, 51820)) == [
            "internet",
            "internet from the asked",
        ]
        (row,) = status(rig)["pinholes"]
        assert (row["out"], row["in"]) == (2 * (IP_UDP + SAID), 2 * (IP_UDP + HEARD))
        assert world.agent(("udp", OUT4, 51820)) == ["EPERM"]
        opened(rig)
        assert world.container(("udp", OUT4, 51820))[0] in (*REFUSED, "silence")

    on_host(body)


def test_this_machine_and_what_is_never_reached_stay_shut_whatever_a_pinhole_says() -> None:
    def body(world: World, rig: WardenRig) -> None:
        opened(
            rig, pinhole(HOST, ("198.51.100.1", "udp", 5353), ("127.0.0.1", "tcp", 9999), (OUT4, "tcp", 80))
        )
        found = world.agent(("udp", "198.51.100.1", 5353), ("tcp", "127.0.0.1", 9999), ("tcp", OUT4, 80))
        assert all(what in REFUSED for what in found), found

    on_host(body, never=(door(OUT4, 80),))


@pytest.mark.parametrize("how", ["revoked", "cut short", "time", "drift"])
def test_its_end_ends_a_live_connection(how: str) -> None:
    def body(world: World, rig: WardenRig) -> None:
        target = (OUT4, "tcp", 22)
        opened(rig, pinhole(HOST, target, end=boot() + (2 if how == "time" else 600)))
        with talking(world, OUT4, 22) as process:
            if how == "revoked":
                assert opened(rig) == []
            elif how == "cut short":
                (row,) = opened(rig, pinhole(HOST, target, end=0))
                assert row["over"] == "time"
                assert row["out"] > 0  # what it moved is still told
            elif how == "drift":
                subprocess.run(["nft", "flush", "table", "inet", "exeat"], check=True)
            assert how_it_ended(process) == "ECONNABORTED"
        if how == "time":
            (row,) = status(rig)["pinholes"]
            assert row["over"] == "time"
        if how == "drift":
            assert status(rig)["pinholes"] == []
        assert world.agent(("tcp", OUT4, 22)) == [f"for {OUT4} 22"]

    on_host(body)


def test_the_quota_is_a_ceiling_for_both_directions_together() -> None:
    def body(world: World, rig: WardenRig) -> None:
        quota = 5 * (IP_UDP + SAID) + 4 * (IP_UDP + HEARD)
        opened(rig, pinhole(HOST, (OUT4, "udp", 51820), quota=quota))
        found = world.agent(*[("udp", OUT4, 51820)] * 6)
        assert found[:4] == ["internet"] * 4
        assert found[4] in ("silence", "ECONNABORTED")  # it went out, its answer did not come in
        assert found[5] == "EPERM"
        (row,) = status(rig)["pinholes"]
        assert row["over"] == "bytes"
        assert row["out"] + row["in"] <= quota

    on_host(body)


def test_a_warden_that_was_killed_goes_on_with_a_pinhole_and_one_that_stopped_has_none() -> None:
    def body(world: World, rig: WardenRig) -> None:
        opened(rig, pinhole(HOST, (OUT4, "tcp", 22)))
        with talking(world, OUT4, 22) as process:
            rig.stop(signal.SIGKILL)
            assert world.agent(("tcp", OUT4, 22)) == ["internet"]
            rig.start()
            (row,) = status(rig)["pinholes"]
            assert row["out"] > 0
            assert status(rig)["repairs"] == 0
            assert rig.stop() == 0
            assert how_it_ended(process) == "ECONNABORTED"
        assert world.agent(("tcp", OUT4, 22)) == [f"for {OUT4} 22"]
        rig.start()
        assert status(rig)["pinholes"] == []

    on_host(body)


def test_the_connections_of_others_to_the_same_place_are_left_alone() -> None:
    def body(world: World, rig: WardenRig) -> None:
        opened(rig, pinhole(HOST, (OUT4, "tcp", 22)))
        own = subprocess.Popen([sys.executable, "-c", TALK, OUT4, "22"], stdout=subprocess.PIPE, text=True)
        with own, talking(world, OUT4, 22) as process:
            assert own.stdout
            assert own.stdout.readline() == "internet\n"
            opened(rig)
            assert how_it_ended(process) == "ECONNABORTED"
            assert not select.select([own.stdout], [], [], 0)[0]
            assert own.poll() is None
            own.kill()

    on_host(body)


BAD: list[dict[str, Any]] = [
    {"member": "other/agent"},
    {"number": 0},
    {"number": True},
    {"quota": 0},
    {"end": -1},
    {"targets": []},
    {"targets": [["zz", "tcp", 22]]},
    {"targets": [["c6336402", "tcp", 53]]},
    {"targets": [["c6336402", "tcp", 22, "x"]]},
    {"targets": [["c6336402", "tcp; accept", 22]]},
    {"more": 1},
]


def test_what_is_no_pinhole_is_refused_and_changes_nothing() -> None:
    def body(_world: World, rig: WardenRig) -> None:
        before = status(rig)
        for changes in BAD:
            reply = rig.call("routing.set", pinholes=[{**pinhole(HOST, (OUT4, "tcp", 22)), **changes}])
            assert (reply["ok"], reply.error) == (False, "argument"), changes
        assert status(rig)["digest"] == before["digest"]

    on_host(body)


def test_without_members_there_are_no_pinholes() -> None:
    def body(_world: World, rig: WardenRig) -> None:
        reply = rig.call("routing.set", pinholes=[])
        assert reply.error == "routing.none"

    on_host(body, members=())
