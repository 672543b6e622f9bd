"""Signing in by an OpenID provider: a small real one over TLS, which can be told to lie."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from tests.support.console import ConsoleRig
from tests.support.redis_server import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

CLIENT, SECRET = "exeat", "a secret of the client's"
BACK = "/session/oidc/back"


class Provider:
    """`lie` changes the claims of the next token, `signer` signs it; `codes` are those handed out."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder, "idp CA")
        certificate, key = authority.issue("idp.example.org")
        self.ca = authority.ca
        self.key = self.signer = RSAKey.generate_key(2048, {"kid": "one"})
        self.lie: dict[str, Any] = {}
        self.header = {"alg": "RS256", "kid": "one"}
        self.codes: dict[str, dict[str, str]] = {}
        self.issuer = "https://idp.example.org"
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                self.answer(provider.about() if path.endswith("openid-configuration") else provider.keys())

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.answer(provider.token(self.headers["Authorization"], {k: v[0] for k, v in form.items()}))

            def answer(self, body: dict[str, Any] | None) -> None:
                data = json.dumps(body or {"error": "invalid_grant"}).encode()
                self.send_response(200 if body else 400)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def about(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": "https://idp.example.org/authorize",
            "token_endpoint": "https://idp.example.org/token",
            "jwks_uri": "https://idp.example.org/keys",
        }

    def keys(self) -> dict[str, Any]:
        return dict(KeySet([self.key]).as_dict(private=False))

    def consent(self, location: str) -> str:
        """What a person at the provider's page does: the code of the answer."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        assert (asked["client_id"], asked["response_type"]) == (CLIENT, "code")
        code = hashlib.sha256(location.encode()).hexdigest()
        self.codes[code] = asked
        return code

    def token(self, authorization: str, form: dict[str, str]) -> dict[str, Any] | None:
        asked = self.codes.pop(form["code"], None)
        wanted = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or authorization != wanted or asked["code_challenge"] != challenge:
            return None
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "sub": "7",
            "preferred_username": "anna",
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.lie,
        }
        return {"id_token": jwt.encode(self.header, claims, self.signer), "token_type": "Bearer"}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    made = Provider(tmp_path_factory.mktemp("idp"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def rig(provider: Provider) -> Iterator[ConsoleRig]:
    def prepare(base: Path) -> str:
        (base / "idp.pem").write_bytes(provider.ca.read_bytes())
        (base / "idp.pem").chmod(0o644)
        (base / "secret").write_text(SECRET)
        (base / "secret").chmod(0o600)
        import shutil

        shutil.chown(base / "secret", "exeat-console")
        port = provider.server.server_address[1]
        return (
            f'[oidc]\nissuer = "{provider.issuer}"\nclient_id = "{CLIENT}"\nsecret = "{base}/secret"\n'
            f'ca = "{base}/idp.pem"\ntitle = "Example"\nhosts = {{"idp.example.org" = "127.0.0.1:{port}"}}\n'
        )

    made = ConsoleRig(prepare=prepare)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def honest(provider: Provider) -> None:
    provider.lie, provider.signer = {}, provider.key
    provider.header = {"alg": "RS256", "kid": "one"}


def go(rig: ConsoleRig) -> tuple[str, str]:
    """(where the browser is sent, the cookie it was given)."""
    answer = rig.nobody().get("/session/oidc")
    assert answer.status == 303, answer.body
    return answer.headers["Location"], answer.headers["Set-Cookie"].partition(";")[0]


def come_back(rig: ConsoleRig, location: str, code: str, cookie: str, more: str = "") -> Any:
    state = parse_qs(urlsplit(location).query)["state"][0]
    return rig.nobody().get(f"{BACK}?state={state}&code={code}{more}", Cookie=cookie)


def test_who_the_provider_knows_is_signed_in_with_the_role_of_the_account(
    rig: ConsoleRig, provider: Provider
) -> None:
    assert rig.nobody().get("/session/ways").json == {"password": True, "oidc": "Example"}
    location, cookie = go(rig)
    code = provider.consent(location)
    answer = come_back(rig, location, code, cookie, "&iss=https%3A%2F%2Fidp.example.org")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    (session,) = [
        value.partition(";")[0]
        for value in answer.headers.get_all("Set-Cookie", [])
        if value.startswith("sid=")
    ]
    who = rig.nobody().get("/session", Cookie=session).json
    assert (who["name"], who["role"], who["via"]) == ("anna", "approver", "session")
    # The answer works once.
    assert come_back(rig, location, code, cookie).json["reason_code"] == "auth.oidc"


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"preferred_username": "stranger"}, "no account"),
        ({"preferred_username": ""}, "no `preferred_username`"),
        ({"preferred_username": ["anna"]}, "no `preferred_username`"),
        ({"iss": "https://other.example.org"}, "another provider"),
        ({"aud": "another"}, "another program"),
        ({"aud": [CLIENT, "another"]}, "another program"),
        ({"azp": "another"}, "another program"),
        ({"exp": 5}, "ended"),
        ({"exp": "never"}, "ended"),
        ({"iat": 1 << 40}, "from the future"),
        ({"nonce": "of another"}, "another sign-in"),
    ],
)
def test_a_token_that_is_not_for_this_sign_in_opens_nothing(
    rig: ConsoleRig, provider: Provider, lie: dict[str, Any], why: str
) -> None:
    provider.lie = lie
    location, cookie = go(rig)
    answer = come_back(rig, location, provider.consent(location), cookie)
    assert answer.status in (401, 403)
    assert why in answer.json["detail"]
    assert not [value for value in answer.headers.get_all("Set-Cookie", []) if value.startswith("sid=")]


def test_a_token_of_another_key_opens_nothing(rig: ConsoleRig, provider: Provider) -> None:
    provider.signer = RSAKey.generate_key(2048, {"kid": "one"})
    location, cookie = go(rig)
    answer = come_back(rig, location, provider.consent(location), cookie)
    assert "not signed by the provider" in answer.json["detail"]


def test_another_browser_another_issuer_and_made_up_states_are_refused(
    rig: ConsoleRig, provider: Provider
) -> None:
    location, cookie = go(rig)
    code = provider.consent(location)
    assert "another browser" in come_back(rig, location, code, "oidc=made-up").json["detail"]
    location, cookie = go(rig)
    code = provider.consent(location)
    wrong = come_back(rig, location, code, cookie, "&iss=https%3A%2F%2Fevil.example.net")
    assert "another provider" in wrong.json["detail"]
    made_up = rig.nobody().get(f"{BACK}?state=made-up&code=x", Cookie=cookie)
    assert "not begun here" in made_up.json["detail"]
    said_no = rig.nobody().get(f"{BACK}?state=x&error=access_denied")
    assert said_no.status == 403
    location, cookie = go(rig)
    assert "provider answered 400" in come_back(rig, location, "no-code-of-ours", cookie).json["detail"]
