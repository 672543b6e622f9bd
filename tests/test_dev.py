"""The development tool: what it refuses, and that it finds what a run leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[1] / "dev"


def bash(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in a shell that knows dev's functions and does not wait long."""
    return subprocess.run(
        ["bash", "-c", f'source "$1"; shift; SETTLE_ROUNDS=2; {script}', "bash", str(DEV), *arguments],
        cwd=DEV.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unknown_command_is_refused_with_the_usage() -> None:
    done = subprocess.run([DEV, "fly"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "usage: ./dev COMMAND" in done.stderr
    assert done.stderr.splitlines()[-1] == "dev: error: unknown command: fly"


@pytest.mark.root
@pytest.mark.parametrize("command", ["setup", "demo", "test", "lint", "clean"])
def test_without_root_it_says_so_and_does_nothing(command: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # the checkout may lie where nobody else can read
        Path(folder).chmod(0o755)
        copy = shutil.copy(DEV, folder)
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", copy, command],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("dev: error: needs root")


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("false", 1), ("exit_with 7", 7)])
def test_a_clean_run_passes_the_exit_code_through(command: str, code: int) -> None:
    # What is on this machine meanwhile is not the question here: other tests run beside this one.
    done = bash(f"leftovers() {{ :; }}; exit_with() {{ return $1; }}; run_clean {command} || exit")
    assert done.returncode == code
    assert "left behind" not in done.stderr


@pytest.mark.root
def test_a_namespace_left_behind_is_found() -> None:
    name = f"exl-{uuid.uuid4().hex[:8]}"
    try:
        done = bash(f"run_clean ip netns add {name} || exit")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    assert done.returncode == 1
    assert f"namespace /run/netns/{name}" in done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith(("dev: ", "    "))] == []


@pytest.mark.root
def test_a_folder_and_a_mount_left_behind_are_found() -> None:
    folder = Path(f"/run/exeat-test-{uuid.uuid4().hex[:8]}")
    script = f"leave() {{ mkdir {folder}; mount -t tmpfs none {folder}; }}; run_clean leave || exit"
    try:
        done = bash(script)
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()
    assert done.returncode == 1
    assert f"folder {folder}" in done.stderr
    assert f"mount {folder}" in done.stderr


@pytest.mark.root
def test_a_process_left_behind_is_found(tmp_path: Path) -> None:
    """Named like one of ours: its command line is what is looked at, also when it runs as root."""
    pid_file = tmp_path / "pid"
    name = "exeat serve nothing"
    leave = f'leave() {{ (exec -a "{name}" sleep 60 & echo $! >"$1") >/dev/null 2>&1; }}'
    done = bash(f'{leave}; run_clean leave "$1" || exit', str(pid_file))
    os.kill(int(pid_file.read_text()), 9)
    assert done.returncode == 1
    assert "process" in done.stderr
    assert name in done.stderr


@pytest.mark.root
def test_what_was_there_before_is_not_blamed_on_the_run() -> None:
    name = f"exl-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        done = bash("run_clean true || exit")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert "already here before the start" in done.stderr
    assert name not in done.stderr


def test_the_stamp_changes_with_what_the_environment_is_made_from() -> None:
    script = """VENV=$1 EDITABLE=1; stamp_key dev | sha256sum; stamp_key run | sha256sum
        VENV=$1/x; stamp_key dev | sha256sum"""
    done = bash(script, sys.prefix)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split()) - {"-"}) == 3


def test_what_is_installed_for_the_tests_is_not_started(tmp_path: Path) -> None:
    """While apt works no service may start, and none that came with it will at the next boot."""
    script = """POLICY_RC=$1
        apt-get() { "$POLICY_RC" unbound start; echo "apt $? $*"; return "$code"; }
        systemctl() { echo "systemctl $*"; }
        code=0; install_quietly curl unbound; install_quietly curl; ls "$1" || true
        code=100; install_quietly nsd || echo "failed $?"; ls "$1" || true"""
    done = bash(script, str(tmp_path / "policy-rc.d"))
    lines = done.stdout.splitlines()
    assert lines[0] == "apt 101 install -y --no-install-recommends curl unbound"
    assert lines[1].startswith("systemctl disable")
    assert lines[1].endswith(" unbound")
    assert lines[2:] == [
        "apt 101 install -y --no-install-recommends curl",
        "apt 101 install -y --no-install-recommends nsd",
        "failed 100",
    ]


def test_a_policy_for_services_that_is_there_stays(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 7\n")
    policy.chmod(0o755)
    done = bash('POLICY_RC=$1; apt-get() { "$POLICY_RC"; echo $?; }; install_quietly curl', str(policy))
    assert done.stdout == "7\n"
    assert policy.read_text() == "#!/bin/sh\nexit 7\n"
