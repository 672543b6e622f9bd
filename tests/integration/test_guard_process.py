"""The guard as a process of its own: start, end, death, strangers, and a real libc in a real jail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.guard_rig import Rig, answers, ask, guard_rig

from exeat.dns.guard import GuardSettings, serve
from exeat.ledger.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).resolve().parents[2] / "src"
POLICY = "{egress: v1, project: p, posture: allowlist, allow: [{to: .wild.net}]}"
ZONE = zone_handler([
    ("www.wild.net", 60, "A", "203.0.113.10"),
    ("www.wild.net", 60, "AAAA", "2001:db8::10"),
    ("inside.wild.net", 60, "A", "169.254.169.254"),
    *[("big.wild.net", 60, "AAAA", f"2001:db8::{i:x}") for i in range(1, 60)],
])  # fmt: skip

GUARD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from exeat.dns.guard import GuardSettings, serve
uid = os.getuid()
settings = GuardSettings(Path(sys.argv[2]), (("127.0.0.1", int(sys.argv[3])),), "n", uid, uid)
sys.exit(serve(settings, lambda: print("ready", flush=True)))
"""


CHILDREN: list[subprocess.Popen[bytes]] = []


class Process:
    """`serve` in a child, with this test as control."""

    def __init__(self, rig: Rig) -> None:
        words = [sys.executable, "-I", "-c", GUARD, str(SOURCE), str(rig.run_dir), str(rig.server.address[1])]
        self.child = subprocess.Popen(words, stdout=subprocess.PIPE)
        CHILDREN.append(self.child)
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == b"ready\n"
        hello = rig.accept()
        assert (hello["role"], hello["pid"]) == ("guard", self.child.pid)

    def end(self, number: signal.Signals) -> int:
        self.child.send_signal(number)
        return self.child.wait(30)


@contextmanager
def stage(folder: Path) -> Iterator[Rig]:
    """Everything but the guard itself."""
    with name_server(ZONE) as server:
        rig = Rig(folder, (server.address,), server)
        try:
            yield rig
        finally:
            while CHILDREN:
                with CHILDREN.pop() as child:
                    child.kill()
            rig.close_control()
            rig.stop_ledger()


def test_it_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    with stage(tmp_path) as rig:
        process = Process(rig)
        rig.snapshot(POLICY)
        jail = rig.jail("j", "p")
        assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}
        assert process.end(signal.SIGTERM) == 0


def test_a_dead_guard_means_silence_and_a_new_one_goes_on(tmp_path: Path) -> None:
    with stage(tmp_path) as rig:
        process = Process(rig)
        rig.snapshot(POLICY)
        jail = rig.jail("j", "p")
        assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        for kind, where in ((socket.SOCK_DGRAM, jail.udp), (socket.SOCK_STREAM, jail.tcp)):
            with pytest.raises(ConnectionRefusedError):
                exchange(kind, where)
        process = Process(rig)  # over the stale guard.sock of the dead one
        jail = rig.jail("j", "p")
        assert ask(jail.udp, "www.wild.net").rcode() == 2  # nothing before it knows the policy
        rig.snapshot(POLICY)
        assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}
        assert rig.resolve("www.wild.net")["ok"] is True
        assert process.end(signal.SIGTERM) == 0


def exchange(kind: int, where: tuple[str, int]) -> bytes:
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(30)
        client.connect(where)
        client.send(bytes(12))
        return client.recv(1)


def test_it_goes_on_when_control_dies_and_comes_back(tmp_path: Path) -> None:
    with stage(tmp_path) as rig:
        process = Process(rig)
        rig.snapshot(POLICY)
        jail = rig.jail("j", "p")
        assert rig.hub is not None
        rig.hub.close()
        assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.10"}
        assert rig.accept()["role"] == "guard"
        rig.snapshot(POLICY.replace(".wild.net", ".other.net"))
        assert ask(jail.udp, "www.wild.net").rcode() == 3
        assert process.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("upstreams", [(), (("ns.example", 53),), (("127.1", 53),)])
def test_it_does_not_start_on_bad_upstreams(
    tmp_path: Path, upstreams: tuple[tuple[str, int], ...], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "guard").mkdir()
    assert run_serve(GuardSettings(tmp_path, upstreams, "n", 0, 0)) == 3
    assert "guard: cannot start" in capfd.readouterr().err


def test_it_does_not_start_without_its_folder(tmp_path: Path) -> None:
    assert run_serve(GuardSettings(tmp_path / "none", (("127.0.0.1", 53),), "n", 0, 0)) == 3


def run_serve(settings: GuardSettings) -> int:
    """`serve` in a fork, since it takes over signals; its exit code."""
    pid = os.fork()
    if not pid:
        os._exit(serve(settings, Reactor))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


STRANGER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(30)
sock.connect(sys.argv[1])
try:
    sock.sendall(bytes([0, 0, 0, 2]) + b"{}")
    data = sock.recv(1)
except OSError:
    data = b""
sys.exit(0 if data == b"" else 1)
"""


@pytest.mark.root
def test_strangers_may_not_ask(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path
    while folder != folder.parent and folder.name != "tmp":
        folder.chmod(0o755)
        folder = folder.parent
    with guard_rig(tmp_path, ZONE) as rig:
        path = str(rig.run_dir / "guard" / "guard.sock")
        subprocess.run([sys.executable, "-I", "-c", STRANGER, path], check=True, timeout=10)
        rig.sync()
    assert "uid 65534 may not ask" in capfd.readouterr().err


INMATE = """
import json, socket, subprocess, sys
folder, channel = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
files = {"resolv.conf": "nameserver 127.0.0.1\\nnameserver ::1\\n", "nsswitch.conf": "hosts: dns\\n"}
for name, text in files.items():
    open(f"{folder}/{name}", "w").write(text)
    subprocess.run(["mount", "--bind", f"{folder}/{name}", f"/etc/{name}"], check=True)
socks = []
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.bind((host, 53))
    socks += [udp, socket.create_server((host, 53), family=family)]
socket.send_fds(channel, [b"x"], [sock.fileno() for sock in socks])
for sock in socks:
    sock.close()
channel.recv(1)
out = {}
for name in sys.argv[3:]:
    try:
        out[name] = sorted({entry[4][0] for entry in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)})
    except socket.gaierror as error:
        out[name] = error.errno
for server in ("1.1.1.1", "2606:4700:4700::1111"):
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        out[server] = sock.connect_ex((server, 53)) != 0
print(json.dumps(out))
"""


@pytest.mark.root
def test_a_real_libc_in_a_real_jail(tmp_path: Path) -> None:
    """glibc asks over UDP, falls back to TCP for the large answer, and takes NXDOMAIN for an answer."""
    names = ["www.wild.net", "evil.net", "inside.wild.net", "nope.wild.net", "big.wild.net"]
    ours, theirs = socket.socketpair()
    with guard_rig(tmp_path, ZONE) as rig, ours, theirs:
        rig.snapshot(POLICY)
        words = ["unshare", "--net", "--mount", sys.executable, "-I", "-c", INMATE]
        child = subprocess.Popen(
            [*words, str(tmp_path), str(theirs.fileno()), *names],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
        )
        _, fds, _, _ = socket.recv_fds(ours, 1, 8)
        order = ("dnsu4", "dnst4", "dnsu6", "dnst6")
        rig.add_jail("j", "p", {name: socket.socket(fileno=fd) for name, fd in zip(order, fds, strict=True)})
        ours.send(b"g")
        out, _ = child.communicate(timeout=30)
        assert child.returncode == 0
        result = json.loads(out)
        assert result["www.wild.net"] == ["2001:db8::10", "203.0.113.10"]
        assert result["evil.net"] == socket.EAI_NONAME
        assert result["inside.wild.net"] == socket.EAI_NONAME
        assert result["nope.wild.net"] == socket.EAI_NONAME
        assert len(result["big.wild.net"]) == 59
        assert result["1.1.1.1"] is result["2606:4700:4700::1111"] is True  # no other resolver is there
        assert "evil.net" not in rig.server.names
