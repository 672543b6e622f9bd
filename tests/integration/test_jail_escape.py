"""Sixty ways out of a real jail, tried from inside a real container by a job of the widest profile."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.warden_rig import UID_BASE, WardenRig

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SCRIPT = (Path(__file__).parents[1] / "support" / "escape_probes.py").read_text()
NO_ROUTE = {"ENETUNREACH"}
EPERM, ENOSYS = {"EPERM"}, {"ENOSYS"}

# probe -> what the kernel may answer
EXPECTED: dict[str, set[str]] = {
    "tcp4": NO_ROUTE,
    "tcp4_public": NO_ROUTE,
    "tcp4_private": NO_ROUTE,
    "tcp4_metadata": NO_ROUTE,
    "tcp6": NO_ROUTE,
    "tcp6_mapped": NO_ROUTE,
    "tcp6_unique_local": NO_ROUTE,
    "tcp6_link_local": {"ENETUNREACH", "EINVAL"},
    "udp4_dns": NO_ROUTE,
    "udp4_quic": NO_ROUTE,
    "udp6": NO_ROUTE,
    "udp4_multicast": NO_ROUTE,
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
        sockets.close()
        assert rig.call("job.wait", job="probe")["code"] == 0, text
        for listener in (tcp, unix):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
        result: dict[str, Any] = json.loads(text)
        yield result


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
