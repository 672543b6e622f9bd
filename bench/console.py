"""What the console costs and how quick it is: `python -m bench.console [--records N]`, as root.

In the lab, with real Chromium and real jobs: bytes of the first load, time until the list is there with a
cold cache, what a tab and the gateway spend while flows come and go, twelve tabs, and how long a held flow
waits after the key was pressed. Then `bench.console_asks`: what long questions to a ledger of N records cost
the gateway's flows; 0 leaves that out, and that goal is not met then. Chromium, the jobs, their origin and
the appliance share the machine: two quiet cores at least. Ends with `N of M goals met`; exit 1 while one is
not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from bench import console_asks, console_tabs
from bench import console_world as world
from bench.ledger_parts import Goal


def inside(out: Path) -> None:
    goals = []
    for goal in console_tabs.measured():
        print(goal.line(), flush=True)
        goals.append(goal)
    out.write_text(json.dumps(goals))


def in_the_lab() -> list[Goal]:
    with tempfile.TemporaryDirectory() as folder, world.running({"busy": console_tabs.POLICY}):
        out = Path(folder) / "goals.json"
        if code := world.inside("bench.console", "--inside", str(out)):
            raise SystemExit(code)
        return [Goal(*each) for each in json.loads(out.read_text())]


def beside_questions(records: int, rounds: int) -> Goal:
    found = console_asks.compared(records, rounds) if records else float("inf")
    goal = Goal(f"p99 of flows beside questions to {records:,} records", found, "times", console_asks.MOST)
    print(goal.line(), flush=True)
    return goal


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--records", type=int, default=console_asks.RECORDS, help="of the ledger that is asked"
    )
    parser.add_argument("--rounds", type=int, default=console_asks.ROUNDS, help="of bench.console_asks")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(args.inside)
        return 0
    goals = [*in_the_lab(), beside_questions(args.records, args.rounds)]
    bound = [goal for goal in goals if goal.bound is not None]
    met = sum(goal.met for goal in bound)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{met} of {len(bound)} goals met")
    return 0 if met == len(bound) else 1


if __name__ == "__main__":
    sys.exit(main())
