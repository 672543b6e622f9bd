"""Devices lent to jobs: fifos and a character device in the place of a microphone and a loudspeaker."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.running import Running, wait_for

from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

# Reads a word from standard input for each step: `N` reads N bytes of the connection, `new` makes another.
CLIENT = """
import os, socket, sys
name = sys.argv[1]
def new():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"/run/exeat/device-{name}.sock")
    return sock
def answer(text):
    print(text, flush=True)
sock = None
for line in sys.stdin:
    word = line.strip()
    try:
        if word == "new":
            sock = new()
            answer("connected")
        elif word == "who":
            answer(socket.gethostname())
        elif word == "path":
            answer(sorted(os.listdir("/dev")))
        elif word.startswith("say "):
            sock.sendall(word[4:].encode())
            answer("said")
        else:
            data = b""
            while len(data) < int(word) and (more := sock.recv(int(word) - len(data))):
                data += more
            answer(data)
    except OSError as error:
        answer(type(error).__name__)
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("devices")
    folder = made.lab.run_dir / "lent"
    folder.mkdir()
    os.mkfifo(folder / "mic", 0o600)
    os.mkfifo(folder / "out", 0o600)
    os.mknod(folder / "zero", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    (folder / "file").touch()
    more = made.lab.run_dir / "conf.d" / "devices.toml"
    more.parent.mkdir()
    more.write_text(
        "".join(
            f'[[device]]\nname = "{name}"\npath = "{folder / name}"\nmode = "{mode}"\n'
            for name, mode in (("mic", "read"), ("zero", "read"), ("out", "write"), ("file", "read"))
        )
    )
    for process in ("warden", "control"):
        made.kill(process)
    wait_for(made.healed)
    yield made
    made.close()


class Job:
    """A job with a client for one device in it."""

    def __init__(self, running: Running, device: str) -> None:
        self.running, self.device = running, device
        words = ("run", "--quiet", "--project", plan.PROJECT, "--", "python3", "-c", CLIENT, device)
        self.process = subprocess.Popen(
            running.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.name = self.ask("who")

    def ask(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def requested(self, *options: str) -> str:
        """The lease, asked for by alice."""
        words = ("device", "grant", self.device, "--job", self.name, "--as", "alice", *options)
        return str(self.running.json(*words)["id"])

    def granted(self) -> str:
        """The lease, asked for by alice and approved by bob, once its device is open."""
        lease = self.requested()
        assert not self.is_open(lease)
        assert self.running.exeat("lease", "approve", lease, "--as", "alice", check=False).returncode == 1
        self.running.exeat("lease", "approve", lease, "--as", "bob")
        wait_for(lambda: self.is_open(lease))
        return lease

    def is_open(self, lease: str) -> bool:
        return any(grant["open"] for grant in self.grants() if grant["id"] == lease)

    def grants(self) -> list[dict[str, Any]]:
        rows = self.running.json("device", "ls")
        return [grant for row in rows if row["device"] == self.device for grant in row["grants"]]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def lent(running: Running) -> Path:
    return running.lab.run_dir / "lent"


def closed(running: Running, lease: str) -> dict[str, Any]:
    """The record of the end, once it is there."""
    return dict(
        wait_for(
            lambda: next(
                (
                    record
                    for record in running.records(60)
                    if record.get("lease_id") == lease and record["decision"] == "device.close"
                ),
                None,
            )
        )
    )


def test_a_device_is_there_from_the_approval_to_the_revocation_and_no_longer(
    running: Running, lent: Path
) -> None:
    job = Job(running, "mic")
    assert job.ask("new") == "FileNotFoundError"
    lease = job.granted()
    assert job.ask("new") == "connected"
    with open(lent / "mic", "wb", buffering=0) as source:
        source.write(b"sound")
        assert job.ask("5") == "b'sound'"
        assert "mic" not in job.ask("path"), "it never has the device itself"
        assert job.running.exeat("why", "mic", "--project", plan.PROJECT, check=False).returncode == 1
        running.exeat("device", "revoke", lease)
        assert job.ask("5") == "b''", "what is open ends, too"
        assert job.ask("new") in ("ConnectionRefusedError", "BrokenPipeError")
    said = closed(running, lease)
    assert (said["job"], said["kind"]) == (job.name, "job")
    assert "lease" in said["detail"]
    wait_for(lambda: not list((running.lab.appliance_run / "warden" / "jobs").glob("dev-*")))
    job.end()


def test_a_character_device_ends_with_its_time(running: Running) -> None:
    job = Job(running, "zero")
    lease = job.requested("--ttl", "5s")
    approval = subprocess.Popen(running.command("lease", "approve", lease, "--as", "bob"))
    wait_for(lambda: job.ask("new") == "connected")
    assert job.ask("4") == repr(bytes(4))
    assert approval.wait(30) == 0
    closed(running, lease)
    while (got := job.ask("65536")) != "b''":  # what was on the way
        assert got.strip("b'") != "", got
    job.end()


def test_what_is_said_to_a_device_that_is_written(running: Running, lent: Path) -> None:
    job = Job(running, "out")
    job.granted()
    assert job.ask("new") == "connected"
    reader = os.open(lent / "out", os.O_RDONLY)
    assert job.ask("say hello") == "said"
    assert os.read(reader, 5) == b"hello"
    os.close(reader)
    job.end()


@pytest.mark.parametrize("what", ["kill switch", "the job has ended", "sidecar"])
def test_other_ends(running: Running, what: str) -> None:
    job = Job(running, "zero")
    lease = job.granted()
    assert job.ask("new") == "connected"
    assert job.ask("4") == repr(bytes(4))
    if what == "kill switch":
        running.exeat("kill", "on", "--project", plan.PROJECT, "--network-only")
        assert what in closed(running, lease)["detail"]
        running.exeat("kill", "off", "--project", plan.PROJECT)
    elif what == "sidecar":
        [folder] = (running.lab.appliance_run / "warden" / "jobs").glob("dev-*")
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
        assert what in closed(running, lease)["detail"]
        wait_for(lambda: job.is_open(lease))
        assert job.ask("new") == "connected", "opened again: the lease is still good"
    job.end()
    wait_for(lambda: not list((running.lab.appliance_run / "warden" / "jobs").iterdir()))
    if what == "the job has ended":
        assert what in closed(running, lease)["detail"]
        wait_for(lambda: running.json("lease", "show", lease)["state"] == "revoked")


def test_it_is_there_again_after_control_or_the_warden_was_killed(running: Running) -> None:
    job = Job(running, "zero")
    lease = job.granted()
    for process in ("control", "warden"):
        running.kill(process)
        wait_for(running.healed)
        wait_for(lambda: job.is_open(lease))
        assert job.ask("new") == "connected"
        assert job.ask("4") == repr(bytes(4))
    job.end()


def test_what_is_refused(running: Running) -> None:
    job = Job(running, "file")
    for words in (("grant", "none", "--job", job.name), ("grant", "mic", "--job", "none")):
        assert running.exeat("device", *words, check=False).returncode == 1
    lease = job.requested()
    running.exeat("lease", "approve", lease, "--as", "bob")
    wait_for(lambda: "no character device or fifo" in running.lab.log("appliance").read_text())
    assert not job.is_open(lease)
    assert job.ask("new") == "ConnectionRefusedError"
    running.exeat("device", "revoke", lease)
    job.end()
