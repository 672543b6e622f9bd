"""Over a hundred ways out of a real jail, tried from inside a real container under each profile."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.redirected import original
from tests.support.warden_rig import UID_BASE, WardenRig

from exeat.sandbox.spec import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SCRIPT = (Path(__file__).parents[1] / "support" / "escape_probes.py").read_text()
# It came to our own door, or the jail's rules refused it.
TAKEN, REFUSED = {"taken in"}, {"EPERM"}
EPERM, ENOSYS = {"EPERM"}, {"ENOSYS"}
READ_ONLY = {"EROFS", "EACCES", "ENOENT"}

# probe -> what the kernel may answer under the widest profile
EXPECTED: dict[str, set[str]] = {
    "tcp4": TAKEN,
    "tcp4_public": TAKEN,
    "tcp4_private": TAKEN,
    "tcp4_metadata": TAKEN,
    "tcp6": TAKEN,
    "tcp6_mapped": TAKEN,
    "tcp6_unique_local": TAKEN,
    "tcp6_link_local": TAKEN,
    "udp4_dns": TAKEN,
    "udp4_quic": REFUSED,
    "udp6_dns": TAKEN,
    "udp6_quic": REFUSED,
    "udp4_multicast": REFUSED | {"ENETUNREACH"},
    "host_loopback": {"ECONNREFUSED"},
    "host_abstract_socket": {"ECONNREFUSED"},
    "warden_socket": {"ENOENT"},
    "raw4": ENOSYS,
    "raw6": ENOSYS,
    "ping4": ENOSYS,
    "packet": ENOSYS,
    "vsock": ENOSYS,
    "alg": ENOSYS,
    "sctp": ENOSYS,
    "mptcp": ENOSYS,
    "netfilter": ENOSYS,
    "mark_packets": EPERM,
    "add_route": EPERM,
    "set_address": EPERM,
    "bind_dns_port": {"EACCES"},
    "steal_proxy_port": {"EADDRINUSE"},
    "unshare_user": EPERM,
    "unshare_net": EPERM,
    "unshare_mount": EPERM,
    "setns": EPERM,
    "clone_user": ENOSYS,
    "clone3": ENOSYS,
    "mount": EPERM,
    "umount": EPERM,
    "fsopen": EPERM,
    "open_tree": EPERM,
    "pivot_root": EPERM,
    "chroot": EPERM,
    "ptrace": EPERM,
    "process_vm_readv": EPERM,
    "pidfd_getfd": EPERM,
    "keyctl": EPERM,
    "add_key": EPERM,
    "bpf": EPERM,
    "io_uring_setup": EPERM,
    "perf_event_open": EPERM,
    "userfaultfd": EPERM,
    "open_by_handle_at": EPERM,
    "kexec_load": EPERM,
    "init_module": EPERM,
    "reboot": EPERM,
    "swapon": EPERM,
    "settimeofday": EPERM,
    "sethostname": EPERM,
    "syslog": EPERM,
    "memfd_secret": EPERM,
    "fanotify_init": EPERM,
    "unknown_call": ENOSYS,
    "type_into_terminal": ENOSYS,
    "type_into_terminal_high_bit": ENOSYS,
    "call_x32": {"SIGSYS"},
    "call_i386": {"SIGSYS"},
    "write_usr": {"EROFS"},
    "write_root": {"EROFS"},
    "write_etc": {"EROFS"},
    "write_core_pattern": {"EROFS", "EACCES"},
    "write_sysrq": {"EROFS", "EACCES", "ENOENT"},
    "write_gateway_folder": {"EROFS"},
    "write_dev": {"EACCES"},
    "read_kcore": {"EACCES", "nothing", "ENOENT"},
    "read_shadow": {"ENOENT"},
    "read_host_secret": {"ENOENT"},
    "read_disk": {"ENOENT"},
    "read_mem": {"ENOENT"},
    "read_sys": {"ENOENT"},
    "read_kallsyms": {"nothing"},
    "unlink_gateway_socket": {"EROFS"},
    "make_device": EPERM,
    "become_root": EPERM,
    "join_root_group": EPERM,
    "raise_descriptors": EPERM,
    "signal_host_process": {"ESRCH"},
    "more_capabilities": EPERM,
    "read_config": {"nothing", "EACCES", "ENOENT"},
    "read_kmsg": {"EACCES", "nothing", "EPERM"},
    "read_keys": {"nothing"},
    "read_modules": {"nothing", "ENOENT"},
    "read_timers": {"nothing", "EACCES", "ENOENT"},
    "write_hotplug": READ_ONLY,
    "write_modprobe": READ_ONLY,
    "write_binfmt": READ_ONLY,
    "write_forwarding": READ_ONLY,
    "write_route_localnet": READ_ONLY,
    "write_unprivileged_ports": READ_ONLY,
    "write_user_namespaces": READ_ONLY,
    "write_init_uid_map": EPERM,
    "write_irq": READ_ONLY,
    "write_cgroup": {"ENOENT"},
    "write_cgroup_release": {"ENOENT"},
    "write_debug_filesystem": {"ENOENT"},
    "write_terminal": {"ENXIO"},
    "write_console": {"ENOENT", "EACCES"},
    "leave_by_the_root_of_init": {"ENOENT"},
    "leave_by_the_folder_of_init": {"ENOENT"},
    "leave_by_dots": {"ENOENT"},
    "leave_by_a_link": {"ENOENT"},
    "leave_by_a_link_in_proc": {"ENOENT"},
    "leave_by_an_open_folder": {"ENOENT"},
    "take_a_descriptor_of_init": {"init holds ['5']"},  # the job's own standard error
    "open_the_runtime": {"EROFS", "ETXTBSY", "EACCES"},
    "link_a_file_of_the_host": {"EXDEV", "EPERM"},
    "lower_the_oom_score": {"EACCES"},
    "run_before_others": {"EACCES"},
    "run_as_real_time": EPERM,
    "dump_core": EPERM,
    "gain_by_setuid_program": {"nothing"},
    "make_a_setuid_program": {"nothing"},
    "gain_file_capabilities": EPERM,
    "give_a_file_away": EPERM,
    "neighbour_abstract_socket": {"ECONNREFUSED"},
    "neighbour_port": {"ECONNREFUSED"},
    "neighbour_tmp": {"ENOENT"},
    "neighbour_shm": {"ENOENT"},
    "neighbour_work": {"ENOENT"},
    "neighbour_work_by_root": {"ENOENT"},
    "neighbour_signal": {"ESRCH"},
    "neighbour_memory": {"ENOENT"},
    "neighbour_queue": {"ENOENT"},
    "type_over_another_terminal": {"nothing"},
}

# Without the call there is nothing to refuse.
NO_SOCKETS = {
    *("tcp4", "tcp4_public", "tcp4_private", "tcp4_metadata", "tcp6", "tcp6_mapped", "tcp6_unique_local"),
    *("tcp6_link_local", "udp4_dns", "udp4_quic", "udp6_dns", "udp6_quic", "udp4_multicast"),
    *("host_loopback", "mark_packets", "add_route", "set_address", "bind_dns_port", "steal_proxy_port"),
    "neighbour_port",
}
NO_IPC = {"run_as_real_time", "neighbour_memory", "neighbour_queue"}
NARROWER = {
    Profile.STRICT: NO_SOCKETS | NO_IPC,
    Profile.STANDARD: NO_SOCKETS,
    Profile.STANDARD_NET: set(),
}

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


@pytest.fixture(scope="module", params=["crun", "runc"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with (
        WardenRig(runtime=request.param) as rig,
        socket.socket() as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        yield World(rig, tcp, unix)


@pytest.fixture(scope="module", params=list(Profile))
def inside(request: pytest.FixtureRequest, world: World) -> Inside:
    narrower = NARROWER[request.param]
    expected = {name: ENOSYS if name in narrower else said for name, said in EXPECTED.items()}
    result, came = world.probe(request.param)
    probes = {name: judged(said, came) for name, said in result["probes"].items()}
    return Inside(result["facts"], probes, expected)


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

    def probe(self, profile: Profile) -> tuple[dict[str, Any], set[str]]:
        """What the probes say, and where those wanted to go who came to the jail's own doors."""
        sockets = self._rig.call("jail.create", jail="probe")  # held open: a live gateway
        script = self._rig.base / "share" / "probes.py"
        script.write_text(SCRIPT)
        read, write = os.pipe()
        started = self._rig.start_job(
            "probe",
            ["/usr/bin/python3", str(script), json.dumps(self._given)],
            (write, write, write),
            mounts=[{"path": str(script), "mode": "ro"}],
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
    assert set(facts["root"]) <= set("bin dev etc lib lib32 lib64 libx32 proc run sbin tmp usr work".split())  # noqa: SIM905
