"""The other runtimes do what the first one does: codes, streams, limits, kill, and a lost launcher."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.warden_rig import WardenRig, mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


# Not everywhere is there a podman; where it is, it is tried.
RUNTIMES = ["runc", *filter(shutil.which, ["podman"])]


@pytest.fixture(scope="module", params=RUNTIMES)
def rig(request: pytest.FixtureRequest) -> Iterator[WardenRig]:
    with WardenRig(runtime=request.param, memory=96 * 1024**2, pids=40) as made:
        yield made


@pytest.mark.parametrize(
    ("script", "code"), [("exit 7", 7), ("kill -TERM $$", 143), ("no-such", 127), ("/etc/hosts", 126)]
)
def test_exit_codes(rig: WardenRig, script: str, code: int) -> None:
    assert rig.run_job("code", ["sh", "-c", script]).code == code


def test_streams_mounts_and_user(rig: WardenRig) -> None:
    (rig.base / "share" / "data").write_text("given")
    mounts = [{"path": str(rig.base / "share"), "mode": "ro"}]
    script = f"cat; cat {rig.base}/share/data; touch {rig.base}/share/x; id -un; pwd"
    ended = rig.run_job("streams", ["sh", "-c", script], stdin=b"in:", mounts=mounts)
    assert ended.out == "in:givenjob\n/work\n"
    assert "Read-only file system" in ended.err
    assert not mounts_below(rig.run / "mounts")


def test_an_edited_folder_keeps_what_it_has(rig: WardenRig) -> None:
    folder = rig.base / "share" / "edited"
    folder.mkdir()
    os.chown(folder, 4321, 4321)
    mounts = [{"path": str(folder), "mode": "edit"}]
    script = f"touch {folder}/made && ls {folder}"
    if rig.runtime == "podman":
        rig.call("jail.create", jail="edits").close()
        with open(os.devnull, "r+b") as null:
            refused = rig.start_job("edits", ["true"], (null.fileno(),) * 3, mounts=mounts, user=4321)
        assert (refused.error, "crun or runc" in refused["message"]) == ("runtime", True)
        rig.call("jail.destroy", jail="edits")
        return
    assert rig.run_job("edits", ["sh", "-c", script], mounts=mounts, user=4321).out == "made\n"
    assert os.listdir(folder) == []
    assert os.listdir(rig.work.parent / "edits" / "edits" / "upper") == ["made"]


def test_memory_and_processes_are_limited(rig: WardenRig) -> None:
    ended = rig.run_job("memory", ["python3", "-c", "x = b'x' * 300_000_000"])
    assert (ended.code, ended.oom) == (137, True)
    forks = "import os\ntry:\n while os.fork(): pass\nexcept OSError as error: print(error.errno)"
    assert "11" in rig.run_job("forks", ["python3", "-c", forks]).out


@pytest.mark.parametrize("what", ["job", "launcher"])
def test_a_killed_job_leaves_nothing(rig: WardenRig, what: str) -> None:
    name = f"kill-{what}"
    rig.call("jail.create", jail=name).close()
    with open(os.devnull, "r+b") as null:
        started = rig.start_job(
            name, ["sh", "-c", "trap '' TERM; sleep 600 & sleep 600"], (null.fileno(),) * 3
        )
    assert started["ok"], started.message
    if what == "job":
        rig.call("job.kill", job=name)
    else:
        os.kill(int((rig.run / "jobs" / name / "launcher").read_text()), signal.SIGKILL)
    assert rig.call("job.wait", job=name)["code"] == 137
    with contextlib.suppress(FileNotFoundError):  # a zombie, which has no command line, is init's to reap
        assert Path(f"/proc/{started['pid']}/cmdline").read_bytes() == b""
    assert rig.call("job.remove", job=name)["ok"]
    assert os.listdir(rig.run / "containers") == []
    rig.call("jail.destroy", jail=name)
