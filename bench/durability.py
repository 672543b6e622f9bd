"""What the ledger acknowledged is there: `python -m bench.durability [--kills N] [--cuts N]`, as root.

Kills: a real daemon under load is killed with SIGKILL again and again; every acknowledged record must be
in the ledger. Cuts: power is lost in the middle of writing (`tests/support/power.py` says how that is
played), and the ledger must come back with all that was acknowledged, whole and in order. The same
cuts without any sync must lose something: else this bench would not notice a loss. Tamper: how long
until a witness on this machine has refused a history that was rewritten with the real key.

Exit code 1 on a loss, or where the control loses nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.killing import kill_again_and_again
from tests.support.power import Machine, memory_folder
from tests.support.rewriting import seconds_to_notice

if TYPE_CHECKING:
    from collections.abc import Iterator


def cuts(count: int, *, synced: bool) -> Iterator[str]:
    """What each cut lost; a machine that lost something is thrown away."""
    machine: Machine | None = None
    folder = memory_folder(f"exeat-durability-{os.getpid()}")
    try:
        for number in range(count):
            if machine is None:
                shutil.rmtree(folder)
                folder.mkdir()
                machine = Machine(folder, synced=synced, seed=number)
            lost = machine.cut()
            yield lost
            if lost or machine.size > 10_000:  # that is enough history to read each time
                machine = None
    finally:
        shutil.rmtree(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill the ledger, and cut its power.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--rewrites", type=int, default=5)
    args = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        acked, lost = kill_again_and_again(Path(name), args.kills)
    print(
        f"kill -9 under load      {args.kills:>6} kills   {acked:>9} acknowledged   {lost} lost", flush=True
    )
    found = [each for each in cuts(args.cuts, synced=True) if each]
    print(f"power cuts              {args.cuts:>6} cuts    {len(found):>9} with a loss", flush=True)
    for each in found:
        print(f"  LOST: {each}")
    control = max(1, args.cuts // 10)
    noticed = sum(bool(each) for each in cuts(control, synced=False))
    print(f"the same without sync   {control:>6} cuts    {noticed:>9} with a loss (must be some)", flush=True)
    times = [seconds_to_notice(args.rewrites) for _ in range(args.rewrites)]
    worst = max(times, default=0.0)
    print(
        f"rewritten, with a witness{args.rewrites:>5} times   reported after {worst:.2f} s at most",
        flush=True,
    )
    print(f"took {time.monotonic() - began:.0f} s")
    return int(bool(lost or found or not noticed or worst > 5))


if __name__ == "__main__":
    sys.exit(main())
