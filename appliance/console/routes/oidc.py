"""Signing in with the word of an OpenID provider (`[oidc]`)."""

from __future__ import annotations

from typing import Annotated, Final

from aiohttp import web
from pydantic import Field

from exeat.appliance.console.auth.oidc import BACK, BEGUN_S
from exeat.appliance.console.models import Out, Query
from exeat.appliance.console.permissions import PUBLIC
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routes.session import give_session
from exeat.appliance.console.routing import PREFIX, Call, Routes
from exeat.appliance.errors import RefusedError

routes = Routes("oidc")

_COOKIE: Final = "oidc"
_VSCHAR: Final = r"^[\x20-\x7e]*$"  # RFC 6749 appendix A: of codes, states and errors


class Ways(Out):
    """How people may sign in. `oidc` is what the button says, "" where there is none."""

    password: bool
    oidc: str


class Answered(Query):
    """What the provider sends the browser back with (RFC 6749 section 4.1.2, RFC 9207)."""

    state: Annotated[str, Field(max_length=200, pattern=_VSCHAR)]
    code: Annotated[str, Field(max_length=4096, pattern=_VSCHAR)] = ""
    iss: Annotated[str, Field(max_length=512, pattern=_VSCHAR)] = ""
    session_state: Annotated[str, Field(max_length=512, pattern=_VSCHAR)] = ""
    error: Annotated[str, Field(max_length=200, pattern=_VSCHAR)] = ""
    error_description: Annotated[str, Field(max_length=1000, pattern=_VSCHAR)] = ""


@routes.get("/session/ways", PUBLIC, out=Ways)
async def ways(call: Call) -> Ways:
    """How to sign in here."""
    section = call.console.config.oidc
    return Ways(password=True, oidc=section.title if section.issuer else "")


@routes.get("/session/oidc", PUBLIC, status=303, media="", errors=(403, 404))
async def begin(call: Call) -> web.Response:
    """To the provider."""
    provider = call.console.provider
    if provider is None:
        raise Problem(404, "auth.oidc", "there is no [oidc] in the configuration")
    place, binding = await provider.begin()
    response = web.Response(status=303, headers={"Location": place})
    # Lax: the browser comes back from another site. It opens nothing, it only says which browser began.
    response.set_cookie(
        _COOKIE,
        binding,
        max_age=int(BEGUN_S),
        httponly=True,
        samesite="Lax",
        secure=call.console.secure,
        path=BACK,
    )
    return response


@routes.get(BACK.removeprefix(PREFIX), PUBLIC, query=Answered, status=303, media="", errors=(401, 403, 404))
async def back(call: Call) -> web.Response:
    """From the provider: the session's cookie, and on to the console."""
    provider, answer = call.console.provider, call.query
    if provider is None:
        raise Problem(404, "auth.oidc", "there is no [oidc] in the configuration")
    if answer.error or not answer.code:
        raise Problem(403, "auth.oidc", "the provider did not sign you in")
    try:
        name = await provider.end(
            answer.state, answer.code, answer.iss, call.request.cookies.get(_COOKIE, "")
        )
    except RefusedError:
        call.console.failures["oidc"] += 1
        raise
    account = call.console.accounts.find(name)
    if account is None:
        call.console.failures["oidc"] += 1
        raise Problem(401, "auth.oidc", "the provider knows you, and there is no account of that name here")
    response = web.Response(status=303, headers={"Location": "/"})
    give_session(call, account, response, "oidc")
    response.del_cookie(_COOKIE, path=BACK)
    return response
