"""Every system call that a profile does not allow, made from inside a container with that profile."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.syscalls import BY_ARGUMENTS, LAST, REFUSED, UNKNOWN, numbers, verdicts
from tests.support.warden_rig import WardenRig

from exeat.sandbox.spec import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.root

SCRIPT = (Path(__file__).parents[1] / "support" / "syscall_probes.py").read_text()
NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
CHILD = 17  # SIGCHLD
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_MAX = 1, 2, 10, 16, 48
STREAM, DGRAM = 1, 2
# uretprobe and uprobe: since 6.14 no filter sees them, and whoever calls them from anywhere but the
# kernel's own trampoline gets SIGILL (kernel/seccomp.c, arch/x86/kernel/uprobes.c).
NEVER_FILTERED = (335, 336)
PROTOCOLS = (0, 1, 2, 6, 12, 15, 17, 47, 50, 58, 132, 136, 255, 262, 768)

Call = tuple[int, tuple[int, ...]]


@pytest.fixture(scope="module", params=["crun", "runc", *filter(shutil.which, ["podman"])])
def rig(request: pytest.FixtureRequest) -> Iterator[WardenRig]:
    with WardenRig(runtime=request.param) as made:
        yield made


def ask(rig: WardenRig, profile: Profile, calls: Mapping[str, Call]) -> dict[str, str]:
    script, wanted = rig.base / "share" / "syscalls.py", rig.base / "share" / f"{profile}.json"
    script.write_text(SCRIPT)
    wanted.write_text(json.dumps(calls))
    output = rig.base / f"{profile}.out"
    rig.call("jail.create", jail=profile).close()
    with output.open("wb") as out, open(os.devnull, "rb") as null:
        started = rig.start_job(
            profile,
            ["/usr/bin/python3", str(script), str(wanted)],
            (null.fileno(), out.fileno(), out.fileno()),
            mounts=[{"path": str(path), "mode": "ro"} for path in (script, wanted)],
            profile=profile,
        )
    assert started["ok"], started.message
    assert rig.call("job.wait", job=profile)["code"] == 0, output.read_text()
    rig.call("job.remove", job=profile)
    rig.call("jail.destroy", jail=profile)
    answers: dict[str, str] = json.loads(output.read_text())
    return answers


def plain(profile: Profile) -> tuple[dict[str, Call], dict[str, str]]:
    """Every number that is not allowed, and what it must answer."""
    said = verdicts(profile)
    named = {number: name for name, number in numbers().items()}
    calls, expected = {}, {}
    for number in (each for each in range(LAST) if each not in NEVER_FILTERED):
        name = named.get(number, f"number {number}")
        verdict = said.get(name, UNKNOWN)
        if verdict in (REFUSED, UNKNOWN):
            calls[name] = (number, (0,) * 6)
            expected[name] = verdict
    return calls, expected


def by_arguments(profile: Profile) -> tuple[dict[str, Call], dict[str, str]]:
    """What is decided by arguments: namespaces, terminals, personalities and every kind of socket."""
    known = numbers()
    wide = profile is Profile.STANDARD_NET
    calls: dict[str, Call] = {}
    for flag in NAMESPACES:
        calls[f"clone {flag:x}"] = (known["clone"], (flag | CHILD, 0, 0, 0, 0))
    for request in (0x5412, 0x541C, 0x1_0000_5412, 0xFFFF_FFFF_0000_541C):
        calls[f"ioctl {request:x}"] = (known["ioctl"], (0, request, 0))
    for persona in (0x0008, 0x0040000, 0x0400000, 0x8000000, 0x1_0000_0000):
        calls[f"personality {persona:x}"] = (known["personality"], (persona,))
    for family, kind, protocol in itertools.product(range(AF_MAX), range(1, 11), PROTOCOLS):
        internet = family in (AF_INET, AF_INET6) and (kind, protocol) in (
            (STREAM, 0), (STREAM, 6), (DGRAM, 0), (DGRAM, 17)
        )  # fmt: skip
        if family == AF_UNIX or (wide and (internet or (family, protocol) == (AF_NETLINK, 0))):
            continue
        calls[f"socket {family} {kind} {protocol}"] = (known["socket"], (family, kind, protocol))
    for family in set(range(AF_MAX)) - {AF_UNIX}:
        calls[f"socketpair {family}"] = (known["socketpair"], (family, STREAM, 0, 0))
    return calls, dict.fromkeys(calls, "ENOSYS")


@pytest.mark.parametrize("profile", list(Profile))
def test_what_a_profile_does_not_allow_is_not_there(rig: WardenRig, profile: Profile) -> None:
    (named, first), (argued, second) = plain(profile), by_arguments(profile)
    expected = first | second
    assert len(named) > 100
    assert {call for call, said in verdicts(profile).items() if said == BY_ARGUMENTS} == {
        *(name.split()[0] for name in argued)
    }
    assert len(argued) > 6000
    answers = ask(rig, profile, named | argued)
    assert answers.keys() == expected.keys()
    assert {name: said for name, said in answers.items() if said != expected[name]} == {}
