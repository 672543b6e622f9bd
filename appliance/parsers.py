"""What the parsers of several commands have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse


def add_verb(verbs: Any, name: str, text: str, handler: Any) -> argparse.ArgumentParser:
    """One verb of a command, below its subparsers `verbs`; it can print JSON."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=handler)
    return parser
