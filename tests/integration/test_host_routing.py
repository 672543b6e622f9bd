"""The host's table in force: what members of it get out of every way that is tried, and drift."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.host_world import AGENT_UID, OUT4, OUT6, PREFIX, UNIFIED, World
from tests.support.proxy_world import in_namespace
from tests.support.running import wait_for
from tests.support.warden_rig import Reply, WardenRig

from exeat.policy.addresses import Cidr, parse_address, parse_cidr
from exeat.sandbox.rules import Cgroup, Host, Table, Target, Veth

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

REFUSED = ("EPERM", "EACCES", "EHOSTUNREACH", "ECONNREFUSED")
SLICE = f"exeat-test-{os.getpid()}.slice"


def door(text: str, port: int, proto: str = "tcp") -> Target:
    return Target(parse_address(text), proto, port)


def net(text: str) -> Cidr:
    found = parse_cidr(text)
    assert found is not None
    return found


def table(**changes: Any) -> Table:
    values: dict[str, Any] = {
        "members": (
            Host("builds/agents", Cgroup(SLICE), ((AGENT_UID, AGENT_UID + 9),)),
            Veth("ext/box", "sbh0", (net("10.231.0.2/32"), net("fd5b:0:0:1::2/128"))),
        ),
        "doors": (door("127.0.0.1", 3128), door("::1", 3128), door("10.231.0.1", 3128)),
        "transparent": 3129,
        "dns": 5353,
        "prefix": PREFIX,
    }
    return Table(**{**values, **changes})


def on_host(body: Callable[[World, WardenRig], None], **changes: Any) -> None:
    """A world with a warden that has loaded its table; `body` runs in the host's namespace."""

    def inside() -> None:
        world = World(SLICE)
        try:
            with WardenRig(table=table(**changes)) as rig:
                body(world, rig)
        finally:
            subprocess.run(["nft", "delete", "table", "inet", "exeat"], check=False, capture_output=True)
            world.close()

    in_namespace(inside)


def status(rig: WardenRig) -> Reply:
    reply = rig.call("routing.status")
    assert reply["ok"], reply.message
    return reply


def counts(rig: WardenRig, member: int) -> dict[str, int]:
    found: dict[str, int] = status(rig)["members"][member]
    return found


def test_an_agent_reaches_the_gateway_and_nothing_else() -> None:
    def body(world: World, rig: WardenRig) -> None:
        assert world.agent(
            ("tcp", "127.0.0.1", 3128), ("tcp", "::1", 3128),
            ("tcp", OUT4, 443), ("tcp", OUT6, 22), ("tcp", "127.0.0.1", 9999), ("tcp", f"::ffff:{OUT4}", 80),
            ("tcp", OUT4, 853), ("tcp", OUT4, 53), ("udp", OUT4, 53), ("udp*", OUT6, 53),
        ) == [
            "proxy", "proxy",
            f"for {OUT4} 443", f"for {OUT6} 22", "for 127.0.0.1 9999", f"for {OUT4} 80",
            f"for {OUT4} 853", "guard", "guard", "guard from the asked",
        ]  # fmt: skip
        closed = [(kind, place, port) for kind in ("udp", "udp*") for place in (OUT4, OUT6)
                  for port in (443, 853, 8853, 51820)]  # fmt: skip
        found = world.agent(*closed)
        assert all(what in REFUSED for what in found), found
        seen = counts(rig, 0)
        assert (seen["dns"], seen["bypass"], seen["quic"]) == (3, 9, 4)

    on_host(body)


def test_the_cgroup_holds_root_and_what_lies_below_it() -> None:
    def body(world: World, _rig: WardenRig) -> None:
        below = world.slice / "inner"
        below.mkdir()
        tries = [("tcp", OUT4, 443), ("udp", OUT4, 51820), ("raw", OUT4, 0), ("raw", OUT6, 0)]
        for cgroup in (world.slice, below):
            first, *rest = world.agent(*tries, uid=0, cgroup=cgroup)
            assert first == f"for {OUT4} 443"
            assert all(what in REFUSED for what in rest), rest

    on_host(body)


def test_the_uid_holds_a_process_outside_the_cgroup() -> None:
    def body(world: World, _rig: WardenRig) -> None:
        tries = [("tcp", OUT4, 443), ("udp", OUT6, 51820)]
        assert world.agent(*tries, cgroup=UNIFIED) == [f"for {OUT4} 443", "EPERM"]
        assert world.agent(*tries, cgroup=UNIFIED, uid=AGENT_UID + 10) == ["internet", "internet"]

    on_host(body)


def test_without_the_redirected_doors_everything_is_refused() -> None:
    def body(world: World, _rig: WardenRig) -> None:
        tries = [("tcp", OUT4, 443), ("tcp", "127.0.0.1", 3129), ("udp", OUT4, 53), ("tcp", OUT6, 53)]
        found = world.agent(*tries)
        assert all(what in REFUSED for what in found), found

    on_host(body, transparent=0, dns=0)


def test_a_container_reaches_the_gateway_and_nothing_else() -> None:
    def body(world: World, rig: WardenRig) -> None:
        assert world.container(
            ("tcp", "10.231.0.1", 3128), ("tcp", OUT4, 443), ("tcp", OUT6, 22), ("tcp", "10.231.0.1", 9999),
            ("udp", OUT4, 53), ("tcp", OUT6, 53),
        ) == [
            "proxy", f"for {OUT4} 443", f"for {OUT6} 22", "for 10.231.0.1 9999", "guard", "guard",
        ]  # fmt: skip
        found = world.container(
            ("udp", OUT4, 443),
            ("udp", OUT6, 853),
            ("udp", "198.51.100.1", 9999),
            ("raw", OUT4, 0),
            ("raw", OUT6, 0),
        )
        assert all(what in (*REFUSED, "silence") for what in found), found
        assert counts(rig, 1)["dns"] == 2

    on_host(body)


SERVE = """
import socket, sys
with socket.create_server(("0.0.0.0", 9100)) as listener:
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        sock.send(b"from the agent")
"""


def test_a_server_of_an_agent_says_nothing_to_the_outside() -> None:
    def body(world: World, _rig: WardenRig) -> None:
        enter = world.entering(AGENT_UID, world.slice)
        command = [sys.executable, "-I", "-c", SERVE]
        with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=enter) as server:
            assert server.stdout
            assert server.stdout.readline() == b"ready\n"
            inside = [("tcp", "127.0.0.1", 9100), ("tcp", "198.51.100.1", 9100)]
            assert world.agent(*inside, cgroup=UNIFIED, uid=65534) == ["from the agent"] * 2
            outside = world.probe_from(world.internet.path, ("tcp", "198.51.100.1", 9100))
            assert outside[0] in (*REFUSED, "silence"), outside
            server.kill()

    on_host(body)


FRAMES = """
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
source, target, mac = sys.argv[1:]
udp = struct.pack(">HHHH", 4444, 51820, 13, 0) + b"hello"
head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
                   socket.inet_aton(source), socket.inet_aton(target))
head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
    sock.bind(("far0", 0))
    own = sock.getsockname()[4]
    for _ in range(3):
        sock.send(bytes.fromhex(mac.replace(":", "")) + own + b"\\x08\\0" + head + udp)
"""


def test_frames_from_a_container_get_nothing_and_are_counted_when_their_source_is_not_its_own() -> None:
    def body(world: World, rig: WardenRig) -> None:
        link = subprocess.run(["ip", "-j", "link", "show", "sbh0"], capture_output=True, check=True).stdout
        mac = json.loads(link)[0]["address"]
        before = counts(rig, 1)
        for source in ("10.231.0.2", "198.51.100.9"):
            command = ["nsenter", f"--net={world.inside}", "python3", "-c", FRAMES, source, OUT4, mac]
            subprocess.run(command, check=True, timeout=30)
        wait_for(lambda: counts(rig, 1)["spoofed"] == before["spoofed"] + 3)
        wait_for(lambda: counts(rig, 1)["rejected"] >= before["rejected"] + 3)
        assert world.internet.heard == []

    on_host(body)


@pytest.mark.parametrize(
    "tamper",
    [
        "flush ruleset",
        "flush table inet exeat",
        "insert rule inet exeat m0_filter accept",
        "add chain inet exeat more",
        "delete rule inet exeat forward handle {handle}",
        "add chain inet exeat output {{ policy drop; }}",
    ],
)
def test_what_is_changed_behind_its_back_is_repaired_and_told(tamper: str) -> None:
    def body(world: World, rig: WardenRig) -> None:
        before = status(rig)
        listed = subprocess.run(
            ["nft", "-a", "list", "chain", "inet", "exeat", "forward"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        handle = listed.rpartition("# handle ")[2].split()[0]
        subprocess.run(["nft", tamper.format(handle=handle)], check=True)
        after = wait_for(lambda: (now := status_or_none(rig)) and now["repairs"] and now)
        assert after["repairs"] == before["repairs"] + 1
        assert after["note"]
        assert after["digest"] == before["digest"]
        assert world.agent(("udp", OUT4, 51820), ("tcp", OUT4, 443)) == ["EPERM", f"for {OUT4} 443"]

    on_host(body)


def status_or_none(rig: WardenRig) -> Reply | None:
    """While the table is away it cannot be counted, and the warden says so."""
    reply = rig.call("routing.status")
    return reply if reply["ok"] else None


def test_a_cgroup_that_was_made_again_is_confined_again() -> None:
    def body(world: World, rig: WardenRig) -> None:
        world.slice.rmdir()
        wait_for(lambda: (now := status_or_none(rig)) and now["repairs"])
        first, second = world.agent(("tcp", OUT4, 443), ("udp", OUT4, 51820), uid=0)
        assert (first, second) == (f"for {OUT4} 443", "EPERM")

    on_host(body)


@pytest.mark.parametrize("end", [9, 15])
def test_members_stay_confined_without_a_warden_and_a_new_one_goes_on(end: int) -> None:
    def body(world: World, rig: WardenRig) -> None:
        world.agent(("udp", OUT4, 443))
        rig.stop(end)
        assert world.agent(("udp", OUT4, 51820), ("tcp", OUT4, 443)) == ["EPERM", f"for {OUT4} 443"]
        rig.start()
        assert status(rig)["repairs"] == 0
        assert counts(rig, 0)["quic"] == 1  # the same table, not a new one

    on_host(body)


def test_a_warden_that_cannot_load_the_table_does_not_start() -> None:
    def body() -> None:
        rig = WardenRig(table=table(members=(Host("a/b", Cgroup("cgroup.procs")),)))  # no folder
        with pytest.raises(AssertionError), rig:
            pass
        assert rig.stop() != 0
        shutil.rmtree(rig.base)

    in_namespace(body)
