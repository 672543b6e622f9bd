"""From a request to its route's handler: who, how often, from where, may they, and is it well formed."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from pydantic import BaseModel, ValidationError

from exeat.appliance.console.auth.limits import place_of
from exeat.appliance.console.auth.origin import check_csrf, check_site
from exeat.appliance.console.auth.principal import Principal, identify, unix_uid
from exeat.appliance.console.permissions import PUBLIC
from exeat.appliance.console.problems import Problem, of_refusal
from exeat.appliance.console.routing import Call, Route
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from exeat.appliance.console.state import Console

MAX_BODY: Final = 1 << 20  # bytes
BODY_S: Final = 30.0  # for a whole body: a client must not keep a connection by sending slowly
KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)  # an Idempotency-Key
NOBODY: Final = Principal("", "", frozenset(), "nobody")


def handler_of(console: Console, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What aiohttp calls for this route."""

    async def handle(request: web.Request) -> web.StreamResponse:
        check_site(console, request)
        if unix_uid(request) is None:
            _limit(console.calls_of_address, place_of(request.remote))
        who = _admitted(console, route, request)
        if who is not NOBODY and request.protocol is not None:
            console.connections.known(request.protocol)
        call = Call(request, console, who, query=_query(route, request))
        call.body = await _body(route, request)
        key = request.headers.get("Idempotency-Key")
        if key is None or request.method != "POST" or route.permission == PUBLIC:
            return await _answer(route, call)
        return await _once(route, call, key)

    return handle


def _limit(window: Any, key: str) -> None:
    wait = window.take(key, time.monotonic())
    if wait:
        raise too_often(wait)


def too_often(wait_s: float) -> Problem:
    after = max(1, math.ceil(wait_s))
    return Problem(429, "auth.rate", f"too often: again in {after} s", {"Retry-After": str(after)})


def _admitted(console: Console, route: Route, request: web.Request) -> Principal:
    who = _known(console, request) if route.permission != PUBLIC else NOBODY
    if route.permission == PUBLIC:
        return who
    if who.name != "root":
        _limit(console.calls, who.name)
    check_csrf(request, who)
    if not who.may(route.permission):
        raise Problem(403, "auth.role", f"{who.name} ({who.role}) has no permission `{route.permission}`")
    return who


def _known(console: Console, request: web.Request) -> Principal:
    """Raises Problem for nobody; each wrong credential counts against its address.

    A right one is let in whatever others there have tried: 256 bits are not guessed, and nobody is to lock
    out those who share an address with them.
    """
    try:
        who = identify(console, request)
    except Problem:
        console.failures["token" if "Authorization" in request.headers else "certificate"] += 1
        _limit(console.tries_of_address, place_of(request.remote))
        raise
    if who is None:
        raise Problem(
            401, "auth.needed", "sign in, or send a token", {"WWW-Authenticate": 'Bearer realm="exeat"'}
        )
    return who


def _query(route: Route, request: web.Request) -> BaseModel | None:
    if route.query is None:
        if request.query:
            raise Problem(422, "http.query", "this address takes no query")
        return None
    if len(request.query) != len(set(request.query)):
        raise Problem(422, "http.query", "each key of the query once")
    try:
        return route.query.model_validate(dict(request.query))
    except ValidationError as error:
        raise _invalid(error, "query") from None


async def _body(route: Route, request: web.Request) -> BaseModel | None:
    if route.body is None:
        if request.can_read_body and await _in_time(request.content.readany()):
            raise Problem(422, "http.body", "this address takes no body")
        return None
    if request.content_type != "application/json":
        raise Problem(415, "http.415", "send application/json")
    raw = await _in_time(request.read())
    try:
        return route.body.model_validate_json(raw)
    except ValidationError as error:
        raise _invalid(error, "body") from None


async def _in_time(reading: Awaitable[bytes]) -> bytes:
    try:
        async with asyncio.timeout(BODY_S):
            return await reading
    except TimeoutError:
        raise Problem(408, "http.408", f"the body did not come within {BODY_S:.0f} s") from None


def _invalid(error: ValidationError, where: str) -> Problem:
    """Where and what; never the input itself, which may be a password."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[:20]
    if found[0]["type"] == "json_invalid":
        return Problem(400, "http.json", "the body is not JSON")
    wrong = [{"at": ".".join(map(str, each["loc"])), "what": each["msg"]} for each in found]
    first = wrong[0]
    detail = f"{where}: `{first['at']}`: {first['what']}" if first["at"] else f"{where}: {first['what']}"
    return Problem(422, f"http.{where}", detail, errors=wrong)


async def _answer(route: Route, call: Call) -> web.StreamResponse:
    try:
        result = await route.handler(call)
    except RefusedError as error:
        raise of_refusal(error) from None
    if isinstance(result, web.StreamResponse):
        return result
    text = result.model_dump_json(by_alias=True)
    response = web.Response(status=route.status, text=text, content_type="application/json")
    return _with_etag(call.request, response, result, text) if route.etag else response


def _with_etag(request: web.Request, response: web.Response, result: BaseModel, text: str) -> web.Response:
    """RFC 9110 section 8.8.3: strong, of the thing's version or of the very bytes."""
    version = getattr(result, "version", None)
    tag = version if isinstance(version, str) else hashlib.sha256(text.encode()).hexdigest()[:16]
    known = {entry.value for entry in request.if_none_match or ()}
    if tag in known or "*" in known:
        response = web.Response(status=304)
    response.etag = tag
    return response


async def _once(route: Route, call: Call, key: str) -> web.StreamResponse:
    """The same key and request again gets the answer of the first time; nothing is done twice."""
    if not KEY.fullmatch(key):
        detail = "an Idempotency-Key is 1 to 128 letters, digits, - and _"
        raise Problem(422, "http.idempotency", detail)
    console, who = call.console, call.who.name
    body = call.body.model_dump_json() if call.body is not None else ""
    said = hashlib.sha256(f"{route.method} {call.request.raw_path}\n{body}".encode()).digest()
    known = console.accounts.answered(who, key)
    if known is not None:
        if known[0] != said:
            raise Problem(422, "http.idempotency", "this Idempotency-Key was used for another request")
        return web.Response(status=known[1], text=known[2], content_type="application/json")
    if (who, key) in console.answering:
        raise Problem(409, "http.idempotency", "the first request with this key is still under way")
    console.answering.add((who, key))
    try:
        response = await _answer(route, call)
    finally:
        console.answering.discard((who, key))
    if isinstance(response, web.Response) and response.text is not None:
        now = console.now_ms()
        console.accounts.keep_answer(who, key, said, response.status, response.text, now)
    return response
