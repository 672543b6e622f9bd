"""`exeat metrics`: what the node counts, as Prometheus reads it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("metrics", help="print metrics as Prometheus reads them")
    parser.set_defaults(handler=_metrics)


def _metrics(args: argparse.Namespace) -> int:
    from exeat.appliance.metrics.text import exposition

    client = Client(load_config(args))
    rows = client.call("metrics")["metrics"]
    client.close()
    sys.stdout.write(exposition(rows).decode())
    return 0
