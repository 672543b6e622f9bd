"""`exeat doctor --jail`: try every way out of a real jail, and show what stopped each.

A whole appliance of its own is started and one job in it (rig.py). The job tries what a job can
(attempt.py), root inside the jail's namespace what a job cannot (raw.py). Meanwhile every interface
outside is watched and the packets before and after the jail's rules are counted (watch.py); in the end
the ledger is read. A probe that nobody can show to have been stopped counts as one that got out.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exeat.appliance.doctor import Check, fail, ok, warn
from exeat.appliance.jail import verdict
from exeat.appliance.jail.probes import JOB, ROOT, every_probe
from exeat.appliance.jail.rig import UPSTREAM, Rig, RigError
from exeat.appliance.jail.verdict import DOORS, Result, Seen, judge
from exeat.appliance.jail.watch import Capture, Counters, asked_outside, outside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exeat.appliance.config import Config
    from exeat.appliance.jail.probes import Probe

_SCAPY = "pip install 'exeat[probe]', in the environment that exeat runs in"


class Findings(NamedTuple):
    """The doctor's findings, and the probes behind them (none when there was no jail)."""

    checks: list[Check]
    results: list[Result]


class _Tried(NamedTuple):
    """Everything that came of it, before it is judged."""

    probes: list[Probe]
    said: dict[str, Mapping[str, Any]]
    frames: list[tuple[str, bytes]]
    counts: dict[str, tuple[int, int]]
    refused: dict[str, str]
    interfaces: list[str]  # of the jail, beside `lo`


def check_jail(config: Config, say: Callable[[str], None]) -> Findings:
    """Make it, try it, take it down. `say` gets a line of progress at a time."""
    try:
        tried = _try_everything(config, say)
    except (OSError, ValueError, RigError, subprocess.SubprocessError) as error:
        return Findings([fail("jail", f"cannot be made and tried: {error}", "see the findings above")], [])
    results = [_judge(probe, tried) for probe in tried.probes]
    checks = [_interfaces(tried), _doors(tried.said), _walls(results), _quiet(tried)]
    if not any(probe.who == ROOT for probe in tried.probes):
        checks.append(warn("raw probes", "not tried: scapy is not installed", _SCAPY))
    return Findings(checks, results)


def _try_everything(config: Config, say: Callable[[str], None]) -> _Tried:
    say("starting an appliance of its own, and a job in it ...")
    probes: list[Probe] = []

    def argv(rig: Rig) -> list[str]:
        probes.extend(_wanted(rig))
        asked = [probe.message() for probe in probes if probe.who == JOB]
        program = Path(__file__).with_name("attempt.py").read_text(encoding="utf-8")
        return ["/usr/bin/python3", "-I", "-c", program, json.dumps(asked)]

    with Rig(config, argv) as rig:
        jail = rig.jail
        counters = Counters(jail, probes)
        capture = Capture([jail, rig.outside])
        try:
            roots = [probe for probe in probes if probe.who == ROOT]
            say(f"{len(roots)} ways out as root in the jail's network ...")
            said = rig.try_as_root(roots) if roots else []
            say(f"{len(probes) - len(roots)} ways out as the job ...")
            said += rig.try_as_job()
            counts = counters.read()
            say("reading the ledger ...")
            records = rig.records()
            frames = capture.frames()
        finally:
            capture.close()
    by_key: dict[str, Mapping[str, Any]] = {str(each["key"]): each for each in said}
    return _Tried(probes, by_key, frames, counts, verdict.refusals(records), capture.interfaces[0])


def _wanted(rig: Rig) -> list[Probe]:
    sockets = {
        "control": "control/control.sock",
        "hub": "control/hub.sock",
        "guard": "guard/guard.sock",
        "ledger": "ledger/ledger.sock",
        "warden": "warden/warden.sock",
    }
    probes = every_probe({name: str(rig.run_dir / path) for name, path in sockets.items()})
    has_scapy = importlib.util.find_spec("scapy") is not None
    return [probe for probe in probes if probe.who == JOB or has_scapy]


def _judge(probe: Probe, tried: _Tried) -> Result:
    frames = outside(tried.frames, [probe]).get(probe.key, [])
    before, after = tried.counts.get(probe.key, (0, 0))
    seen = Seen(tuple(frames), before, after, verdict.refusal_of(probe, tried.refused))
    return judge(probe, tried.said.get(probe.key, {}), seen)


def _interfaces(tried: _Tried) -> Check:
    if tried.interfaces:
        names = ", ".join(tried.interfaces)
        return fail("jail network", f"has more than lo: {names}", "do not run jobs here: find who adds it")
    return ok("jail network", "an interface `lo` and no other")


def _doors(said: Mapping[str, Mapping[str, Any]]) -> Check:
    """Refusing everything is not enough: the gateway must be there, in both families."""
    shut = []
    for version in "46":
        found = verdict.open_ports(said.get(f"ports{version}", {}))
        shut += [f"TCP {port} (IPv{version})" for port in sorted(DOORS - found)]
        if not said.get(f"dns-udp{version}", {}).get("data"):
            shut.append(f"UDP 53 (IPv{version})")
    if shut:
        return fail(
            "jail doors", f"not reachable inside: {', '.join(shut)}", "check that lo and nftables work"
        )
    return ok("jail doors", f"all {2 * len(DOORS) + 2} lead to the gateway")


def _walls(results: Sequence[Result]) -> Check:
    holes = [f"{result.probe.title} ({result.probe.who})" for result in results if not result.blocked]
    if holes:
        detail = f"{len(holes)} of {len(results)} ways out not shown to be stopped: {', '.join(holes)}"
        return fail("jail walls", detail, "do not run jobs on this machine")
    return ok("jail walls", f"{len(results)} ways out, none of which leads out")


def _quiet(tried: _Tried) -> Check:
    if asked_outside(tried.frames, ipaddress.ip_address(UPSTREAM).packed):
        return fail("gateway", "asked a resolver for a name that nobody may ask for", "report this")
    return ok("gateway", "asked nobody outside")
