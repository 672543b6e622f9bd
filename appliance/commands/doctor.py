"""`exeat doctor`: is this machine fit, and if not, what to do next."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.doctor import Check, Status, examine, fail
from exeat.appliance.jail.check import Findings, check_jail
from exeat.appliance.jail.picture import draw

if TYPE_CHECKING:
    import argparse

    from exeat.appliance.config import Config


def register(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="check this machine and say what to do next")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--jail", action="store_true", help="also make a jail and try every way out of it (root)"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """0 when nothing fails (warnings are allowed), else 1."""
    config = load_config(args)
    checks = examine(config)
    jail = _jail(config, checks) if args.jail else Findings([], [])
    checks += jail.checks
    fit = all(check.status is not Status.FAIL for check in checks)
    if args.json:
        document: dict[str, Any] = {"ok": fit, "checks": [asdict(check) for check in checks]}
        if args.jail:
            document["probes"] = [result.document() for result in jail.results]
        print(json.dumps(document, indent=2))
        return 0 if fit else 1
    if jail.results:
        print(draw(jail.results), end="\n\n")
    print(render(checks))
    return 0 if fit else 1


def _jail(config: Config, checks: list[Check]) -> Findings:
    blocking = {"root", "capabilities", "namespaces", "ipv6", "users", "interpreter"}
    if any(check.name in blocking and check.status is Status.FAIL for check in checks):
        return Findings([fail("jail", "not tried", "repair the failures above first")], [])
    return check_jail(config, _say)


def _say(text: str) -> None:
    print(f"exeat: {text}", file=sys.stderr, flush=True)


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
