"""`--scope project://...`: folders that jobs have by policy or lease, for as long as they may."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.running import Running, wait_for

from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

OWNER = 4321


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("scopes")
    yield made
    made.close()


@pytest.fixture
def folder(running: Running) -> Iterator[Path]:
    path = Path(running.lab.job) / "lent"
    path.mkdir()
    (path / "given").write_text("given\n")
    for each in (path, path / "given"):
        os.chown(each, OWNER, OWNER)
    yield path
    shutil.rmtree(path)
    for row in running.json("lease", "ls"):
        running.exeat("lease", "revoke", row["id"])
    for row in running.json("job", "edits"):
        running.exeat("job", "drop", row["job"])


def lent(running: Running, scope: str, *options: str) -> str:
    """A lease of it, asked for by alice and approved by bob."""
    words = ("lease", "request", "--project", plan.PROJECT, "--as", "alice", *options, scope)
    name = str(running.json(*words)["id"])
    assert running.exeat("lease", "approve", name, "--as", "alice", check=False).returncode == 1
    running.exeat("lease", "approve", name, "--as", "bob")
    return name


def started(running: Running, scope: str, script: str) -> subprocess.Popen[str]:
    """A job that has the scope; once it says `ready`."""
    words = ("run", "--quiet", "--project", plan.PROJECT, "--scope", scope, "--", "sh", "-c", script)
    job = subprocess.Popen(
        running.command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n", job.communicate()
    return job


def records(running: Running, what: str) -> list[dict[str, Any]]:
    found = running.records(40)
    return [record for record in found if record["kind"] == "job" and record["decision"] == what]


def test_a_task_waits_for_its_folder_writes_and_ends_when_the_lease_is_revoked(
    running: Running, folder: Path
) -> None:
    scope = f"project://{folder}:rw"
    script = "echo written > new; sleep 60"
    words = ("job", "submit", "--project", plan.PROJECT, "--scope", scope, "--as", "alice")
    task = running.exeat(*words, "--", "sh", "-c", script).stdout.strip()
    [lease] = wait_for(lambda: running.json("lease", "ls"))
    assert (lease["to"], lease["ports"], lease["speech"]) == ([scope], [], ["file"])
    assert scope in running.exeat("lease", "ls").stdout
    [row] = running.json("job", "ls")
    assert (row["state"], row["waits"]["code"]) == ("queued", "lease")
    assert running.exeat("lease", "approve", lease["id"], "--as", "alice", check=False).returncode == 1
    running.exeat("lease", "approve", lease["id"], "--as", "bob")
    wait_for(lambda: (folder / "new").exists())
    assert (folder / "new").stat().st_uid == OWNER
    running.exeat("job", "pause", task)  # what is stopped is not spared
    running.exeat("lease", "revoke", lease["id"])
    wait_for(lambda: running.json("job", "show", task)["state"] == "failed")
    assert running.json("job", "show", task)["reason"] == "lease"
    [opened] = records(running, "file.open")
    assert (opened["lease_id"], scope in opened["detail"]) == (lease["id"], True)
    assert records(running, "exit")[-1]["reason_code"] == "lease"
    assert (folder / "new").read_text() == "written\n", "what it wrote stays"


def test_read_only_is_read_only_and_ends_with_its_time(running: Running, folder: Path) -> None:
    lease = lent(running, f"project://{folder}", "--ttl", "5s")
    job = started(
        running, f"project://{folder}", f"cat {folder}/given >&2; echo x >{folder}/y; echo ready; sleep 60"
    )
    _, error = job.communicate(timeout=30)
    assert job.returncode == 137
    assert error.startswith("given\n")
    assert "Read-only file system" in error
    assert "may no longer have a folder" in error
    assert running.json("lease", "show", lease)["state"] == "expired"
    assert not (folder / "y").exists()


def test_an_edit_waits_for_a_person_although_its_job_was_ended(running: Running, folder: Path) -> None:
    lease = lent(running, f"project://{folder}:edit")
    scope = f"project://{folder}:edit"
    job = started(running, scope, "pwd >&2; echo more >>given; echo ready; sleep 60")
    for process in ("control", "warden"):  # who comes after knows what it has
        running.kill(process)
        wait_for(running.healed)
    assert job.poll() is None
    running.exeat("lease", "revoke", lease)
    _, error = job.communicate(timeout=30)
    assert (job.returncode, error.splitlines()[0]) == (137, str(folder))
    assert (folder / "given").read_text() == "given\n"
    [row] = running.json("job", "edits")
    running.exeat("job", "merge", row["job"])
    assert (folder / "given").read_text() == "given\nmore\n"


def test_a_policy_gives_a_folder_and_takes_it_away(running: Running, folder: Path) -> None:
    path = running.lab.policies / "crawler.yaml"
    old = path.read_text()
    scope = f"project://{folder}:rw"
    path.write_text(f"{old}files:\n  allow: ['{scope}']\n")
    reload = ("policy", "reload", "--as", "alice")
    refused = running.exeat(*reload, check=False)
    assert (refused.returncode, f"{scope}, which was not allowed" in refused.stderr) == (1, True)
    running.exeat(*reload, "--reviewed-by", "bob")
    job = started(running, scope, "echo ready; sleep 60")
    path.write_text(f"{old}files:\n  deny: ['{scope}']\n")
    running.exeat(*reload)
    _, error = job.communicate(timeout=30)
    assert (job.returncode, "may no longer have" in error) == (137, True)
    for option, code in ((f"--rw={folder}", 1), (f"--edit={folder}", 0), (f"--ro={folder}", 0)):
        words = ("run", "--quiet", "--project", plan.PROJECT, option, "--", "true")
        done = running.exeat(*words, check=False)
        assert (done.returncode, "a deny rule matches" in done.stderr) == (code, bool(code)), option
    path.write_text(old)
    running.exeat(*reload, "--reviewed-by", "bob")


def test_what_is_refused(running: Running, folder: Path) -> None:
    def refused(scope: str) -> str:
        words = ("run", "--quiet", "--project", plan.PROJECT, "--scope", scope, "--", "true")
        done = running.exeat(*words, check=False)
        assert done.returncode in (1, 2)
        return done.stderr

    assert "approval" in refused(f"project://{folder}")
    lent(running, f"project://{folder}:ro")
    assert "approval" in refused(f"project://{folder}:rw")
    assert "outside" in refused("project:///etc:ro")
    assert "normalised" in refused(f"project://{folder}/..")
    (folder / "link").symlink_to("/etc")
    assert "outside" in refused(f"project://{folder}/link")
    asked = running.exeat("lease", "request", "--project", plan.PROJECT, "project:///etc", check=False)
    assert (asked.returncode, "[sandbox] roots" in asked.stderr) == (1, True)
    why = json.loads(
        running.exeat(
            "why", f"project://{folder}:rw", "--project", plan.PROJECT, "--json", check=False
        ).stdout
    )
    assert (why["verdict"], why["reason"], why["next"].split()[:3]) == (
        "ask",
        "file.ask",
        ["exeat", "lease", "request"],
    )
