"""What was spent stays spent: a byte budget across kill -9 of the gateway and a full restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.running import Running, wait_for

from exeat.appliance.lab import manage

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

BUDGETS = """\
egress: v1
project: crawler
allow:
  - {id: plain, to: "plain.example.org:80"}
budgets:
  default: {bytes_down: 300KB/1h}
"""
GET = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "9")


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running("bud")
    yield made
    made.close()


def fetch(running: Running, count: int) -> str:
    return running.run(*GET, f"http://plain.example.org/bytes/{count}").stdout


def test_a_budget_survives_its_gateway(running: Running) -> None:
    (running.lab.policies / "crawler.yaml").write_text(BUDGETS)
    running.exeat("policy", "reload", "--as", "ann", "--reviewed-by", "ben")
    assert fetch(running, 200_000) == "200"
    for process in ("proxy", "control"):
        old = running.pid(process)
        running.kill(process)
        wait_for(lambda old=old, process=process: running.pid(process) not in (0, old))
        wait_for(running.healed)
    assert fetch(running, 110_000) == "200"  # let out at 200 kB of 300, and then it was spent
    old = running.pid("proxy")
    running.kill("proxy")
    wait_for(lambda: running.pid("proxy") not in (0, old))
    wait_for(running.healed)
    refused = running.run(*GET, "-i", "http://plain.example.org/bytes/10")
    assert refused.stdout == "403"
    assert "[budget.exceeded]" in refused.stderr


def test_a_budget_survives_a_restart_of_everything(running: Running) -> None:
    (running.lab.policies / "crawler.yaml").write_text(BUDGETS.replace("300KB", "100KB"))
    running.exeat("policy", "reload", "--as", "ann", "--reviewed-by", "ben")
    assert fetch(running, 120_000) in ("200", "000")  # cut at its end, or just let through
    running.stop()
    manage.start_appliance(running.lab)
    assert fetch(running, 10) == "403"
