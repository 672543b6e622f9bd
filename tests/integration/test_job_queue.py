"""`exeat job` as people use it: order, tries, leases, restarts, the kill switch; with real jobs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.running import Running, wait_for

from exeat.appliance import config as configuration
from exeat.appliance.client import Client
from exeat.appliance.errors import RefusedError
from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("queue")
    more = made.lab.run_dir / "conf.d" / "queue.toml"
    more.parent.mkdir()
    more.write_text('[scheduler]\nslots = 2\npreempt = "end"\n')
    made.kill("control")
    wait_for(made.healed)
    yield made
    made.close()


def call(running: Running, verb: str, **arguments: Any) -> Any:
    """What `exeat job VERB` asks for, without starting a process for it."""
    with contextlib.closing(Client(configuration.load(running.lab.config))) as client:
        return client.call(f"task.{verb}", **arguments)["task"]


def submit(running: Running, *argv: str, **more: Any) -> str:
    return str(call(running, "submit", project=plan.PROJECT, argv=argv, **more)["id"])


def row(running: Running, task: str) -> dict[str, Any]:
    found: dict[str, Any] = call(running, "show", task=task)
    return found


def over(running: Running, task: str) -> dict[str, Any]:
    return dict(wait_for(lambda: (found := row(running, task))["ended_ms"] and found, seconds=60))


def test_what_is_submitted_runs_and_is_kept(running: Running) -> None:
    words = ("sh", "-c", "echo said; echo complained >&2; exit 3")
    done = running.exeat(
        "job", "submit", "--project", plan.PROJECT, "--wait", "--json", "--", *words, check=False
    )
    ended = json.loads(done.stdout)
    task = ended["id"]
    assert done.returncode == 3
    assert (ended["state"], ended["code"], ended["reason"], ended["attempts"]) == ("failed", 3, "exited", 1)
    assert running.exeat("job", "logs", task).stdout == "said\n"
    assert running.exeat("job", "logs", "--err", task).stdout == "complained\n"
    records = [
        record for record in running.records() if record["kind"] == "job" and record["job"] == ended["job"]
    ]
    assert [record["decision"] for record in records] == ["start", "exit"]
    assert task in running.exeat("job", "ls", "--all").stdout
    assert task not in running.exeat("job", "ls").stdout


def test_what_a_task_wrote_does_not_steer_the_terminal(running: Running) -> None:
    task = submit(running, "printf", r"\033]0;title\007\nplain\n")
    assert over(running, task)["state"] == "done"
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        subprocess.run(running.command("job", "logs", task), stdout=theirs, check=True, timeout=60)
        os.close(theirs)
        assert terminal.read(4096) == rb"\x1b]0;title\x07" + b"\r\nplain\r\n"
    assert running.exeat("job", "logs", task).stdout == "\x1b]0;title\x07\nplain\n"


def test_one_follows_another_or_is_skipped(running: Running) -> None:
    first = submit(running, "sh", "-c", "sleep 1")
    second = submit(running, "true", after=[first])
    waits = row(running, second)["waits"]
    assert waits == {"code": "after", "text": f"waits for {first}"}
    assert over(running, second)["state"] == "done"
    assert over(running, first)["ended_ms"] <= row(running, second)["started_ms"]
    bad = submit(running, "false")
    skipped = submit(running, "true", after=[bad])
    further = submit(running, "true", after=[skipped])
    assert over(running, further)["state"] == "skipped"
    assert row(running, skipped)["reason"] == f"after {bad}"


def test_it_is_tried_again_and_output_goes_on(running: Running) -> None:
    task = submit(running, "sh", "-c", "echo try; exit 1", retries=1)
    ended = over(running, task)
    assert (ended["state"], ended["attempts"]) == ("failed", 2)
    assert running.exeat("job", "logs", "-f", task).stdout == "try\ntry\n"


def test_room_is_shared_and_a_more_important_one_makes_room(running: Running) -> None:
    low = [submit(running, "sleep", "60", priority=-5) for _ in range(2)]
    wait_for(lambda: all(row(running, task)["job"] for task in low))
    dry = running.exeat("job", "submit", "--project", plan.PROJECT, "--dry-run", "--", "true").stdout
    assert dry == "would wait: all 2 places are taken\n"
    urgent = submit(running, "true")
    assert over(running, urgent)["state"] == "done"
    later = [
        task for task in low if row(running, task)["submitted_ms"] > row(running, urgent)["submitted_ms"]
    ]
    assert len(later) == 1  # it made way, and stands behind now
    for task in low:
        call(running, "cancel", task=task)
    assert {over(running, task)["state"] for task in low} == {"cancelled"}


def test_it_waits_for_leave_and_asks_for_it_when_its_turn_has_come(running: Running) -> None:
    host = "queue.downloads.example.com"
    task = submit(running, "true", needs=[host], **{"as": "alice"})
    asked = wait_for(lambda: row(running, task)["asked"])
    assert row(running, task)["waits"]["code"] == "lease"
    running.exeat("lease", "approve", asked[host], "--ttl", "5m")
    assert over(running, task)["state"] == "done"
    refused = submit(running, "true", needs=["127.0.0.1:80"])
    assert "needs 127.0.0.1:80" in over(running, refused)["reason"]


def test_a_restart_of_control_loses_nothing_and_runs_nothing_twice(running: Running) -> None:
    task = submit(running, "sh", "-c", "echo once; sleep 3; echo done")
    behind = submit(running, "true", after=[task])
    wait_for(lambda: "once" in running.exeat("job", "logs", task, check=False).stdout)
    running.kill("control")
    wait_for(running.healed)
    assert over(running, behind)["state"] == "done"
    assert (row(running, task)["state"], row(running, task)["attempts"]) == ("done", 1)
    assert running.exeat("job", "logs", task).stdout == "once\ndone\n"


def test_the_kill_switch_ends_it_for_good_and_holds_the_others(running: Running) -> None:
    task = submit(running, "sleep", "60", retries=3)
    wait_for(lambda: row(running, task)["job"])
    running.exeat("kill", "on", "--project", plan.PROJECT)
    assert (over(running, task)["state"], row(running, task)["reason"]) == ("failed", "kill")
    held = submit(running, "true")
    assert row(running, held)["waits"]["code"] == "kill"
    running.exeat("kill", "off", "--project", plan.PROJECT)
    assert over(running, held)["state"] == "done"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"after": ["t-none"]}, "no task `t-none`"),
        ({"priority": 101}, "priority is a whole number from -100 to 100"),
        ({"group": "No Such"}, "a group is a name of small letters"),
        ({"retries": 21}, "retries is a whole number from 0 to 20"),
        ({"project": "nobody"}, "no policy for project `nobody`"),
        ({"argv": []}, "no command to run"),
    ],
)
def test_what_cannot_be_meant_is_refused(running: Running, more: dict[str, Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        call(running, "submit", **{"project": plan.PROJECT, "argv": ["true"], **more})
    assert running.json("job", "ls") == []


def test_what_is_paused_holds_no_place_and_goes_on(running: Running) -> None:
    scripts = [submit(running, "sh", "-c", "cat /run/exeat/never 2>/dev/null; sleep 600") for _ in range(2)]
    wait_for(lambda: all(row(running, task)["job"] for task in scripts))
    third = submit(running, "true")
    running.exeat("job", "pause", scripts[0], "--as", "alice")
    assert over(running, third)["state"] == "done", "in the place of the one that is paused"
    assert row(running, scripts[0])["waits"]["code"] == "paused"
    running.kill("control")
    wait_for(running.healed)
    assert row(running, scripts[0])["state"] == "paused"
    running.exeat("job", "resume", scripts[0])
    wait_for(lambda: row(running, scripts[0])["state"] == "running")
    running.exeat("job", "pause", scripts[1])
    for task in scripts:
        call(running, "cancel", task=task)
        assert over(running, task)["state"] == "cancelled"
    acts = [each for each in running.records(200) if each["kind"] == "job" and each["decision"] == "pause"]
    assert [each["actor"] for each in acts] == ["alice", "root"]
