"""`exeat doctor --jail` looks out of a sound jail, and out of one with a hole."""

from __future__ import annotations

import pwd
import subprocess
from pathlib import Path

import pytest

from exeat.appliance import jail_check
from exeat.appliance.doctor import Status
from exeat.sandbox import netns

pytestmark = pytest.mark.root

NOBODY = pwd.getpwnam("nobody")


def traces() -> list[str]:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in mounts if "exeat-doctor-" in line] + [
        str(path) for path in Path("/run").glob("exeat-doctor-*")
    ]


def test_a_sound_jail_has_doors_and_walls() -> None:
    found = jail_check.check_jail(NOBODY)
    assert [(check.name, check.status) for check in found] == [
        ("jail doors", Status.OK),
        ("jail walls", Status.OK),
    ]
    assert traces() == []


def test_a_hole_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface beside `lo`, and nothing that redirects: datagrams leave without an error."""
    sound = netns.create

    def leaky(path: Path) -> None:
        sound(path)
        for words in (
            "route del local default dev lo table local",
            "link add hole type veth peer name far",
            "address add 192.0.2.2/24 dev hole",
            "link set hole up",
            "link set far up",
        ):
            subprocess.run(["nsenter", f"--net={path}", "ip", *words.split()], check=True)
        subprocess.run(["nsenter", f"--net={path}", "nft", "flush", "ruleset"], check=True)

    monkeypatch.setattr(netns, "create", leaky)
    doors, walls = jail_check.check_jail(NOBODY)
    assert doors.status is Status.FAIL
    assert "inside: trans4, trans6" in doors.detail
    assert walls.status is Status.FAIL
    assert "IPv4 UDP (reached)" in walls.detail
    assert "IPv6" not in walls.detail
    assert traces() == []


def test_a_jail_that_cannot_be_made_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(netns, "create", refuse)
    (check,) = jail_check.check_jail(NOBODY)
    assert (check.name, check.status) == ("jail", Status.FAIL)
    assert traces() == []
