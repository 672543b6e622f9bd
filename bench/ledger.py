"""The ledger's figures: `python -m bench.ledger [--short] [--dir DIR]`.

A real daemon in a process of its own, real records (a flow is an open, a reserve and a close), a real
disk: DIR must lie on the one that matters. Each figure stands beside what it is measured against in
the same run. Ends with `N of M goals met`; exit code 1 while one is not. --short takes smaller sizes.

Rates and latencies are wall time: a busy machine spoils them. The lines in microseconds of CPU are what
the processes used, user and system, and move much less; a busy second thread of a core still adds to them.
The whole run makes ten million records and takes about five minutes and 4 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.ledger_append import append_goals
from bench.ledger_parts import Goal, flows, timed
from bench.ledger_reading import question_goals, reading_goals

from exeat.ledger import records

if TYPE_CHECKING:
    from collections.abc import Iterator


def core_goals() -> Iterator[Goal]:
    made = [records.decode(part) for parts in flows(3000) for part in parts]
    encoded = [records.encode(record) for record in made]
    best = min(timed(lambda: [records.encode(each) for each in made]) for _ in range(5))
    yield Goal("encoding a record, mean of open, reserve, close", best / len(made) * 1e6, "us")
    best = min(timed(lambda: [records.inspect(each) for each in encoded]) for _ in range(5))
    yield Goal("judging a record, the same", best / len(made) * 1e6, "us")
    best = min(timed(lambda: [records.decode(each) for each in encoded]) for _ in range(5))
    yield Goal("decoding a record, the same", best / len(made) * 1e6, "us")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the ledger.")
    parser.add_argument("--short", action="store_true", help="smaller sizes: about a minute")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")  # noqa: S108
    args = parser.parse_args(argv)
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        base = Path(name)
        for part in (
            core_goals(),
            append_goals(base, short=args.short),
            reading_goals(base, short=args.short),
            question_goals(base, short=args.short),
        ):
            for goal in part:
                goals.append(goal)
                print(goal.line(), flush=True)
    bound = [goal for goal in goals if goal.bound is not None]
    met = sum(goal.met for goal in bound)
    load = os.getloadavg()[0]
    if load > 2:
        print(f"load {load:.1f} on {os.cpu_count()} cores: neighbours take part in these figures")
    print(f"{met} of {len(bound)} goals met")
    return 0 if met == len(bound) else 1


if __name__ == "__main__":
    sys.exit(main())
