"""Over a hundred ways out of a real jail, tried from inside a real container under each profile."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.escapes import EXPECTED, expected
from tests.support.redirected import original
from tests.support.warden_rig import UID_BASE, WardenRig

from exeat.sandbox.spec import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SCRIPT = (Path(__file__).parents[1] / "support" / "escape_probes.py").read_text()

# What a job may share with the machine by mistake, made by the one next door.
NEIGHBOUR = """
import ctypes, socket, sys
unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
unix.bind("\\0exeat-neighbour")
unix.listen()
tcp.bind(("127.0.0.1", 4567))
tcp.listen()
for name in ("/tmp/neighbour", "/dev/shm/neighbour", "/work/file"):
    open(name, "w").write("the neighbour's")
libc = ctypes.CDLL(None)
assert libc.shmget(0x6E656967, 4096, 0o1666) >= 0
assert libc.mq_open(b"/neighbour", 0o102, 0o666, None) >= 0
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Inside:
    """What the probes of one profile found; `expected` is what they may have."""

    facts: dict[str, Any]
    probes: dict[str, str]
    expected: dict[str, set[str]]


# Not everywhere is there a podman; where it is, it is tried.
@pytest.fixture(scope="module", params=["crun", "runc", *filter(shutil.which, ["podman"])])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with (
        WardenRig(runtime=request.param) as rig,
        socket.socket() as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        yield World(rig, tcp, unix)


@pytest.fixture(scope="module", params=itertools.product(Profile, (False, True)), ids=str)
def inside(request: pytest.FixtureRequest, world: World) -> Inside:
    profile, files = request.param
    result, came = world.probe(profile, files=files)
    probes = {name: judged(said, came) for name, said in result["probes"].items()}
    return Inside(result["facts"], probes, expected(profile, files=files))


class World:
    """A warden, a neighbour, and listeners on the host that nobody may reach."""

    def __init__(self, rig: WardenRig, tcp: socket.socket, unix: socket.socket) -> None:
        self._rig = rig
        self._listeners = (tcp, unix)
        abstract = f"exeat-probe-{os.getpid()}"
        tcp.bind(("127.0.0.1", 0))
        unix.bind("\0" + abstract)
        for listener in self._listeners:
            listener.listen()
            listener.setblocking(False)
        secret = rig.base / "secret"
        secret.write_text("the host's")
        pid, work = self._start_neighbour()
        self._given = {
            "port": tcp.getsockname()[1],
            "abstract": abstract,
            "warden": str(rig.run / "warden.sock"),
            "secret": str(secret),
            "pid": os.getpid(),
            "neighbour": work,
            "neighbour_pid": pid,
        }

    def _start_neighbour(self) -> tuple[int, str]:
        self._rig.call("jail.create", jail="next").close()
        (stdin, self._hold), (out, stdout) = os.pipe(), os.pipe()
        started = self._rig.start_job("next", ["/usr/bin/python3", "-c", NEIGHBOUR], (stdin, stdout, stdout))
        os.close(stdin)
        os.close(stdout)
        with os.fdopen(out) as output:
            assert output.readline() == "ready\n"
        return started["pid"], started["work"]

    def probe(self, profile: Profile, *, files: bool) -> tuple[dict[str, Any], set[str]]:
        """What the probes say, and where those wanted to go who came to the jail's own doors.

        `files`: they are a file that the job was given, else the command itself.
        """
        sockets = self._rig.call("jail.create", jail="probe")  # held open: a live gateway
        script = self._rig.base / "share" / "probes.py"
        script.write_text(SCRIPT)
        read, write = os.pipe()
        started = self._rig.start_job(
            "probe",
            ["/usr/bin/python3", *([str(script)] if files else ["-c", SCRIPT]), json.dumps(self._given)],
            (write, write, write),
            mounts=[{"path": str(script), "mode": "ro"}] if files else [],
            profile=profile,
        )
        os.close(write)
        assert started["ok"], started.message
        with os.fdopen(read) as output:
            text = output.read()
        came = arrivals(dict(zip(sockets["sockets"], sockets.fds, strict=True)))
        sockets.fds.clear()
        assert self._rig.call("job.wait", job="probe")["code"] == 0, text
        for listener in self._listeners:
            with pytest.raises(BlockingIOError):
                listener.accept()
        self._rig.call("job.remove", job="probe")
        self._rig.call("jail.destroy", jail="probe")
        result: dict[str, Any] = json.loads(text)
        return result, came


def arrivals(doors: dict[str, int]) -> set[str]:
    """Where those wanted to go who came in by the transparent doors, and the guard's, as a probe says it."""
    came = set()
    for name, fd in doors.items():
        with socket.socket(fileno=fd) as door, contextlib.suppress(BlockingIOError):
            while name.startswith("trans"):
                with door.accept()[0] as connection:
                    came.add(said_of(*original(connection)))
            while name.startswith("dnsu"):
                door.recv(16)
                came.add(said_of({"dnsu4": "8.8.8.8", "dnsu6": "2001:db8::1"}[name], 53))
    return came


def said_of(host: str, port: int) -> str:
    return f"{host} {port}"


def judged(said: str, came: set[str]) -> str:
    """A connection that a probe made is no way out if it came to one of our doors."""
    if not said.startswith("connected to ("):
        return said
    host, port = ast.literal_eval(said.removeprefix("connected to "))[:2]
    return "taken in" if said_of(host.removeprefix("::ffff:"), port) in came else said


def test_no_way_out(inside: Inside) -> None:
    assert {name: said for name, said in inside.probes.items() if said not in inside.expected[name]} == {}


def test_no_probe_is_left_unjudged(inside: Inside) -> None:
    assert set(inside.probes) == set(EXPECTED)


def test_what_a_job_is(inside: Inside) -> None:
    facts = inside.facts
    assert facts["uids"] == [UID_BASE + 1] * 3  # the first one is the neighbour's
    assert set(facts["gids"]) == {UID_BASE + 1}
    assert set(facts["caps"].values()) == {0}
    assert (facts["no_new_privs"], facts["seccomp"]) == ("1", "2")
    assert facts["fds"] == [0, 1, 2]
    assert facts["hostname"] == "probe"


def test_what_a_job_sees(inside: Inside) -> None:
    facts = inside.facts
    assert facts["links"] in (["lo"], [])  # without a socket it cannot even ask
    assert (facts["pids"][0], len(facts["pids"])) == (1, 2)  # init and itself
    assert facts["gateway"] == ["proxy.sock"]
    known = "bin dev etc lib lib32 lib64 libx32 proc run sbin sys tmp usr work"  # sys: empty, and podman's
    assert set(facts["root"]) <= set(known.split())
