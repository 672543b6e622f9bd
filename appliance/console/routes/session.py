"""Signing in and out with a browser."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from aiohttp import web
from pydantic import Field, model_validator

from exeat.appliance.console.auth.limits import place_of
from exeat.appliance.console.auth.principal import Principal, cookie_name
from exeat.appliance.console.dispatch import too_often
from exeat.appliance.console.models import Body, Empty, Out
from exeat.appliance.console.permissions import PERMISSIONS, PUBLIC
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routing import Call, Routes

if TYPE_CHECKING:
    from exeat.appliance.console.auth.accounts import Account

routes = Routes("session")

_Secret = Annotated[str, Field(min_length=1, max_length=256)]


class SignIn(Body):
    """A name and its password, or the secret of a sign-in link (`exeat console login`)."""

    name: Annotated[str, Field(max_length=63)] = ""
    password: Annotated[str, Field(max_length=256)] = ""
    link: Annotated[str, Field(max_length=256)] = ""

    @model_validator(mode="after")
    def _one_way(self) -> SignIn:
        if bool(self.name and self.password) == bool(self.link):
            raise ValueError("name and password, or link")
        return self


class SessionOut(Out):
    """Who is signed in. `csrf` goes into X-CSRF-Token of every call that changes something; "" where the
    caller has no cookie. No projects: all of them."""

    name: str
    role: str
    projects: list[str]
    permissions: list[str]
    via: str
    csrf: str


@routes.post("/session", PUBLIC, body=SignIn, out=SessionOut, errors=(401,))
async def sign_in(call: Call) -> web.Response:
    """Sign in: the answer sets the session's cookie.

    One answer for all that is wrong, and a few tries for each name and address.
    """
    console, body = call.console, call.body
    account = _of_link(call) if body.link else await _of_password(call)
    if account is None:
        console.failures["link" if body.link else "password"] += 1
        raise Problem(401, "auth.wrong", "wrong name, password or link; a link works once, for 15 minutes")
    by = "link" if body.link else "password"
    response = web.Response(content_type="application/json")
    response.text = _shown(give_session(call, account, response, by)).model_dump_json()
    return response


def give_session(call: Call, account: Account, response: web.Response, by: str) -> Principal:
    """Open a session of the account and put its cookie into the response."""
    console = call.console
    cookie, session = console.accounts.open_session(account.name, console.now_ms(), by)
    response.set_cookie(
        cookie_name(console), cookie, httponly=True, samesite="Strict", secure=console.secure, path="/"
    )
    return Principal(account.name, account.role, frozenset(account.projects), "session", session=session)


def _of_link(call: Call) -> Account | None:
    """Like a token, it is not guessed: only wrong ones count."""
    console = call.console
    name = console.accounts.use_link(call.body.link, console.now_ms())
    account = console.accounts.find(name) if name is not None else None
    wait = 0.0 if account else console.tries_of_address.take(place_of(call.request.remote), time.monotonic())
    if wait:
        raise too_often(wait)
    return account


async def _of_password(call: Call) -> Account | None:
    """Counted before it is known how it ends: what runs side by side must not get more tries."""
    console, name, address = call.console, call.body.name, place_of(call.request.remote)
    now = time.monotonic()
    wait = max(console.tries_of_address.wait(address, now), console.tries.wait(name, now))
    if wait:
        raise too_often(wait)
    console.tries.count(name, now)
    console.tries_of_address.count(address, now)
    account = console.accounts.find(name)
    fits = await console.passwords.fits(call.body.password, account.password if account is not None else "")
    if not fits:
        return None
    console.tries.forget(name)
    return account


@routes.get("/session", "session", out=SessionOut)
async def show(call: Call) -> SessionOut:
    """Who is calling, and what they may do."""
    return _shown(call.who)


@routes.delete("/session", "session", out=Empty)
async def sign_out(call: Call) -> web.Response:
    """End the session."""
    if call.who.session is not None:
        call.console.accounts.sign_out(call.who.session)
    response = web.Response(text="{}", content_type="application/json")
    response.del_cookie(
        cookie_name(call.console), httponly=True, samesite="Strict", secure=call.console.secure, path="/"
    )
    return response


def _shown(who: Principal) -> SessionOut:
    return SessionOut(
        name=who.name,
        role=who.role,
        projects=sorted(who.projects),
        permissions=sorted(name for name in PERMISSIONS if who.may(name)),
        via=who.via,
        csrf=who.session.csrf if who.session is not None else "",
    )
