"""One's own passkeys. What they sign is made and checked in control; the console carries it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from exeat.appliance.console.models import Body, Empty, Out, Text
from exeat.appliance.console.routing import Call, Routes

routes = Routes("passkeys")
_Code = Annotated[str, Field(min_length=1, max_length=64)]


class PasskeyRow(Out):
    id: str
    person: str
    name: str
    made_ms: int
    used_ms: int


class PasskeyPage(Out):
    """`on`: what opens something is decided with a passkey on this node."""

    items: list[PasskeyRow]
    on: bool


class Begin(Body):
    """`code` is what root made by `exeat passkey invite NAME`."""

    code: _Code


class Options(Out):
    """For `PublicKeyCredential.parseCreationOptionsFromJSON`, then `navigator.credentials.create`."""

    options: dict[str, Any]


class Register(Body):
    """`credential` is the new credential's `toJSON()`."""

    code: _Code
    name: Text = ""
    credential: dict[str, Any]


class Assertion(Body):
    """What the person signed: `expires_ms` of the challenge, and the credential's `toJSON()`."""

    expires_ms: int
    credential: dict[str, Any]


class Challenge(Out):
    """To be signed, in base64url, by one of the passkeys in `allow`: the SHA-256 of the decision."""

    challenge: str
    expires_ms: int
    rp_id: str
    allow: list[str]


@routes.get("/passkeys", "passkeys", out=PasskeyPage, errors=(503,))
async def ls(call: Call) -> PasskeyPage:
    """One's own."""
    said = await call.control("passkey.ls")
    return PasskeyPage(items=[PasskeyRow(**row) for row in said["passkeys"]], on=said["on"])


@routes.post("/passkeys/begin", "passkeys", body=Begin, out=Options, errors=(503,))
async def begin(call: Call) -> Options:
    """Options for the browser, by which it makes a new passkey."""
    return Options(options=(await call.control("passkey.begin", code=call.body.code))["options"])


@routes.post("/passkeys", "passkeys", body=Register, out=PasskeyRow, status=201, errors=(503,))
async def register(call: Call) -> PasskeyRow:
    """Register what the browser made."""
    said = await call.control("passkey.register", **call.body.model_dump())
    return PasskeyRow(**said["passkey"])


@routes.delete("/passkeys/{id}", "passkeys", out=Empty, errors=(404, 503))
async def remove(call: Call) -> Empty:
    """It decides nothing from now on."""
    await call.control("passkey.remove", passkey=call.path("id"))
    return Empty()


async def challenge(call: Call, verb: str, **decision: Any) -> Challenge:
    """What has to be signed before `verb` is asked for with these arguments."""
    given = {key: value for key, value in decision.items() if value is not None}
    said = await call.control("passkey.challenge", decision={"verb": verb, **given})
    return Challenge(**{name: said[name] for name in Challenge.model_fields})
