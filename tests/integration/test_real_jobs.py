"""Work as people give it to jobs, through the queue: a test run, a build, a page; looked at and merged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.running import Running

from exeat.appliance.disks import disks_of
from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

OWNER = 4322
CHROMIUM = Path("/usr/lib/chromium/chromium")
SOURCE = {
    "pyproject.toml": (
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "greeting"\nversion = "1.0"\n[tool.setuptools]\npy-modules = ["greeting"]\n'
    ),
    "greeting.py": "def greet(name):\n    return f'Hello, {name}.'\n",
    "test_greeting.py": (
        "import greeting, pathlib, socket, pytest\n\n"
        "def test_greets(record_property):\n"
        "    pathlib.Path('greeted.txt').write_text(greeting.greet('you') + '\\n')\n\n"
        "def test_reaches_nobody():\n"
        "    with pytest.raises(OSError):\n"
        "        socket.create_connection(('203.0.113.9', 9), 2).recv(1)\n"
    ),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("real")
    yield made
    made.close()


@pytest.fixture
def folder(running: Running) -> Iterator[Path]:
    """Somebody's project."""
    path = Path(running.lab.job) / "project"
    path.mkdir()
    for name, text in SOURCE.items():
        (path / name).write_text(text)
    for each in (path, *path.iterdir()):
        os.chown(each, OWNER, OWNER)
    time.sleep(0.02)  # past the tick of the clock that ctime has, or its making would count as a change
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def pytest_itself(running: Running) -> Path:
    """pytest with what it needs, in a folder that a job may be given."""
    target = Path(running.lab.job) / "site"
    target.mkdir()
    for name in ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        if source.name == "__init__.py":
            shutil.copytree(source.parent, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return target


def submit(running: Running, *words: str) -> dict[str, Any]:
    """Put it into the queue, wait for its end; its row."""
    done = running.exeat(
        "job", "submit", "--project", plan.PROJECT, "--wait", "--json", *words, check=False, timeout=90
    )
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def said_by(running: Running, row: dict[str, Any]) -> str:
    """What it wrote; in a failing test, its complaints are shown, too."""
    print(row["state"], row["reason"], running.exeat("job", "logs", "--err", row["id"]).stdout)
    return running.exeat("job", "logs", row["id"]).stdout


def changed(running: Running, task: str) -> list[str]:
    return [change["path"] for change in running.json("job", "diff", task)["changes"]]


def test_a_test_run(running: Running, folder: Path, pytest_itself: Path) -> None:
    row = submit(
        running, f"--edit={folder}", f"--ro={pytest_itself}", f"--env=PYTHONPATH={pytest_itself}",
        "--env=PYTHONDONTWRITEBYTECODE=1", "--", "python3", "-m", "pytest", "-q", "-p", "no:cacheprovider",
    )  # fmt: skip
    said = said_by(running, row)
    assert (row["state"], "2 passed" in said) == ("done", True), said
    assert row["id"] in running.exeat("job", "ls", "--all").stdout
    shown = running.exeat("job", "diff", row["id"]).stdout
    assert "+Hello, you." in shown
    assert not (folder / "greeted.txt").exists()
    running.exeat("job", "merge", row["id"], "--if-clean", "--as", "alice")
    assert (folder / "greeted.txt").read_text() == "Hello, you.\n"
    refused = [each for each in running.records(60) if each["kind"] == "deny" and each["job"] == row["job"]]
    assert {(each["dest"]["host"], each["dest"]["port"]) for each in refused} == {("203.0.113.9", 9)}


def test_a_build(running: Running, folder: Path) -> None:
    words = ("pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir=dist", ".")
    row = submit(running, f"--edit={folder}", "--limits=memory=1GiB,time=80s", "--", "python3", "-m", *words)
    said = said_by(running, row)
    assert (row["state"], "Successfully built greeting" in said) == ("done", True), said
    assert "dist/greeting-1.0-py3-none-any.whl" in changed(running, row["id"])
    running.exeat("job", "merge", row["id"])
    wheel = folder / "dist/greeting-1.0-py3-none-any.whl"
    assert (wheel.stat().st_uid, zipfile.ZipFile(wheel).read("greeting.py").decode()) == (
        OWNER,
        SOURCE["greeting.py"],
    )


def test_one_that_fails_says_so_and_changes_nothing(
    running: Running, folder: Path, pytest_itself: Path
) -> None:
    words = ("python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-such-option")
    row = submit(
        running,
        f"--edit={folder}",
        f"--ro={pytest_itself}",
        f"--env=PYTHONPATH={pytest_itself}",
        "--",
        *words,
    )
    assert (row["state"], row["code"]) == ("failed", 4)
    assert "--no-such-option" in running.exeat("job", "logs", "--err", row["id"]).stdout
    assert sorted(path.name for path in folder.iterdir()) == sorted(SOURCE)


def test_how_fast_it_uses_disks_is_limited_where_cgroups_know_them(running: Running) -> None:
    """As the kernel says it, of the job's own cgroup."""
    words = ("run", "--quiet", "--project", plan.PROJECT, "--limits=io=2MiB", "--", "sh", "-c")
    command, pipe = running.command(*words, "echo on; read x"), subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() == "on\n":
            (config,) = (running.lab.appliance_run / "warden" / "jobs").glob("*/config.json")
            group = json.loads(config.read_text())["linux"]["cgroupsPath"].strip("/")
            v1 = Path("/sys/fs/cgroup/blkio", group, "blkio.throttle.write_bps_device")
            said = (v1 if v1.exists() else Path("/sys/fs/cgroup", group, "io.max")).read_text()
            for major, minor in disks_of((running.lab.state_dir, Path("/usr"))):
                assert f"{major}:{minor} " in said
            assert "2097152" in said
        else:
            assert "no limit of io holds on this node" in process.communicate()[1]
        process.communicate("x\n", timeout=30)


# Not on every distribution is there a Chromium that needs no daemon; where it is, it is tried.
if CHROMIUM.exists():

    def test_a_page(running: Running) -> None:
        row = submit(running, "--template=browser", "--", "http://plain.example.org/")
        said = said_by(running, row)
        assert (row["state"], said) == ("done", "An origin of the exeat lab.\n")
        opened = [
            each for each in running.records(60) if each["kind"] == "open" and each["job"] == row["job"]
        ]
        assert {each["dest"]["host"] for each in opened} == {"plain.example.org"}
