"""`exeat doctor`: is this machine fit, and if not, what to do next."""

from __future__ import annotations

import json
import pwd
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.doctor import Check, Status, examine, fail
from exeat.appliance.jail_check import check_jail

if TYPE_CHECKING:
    import argparse

    from exeat.appliance.config import Config


def register(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="check this machine and say what to do next")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--jail", action="store_true", help="also make a jail and look out of it (root)")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """0 when nothing fails (warnings are allowed), else 1."""
    config = load_config(args)
    checks = examine(config)
    if args.jail:
        checks += _jail(config, checks)
    fit = all(check.status is not Status.FAIL for check in checks)
    if args.json:
        print(json.dumps({"ok": fit, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(render(checks))
    return 0 if fit else 1


def _jail(config: Config, checks: list[Check]) -> list[Check]:
    blocking = {"root", "capabilities", "namespaces", "ipv6", "users", "interpreter"}
    if any(check.name in blocking and check.status is Status.FAIL for check in checks):
        return [fail("jail", "not tried", "repair the failures above first")]
    return check_jail(pwd.getpwnam(config.users.gateway))


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
