"""`exeat doctor`: is this machine fit, and if not, what to do next."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.doctor import Check, Status, examine

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="check this machine and say what to do next")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """0 when nothing fails (warnings are allowed), else 1."""
    checks = examine(load_config(args))
    fit = all(check.status is not Status.FAIL for check in checks)
    if args.json:
        print(json.dumps({"ok": fit, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(render(checks))
    return 0 if fit else 1


def render(checks: list[Check]) -> str:
    """Aligned lines, each cure below its finding, and one line that sums up."""
    lines = []
    for check in checks:
        lines.append(f"{check.status:<5} {check.name:<13} {check.detail}")
        if check.fix:
            lines.append(f"{'':<19} -> {check.fix}")
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    verdict = "not fit" if counts[Status.FAIL] else "fit"
    lines.append(
        f"\n{verdict}: {counts[Status.OK]} ok, {counts[Status.WARN]} warn, {counts[Status.FAIL]} fail"
    )
    return "\n".join(lines)
