"""Metrics of a running appliance: what happened is what is counted, over restarts of its processes."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.running import Running, wait_for

from exeat.appliance.lab import plan
from exeat.appliance.metrics.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

ALLOWED = "https://api.example.org/bytes/1000"
ASKED = "https://files.downloads.example.com/bytes/1000"
TRIES = f"curl -s -o /dev/null {ALLOWED}; curl -s -o /dev/null {ALLOWED}; curl -s https://192.0.2.7/; true"
P = ("project", plan.PROJECT)


class Seen:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [each for family in text_string_to_metric_families(text) for each in family.samples]

    def value(self, name: str, *labels: tuple[str, str]) -> float:
        """The sum of the samples that have these labels."""
        wanted = dict(labels).items()
        return sum(each.value for each in self.samples if each.name == name and wanted <= each.labels.items())


def in_sync(seen: Seen) -> dict[str, float]:
    return {s.labels["part"]: s.value for s in seen.samples if s.name == "exeat_enforcement_in_sync"}


def scrape(running: Running) -> Seen:
    return Seen(running.exeat("metrics").stdout)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("met")
    yield made
    made.close()


def test_what_happened_is_what_is_counted(running: Running) -> None:
    running.run("sh", "-c", TRIES)
    allowed = ("exeat_decisions_total", P, ("verdict", "allow"))
    denied = ("exeat_decisions_total", P, ("reason", "ip_literal.denied"))
    active = ("exeat_connections_active", P)
    records = len(running.records(500))

    def told() -> Seen | None:
        seen = scrape(running)
        over = (seen.value(*allowed), seen.value(*denied), seen.value(*active)) == (2, 1, 0)
        return seen if over and seen.value("exeat_ledger_entries_total") >= records else None

    seen = wait_for(told)
    assert seen.value("exeat_bypass_attempts_total", P, ("kind", "ip_literal")) == 1
    assert seen.value("exeat_bytes_total", P, ("direction", "in")) > 2000
    assert seen.value("exeat_connect_duration_seconds_count", ("result", "ok")) == 2
    assert seen.value("exeat_decision_duration_seconds_count") >= 3
    assert seen.value("exeat_job_exits_total", P, ("reason", "exited")) == 1
    assert seen.value("exeat_ledger_append_duration_seconds_count") > 0
    assert seen.value("exeat_ledger_writable") == 1
    assert seen.value("exeat_ledger_bytes") > 1000
    wait_for(lambda: in_sync(scrape(running)) == {"proxy": 1.0, "guard": 1.0})
    assert all(s.value == 1 for s in seen.samples if s.name == "exeat_process_up")


def test_lookups_are_counted_by_answer_and_verdict(running: Running) -> None:
    name = ("exeat_dns_queries_total", P)
    before = scrape(running)
    running.run("sh", "-c", "for i in 1 2 3; do getent hosts api.example.org; done; getent hosts no.invalid")

    after = wait_for(
        lambda: (
            (s := scrape(running)).value(*name, ("verdict", "allow"), ("rcode", "NOERROR"))
            >= before.value(*name, ("verdict", "allow"), ("rcode", "NOERROR")) + 3
            and s.value(*name, ("rcode", "NXDOMAIN")) > before.value(*name, ("rcode", "NXDOMAIN"))
            and s
        )
    )
    assert after.value("exeat_dns_duration_seconds_count") > before.value("exeat_dns_duration_seconds_count")


def test_a_request_is_counted_while_it_waits_and_when_it_is_answered(running: Running) -> None:
    job = running.job("curl", "-s", "-o", "/dev/null", ASKED, options=("--hold", "50s"))
    pending = ("exeat_leases", P, ("state", "requested"))
    wait_for(lambda: scrape(running).value(*pending) == 1)
    [request] = running.json("lease", "ls")
    running.exeat("lease", "approve", request["id"], "--as", "ann")
    job.communicate(timeout=30)
    assert job.returncode == 0
    held = ("exeat_hold_duration_seconds_count", ("result", "allow"))
    seen = wait_for(lambda: (s := scrape(running)).value(*held) == 1 and s)
    assert seen.value(*pending) == 0
    for outcome in ("asked", "approved"):
        assert seen.value("exeat_lease_requests_total", P, ("outcome", outcome)) == 1
    assert seen.value("exeat_lease_approval_duration_seconds_count", P) == 1


def test_promtool_finds_nothing_to_complain_about(running: Running) -> None:
    text = scrape(running).text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_metric_of_the_table_is_exported_but_those_that_need_more_than_a_lab(running: Running) -> None:
    seen = {name.removeprefix("exeat_") for name in _families(scrape(running).text)}
    elsewhere = {
        *("dns_anomalies_total", "auth_failures_total", "nft_apply_duration_seconds", "sse_clients"),
        *("ledger_verify_ok", "ledger_last_verified_timestamp_seconds", "ledger_drifts_total"),
        *("budget_used_ratio", "cost_usd_estimate_total"),
    }
    assert {name.removesuffix("_total") for name in METRICS.keys() - elsewhere} <= seen
    assert seen <= {name.removesuffix("_total") for name in METRICS}


def _families(text: str) -> list[str]:
    return [family.name for family in text_string_to_metric_families(text)]


def test_no_label_tells_a_host_an_address_or_a_lease(running: Running) -> None:
    text = scrape(running).text
    for word in (
        "example.org",
        "example.com",
        "192.0.2.7",
        *(row["id"] for row in running.json("lease", "ls")),
    ):
        assert word not in text


@pytest.mark.parametrize("process", ["control", "proxy", "guard", "ledger"])
def test_counts_survive_the_death_of_a_process(running: Running, process: str) -> None:
    names = ("exeat_decisions_total", "exeat_bytes_total", "exeat_ledger_entries_total")
    before = scrape(running)
    running.kill(process)
    wait_for(running.healed, 30)

    def counted() -> bool:
        after = scrape(running)
        return all(
            after.value(name, *((P,) if "ledger" not in name else ())) >= before.value(name) for name in names
        )

    wait_for(counted, 30)
    running.run("curl", "-s", "-o", "/dev/null", ALLOWED)
    allowed = ("exeat_decisions_total", P, ("verdict", "allow"))
    wait_for(lambda: scrape(running).value(*allowed) == before.value(*allowed) + 1)
