"""Limits as people write them, and as the warden takes them from control, whom it does not trust."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from exeat.appliance.config import Sandbox
from exeat.appliance.limits import node_limits, parse_limits
from exeat.policy.errors import UnitError
from exeat.sandbox import limits
from exeat.sandbox.limits import LEAST, Limits
from exeat.sandbox.names import SpecError


def test_what_people_write() -> None:
    text = "memory=512MiB, pids=64,cpu=1.5,tmp=10MB,work=1GiB,file=none,files=100,time=10m"
    assert parse_limits(text) == {
        "memory": 512 * 1024**2,
        "pids": 64,
        "cpu": 1500,
        "tmp": 10_000_000,
        "work": 1024**3,
        "file": 0,
        "files": 100,
        "time": 600_000,
    }
    assert parse_limits("") == {}
    assert [parse_limits(f"cpu={cpu}")["cpu"] for cpu in ("2", "0.25", "0.001")] == [2000, 250, 1]


@pytest.mark.parametrize(
    "text",
    [
        "memory",
        "memory=",
        "=1",
        "disk=1",
        "memory=1,memory=2",
        "memory=none",
        "pids=1.5",
        "cpu=.5",
        "cpu=1e3",
        "cpu=-1",
        "time=0s",
        "time=5",
    ],
)
def test_what_nobody_can_mean(text: str) -> None:
    with pytest.raises(UnitError):
        parse_limits(text)


def test_what_a_node_gives() -> None:
    assert node_limits("") == (Limits(), 0)
    given, time_ms = node_limits("memory=1GiB,time=1h")
    assert (given.memory, given.pids, time_ms) == (1024**3, Limits().pids, 3_600_000)
    with pytest.raises(UnitError):
        node_limits("memory=1KiB")
    with pytest.raises(ValueError, match="NAME=VALUE"):
        Sandbox(limits="much")


CEILING = Limits(memory=2**30, cpu=0, work=2**20)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ([], "argument"),
        ({1: 2}, "argument"),
        ({"disk": 1}, "argument"),
        ({"memory": "1"}, "argument"),
        ({"memory": True}, "argument"),
        ({"memory": 2.0**20}, "argument"),
        ({"memory": -1}, "argument"),
        ({"cpu": 2**63}, "argument"),
        ({"memory": 0}, "limits"),
        ({"memory": 2**30 + 1}, "limits"),
        ({"pids": 1025}, "limits"),
        ({"work": 0}, "limits"),  # the node bounds it
        ({"work": 2**20 + 1}, "limits"),
    ],
)
def test_a_job_may_ask_for_less_only(raw: Any, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        limits.parse_limits(raw, CEILING)
    assert caught.value.code == code


def test_what_is_asked_for_holds_and_the_rest_is_the_nodes() -> None:
    given = limits.parse_limits({"memory": LEAST.memory, "cpu": 500, "file": 0}, CEILING)
    assert asdict(given) == asdict(CEILING) | {"memory": LEAST.memory, "cpu": 500}
    assert limits.parse_limits({}, CEILING) == CEILING


@pytest.mark.parametrize(("raw", "needed"), [({}, False), ({"tmp": 1}, False), ({"tmp": 1, "cpu": 1}, True)])
def test_what_only_cgroups_hold(raw: dict[str, int], needed: bool) -> None:
    assert limits.needs_cgroup(raw) is needed
