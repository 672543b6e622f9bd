"""What a browser must not be talked into: calls by another name (DNS rebinding), and from another site."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from exeat.appliance.console.auth.principal import unix_uid
from exeat.appliance.console.problems import Problem

if TYPE_CHECKING:
    from aiohttp import web

    from exeat.appliance.console.auth.principal import Principal
    from exeat.appliance.console.state import Console

SAFE: Final = frozenset({"GET", "HEAD"})
CSRF_HEADER: Final = "X-CSRF-Token"
_SITES: Final = frozenset({"same-origin", "none"})


def authorities(console: Console) -> frozenset[str]:
    """The values of Host by which the console may be called."""
    place = console.config.console.place()
    if place is None:
        return frozenset()
    address, port = place
    names = {f"[{address}]" if ":" in address else address, *console.config.console.hosts}
    if not console.secure:
        names.add("localhost")
    default = 443 if console.secure else 80
    # By its own names also without a port: on 443 a proxy may stand before it, and speak TLS on to it.
    bare = names if port == default else set(console.config.console.hosts) if console.secure else set()
    return frozenset({f"{name}:{port}" for name in names} | bare)


def check_host(console: Console, request: web.Request) -> None:
    """Raises Problem: a page of some other name that leads here must not get an answer."""
    if unix_uid(request) is None and (request.headers.get("Host") or "").lower() not in authorities(console):
        raise Problem(421, "auth.host", "call the console by its address, or add the name to [console] hosts")


def check_site(console: Console, request: web.Request) -> None:
    """Of what changes something: that it comes from a page of ours. Raises Problem."""
    if request.method in SAFE:
        return
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    scheme = "https" if console.secure else "http"
    ours = origin is None or origin.lower() in {f"{scheme}://{name}" for name in authorities(console)}
    if not ours or (site is not None and site not in _SITES):
        raise Problem(403, "auth.origin", "this came from a page of another site")


def check_csrf(request: web.Request, who: Principal) -> None:
    """A cookie is sent by itself; the header only by who has read it from us. Raises Problem."""
    if who.session is None or request.method in SAFE:
        return
    said = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(said.encode(errors="surrogateescape"), who.session.csrf.encode()):
        raise Problem(403, "auth.csrf", f"send the session's csrf in {CSRF_HEADER}")
