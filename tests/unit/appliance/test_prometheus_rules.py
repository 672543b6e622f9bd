"""The rules, the dashboard and the examples that are shipped, judged by promtool and amtool."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from exeat.appliance.metrics.table import METRICS

SHIPPED = Path(__file__).resolve().parents[3] / "appliance" / "metrics" / "prometheus"
RULES = SHIPPED / "rules.yaml"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
N = 'instance="n1"'
UP = ('up{job="exeat",instance="n1"}', "1x2000")


class Case(NamedTuple):
    """Input series as promtool writes them, and minutes at which the alert is quiet and fires."""

    alert: str
    series: tuple[tuple[str, str], ...]
    quiet_m: int
    fires_m: int
    labels: dict[str, str] = {}  # noqa: RUF012 - never changed


CASES = (
    Case("ExeatNodeDown", (('up{job="exeat",instance="n1"}', "1 1 0 0 0 0"),), 1, 4, {"job": "exeat"}),
    Case(
        "ExeatProcessDown",
        ((f'exeat_process_up{{{N},process="guard"}}', "1 1 0 0 0 0"),),
        1,
        4,
        {"process": "guard"},
    ),
    Case("ExeatLedgerBroken", ((f"exeat_ledger_writable{{{N}}}", "1 1 0 0"),), 1, 3),
    Case("ExeatLedgerVerifyFailed", ((f"exeat_ledger_verify_ok{{{N}}}", "1 0"),), 0, 1),
    Case(
        "ExeatLedgerNotVerified",
        ((f"exeat_ledger_last_verified_timestamp_seconds{{{N}}}", "0x3000"),),
        2880,
        2890,
    ),
    Case("ExeatLedgerBooksDiffer", ((f"exeat_ledger_drifts_total{{{N}}}", "0x20 1x10"), UP), 20, 22),
    Case("ExeatLedgerBooksDiffer", ((f"exeat_ledger_drifts_total{{{N}}}", "_x20 1x10"), UP), 19, 22),
    Case("ExeatLedgerSlow", ((f"exeat_ledger_fsync_lag_seconds{{{N}}}", "0.01 0.01 5x10"),), 3, 6),
    Case(
        "ExeatLedgerDiskFills",
        (
            (f"exeat_ledger_disk_free_bytes{{{N}}}", "50 50 4x30"),
            (f"exeat_ledger_disk_bytes{{{N}}}", "100x40"),
        ),
        1,
        15,
    ),
    Case(
        "ExeatLedgerDiskFills",
        (
            (f"exeat_ledger_disk_free_bytes{{{N}}}", "40x400 40-0.05x300"),
            (f"exeat_ledger_disk_bytes{{{N}}}", "100x800"),
        ),
        400,
        600,
    ),
    Case(
        "ExeatEnforcementDrift",
        ((f'exeat_enforcement_in_sync{{{N},part="proxy"}}', "1 1 0 0 0 0"),),
        1,
        4,
        {"part": "proxy"},
    ),
    Case(
        "ExeatBypassAttempt",
        ((f'exeat_bypass_attempts_total{{{N},project="p",kind="dot"}}', "3x20 4x10"), UP),
        20,
        22,
        {"project": "p", "kind": "dot"},
    ),
    Case(
        "ExeatBypassAttempt",
        ((f'exeat_bypass_attempts_total{{{N},project="p",kind="doh"}}', "_x20 1x3"), UP),
        19,
        21,
        {"project": "p", "kind": "doh"},
    ),
    Case(
        "ExeatDnsAnomaly",
        ((f'exeat_dns_anomalies_total{{{N},project="p",kind="dns.tunnel"}}', "_x20 1x3"), UP),
        19,
        21,
        {"project": "p", "kind": "dns.tunnel"},
    ),
    Case(
        "ExeatApprovalBacklog",
        ((f'exeat_lease_oldest_pending_seconds{{{N},project="p"}}', "0+60x30"),),
        15,
        18,
        {"project": "p"},
    ),
    Case(
        "ExeatApprovalBacklog",
        ((f'exeat_leases{{{N},project="p",state="requested"}}', "20 20 21x5"),),
        1,
        4,
        {"project": "p"},
    ),
    Case(
        "ExeatLeaseChurn",
        ((f'exeat_lease_requests_total{{{N},project="p",outcome="asked"}}', "0x60 0+2x120"),),
        60,
        130,
        {"project": "p"},
    ),
    Case(
        "ExeatBudgetBurn",
        ((f'exeat_budget_used_ratio{{{N},project="p",budget="day"}}', "0.1x40 0.1+0.02x30"),),
        40,
        68,
        {"project": "p", "budget": "day"},
    ),
    Case(
        "ExeatBudgetBurn",
        ((f'exeat_budget_used_ratio{{{N},project="p",budget="day"}}', "0.4x40 1x20"),),
        40,
        50,
        {"project": "p", "budget": "day"},
    ),
    Case(
        "ExeatAuthBruteForce",
        ((f'exeat_auth_failures_total{{{N},method="password"}}', "0+1x20 20+10x10"),),
        20,
        26,
        {"method": "password"},
    ),
    Case(
        "ExeatPostureOpenTooLong",
        ((f'exeat_posture_info{{{N},project="p",posture="public"}}', "1x1500"),),
        1430,
        1445,
        {"project": "p", "posture": "public"},
    ),
    Case(
        "ExeatKillSwitchOn",
        ((f'exeat_kill_switch{{{N},project="*"}}', "0 1x90"),),
        60,
        63,
        {"project": "*"},
    ),
)


def promtool(*words: str) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def expected(case: Case) -> dict[str, Any]:
    """Labels and texts of the alert that fires; texts with a value in them are not compared by promtool."""
    rule = ALERTS[case.alert]
    return {"exp_labels": {**rule["labels"], "instance": "n1", **case.labels}}


def test_each_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    """With names instead of annotations: their text is for people, and promtool would compare it."""
    bare = yaml.safe_load(RULES.read_text())
    for group in bare["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(bare))
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series],
            "alert_rule_test": [
                {"alertname": case.alert, "eval_time": f"{case.quiet_m}m", "exp_alerts": []},
                {
                    "alertname": case.alert,
                    "eval_time": f"{case.fires_m}m",
                    "exp_alerts": [expected(case)],
                },
            ],
        }
        for case in CASES
    ]
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(file))
    promtool("test", "rules", str(tmp_path / "tests.yaml"))
    assert {case.alert for case in CASES} == set(ALERTS)


def test_a_new_prometheus_does_not_take_old_counts_for_news(tmp_path: Path) -> None:
    """It sees a node with a past for the first time."""
    (tmp_path / "rules.yaml").write_text(RULES.read_text())
    series = [
        {"series": f'exeat_bypass_attempts_total{{{N},project="p",kind="dot"}}', "values": "_x3 7x20"},
        {"series": f'exeat_dns_anomalies_total{{{N},project="p",kind="dns.tunnel"}}', "values": "_x3 7x20"},
        {"series": f"exeat_ledger_drifts_total{{{N}}}", "values": "_x3 7x20"},
        {"series": UP[0], "values": "_x3 1x20"},
    ]
    quiet = [
        {"alertname": name, "eval_time": f"{minute}m", "exp_alerts": []}
        for name in ("ExeatBypassAttempt", "ExeatDnsAnomaly", "ExeatLedgerBooksDiffer")
        for minute in (4, 7, 15, 20)
    ]
    file = {
        "rule_files": ["rules.yaml"],
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": quiet}],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(file))
    promtool("test", "rules", str(tmp_path / "tests.yaml"))


def test_what_is_shipped_is_valid() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", "--syntax-only", str(SHIPPED / "prometheus.yaml"))
    done = subprocess.run(
        ["amtool", "check-config", str(SHIPPED / "alertmanager.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=ExeatNodeDown", "severity=critical"), "on-call"),
        (("alertname=ExeatApprovalBacklog", "severity=warning"), "people"),
        (("alertname=ExeatKillSwitchOn", "severity=info"), "nobody"),
    ],
)
def test_alerts_go_to_whom_they_concern(labels: tuple[str, ...], receiver: str) -> None:
    config = f"--config.file={SHIPPED / 'alertmanager.yaml'}"
    done = subprocess.run(
        ["amtool", "config", "routes", "test", config, *labels], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr


def test_each_alert_says_what_to_do_and_stands_in_the_manual() -> None:
    page = (SHIPPED.parents[2] / "docs" / "monitoring.md").read_text()
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert f"`{name}`" in page


# --- the dashboard

DASHBOARD = json.loads((SHIPPED / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RECORDED = {
    rule["record"]
    for g in yaml.safe_load(RULES.read_text())["groups"]
    for rule in g["rules"]
    if "record" in rule
}


def names_in(expr: str) -> set[str]:
    return set(re.findall(r"\bexeat[_:][a-z0-9_:]+", expr))


def known(name: str) -> bool:
    bare = name.removeprefix("exeat_")
    family = re.sub(r"_(bucket|count|sum)$", "", bare)
    return name in RECORDED or bare in METRICS or METRICS.get(family, METRICS["leases"]).type == "histogram"


def test_rules_and_dashboard_name_only_metrics_that_are_exported() -> None:
    rules = [rule["expr"] for g in yaml.safe_load(RULES.read_text())["groups"] for rule in g["rules"]]
    exprs = rules + [target["expr"] for panel in PANELS for target in panel["targets"]]
    assert [name for expr in exprs for name in names_in(expr) if not known(name)] == []
    assert all(names_in(expr) for expr in exprs if "up{" not in expr)


def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    exprs = [target["expr"] for panel in PANELS for target in panel["targets"]]
    filled = [re.sub(r"\$__rate_interval", "5m", re.sub(r"\$(instance|project)\b", ".*", e)) for e in exprs]
    rules = [{"record": f"test:{index}", "expr": expr} for index, expr in enumerate(filled)]
    (tmp_path / "dashboard.yaml").write_text(yaml.safe_dump({"groups": [{"name": "d", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "dashboard.yaml"))


def test_the_dashboard_is_whole() -> None:
    """What Grafana needs of a dashboard: ids, places that do not overlap, one data source to choose."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "instance", "project"]
    assert DASHBOARD["schemaVersion"] >= 36
