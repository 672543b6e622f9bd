"""`exeat request HOST --wait`: ask for a lease, and wait for the person who decides."""

from __future__ import annotations

from typing import Any

from exeat.appliance.commands.lease import request_options


def register(commands: Any) -> None:
    parser = commands.add_parser("request", help="ask for a lease, and wait for it with --wait")
    parser.add_argument("--json", action="store_true", help="print JSON")
    request_options(parser)
