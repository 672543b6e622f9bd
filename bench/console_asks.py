"""Does the gateway wait for the console's questions? `python -m bench.console_asks [--records N]`, as root.

A ledger of ten million records is made, and asked, by the console's own workers, one question after the
other that goes through all its rows; `bench.proxy` measures tunnels through exeat with and without that,
in turns. On two quiet cores: with others on the machine the figures say nothing. Prints the medians; exit 1
while p99 with questions is more than 1.1 times p99 without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.ledger_reading import build

from exeat.appliance.console.explorer.workers import Workers
from exeat.ledger import index
from exeat.ledger.reader import ledger_of

ORIGIN: Final = "exeat/bench"
INDEX: Final = "index.sqlite"
MOST: Final = 1.1
RECORDS: Final = 10_000_000
ROUNDS: Final = 7
LINES: Final = ("ping64-p50", "ping64-p99", "conn32")
_ASKING: Final = "--asking"


def workers(base: Path) -> Workers:
    return Workers(base, ledger_of(base, ORIGIN), base / INDEX, limit_s=3600)


async def ask(base: Path) -> None:
    """One question after the other, until it is killed."""
    asked = workers(base)
    while True:
        begun = time.monotonic()
        await asked.ask("bench", "sums", by=["job", "host"])  # no sums are kept of jobs: every row is read
        took = time.monotonic() - begun
        if took > 1:
            print(f"a question of all rows: {took:.1f} s", file=sys.stderr, flush=True)


def measured(folder: Path) -> dict[str, float]:
    """One round of `bench.proxy`."""
    out = folder / "samples.json"
    words = ["--only", ",".join(("exeat CONNECT", *LINES)), "--rounds", "1", "--json", str(out)]
    command = [sys.executable, "-m", "bench.proxy", *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 1) or not out.exists():
        raise SystemExit(f"bench.proxy ended with {done.returncode}")
    samples = json.loads(out.read_text())["samples"]
    return {each["line"]: each["values"][0] for each in samples if each["product"] == "exeat CONNECT"}


def compared(records: int, rounds: int) -> float:
    """How many times longer flows' p99 is beside questions; prints the medians of each line."""
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        base = Path(name)
        (base / "ledger").mkdir()
        build(ledger_of(base, ORIGIN), records).close()
        index.open_index(ledger_of(base, ORIGIN), path=base / INDEX).close()  # workers would take their time
        for _ in range(rounds):
            found[False].append(measured(base))
            asking = subprocess.Popen([sys.executable, "-m", "bench.console_asks", _ASKING, name])
            try:
                found[True].append(measured(base))
            finally:
                asking.kill()
                asking.wait()
    middle = {
        asked: {line: statistics.median(each[line] for each in turns) for line in LINES}
        for asked, turns in found.items()
    }
    for line in LINES:
        print(
            f"{line:<12} without {middle[False][line]:>10,.0f}  with {middle[True][line]:>10,.0f}", flush=True
        )
    return middle[True]["ping64-p99"] / middle[False]["ping64-p99"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(_ASKING, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.asking:
        asyncio.run(ask(args.asking))
    ratio = compared(args.records, args.rounds)
    print(f"{'met' if ratio <= MOST else 'MISSED'}  p99 with questions is {ratio:.2f} times (goal {MOST})")
    return int(ratio > MOST)


if __name__ == "__main__":
    raise SystemExit(main())
