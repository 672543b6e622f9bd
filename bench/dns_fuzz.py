"""Bitten DNS messages by the million: does anything come out of the parsers that should not?

    python -m bench.dns_fuzz [--messages N] [--seed S]

A share of it runs with the tests. Ends with exit code 1 and the message in hex at the first surprise.
"""

from __future__ import annotations

import argparse
import json
import time

from tests.support.dns_mutations import mutations, read


def main() -> int:
    """Exit code 0 if nothing but WireError was raised."""
    parser = argparse.ArgumentParser(prog="python -m bench.dns_fuzz")
    parser.add_argument("--messages", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    args = parser.parse_args()
    taken, began = 0, time.perf_counter()
    for data in mutations(args.seed, args.messages):
        try:
            taken += read(data)
        except Exception as error:
            print(f"{type(error).__name__}: {error}: {data.hex()}")
            return 1
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"messages": args.messages, "taken": taken, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
