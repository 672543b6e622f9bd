"""The console process: HTTP for people and programs, as `exeat-console`, beside control.

It holds no key of the ledger's and no descriptor of a jail, and control judges again what it asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from aiohttp import web

from exeat.appliance.console import resources
from exeat.appliance.console.auth.accounts import Accounts
from exeat.appliance.console.auth.origin import check_host
from exeat.appliance.console.dispatch import MAX_BODY, handler_of
from exeat.appliance.console.openapi import document
from exeat.appliance.console.problems import Problem, of_http, of_refusal
from exeat.appliance.console.pump import pump
from exeat.appliance.console.state import Console
from exeat.appliance.console.static_files import add_files
from exeat.appliance.console.telling import tell_ledger
from exeat.appliance.errors import NotReachableError, RefusedError
from exeat.ledger import ipc
from exeat.ledger.supervised import beat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from exeat.appliance.config import Config
    from exeat.appliance.listeners import Listener

SWEEP_S: Final = 600.0
LINE: Final = 32_768  # bytes of a request's first line: what a query may say, with every character escaped
LOOK_S: Final = 5.0  # between two looks at who is connected
_CSP: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Server": "exeat",
}
BARE: Final = ("text/javascript", "text/css")
BARE_HEADERS: Final = ("X-Content-Type-Options", "Cross-Origin-Resource-Policy", "Server")
_HSTS: Final = "max-age=31536000"


def build(console: Console) -> web.Application:
    """The application with every route."""

    @web.middleware
    async def shell(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.protocol is not None:
            console.connections.served(request.protocol)
        try:
            check_host(console, request)
            return await handler(request)
        except Problem as problem:
            return problem.response()
        except RefusedError as error:
            return of_refusal(error).response()
        except web.HTTPException as error:
            return of_http(error).response()
        except Exception as error:
            print(f"console: internal error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return Problem(500, "internal.error", "a fault of exeat's: see the console's log").response()

    async def headers(_request: web.Request, response: web.StreamResponse) -> None:
        # Scripts and sheets are many, and no pages: what pages are told would be a third of their bytes.
        bare = response.content_type in BARE
        response.headers.update({name: HEADERS[name] for name in BARE_HEADERS} if bare else HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        if console.secure:
            response.headers["Strict-Transport-Security"] = _HSTS

    app = web.Application(middlewares=[shell], client_max_size=MAX_BODY)
    app.on_response_prepare.append(headers)
    for route in resources.ALL:
        app.router.add_route(route.method, route.path, handler_of(console, route))
    text = json.dumps(document(resources.ALL))

    async def spec(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="application/json")

    events = (files("exeat.appliance") / "console" / "spec" / "asyncapi.yaml").read_text(encoding="utf-8")

    async def events_spec(_request: web.Request) -> web.Response:
        return web.Response(text=events, content_type="application/yaml", charset="utf-8")

    app.router.add_get("/spec/openapi.json", spec)
    app.router.add_get("/spec/asyncapi.yaml", events_spec)
    add_files(app)
    return app


def tls(config: Config) -> ssl.SSLContext | None:
    """None for plain HTTP. Raises OSError (ssl.SSLError is one) for files that cannot be used."""
    section = config.console
    if section.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(section.certificate, section.key)
    if section.client_ca is not None:
        context.load_verify_locations(section.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def renew(config: Config, context: ssl.SSLContext) -> None:
    """Read certificate and key again, for the connections to come; what cannot be used changes nothing."""
    try:
        tls(config)  # a pair that does not fit would leave half of itself in the context
        context.load_cert_chain(config.console.certificate or "", config.console.key)
    except OSError as error:
        print(f"console: the certificate stays as it was: {error}", file=sys.stderr, flush=True)
        return
    print("console: certificate and key were read again", file=sys.stderr, flush=True)


async def _main(config: Config, doors: Sequence[Listener], ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    secure = tls(config)
    console = Console(config, Accounts(config.state_dir / "console"), secure is not None)
    if secure is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew, config, secure)
    runner = web.AppRunner(
        build(console),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=1.0,
        keepalive_timeout=75,
        max_line_size=LINE,
    )
    await runner.setup()
    try:
        for door in doors:
            await web.SockSite(runner, door.sock, ssl_context=secure).start()
        path = config.run_dir / "console" / "api.sock"
        await web.SockSite(runner, ipc.listen(path)).start()  # open to all: the peer's uid is judged
        beat(asyncio.get_running_loop())
        ready()
        async with asyncio.TaskGroup() as tasks:
            pumping = tasks.create_task(
                pump(console, console.journal, config.state_dir / "console" / "pumped.json")
            )
            looking = tasks.create_task(_look(console, runner))
            telling = tasks.create_task(tell_ledger(console))
            await _sweep(console, stop)
            pumping.cancel()
            looking.cancel()
            telling.cancel()
    finally:
        await runner.cleanup()
        await console.close()


async def _look(console: Console, runner: web.AppRunner) -> None:
    """End connections that ask for nothing."""
    while runner.server is not None:
        await asyncio.sleep(LOOK_S)
        console.connections.sweep(runner.server.connections)


async def _sweep(console: Console, stop: asyncio.Event) -> None:
    """Until `stop`: drop what can open nothing any more."""
    while not stop.is_set():
        console.accounts.sweep(console.now_ms(), console.config.console.longest_s * 1000)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), SWEEP_S)


def serve(config: Config, doors: Sequence[Listener], ready: Callable[[], None]) -> int:
    """Run until SIGTERM. Raises NotReachableError as root: what reads bytes of all comers has no rights."""
    if os.geteuid() == 0:
        raise NotReachableError(
            "the console never runs as root: `exeat serve console` is for [users] console"
        )
    asyncio.run(_main(config, doors, ready))
    return 0
