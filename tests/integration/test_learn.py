"""`exeat learn` in the lab: watch a job, propose a policy, and run the job again under just that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.support.running import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

WORK = "curl -sS -o /tmp/a https://index.example.org/ && curl -sS -o /tmp/b https://git.example.org/"
BEYOND = "curl -sS -o /tmp/c http://169.254.169.254/ ; true"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("lrn")
    yield made
    made.close()


def options(running: Running) -> list[str]:
    ca = f"{running.lab.job}/ca.pem"
    return ["--ro", str(running.lab.job), f"--env=CURL_CA_BUNDLE={ca}"]


def test_what_was_learned_is_enough_and_no_more(running: Running, tmp_path: Path) -> None:
    proposal = tmp_path / "learned.yaml"
    words = ["learn", *options(running), "--project", "tool", "--output", str(proposal)]
    running.exeat(*words, "--", "sh", "-c", f"{WORK}; {BEYOND}")
    text = proposal.read_text()
    assert "  - {to: index.example.org}\n" in text
    assert "#   never let out while watching: meta.metadata" in text
    running.exeat("policy", "check", str(proposal))

    again = ["run", "--quiet", *options(running), "--policy", str(proposal), "--", "sh", "-c"]
    assert running.exeat(*again, WORK).returncode == 0
    refused = running.exeat(*again, "curl -sS https://downloads.example.com/", check=False)
    assert refused.returncode != 0

    # Out of the same job's records, later, as JSON; and nothing is overwritten.
    job = text.splitlines()[0].rpartition(" ")[2]
    found = json.loads(running.exeat("learn", "--from", job, "--project", "tool", "--json").stdout)
    assert [row["host"] for row in found["allow"]] == ["git.example.org", "index.example.org"]
    assert "is there already" in running.exeat(*words, "--", "true", check=False).stderr


def test_a_command_that_fails_says_so_and_ends_with_its_code(running: Running) -> None:
    done = running.exeat("learn", *options(running), "--", "sh", "-c", "exit 4", check=False)
    assert done.returncode == 4
    assert "it may not have shown all it needs" in done.stderr
    assert "allow: []" in done.stdout
    for words in (["learn"], ["learn", "--from", "x", "--", "true"]):
        assert running.exeat(*words, check=False).returncode == 2
