"""Sixty ways out of a real jail, tried from inside a real container by a job of the widest profile."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.redirected import original
from tests.support.warden_rig import UID_BASE, WardenRig

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SCRIPT = (Path(__file__).parents[1] / "support" / "escape_probes.py").read_text()
# It came to our own door, or the jail's rules refused it.
TAKEN, REFUSED = {"taken in"}, {"EPERM"}
EPERM, ENOSYS = {"EPERM"}, {"ENOSYS"}

# probe -> what the kernel may answer
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
}


@pytest.fixture(scope="module")
def inside() -> Iterator[dict[str, Any]]:
    abstract = f"exeat-probe-{os.getpid()}"
    with WardenRig() as rig, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind("\0" + abstract)
        unix.listen()
        secret = rig.base / "secret"
        secret.write_text("the host's")
        given = {
            "port": tcp.getsockname()[1],
            "abstract": abstract,
            "warden": str(rig.run / "warden.sock"),
            "secret": str(secret),
            "pid": os.getpid(),
        }
        sockets = rig.call("jail.create", jail="probe")  # held open: a live gateway
        work = rig.base / "share" / "probes.py"
        work.write_text(SCRIPT)
        read, write = os.pipe()
        started = rig.start_job(
            "probe",
            ["/usr/bin/python3", str(work), json.dumps(given)],
            (write, write, write),
            mounts=[{"path": str(work), "mode": "ro"}],
        )
        os.close(write)
        assert started["ok"], started.message
        with os.fdopen(read) as output:
            text = output.read()
        came = arrivals(dict(zip(sockets["sockets"], sockets.fds, strict=True)))
        sockets.fds.clear()
        assert rig.call("job.wait", job="probe")["code"] == 0, text
        for listener in (tcp, unix):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
        result: dict[str, Any] = json.loads(text)
        result["probes"] = {name: judged(said, came) for name, said in result["probes"].items()}
        yield result


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


@pytest.mark.parametrize("name", list(EXPECTED))
def test_no_way_out(inside: dict[str, Any], name: str) -> None:
    assert inside["probes"][name] in EXPECTED[name]


def test_no_probe_is_left_unjudged(inside: dict[str, Any]) -> None:
    assert set(inside["probes"]) == set(EXPECTED)


def test_what_a_job_is(inside: dict[str, Any]) -> None:
    facts = inside["facts"]
    assert facts["uids"] == [UID_BASE] * 3
    assert set(facts["gids"]) == {UID_BASE}
    assert set(facts["caps"].values()) == {0}
    assert (facts["no_new_privs"], facts["seccomp"]) == ("1", "2")
    assert facts["fds"] == [0, 1, 2]
    assert facts["hostname"] == "probe"


def test_what_a_job_sees(inside: dict[str, Any]) -> None:
    facts = inside["facts"]
    assert facts["links"] == ["lo"]
    assert facts["pids"] == [1, 2]
    assert facts["gateway"] == ["proxy.sock"]
    assert set(facts["root"]) <= set("bin dev etc lib lib32 lib64 libx32 proc run sbin tmp usr work".split())  # noqa: SIM905
