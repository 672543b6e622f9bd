"""Every route there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.appliance.console.routes import requests, session, status

if TYPE_CHECKING:
    from exeat.appliance.console.routing import Route

ALL: Final[tuple[Route, ...]] = (
    *session.routes,
    *status.routes,
    *requests.routes,
)
