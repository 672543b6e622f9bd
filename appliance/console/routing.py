"""Routes, each declared once: from the declaration come checks of what comes in, the documentation, the
permission and the tests.

    routes = Routes("leases")

    @routes.get("/leases", "leases.read", query=LeaseQuery, out=LeasePage)
    async def ls(call: Call) -> LeasePage:
        '''The leases, newest first.'''
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exeat.appliance.console.problems import Problem

if TYPE_CHECKING:
    from aiohttp import web
    from pydantic import BaseModel

    from exeat.appliance.console.auth.principal import Principal
    from exeat.appliance.console.state import Console
    from exeat.ledger.ipc import Message

PREFIX = "/api/v1"


@dataclass(slots=True)
class Call:
    """One request, after all checks. `body` and `query` are of the route's models."""

    request: web.Request
    console: Console
    who: Principal
    body: Any = None
    query: Any = None

    def path(self, name: str) -> str:
        """A part of the path. Raises Problem for what no id can be."""
        value = self.request.match_info[name]
        if len(value) > 200 or not value.isprintable():
            raise Problem(404, "http.404", "no such thing")
        return value

    async def control(self, verb: str, **arguments: Any) -> Message:
        """Ask control as the person who calls; None is left out. Raises RefusedError."""
        return await self.console.control(self.who, verb, **arguments)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """`permission`: of `permissions.PERMISSIONS`, or "" for nobody in particular. `out` None: the handler
    makes the response itself, of `media` (one of several, with commas). `etag`: the answer has one, and
    If-None-Match counts."""

    method: str
    path: str
    permission: str
    handler: Handler
    tag: str
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    out: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    status: int = 200
    etag: bool = False
    media: str = "application/json"

    @property
    def summary(self) -> str:
        return (self.handler.__doc__ or "").strip()

    @property
    def name(self) -> str:
        return f"{self.tag}.{self.handler.__name__}"


class Routes(list[Route]):
    """The routes of one resource, below `prefix`."""

    def __init__(self, tag: str, prefix: str = PREFIX) -> None:
        super().__init__()
        self.tag = tag
        self.prefix = prefix

    def get(self, path: str, permission: str, **more: Any) -> Callable[[Handler], Handler]:
        return self._add("GET", path, permission, more)

    def post(self, path: str, permission: str, **more: Any) -> Callable[[Handler], Handler]:
        return self._add("POST", path, permission, more)

    def put(self, path: str, permission: str, **more: Any) -> Callable[[Handler], Handler]:
        return self._add("PUT", path, permission, more)

    def delete(self, path: str, permission: str, **more: Any) -> Callable[[Handler], Handler]:
        return self._add("DELETE", path, permission, more)

    def _add(
        self, method: str, path: str, permission: str, more: dict[str, Any]
    ) -> Callable[[Handler], Handler]:
        def declare(handler: Handler) -> Handler:
            self.append(Route(method, self.prefix + path, permission, handler, self.tag, **more))
            return handler

        return declare
