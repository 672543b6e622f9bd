"""docs/monitoring.md says of each metric what the table says."""

from __future__ import annotations

import re
from pathlib import Path

from exeat.appliance.metrics.table import METRICS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "monitoring.md"


def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| `exeat_(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [
        (name, metric.type, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for name, metric in METRICS.items()
    ]


def test_no_label_is_without_end() -> None:
    few = {
        "project",
        "verdict",
        "reason",
        "direction",
        "result",
        "kind",
        "budget",
        "rcode",
        "state",
        "outcome",
    }
    few |= {"part", "digest", "posture", "node", "process", "method", "version"}
    assert {label for metric in METRICS.values() for label in metric.labels} <= few
