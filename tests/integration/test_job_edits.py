"""`--edit`, `exeat job diff|merge|drop|edits` as people use them: with real jobs, and the ledger's word."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.running import Running

from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

OWNER = 4321
TOKEN = "ghp_" + "a1B2c3D4e5" * 3 + "Zz9Yy8"  # the form of one, and of none that was ever given out


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("edits")
    yield made
    made.close()


@pytest.fixture
def folder(running: Running) -> Iterator[Path]:
    path = Path(running.lab.job) / "mine"
    (path / "dir").mkdir(parents=True)
    (path / "dir" / "given").write_text("one\ntwo\n")
    for each in (path, path / "dir", path / "dir" / "given"):
        os.chown(each, OWNER, OWNER)
    time.sleep(0.02)  # past the tick of the clock that ctime has, or its making would count as a change
    yield path
    shutil.rmtree(path)
    for row in running.json("job", "edits"):
        running.exeat("job", "drop", row["job"])


def edit(running: Running, folder: Path, script: str, *options: str) -> str:
    """Run it; the name of the job."""
    words = ("job", "submit", "--project", plan.PROJECT, f"--edit={folder}", "--wait", "--json", *options)
    return str(json.loads(running.exeat(*words, "--", "sh", "-c", script, check=False).stdout)["id"])


def said(running: Running, job: str) -> list[dict[str, Any]]:
    return [record for record in running.records() if record["kind"] == "job" and record["job"] == job]


def test_shown_then_merged_by_somebody(running: Running, folder: Path) -> None:
    task = edit(running, folder, "echo 2 > dir/given; echo new > 'n\x1bew'; rm -rf none")
    assert {path.name for path in folder.iterdir()} == {"dir"}
    shown = running.exeat("job", "diff", task).stdout
    assert "modify file dir/given" in shown
    assert "\n-two\n+2\n" in shown.replace("-one\n", "")
    assert "\x1b" not in shown
    assert "! n\\x1bew: name" in shown
    found = running.json("job", "diff", task)
    assert [change["path"] for change in found["changes"]] == ["dir/given", "n\x1bew"]
    refused = running.exeat("job", "merge", task, check=False)
    assert (refused.returncode, "--allow" in refused.stderr) == (1, True)
    assert (folder / "dir" / "given").read_text() == "one\ntwo\n"
    done = running.exeat("job", "merge", task, "--allow", "name", "--as", "alice")
    assert done.stdout == f"2 changes are in {folder}\n"
    assert (folder / "dir" / "given").read_text() == "2\n"
    new = (folder / "n\x1bew").stat()
    assert (new.st_uid, new.st_mode & 0o777) == (OWNER, 0o644)
    record = said(running, found["job"])[-1]
    assert (record["decision"], record["actor"], record["project"]) == ("merge", "alice", plan.PROJECT)
    assert found["sha256"] in record["detail"]
    assert running.json("job", "edits") == []
    assert "no changes" in running.exeat("job", "diff", task, check=False).stderr


def test_clean_work_is_merged_by_itself_and_other_work_is_not(running: Running, folder: Path) -> None:
    edit(running, folder, "echo fine > fine", "--merge-if-clean")
    assert (folder / "fine").read_text() == "fine\n"
    for script, why in (
        ("mkdir .git && echo x > .git/config", "git"),
        ("echo x > run; chmod +x run", "executable"),
        ("ln -s /etc/passwd out", "link"),
        ("mkfifo pipe", "special"),
        ("head -c 20 /dev/zero > binary", "not text"),
    ):
        words = ("job", "submit", "--project", plan.PROJECT, f"--edit={folder}", "--wait", "--merge-if-clean")
        done = running.exeat(*words, "--", "sh", "-c", script)
        assert "not merged" in done.stderr
        assert why in done.stderr
    assert {path.name for path in folder.iterdir()} == {"dir", "fine"}


def test_a_secret_is_neither_merged_nor_shown(running: Running, folder: Path) -> None:
    script = f"echo 'key = {TOKEN}  # pragma: allowlist secret' > conf; echo rest > rest"
    task = edit(running, folder, script, "--merge-if-clean")
    for words in (("job", "diff", task), ("job", "diff", task, "--json"), ("job", "merge", task)):
        done = running.exeat(*words, check=False)
        assert TOKEN not in done.stdout + done.stderr
        assert "secret" in (done.stdout + done.stderr).lower()
    assert {path.name for path in folder.iterdir()} == {"dir"}
    running.exeat("job", "merge", task, "--allow", "secret")
    assert TOKEN in (folder / "conf").read_text()


def test_a_conflict_or_a_job_that_runs_changes_nothing(running: Running, folder: Path) -> None:
    task = edit(running, folder, "echo theirs > dir/given; echo more > more")
    (folder / "dir" / "given").write_text("ours")
    done = running.exeat("job", "merge", task, "--json", check=False)
    assert done.returncode == 1
    assert "dir/given: changed since the job began" in done.stdout + done.stderr
    assert {path.name: path.is_file() for path in folder.iterdir()} == {"dir": False}
    assert "CONFLICT" in running.exeat("job", "diff", task).stdout
    running.exeat("job", "drop", task, "--as", "bob")
    assert running.json("job", "edits") == []
    job = running.job("sh", "-c", "echo more > more; echo begun; sleep 60", options=[f"--edit={folder}"])
    assert job.stdout is not None
    assert job.stdout.readline() == "begun\n"
    (row,) = running.json("job", "edits")
    assert "still runs" in running.exeat("job", "merge", row["job"], check=False).stderr
    job.terminate()
    job.communicate(timeout=30)
    assert running.exeat("job", "merge", row["job"]).stdout == f"1 changes are in {folder}\n"


def test_a_merge_that_failed_changed_nothing_and_can_be_tried_again(running: Running, folder: Path) -> None:
    (folder / "a").write_text("a")
    os.chown(folder / "a", OWNER, OWNER)
    os.chown(folder / "dir", 0, 0)  # its owner can write to the file in it, and replace nothing
    time.sleep(0.02)
    task = edit(running, folder, "echo changed > a; echo changed > dir/given")
    done = running.exeat("job", "merge", task, check=False)
    assert "nothing was changed" in done.stderr
    assert "Permission denied" in done.stderr
    assert (folder / "a").read_text() == "a"
    assert {path.name for path in folder.iterdir()} == {"a", "dir"}
    os.chown(folder / "dir", OWNER, OWNER)
    assert running.exeat("job", "merge", task).stdout == f"2 changes are in {folder}\n"
    assert (folder / "a").read_text() == (folder / "dir" / "given").read_text() == "changed\n"


@pytest.mark.parametrize("name", ["t-none", "../work", "", "no-such"])
def test_what_is_not_there(running: Running, name: str) -> None:
    assert "no changes of" in running.exeat("job", "diff", name, check=False).stderr
