"""Landlock by itself, on processes of this machine: what is not listed cannot be written."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from exeat.sandbox import landlock

if TYPE_CHECKING:
    from pathlib import Path

ABI = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)


TRY = """
import errno, os, socket, sys
pid = int(sys.argv[1])
def said(call):
    try: return call()
    except OSError as error: return errno.errorcode[error.errno]
print(said(lambda: os.kill(pid, 0)))
print(said(lambda: socket.socket(socket.AF_UNIX).connect(f"\\0exeat-landlock-{pid}")))
print(said(lambda: os.kill(os.getppid(), 0) or "own"))
"""


def run(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "ours").mkdir(exist_ok=True)
    (tmp_path / "file").write_text("as it was\n")
    (tmp_path / "other").write_text("as it was\n")
    paths = ("/dev", "/proc", str(tmp_path / "ours"), str(tmp_path / "file"))
    words = landlock.below(paths, ("/bin/sh", "-c", script))
    return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "script",
    [
        "echo x >ours/new && cat ours/new",
        "mkdir -p ours/a/b && mv ours/a ours/c && rm -r ours/c && echo x",
        "echo x >file && cat file",
        "cat other >/dev/null && echo x",
        "ln -s ours/away ours/link && mkfifo ours/pipe && echo x",
        "exec 3>/dev/null && echo name >/proc/self/comm && echo x",
    ],
)
def test_what_is_listed(tmp_path: Path, script: str) -> None:
    done = run(tmp_path, script)
    assert (done.returncode, done.stdout) == (0, "x\n"), done.stderr


# What a kernel without Landlock cannot refuse is not asked of it.
if ABI > 0:

    @pytest.mark.parametrize(
        "script",
        [
            "echo x >other",
            "echo x >new",
            "rm other",
            "mkdir new",
            "ln -s / new",
            "mv other ours/",
            "mv ours/new .",
            "ln ours/new new",
            "mknod ours/device c 1 3",
            "echo x >ours/../other",
            "ln -s ../other ours/out; echo x >ours/out",
            "sh -c 'exec 3>>other'",  # and so for all that it starts
            "python3 -c 'import os; os.truncate(\"other\", 0)'" if ABI >= 3 else "rm other",
        ],
    )
    def test_what_is_not_listed(tmp_path: Path, script: str) -> None:
        (tmp_path / "ours").mkdir()
        (tmp_path / "ours" / "new").write_text("new")
        done = run(tmp_path, script)
        assert done.returncode != 0
        assert any(why in done.stderr for why in ("ermission denied", "cross-device", "not permitted")), done
        assert (tmp_path / "other").read_text() == "as it was\n"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "ours"]

    def test_a_path_that_is_not_there_ends_it_before_the_command(tmp_path: Path) -> None:
        words = landlock.below((str(tmp_path / "none"),), ("/bin/echo", "ran"))
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (126, "")
        assert done.stderr == "exeat: landlock: No such file or directory\n"


# Scopes are of ABI 6.
if ABI >= 6:

    def test_signals_and_abstract_sockets_stay_among_its_own(tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0exeat-landlock-{os.getpid()}")
            listener.listen()
            done = run(tmp_path, f"{sys.executable} -I -c '{TRY}' {os.getpid()}")
        assert done.stdout.split() == ["EPERM", "EPERM", "own"], done.stderr


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/etc/hosts", 126)])
def test_commands_that_cannot_be_run(command: str, code: int) -> None:
    done = subprocess.run(landlock.below((), (command,)), capture_output=True, text=True, check=False)
    assert (done.returncode, command in done.stderr) == (code, True)


def test_signals_are_as_a_shell_leaves_them() -> None:
    words = landlock.below((), ("/bin/sh", "-c", "grep SigIgn /proc/self/status"))
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert int(said.split()[1], 16) == 0
