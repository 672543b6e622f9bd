"""`exeat ledger stream`: where each `[[ledger.stream]]` stands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path


def register(actions: Any, directories: Callable[[argparse.Namespace], list[Path]]) -> list[Any]:
    """Add the action; `directories` finds the ledgers. The parsers, for options that all actions share."""
    parser = actions.add_parser("stream", help="how far each [[ledger.stream]] is, and what fails")
    parser.set_defaults(handler=lambda args: run(args) if directories(args) else 0)
    return [parser]


def run(args: argparse.Namespace) -> int:
    from exeat.appliance.stream.follow import status

    config = load_config(args)
    if not config.ledger.stream:
        raise UsageError("no [[ledger.stream]] in the configuration: docs/ledger.md shows one")
    rows = status(config)
    if args.json:
        print(json.dumps(rows))
    for row in () if args.json else rows:
        waiting = f"{row['waiting']} records behind" if row["begun"] else "not begun"
        print(f"{row['stream']}: at record {row['next']} of {row['ledger'][:12]}, {waiting}")
        print(f"  FAILED: {row['failed']}\n" if row["failed"] else "", end="")
    return int(any(row["failed"] for row in rows))
