"""Metrics for Prometheus, at the address where it looks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from exeat.appliance.console.routing import Call, Route, Routes
from exeat.appliance.metrics.table import METRICS
from exeat.appliance.metrics.text import CONTENT_TYPE, exposition
from exeat.ledger.tally import OTHER

if TYPE_CHECKING:
    from exeat.appliance.console.auth.principal import Principal
    from exeat.appliance.console.state import Console

NOBODYS: Final = frozenset({"", "*", OTHER})  # values of `project` that name none


async def metrics(call: Call) -> web.Response:
    """What the node counts, in Prometheus' text format; of projects those that the caller sees."""
    said = await call.control("metrics")
    text = exposition(seen(said["metrics"], call.who), own(call.console))
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


def seen(rows: dict[str, list[Any]], who: Principal) -> dict[str, list[Any]]:
    """The rows about no project, or one that this person sees."""
    found: dict[str, list[Any]] = {}
    for name, those in rows.items():
        labels = METRICS[name].labels if name in METRICS else ()
        at = labels.index("project") if "project" in labels else None
        found[name] = [row for row in those if at is None or row[0][at] in NOBODYS or who.sees(row[0][at])]
    return found


def own(console: Console) -> dict[str, list[Any]]:
    """What the console itself counts."""
    failures = [[[method], count] for method, count in sorted(console.failures.items())]
    return {
        "sse_clients": [[[], console.streams.total()]],
        "auth_failures_total": failures,
        "process_up": [[["console"], 1]],
    }


routes = Routes("metrics")
# Not below /api/v1: this is where monitoring looks.
routes.append(Route("GET", "/metrics", "metrics.read", metrics, "metrics", errors=(503,), media="text/plain"))
