"""A million ordinary lookups past the guard's eye for tunnels: how many are refused (none may be).

    python -m bench.dns_ordinary [--lookups N]

Many machines at once, each a subject, with the clock of the lookups and not of the wall. Prints what
was told about whom, and what a look costs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from itertools import islice

from tests.support.ordinary_names import ordinary

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.dns.screen import Screen, Warned
from exeat.policy.model import Decision, Subject, Verdict

ALLOWED = Decision(Verdict.ALLOW, "posture.public")
HOURS = 24.0


def main() -> int:
    """Exit code 1 if anything was refused."""
    parser = argparse.ArgumentParser(prog="python -m bench.dns_ordinary")
    parser.add_argument("--lookups", type=int, default=1_000_000, metavar="N")
    wanted = parser.parse_args().lookups
    told: Counter[str] = Counter()
    clock = [0.0]
    screen = Screen(lambda: clock[0], bundled_suffixes().registrable, lambda warned: _count(told, warned))
    done = refused = machines = 0
    spent = 0.0
    while done < wanted:
        subject = Subject("p", "a", f"machine-{machines}", "", "n")
        day = list(islice(ordinary(machines, hours=HOURS), wanted - done))
        began = time.perf_counter()
        for now, host, exists in day:
            clock[0] = now + machines * HOURS * 3600
            refused += not screen.look(subject, host, ALLOWED, strict=True).allowed
            screen.heard(subject, host, ALLOWED, exists=exists, strict=True)
        spent += time.perf_counter() - began
        done += len(day)
        machines += 1
    figures = {"lookups": done, "machines": machines, "refused": refused, "told": dict(told)}
    print(json.dumps({**figures, "us_per_lookup": round(spent / done * 1e6, 2)}))
    return 1 if refused else 0


def _count(told: Counter[str], warned: Warned) -> None:
    told[f"{warned.decision.reason} {warned.domain or '*'} {' '.join(warned.signals)}"] += 1


if __name__ == "__main__":
    raise SystemExit(main())
