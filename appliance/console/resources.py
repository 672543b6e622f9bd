"""Every route there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.appliance.console.routes import (
    devices,
    events,
    flows,
    jobs,
    kill,
    leases,
    ledger,
    metrics,
    nodes,
    oidc,
    passkeys,
    policies,
    requests,
    session,
    status,
    views,
)

if TYPE_CHECKING:
    from exeat.appliance.console.routing import Route

ALL: Final[tuple[Route, ...]] = (
    *session.routes,
    *oidc.routes,
    *status.routes,
    *status.probes,
    *metrics.routes,
    *requests.routes,
    *leases.routes,
    *flows.routes,
    *kill.routes,
    *events.routes,
    *ledger.routes,
    *views.routes,
    *policies.routes,
    *jobs.routes,
    *nodes.routes,
    *devices.routes,
    *passkeys.routes,
)
