"""The warden's own life: killed while jobs run, started again, stopped, and what is left after it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.running import wait_for
from tests.support.warden_rig import UID_BASE, WardenRig, children_of, mounts_below

from exeat.sandbox.launcher import Crun, Places
from exeat.sandbox.spec import SOCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture
def rig() -> Iterator[WardenRig]:
    with WardenRig() as made:
        yield made


def held_job(rig: WardenRig, name: str, script: str = "read code; exit $code") -> int:
    """A job that ends when its standard input says how; the write end."""
    rig.call("jail.create", jail=name).close()
    read, write = os.pipe()
    with open(os.devnull, "r+b") as null:
        started = rig.start_job(name, ["sh", "-c", script], (read, null.fileno(), null.fileno()))
    os.close(read)
    assert started["ok"], started.message
    return write


def test_jobs_outlive_the_warden_and_their_codes_are_delivered(rig: WardenRig) -> None:
    ends_before, ends_between, ends_after = (held_job(rig, name) for name in ("before", "between", "after"))
    os.write(ends_before, b"3\n")
    assert rig.call("job.wait", job="before")["code"] == 3
    watched = os.pidfd_open(int((rig.run / "jobs" / "between" / "launcher").read_text()))

    assert rig.stop(signal.SIGKILL) == -signal.SIGKILL
    os.write(ends_between, b"4\n")
    assert select.select([watched], [], [], 30)[0], "the launcher goes on without a warden"
    rig.start()

    rows = {row["job"]: row for row in rig.call("job.list")["jobs"]}
    assert rows["before"] == {"job": "before", "running": False, "code": 3}
    assert rows["after"] == {"job": "after", "running": True, "code": None}
    assert rig.call("job.wait", job="between")["code"] == 4
    os.write(ends_after, b"5\n")
    assert rig.call("job.wait", job="after")["code"] == 5
    assert set(rig.call("jail.list")["jails"]) == {"before", "between", "after"}
    for fd in (ends_before, ends_between, ends_after, watched):
        os.close(fd)


def test_an_adopted_job_can_be_killed_and_its_jail_gets_new_sockets(rig: WardenRig) -> None:
    end = held_job(rig, "adopted")
    rig.stop(signal.SIGKILL)
    rig.start()
    again = rig.call("jail.sockets", jail="adopted")
    assert len(again.fds) == len(again["sockets"]) == len(SOCKETS)
    again.close()
    assert rig.call("job.kill", job="adopted")["ok"]
    assert rig.call("job.wait", job="adopted")["code"] == 137
    # Its user is still taken until it is removed.
    other = held_job(rig, "other")
    assert {(rig.work / name).stat().st_uid for name in ("adopted", "other")} == {UID_BASE, UID_BASE + 1}
    os.close(end)
    os.close(other)


def test_a_job_whose_launcher_was_killed_is_ended(rig: WardenRig) -> None:
    end = held_job(rig, "lost", "sleep 86399")
    os.kill(int((rig.run / "jobs" / "lost" / "launcher").read_text()), signal.SIGKILL)
    assert rig.call("job.wait", job="lost")["code"] == 137
    assert not running("sleep 86399")
    os.close(end)


def test_a_job_whose_runtime_was_killed_is_ended(rig: WardenRig) -> None:
    """Its launcher goes on, and tells the death of the runtime: not the end of the container."""
    end = held_job(rig, "lost", "sleep 86397")
    first = int((rig.run / "jobs" / "lost" / "pid").read_text())
    status = Path(f"/proc/{first}/status").read_text()
    os.kill(int(status.partition("\nPPid:")[2].split()[0]), signal.SIGKILL)
    assert rig.call("job.wait", job="lost")["code"] == 137
    assert not running("sleep 86397")
    assert not list((rig.run / "containers").iterdir())
    os.close(end)


# A runtime that is caught half-way: a process is in the cgroups it has made, and is written nowhere.
HALF_WAY = """#!/bin/sh
case "$*" in *delete*) exit 1;; esac
for word; do config=$folder/config.json; [ "$last" = --bundle ] && folder=$word; last=$word; done
name=$(sed 's/.*"cgroupsPath": "\\/\\([^"]*\\)".*/\\1/' "$folder/config.json")
mkfifo "$folder/never"
sleep 86394 & child=$!
for place in /sys/fs/cgroup/pids /sys/fs/cgroup/memory /sys/fs/cgroup/unified /sys/fs/cgroup; do
    [ -e $place/cgroup.procs ] && mkdir $place/$name && echo $child >$place/$name/cgroup.procs
done
echo "$name" >"$folder/half"
read -r never <"$folder/never"
"""


@pytest.mark.parametrize("victims", [("launcher",), ("runtime",), ("launcher", "warden")], ids="+".join)
def test_nothing_is_left_of_a_container_that_was_half_made(victims: tuple[str, ...]) -> None:
    with WardenRig() as rig:
        rig.stop()
        program = rig.base / "runtime"
        program.write_text(HALF_WAY)
        program.chmod(0o755)
        rig.runtime = str(program)
        rig.start()
        rig.call("jail.create", jail="half").close()
        folder = rig.run / "jobs" / "half"
        channel = rig.connect()
        with open(os.devnull, "r+b") as null:
            channel.send({"id": 1, "verb": "job.start", **rig.job("half", ["true"])}, [null.fileno()] * 3)
            wait_for((folder / "half").exists, 30)
        name = (folder / "half").read_text().strip()
        assert list(Path("/sys/fs/cgroup").glob(f"**/{name}"))
        launcher = int((folder / "launcher").read_text())
        pids = {"launcher": launcher, "runtime": child_of(launcher)}
        if "warden" in victims:
            rig.stop(signal.SIGKILL)
        for victim in victims:
            if victim in pids:
                os.kill(pids[victim], signal.SIGKILL)
        if "warden" in victims:
            rig.start()
            assert rig.call("job.wait", job="half")["code"] == 137
            assert rig.call("job.remove", job="half")["ok"]
        else:
            assert channel.next()[0]["error"] == "start"
        channel.close()
        assert not running("sleep 86394")
        assert not running(f"{folder}/pid"), "the runtime could still make what was taken down"
        assert not list(Path("/sys/fs/cgroup").glob(f"**/{name}"))
        assert not folder.exists()


def test_a_runtime_is_ended_however_busy_the_machine_is(tmp_path: Path) -> None:
    """grep's code is 2 where a process ended before it was read, though it found what it looked for."""
    (tmp_path / "grep").write_text(f'#!/bin/sh\n{shutil.which("grep")} "$@"\nexit 2\n')
    (tmp_path / "grep").chmod(0o755)
    places = Places(tmp_path, tmp_path / "work")
    runtime = subprocess.Popen(
        ["sh", "-c", "read never", "runtime", places.job("a") / "pid"], stdin=subprocess.PIPE
    )
    command = Crun("true", places, "", limits=True).delete("a")
    subprocess.run(command, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    assert runtime.wait(30) == -signal.SIGKILL
    assert runtime.stdin
    runtime.stdin.close()


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_job_that_lost_both_warden_and_launcher_is_ended_by_the_next_warden(rig: WardenRig) -> None:
    end = held_job(rig, "lost", "sleep 86398")
    launcher = int((rig.run / "jobs" / "lost" / "launcher").read_text())
    rig.stop(signal.SIGKILL)
    os.kill(launcher, signal.SIGKILL)
    assert running("sleep 86398")
    rig.start()
    assert rig.call("job.wait", job="lost")["code"] == 137
    assert not running("sleep 86398")
    os.close(end)


def test_half_made_things_are_cleaned_up(rig: WardenRig) -> None:
    """What a warden leaves that was killed between two system calls."""
    rig.stop(signal.SIGKILL)
    (rig.run / "netns" / "half").touch()  # not mounted yet
    (rig.run / "jails" / "half").mkdir()
    (rig.run / "jobs" / "half").mkdir()
    (rig.run / "jobs" / "half" / "launcher").write_text(str(os.getpid()))  # a reused process id: ours
    (rig.run / "mounts" / "half.0").mkdir()
    rig.start()
    assert rig.call("jail.list")["jails"] == []
    assert rig.call("job.list")["jobs"] == [{"job": "half", "running": False, "code": 137}]
    assert rig.call("job.remove", job="half")["ok"]
    assert os.listdir(rig.run / "mounts") == []
    assert rig.run_job("half", ["true"]).code == 0


def test_a_late_launcher_does_not_start_a_job_that_was_given_up(rig: WardenRig) -> None:
    """The next warden claims `launcher` exclusively; one that comes later must find it taken."""
    rig.stop(signal.SIGKILL)
    (rig.run / "jobs" / "late").mkdir()
    rig.start()
    assert (rig.run / "jobs" / "late" / "launcher").exists()
    command = Crun("/bin/echo", Places(rig.run, rig.work), "", limits=True).run("late", "{}")
    with open(rig.base / "said", "wb") as said:
        assert subprocess.run(command, stdout=said, stderr=said, check=False).returncode != 0
    assert (rig.run / "jobs" / "late" / "exit").read_text() == "137"


def test_a_stopped_warden_leaves_nothing(rig: WardenRig) -> None:
    before = everything(rig)
    share = rig.base / "share" / "in"
    share.mkdir()
    ends = [held_job(rig, "one"), held_job(rig, "two", "trap '' TERM; sleep 86397 & sleep 86396")]
    rig.call("jail.create", jail="empty").close()
    rig.run_job("done", ["sh", "-c", "echo x >left"], mounts=[{"path": str(share), "mode": "ro"}])
    assert len(mounts_below(rig.base)) == 3  # the jails
    assert running("sleep 86396")
    groups = cgroups_of(rig, "one", "two")
    assert rig.stop(signal.SIGTERM) == 0
    assert everything(rig) == before
    assert not running("sleep 8639[67]")
    assert not [path for path in groups if path.exists()]
    assert not rig.run.exists()
    assert os.listdir(rig.work) == []
    assert share.exists()
    for fd in ends:
        os.close(fd)
    rig.start()
    assert rig.call("job.list")["jobs"] == rig.call("jail.list")["jails"] == []


def test_a_waiting_client_hears_of_the_end(rig: WardenRig) -> None:
    end = held_job(rig, "waits")
    channel = rig.connect()
    channel.send({"id": 7, "verb": "job.wait", "job": "waits"})
    assert channel.call({"id": 8, "verb": "jail.list"})[0]["id"] == 8  # so the wait has been read
    rig.stop(signal.SIGTERM)
    message, _ = channel.next()
    assert (message["id"], message["code"]) == (7, 137)
    channel.close()
    os.close(end)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#!/bin/sh\nexec sleep 86395", "without a reason"),
        ("#!/bin/sh\nexit 1", "without a reason"),
        ("#!/bin/sh\nprintf 'no such thing' >\"$4\"; exit 1", "no such thing"),
        ("not a program", "without a reason"),
    ],
    ids=["hangs", "fails", "fails and says why", "cannot be run"],
)
def test_a_runtime_that_does_not_start_the_job(text: str, why: str) -> None:
    with WardenRig(start_s=0.5) as rig:
        rig.stop()
        program = rig.base / "runtime"
        program.write_text(text)
        program.chmod(0o755)
        rig.runtime = str(program)
        rig.start()
        rig.call("jail.create", jail="never").close()
        with open(os.devnull, "r+b") as null:
            got = rig.start_job("never", ["true"], (null.fileno(),) * 3)
        assert got.error == "start"
        assert why in got["message"]
        assert not running("sleep 86395")
        assert (os.listdir(rig.run / "jobs"), os.listdir(rig.work)) == ([], [])
        assert rig.call("jail.destroy", jail="never")["ok"]


def test_two_requests_to_remove_a_dying_job_are_both_answered(rig: WardenRig) -> None:
    end = held_job(rig, "twice", "sleep 60")
    channel = rig.connect()
    channel.send({"id": 1, "verb": "job.kill", "job": "twice"})
    channel.send({"id": 2, "verb": "job.remove", "job": "twice"})
    channel.send({"id": 3, "verb": "job.remove", "job": "twice"})
    answers = {message["id"]: message["ok"] for message, _ in (channel.next() for _ in range(3))}
    assert answers[1] is answers[2] is True
    assert set(answers) == {1, 2, 3}
    assert rig.call("job.list")["jobs"] == []
    channel.close()
    os.close(end)


def stopped(rig: WardenRig, job: str) -> bool:
    """By either version of cgroups."""
    [group, *_] = [each for each in cgroups_of(rig, job) if (each / "freezer.state").exists()] or [
        each for each in cgroups_of(rig, job) if (each / "cgroup.freeze").exists()
    ]
    if (group / "freezer.state").exists():
        return (group / "freezer.state").read_text() == "FROZEN\n"
    return "frozen 1" in (group / "cgroup.events").read_text()


def test_a_paused_job_goes_on_where_it_was(rig: WardenRig) -> None:
    end = held_job(rig, "paused")
    assert rig.call("job.pause", job="paused")["ok"]
    assert rig.call("job.pause", job="paused")["ok"]
    assert stopped(rig, "paused")
    os.write(end, b"7\n")  # nobody reads it yet
    assert rig.call("job.resume", job="paused")["ok"]
    assert rig.call("job.wait", job="paused")["code"] == 7
    assert rig.call("job.pause", job="paused").error == "failed"
    assert rig.call("job.pause", job="none").error == "job.unknown"
    os.close(end)


def test_the_hook_runs_before_each_job_and_none_starts_without_it() -> None:
    with WardenRig() as rig:
        rig.stop()
        hook = rig.base / "hook"
        hook.write_text(
            f'#!/bin/sh\necho "$1" >>{rig.base}/ran\n[ "$1" != bad ] || {{ echo no reset; exit 3; }}\n'
        )
        hook.chmod(0o755)
        rig.hook = str(hook)
        rig.start()
        assert rig.run_job("good", ["sh", "-c", f"test -e {rig.base}/ran; echo $?"]).out == "1\n"
        rig.call("jail.create", jail="bad").close()
        with open(os.devnull, "r+b") as null:
            got = rig.start_job("bad", ["touch", "/work/here"], (null.fileno(),) * 3)
        assert got.error == "start"
        assert got["message"] == "accelerator hook: exit code 3: no reset"
        assert (rig.base / "ran").read_text() == "good\nbad\n"
        assert os.listdir(rig.work) == []


@pytest.mark.parametrize("how", ["kill", "kill after a restart", "stop", "lost launcher"])
def test_a_paused_job_can_be_ended(rig: WardenRig, how: str) -> None:
    end = held_job(rig, "paused", "sleep 86393 & sleep 86393")
    assert rig.call("job.pause", job="paused")["ok"]
    groups = cgroups_of(rig, "paused")
    if how == "kill after a restart":
        rig.stop(signal.SIGKILL)
        rig.start()
    if how == "stop":
        assert rig.stop() == 0
    else:
        if how == "lost launcher":
            os.kill(int((rig.run / "jobs" / "paused" / "launcher").read_text()), signal.SIGKILL)
        else:
            assert rig.call("job.kill", job="paused")["ok"]
        assert rig.call("job.wait", job="paused")["code"] == 137
        assert rig.call("job.remove", job="paused")["ok"]
    assert not running("sleep 86393")
    assert not [path for path in groups if path.exists()]
    os.close(end)


def running(text: str) -> bool:
    return subprocess.run(["pgrep", "-f", text], capture_output=True, check=False).returncode == 0


def cgroups_of(rig: WardenRig, *jobs: str) -> list[Path]:
    found = []
    for job in jobs:
        config = json.loads((rig.run / "jobs" / job / "config.json").read_text())
        found += Path("/sys/fs/cgroup").glob(f"**/{config['linux']['cgroupsPath'].strip('/')}")
    assert found
    return found


def everything(rig: WardenRig) -> tuple[list[str], list[str]]:
    """What a warden could leave on the machine: mounts, and processes that name its folders."""
    processes = [line for line in children_of(rig.base) if "WardenSettings" not in line]
    return mounts_below(rig.base), processes
