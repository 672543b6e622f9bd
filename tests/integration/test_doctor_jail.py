"""`exeat doctor --jail`: a sound jail keeps everything in, and one with a hole is found out."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from exeat.appliance.commands import doctor as command
from exeat.appliance.config import Config, Sandbox
from exeat.appliance.doctor import Status
from exeat.appliance.jail import check
from exeat.appliance.jail.check import Findings, check_jail
from exeat.appliance.jail.verdict import Wall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.appliance.jail.probes import Probe

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = Config(sandbox=Sandbox(uid_base=720_000))

WALLS = {
    "packet": Wall.SECCOMP,
    "ping4": Wall.SECCOMP,
    "mark": Wall.KERNEL,
    "routed": Wall.KERNEL,
    "unix-warden": Wall.KERNEL,
    "quic4": Wall.RULES,
    "quic6": Wall.RULES,
    "raw-fragments6": Wall.RULES,
    **dict.fromkeys(("dns-udp4", "dns-tcp6", "dot4", "doh6", "http4", "ssh6"), Wall.GATEWAY),
    **dict.fromkeys(("connect6", "metadata", "mapped", "link-local-tcp"), Wall.GATEWAY),
}


def quiet(_text: str) -> None:
    pass


def traces() -> list[str]:
    """Whatever of a doctor's appliance is still there: folders, mounts, processes."""
    found = [str(path) for path in Path("/run").glob("exeat-doctor-*")]
    found += [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "exeat-doctor-" in line
    ]
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        found += [entry] * (b"exeat-doctor-" in words)
    return found


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    before = traces()
    yield
    assert set(traces()) <= set(before)


def statuses(found: Findings) -> dict[str, Status]:
    return {each.name: each.status for each in found.checks}


def test_a_sound_jail(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command, in both forms of its output."""
    monkeypatch.setattr(command, "load_config", lambda _args: CONFIG)
    code = command.run(argparse.Namespace(json=True, jail=True))
    document = json.loads(capsys.readouterr().out)
    jail = {each["name"]: each["status"] for each in document["checks"] if "jail" in each["name"]}
    assert jail == {"jail network": "ok", "jail doors": "ok", "jail walls": "ok"}, document
    assert code == (0 if document["ok"] else 1)
    by_key: dict[str, Any] = {each["key"]: each for each in document["probes"]}
    assert all(each["blocked"] for each in by_key.values())
    walls = {key: by_key[key]["wall"] for key in WALLS}
    assert walls == WALLS
    assert "ledger: meta.dns_bypass" in by_key["dot4"]["evidence"]
    assert "ledger: ip_literal.denied" in by_key["connect6"]["evidence"]
    assert "rules 1 in, 0 out; outside 0" in by_key["quic4"]["evidence"]
    assert sum(each["as"] == "root" for each in by_key.values()) == 19


def dig(monkeypatch: pytest.MonkeyPatch, *commands: str) -> None:
    """Run these in the jail as soon as it is there."""
    sound = check.Counters

    def spoiled(jail: Path, probes: list[Probe]) -> check.Counters:
        for words in commands:
            subprocess.run(["nsenter", f"--net={jail}", *words.split()], check=True)
        return sound(jail, probes)

    monkeypatch.setattr(check, "Counters", spoiled)


def test_an_interface_and_no_rules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A veth, a way through it, and nothing that redirects: what leaves is seen to leave."""
    dig(
        monkeypatch,
        "ip route del local default dev lo table local",
        "ip link add hole type veth peer name far",
        "ip address add 192.0.2.2/24 dev hole",
        "ip link set hole up",
        "ip link set far up",
        "nft delete table inet exeat",
    )
    found = check_jail(CONFIG, quiet)
    assert statuses(found)["jail network"] is Status.FAIL
    assert statuses(found)["jail walls"] is Status.FAIL
    out = {result.probe.key: result for result in found.results if not result.blocked}
    assert {"quic4", "dns-udp4", "raw-dns4", "raw-echo4", "raw-frame4", "big4"} <= out.keys()
    assert "seen on far, hole" in out["quic4"].evidence
    assert not out.keys() & {"packet", "mark", "connect4", "connect6", "quic6"}


def test_a_service_inside_that_is_no_door_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 8080)); print(1, flush=True); input()"
    sound = check.Counters
    started = []

    def spoiled(jail: Path, probes: list[Probe]) -> check.Counters:
        words = ["nsenter", f"--net={jail}", sys.executable, "-c", code]
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert started[0].stdout is not None
        started[0].stdout.readline()
        return sound(jail, probes)

    monkeypatch.setattr(check, "Counters", spoiled)
    found = check_jail(CONFIG, quiet)
    started[0].communicate(b"\n")
    assert statuses(found)["jail walls"] is Status.FAIL
    assert [result.evidence for result in found.results if not result.blocked] == ["open: 8080"]


def test_a_jail_that_cannot_be_made_is_a_finding() -> None:
    broken = CONFIG.model_copy(update={"sandbox": Sandbox(runtime="no-such-runtime")})
    found = check_jail(broken, quiet)
    assert statuses(found) == {"jail": Status.FAIL}
    assert found.results == []


def test_without_scapy_the_rest_is_still_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    found = check_jail(CONFIG, quiet)
    assert statuses(found)["raw probes"] is Status.WARN
    assert "exeat[probe]" in found.checks[-1].fix
    assert statuses(found)["jail walls"] is Status.OK
    assert {result.probe.who for result in found.results} == {"job"}
