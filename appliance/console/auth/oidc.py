"""Signing in by an OpenID provider: the authorization code flow with PKCE.

OpenID Connect Core 1.0 section 3.1, RFC 7636 (PKCE, S256), RFC 9207 (issuer in the answer). The
provider's hosts are dialled at the addresses of the configuration; nothing is looked up, no redirect is
followed, and nothing of a size is read. The provider says who somebody is; what they may is ours.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import socket
import ssl
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from exeat.appliance.errors import RefusedError
from exeat.appliance.sections import endpoint
from exeat.appliance.stream.post import SinkError
from exeat.appliance.stream.sinks import read_key

if TYPE_CHECKING:
    from exeat.appliance.oidc_config import OidcSection

BACK: Final = "/api/v1/session/oidc/back"  # where the provider sends the browser to
BEGUN_S: Final = 600.0  # to come back from the provider
MAX_BEGUN: Final = 1000
KEPT_S: Final = 3600.0  # what the provider said of itself
AGAIN_S: Final = 60.0  # before its keys are asked for once more
MAX_BYTES: Final = 256 * 1024
TIMEOUT_S: Final = 10.0
SKEW_S: Final = 60
ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")  # no shared secrets, and never none


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in that has gone to the provider. `binding` is what this browser's cookie has to say."""

    binding: str
    nonce: str
    verifier: str
    until: float


class Provider:
    """One provider. Raises RefusedError `auth.oidc` for all that goes wrong with it."""

    def __init__(self, section: OidcSection, redirect: str) -> None:
        self._section = section
        self._redirect = redirect
        self._begun: OrderedDict[str, Begun] = OrderedDict()
        self._known: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, Any] | None = None

    # -- the two steps

    async def begin(self) -> tuple[str, str]:
        """(where to send the browser, what its cookie has to say when it comes back)."""
        known = await self._about()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        begun = Begun(secrets.token_urlsafe(32), nonce, verifier, time.monotonic() + BEGUN_S)
        self._begun[state] = begun
        while len(self._begun) > MAX_BEGUN:
            self._begun.popitem(last=False)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
        query = {
            "response_type": "code",
            "client_id": self._section.client_id,
            "redirect_uri": self._redirect,
            "scope": "openid profile email",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge.decode(),
            "code_challenge_method": "S256",
        }
        place = known["authorization_endpoint"]
        return f"{place}{'&' if '?' in place else '?'}{urlencode(query)}", begun.binding

    async def end(self, state: str, code: str, issuer: str, binding: str) -> str:
        """The name of the account that the provider vouches for."""
        begun = self._begun.pop(state, None)
        if begun is None or time.monotonic() > begun.until:
            raise _no("this sign-in was not begun here, or too long ago: begin again")
        if not secrets.compare_digest(begun.binding.encode(), binding.encode(errors="surrogateescape")):
            raise _no("this sign-in was begun in another browser")
        if issuer and issuer != self._section.issuer:
            raise _no("another provider has answered")
        known = await self._about()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect,
            "code_verifier": begun.verifier,
        }
        answer = await self._call("POST", known["token_endpoint"], form)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise _no("the provider gave no id_token")
        return self._name(await self._claims(token, known), begun.nonce)

    # -- what the provider says

    async def _about(self) -> dict[str, Any]:
        """Its configuration (OpenID Connect Discovery 1.0, section 4)."""
        if self._known is not None and time.monotonic() < self._known[0] + KEPT_S:
            return self._known[1]
        place = f"{self._section.issuer.rstrip('/')}/.well-known/openid-configuration"
        known = await self._call("GET", place)
        if known.get("issuer") != self._section.issuer:
            raise _no("the provider calls itself by another name than [oidc] issuer")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not isinstance(known.get(name), str) or not known[name].startswith("https://"):
                raise _no(f"the provider's {name} is not https://")
        self._known = time.monotonic(), known
        return known

    async def _claims(self, token: str, known: dict[str, Any]) -> dict[str, Any]:
        """The claims, once the signature fits; with fresh keys where the provider has changed its own."""
        from joserfc import jwt  # an extra, and not for consoles without a provider
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        for fresh in (False, True):
            if self._keys is None or (fresh and time.monotonic() > self._keys[0] + AGAIN_S):
                found = await self._call("GET", known["jwks_uri"])
                try:
                    self._keys = time.monotonic(), KeySet.import_key_set(found)  # type: ignore[arg-type]
                except (JoseError, ValueError, KeyError, TypeError):
                    raise _no("the provider's keys are none") from None
            try:
                return dict(jwt.decode(token, self._keys[1], algorithms=list(ALGORITHMS)).claims)
            except (JoseError, ValueError, KeyError, TypeError):
                continue
        raise _no("the id_token is not signed by the provider")

    def _name(self, claims: dict[str, Any], nonce: str) -> str:
        """OpenID Connect Core 1.0, section 3.1.3.7."""
        section, now = self._section, time.time()
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != section.issuer or section.client_id not in audiences:
            raise _no("the id_token is of another provider, or for another program")
        if (len(audiences) > 1 or "azp" in claims) and claims.get("azp") != section.client_id:
            raise _no("the id_token was given to another program")
        if not _whole(claims.get("exp")) or now >= claims["exp"] + SKEW_S:
            raise _no("the id_token has ended: are the clocks right?")
        if not _whole(claims.get("iat")) or now < claims["iat"] - SKEW_S:
            raise _no("the id_token is from the future: are the clocks right?")
        if claims.get("nonce") != nonce:
            raise _no("the id_token belongs to another sign-in")
        name = claims.get(section.claim)
        if not isinstance(name, str) or not name:
            raise _no(f"the id_token has no `{section.claim}`")
        if section.claim == "email" and claims.get("email_verified") is not True:
            raise _no("the provider has not verified the email")
        return name

    # -- over the network

    async def _call(self, method: str, url: str, form: dict[str, str] | None = None) -> dict[str, Any]:
        """The JSON object at `url`."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self._client() as client:
                auth = aiohttp.BasicAuth(self._section.client_id, self._secret()) if form else None
                async with client.request(
                    method, url, data=form, auth=auth, allow_redirects=False, headers=_JSON
                ) as response:
                    body = await response.content.read(MAX_BYTES + 1)
                    status = response.status
            found = json.loads(body) if status == 200 and len(body) <= MAX_BYTES else None
        except (
            OSError,
            ssl.SSLError,
            aiohttp.ClientError,
            TimeoutError,
            ValueError,
            RecursionError,
        ) as error:
            raise _no(f"the provider does not answer as it should ({type(error).__name__})") from None
        if not isinstance(found, dict):
            raise _no(f"the provider answered {status}")
        return found

    def _client(self) -> aiohttp.ClientSession:
        context = ssl.create_default_context(cafile=str(self._section.ca) if self._section.ca else None)
        connector = aiohttp.TCPConnector(resolver=_Fixed(self._section.hosts), ssl=context)
        return aiohttp.ClientSession(connector=connector, trust_env=False)

    def _secret(self) -> str:
        try:
            return read_key(self._section.secret or Path()).decode()
        except (SinkError, UnicodeDecodeError):
            raise _no("the file of [oidc] secret cannot be read") from None


_JSON: Final = {"Accept": "application/json"}


class _Fixed(AbstractResolver):
    """The addresses of the configuration, for its own hosts only."""

    def __init__(self, hosts: dict[str, str]) -> None:
        self._hosts = hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        place = self._hosts.get(host)
        if place is None:
            raise OSError(f"[oidc] hosts does not say where {host} is")
        address, fixed = endpoint(place)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=fixed,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""


def _whole(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _no(why: str) -> RefusedError:
    return RefusedError("auth.oidc", why)
