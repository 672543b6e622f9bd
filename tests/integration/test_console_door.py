"""What the console's door lets in: hosts, origins, cookies, tokens, too many tries, and hostile bytes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from tests.support.console import PASSWORD, ConsoleRig, Person

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = ConsoleRig()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def adam(rig: ConsoleRig) -> Person:
    return rig.browser("adam")


def code(answer: Any) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["status"] == answer.status
    return answer.status, answer.json["reason_code"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8440", "127.0.0.1", "", "127.0.0.1:1"])
def test_another_name_is_refused(rig: ConsoleRig, adam: Person, host: str) -> None:
    assert code(adam.get("/session", Host=host)) == (421, "auth.host")


def test_localhost_is_ours(rig: ConsoleRig, adam: Person) -> None:
    assert adam.get("/session", Host=f"localhost:{rig.port}").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # another port of this host is another site to us
    ],
)
def test_what_changes_something_comes_from_our_pages(
    rig: ConsoleRig, adam: Person, headers: dict[str, str]
) -> None:
    body = {"scope": "project", "project": "p", "on": True, "reason": "x"}
    assert code(adam.post("/kill", body, **headers)) == (403, "auth.origin")
    assert adam.get("/kill").json["stopped"] == []


@pytest.mark.parametrize("csrf", [None, "", "wrong", "é"])
def test_a_cookie_alone_changes_nothing(rig: ConsoleRig, adam: Person, csrf: str | None) -> None:
    headers = {key: value for key, value in adam.headers.items() if key != "X-CSRF-Token"}
    if csrf is not None:
        headers["X-CSRF-Token"] = csrf
    body = {"scope": "project", "project": "p", "on": True, "reason": "x"}
    assert code(Person(rig, headers).post("/kill", body)) == (403, "auth.csrf")
    assert adam.get("/kill").json["stopped"] == []


def test_a_session_ends_with_the_sign_out(rig: ConsoleRig) -> None:
    vera = rig.browser("vera")
    assert vera.get("/session").json["name"] == "vera"
    assert vera.call("DELETE", "/session").status == 200
    assert code(vera.get("/session")) == (401, "auth.needed")


def test_a_link_opens_one_session(rig: ConsoleRig) -> None:
    link = json.loads(rig.exeat("console", "login", "audi", "--json"))["link"]
    first, second = (rig.nobody().post("/session", {"link": link}) for _ in range(2))
    assert (first.status, first.json["role"]) == (200, "auditor")
    assert code(second) == (401, "auth.wrong")


def test_tries_are_few_and_all_wrong_answers_alike(rig: ConsoleRig) -> None:
    """Side by side, too: a try counts before its outcome is known."""
    rig.exeat("user", "add", "tess", "--role", "viewer")
    rig.exeat("user", "password", "tess", stdin=f"{PASSWORD}\n")

    def sign_in(name: str, password: str) -> Any:
        return rig.nobody().post("/session", {"name": name, "password": password})

    assert code(sign_in("noone", PASSWORD)) == (401, "auth.wrong")
    with ThreadPoolExecutor(12) as pool:
        wrong = list(pool.map(lambda n: sign_in("tess", f"wrong wrong {n}"), range(12)))
    assert sorted(answer.status for answer in wrong) == [401] * 5 + [429] * 7
    refused = next(answer for answer in wrong if answer.status == 429)
    assert code(refused) == (429, "auth.rate")
    assert 0 < int(refused.headers["Retry-After"]) <= 30
    assert sign_in("tess", PASSWORD).status == 429, "the right one must wait, too"


def test_a_token_does_what_its_scopes_say(rig: ConsoleRig) -> None:
    made = json.loads(rig.exeat("token", "create", "adam", "--json", "--note", "reads"))
    reader = Person(rig, {"Authorization": f"Bearer {made['token']}"})
    assert reader.get("/requests").status == 200
    answer = reader.post("/kill", {"scope": "all", "on": True, "reason": "x"})
    assert code(answer) == (403, "auth.role")
    rows = json.loads(rig.exeat("token", "ls", "--json"))["tokens"]
    assert made["id"] in [row["id"] for row in rows]
    assert made["token"] not in json.dumps(rows)
    rig.exeat("token", "revoke", made["id"])
    assert code(reader.get("/requests")) == (401, "auth.token")


def test_no_secret_is_kept_as_it_is(rig: ConsoleRig) -> None:
    made = json.loads(rig.exeat("token", "create", "adam", "--json"))
    browser = rig.browser("olga")
    secrets = [made["token"], browser.headers["Cookie"].partition("=")[2]]
    folder = rig.state_dir / "console"
    kept = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert made["id"].encode() in kept
    assert not any(secret.encode() in kept for secret in secrets)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.glob("key")} == {"key": 0o600}


def test_what_is_not_theirs_is_not_there(rig: ConsoleRig) -> None:
    row = rig.ask()
    quin = rig.person("quin")
    path = f"/requests/{quote(row['id'], safe='')}"
    assert quin.get("/requests").json["items"] == []
    for answer in (
        quin.get(path),
        quin.post(f"{path}/approve", {"version": row["version"]}),
        quin.post(f"{path}/deny", {"version": row["version"]}),
        quin.get("/requests?project=p"),
        quin.get("/leases?project=nothing"),
        quin.post("/requests", {"project": "p", "to": "x.github.com", "reason": "x"}),
    ):
        assert answer.status == 404
    assert quin.get("/status").json["projects"] == ["q"]
    batch = {"ids": [{"id": row["id"], "version": row["version"]}], "decision": "deny"}
    assert quin.post("/requests/batch", batch).json["items"][0]["reason_code"] == "lease.unknown"
    assert rig.person("anna").get(path).json["state"] == "requested"


def test_the_same_key_decides_once(rig: ConsoleRig) -> None:
    olga, body = rig.person("olga"), {"project": "q", "to": "once.example.net", "reason": "x"}
    before = len(rig.person("quin").get("/requests").json["items"])
    first, again = (olga.post("/requests", body, Idempotency_Key="k1") for _ in range(2))
    assert (first.status, first.body) == (again.status, again.body)
    other = olga.post("/requests", {**body, "reason": "y"}, Idempotency_Key="k1")
    assert code(other) == (422, "http.idempotency")
    for key in ("", "a b", "é", "k" * 129):
        assert code(olga.post("/requests", body, Idempotency_Key=key)) == (422, "http.idempotency")
    assert len(rig.person("quin").get("/requests").json["items"]) == before + 1


def test_an_etag_is_the_version(rig: ConsoleRig) -> None:
    row = rig.ask("etag.github.com")
    anna, path = rig.person("anna"), f"/requests/{quote(row['id'], safe='')}"
    first = anna.get(path)
    assert first.headers["ETag"] == f'"{row["version"]}"'
    same = anna.get(path, If_None_Match=first.headers["ETag"])
    assert (same.status, same.body) == (304, b"")
    anna.post(f"{path}/deny", {"version": row["version"]})
    assert anna.get(path, If_None_Match=first.headers["ETag"]).status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "wanted"),
    [
        ("GET", "/nothing", None, {}, (404, "http.404")),
        ("GET", "//assets/../app.py", None, {}, (404, "http.404")),
        ("GET", "//assets/%2e%2e/app.py", None, {}, (404, "http.404")),
        ("PATCH", "/requests", None, {}, (405, "http.405")),
        ("POST", "/requests", b"{}", {"Content-Type": "text/plain"}, (415, "http.415")),
        ("POST", "/requests", b"{", {}, (400, "http.json")),
        ("POST", "/requests", b"[" * 100_000, {}, (400, "http.json")),
        ("POST", "/requests", b"\xff", {}, (400, "http.json")),
        ("POST", "/requests", {"project": "q"}, {}, (422, "http.body")),
        ("POST", "/requests", b'{"a":"' + b"x" * (2 << 20) + b'"}', {}, (413, "http.413")),
        ("GET", "/requests?limit=0", None, {}, (422, "http.query")),
        ("GET", "/requests?state=pending&state=all", None, {}, (422, "http.query")),
        ("GET", "/requests?nothing=1", None, {}, (422, "http.query")),
        ("GET", "/kill?x=1", None, {}, (422, "http.query")),
        ("GET", "/requests", None, {"Authorization": "Basic eDp5"}, (401, "auth.token")),
    ],
)
def test_what_is_wrong_is_said(
    rig: ConsoleRig,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    wanted: tuple[int, str],
) -> None:
    answer = rig.person("olga").call(method, path, body, **headers)
    assert code(answer) == wanted
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"] == "exeat"
    assert answer.headers["Cache-Control"] == "no-store"


def test_hostile_bytes_end_a_connection_and_nothing_else(rig: ConsoleRig) -> None:
    for data in (
        b"\x16\x03\x01\x00\x05hello",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /api/v1/session HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\x00" * 64 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", rig.port), timeout=30) as sock:
            sock.sendall(data)
            with contextlib.suppress(OSError):  # a refusal may have closed it already
                sock.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := sock.recv(65536):
                    answer += part
        assert not answer or answer.split(b" ", 2)[1] in (b"400", b"421"), answer[:200]
    assert rig.nobody().get("//").status == 200


def _over_unix(rig: ConsoleRig, uid: int) -> bytes:
    """The answer to GET /session on api.sock for a process of this uid."""
    script = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(65534) if int(sys.argv[2]) else None; os.setuid(int(sys.argv[2]))\n"
        "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
        "sock.sendall(b'GET /api/v1/session HTTP/1.1\\r\\nHost: any\\r\\nConnection: close\\r\\n\\r\\n')\n"
        "while part := sock.recv(65536): sys.stdout.buffer.write(part)\n"
    )
    path = str(rig.run_dir / "console" / "api.sock")
    command = [sys.executable, "-c", script, path, str(uid)]
    return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout


def test_the_unix_socket_knows_its_callers(rig: ConsoleRig) -> None:
    root, stranger = _over_unix(rig, 0), _over_unix(rig, 65534)
    assert root.startswith(b"HTTP/1.1 200")
    assert b'"name":"root","role":"admin"' in root
    assert stranger.startswith(b"HTTP/1.1 401")


def test_control_does_not_believe_the_console(rig: ConsoleRig) -> None:
    """A console that was taken over may ask for what consoles may, and for no verb of root's."""
    script = (
        "import json, os, pwd, sys\n"
        "from pathlib import Path\n"
        "from exeat.ledger.ipc import Channel\n"
        "user = pwd.getpwnam('exeat-console')\n"
        "os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)\n"
        "channel = Channel.connect(Path(sys.argv[1]), timeout=30)\n"
        "for message in json.loads(sys.argv[2]):\n"
        "    print(json.dumps(channel.call({'id': 1, **message})[0]))\n"
    )
    work = {"verb": "task.submit", "project": "p", "argv": ["true"], "as": "olga", "role": "operator"}
    messages = [
        {"verb": "policy.reload", "as": "adam", "role": "admin"},
        {"verb": "run", "as": "adam", "role": "admin", "argv": ["true"]},
        {"verb": "kill.on", "all": True},
        {"verb": "kill.on", "all": True, "as": "adam"},
        {"verb": "kill.on", "all": True, "as": "", "role": "admin"},
        {"verb": "kill.on", "all": True, "as": "olga", "role": "operator"},
        {"verb": "kill.on", "all": True, "as": "x", "role": "driver"},
        {"verb": "kill.on", "all": True, "as": "adam\nroot", "role": "admin"},
        {**work, "mounts": [{"path": "/etc", "mode": "rw"}]},
        {**work, "user": 0},
        {**work, "role": "viewer"},
        {
            "verb": "lease.request",
            "project": "p",
            "to": "a.org",
            "max_bytes": -1,
            "as": "olga",
            "role": "operator",
        },
        {"verb": "lease.ls", "as": "vera", "role": "viewer"},
    ]
    path = str(rig.run_dir / "control" / "control.sock")
    command = [sys.executable, "-I", "-c", script, path, json.dumps(messages)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert [reply.get("error", "ok") for reply in replies] == [
        "verb.forbidden",
        "verb.forbidden",
        "meta.attribution",
        "meta.attribution",
        "meta.attribution",
        "meta.self_grant",
        "meta.attribution",
        "meta.attribution",
        "job.local",
        "job.local",
        "meta.role",
        "lease.invalid",
        "ok",
    ]


def test_guessing_tokens_locks_out_nobody_else(rig: ConsoleRig) -> None:
    """The last here: it uses up the tries of this address."""
    wrong = Person(rig, {"Authorization": "Bearer exeat_00000000_guess"})
    assert {wrong.get("/session").status for _ in range(25)} <= {401, 429}
    assert code(wrong.get("/session")) == (429, "auth.rate")
    assert code(rig.nobody().post("/session", {"link": "guess"})) == (429, "auth.rate")
    assert rig.person("adam").get("/session").status == 200
    assert rig.browser("adam").get("/session").status == 200
