"""`exeat metrics`: what the node counts, as Prometheus reads it."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.client import Client, load_config

if TYPE_CHECKING:
    import argparse

FILES: Final = {
    "rules": "rules.yaml",
    "prometheus": "prometheus.yaml",
    "alertmanager": "alertmanager.yaml",
    "dashboard": "dashboard.json",
}


def register(commands: Any) -> None:
    parser = commands.add_parser("metrics", help="print metrics as Prometheus reads them")
    parser.add_argument(
        "--file", choices=FILES, help="print what comes with exeat for Prometheus, Alertmanager or Grafana"
    )
    parser.set_defaults(handler=_metrics)


def _metrics(args: argparse.Namespace) -> int:
    if args.file:
        folder = files("exeat.appliance") / "metrics" / "prometheus"
        sys.stdout.write((folder / FILES[args.file]).read_text(encoding="utf-8"))
        return 0
    from exeat.appliance.metrics.text import exposition

    client = Client(load_config(args))
    rows = client.call("metrics")["metrics"]
    client.close()
    sys.stdout.write(exposition(rows).decode())
    return 0
