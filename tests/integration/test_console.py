"""The console through its real door: `exeat up` with people who sign in, ask and decide."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from tests.support.console import PASSWORD, ConsoleRig

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

# In a jail: what answers on the console's port directly, through the gateway, and at its socket's path.
KNOCK = """
import os, socket, sys
port, path = int(sys.argv[1]), sys.argv[2]
for host in ("127.0.0.1", "localhost", "127.0.0.2", "::1"):
    try:
        socket.create_connection((host, port), timeout=5).close()
        print("direct", host, "open")
    except OSError:
        print("direct", host, "closed")
    with socket.create_connection(("127.0.0.1", 3128), timeout=20) as sock:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        sock.sendall(f"CONNECT {place} HTTP/1.1\\r\\nHost: {place}\\r\\n\\r\\n".encode())
        print("proxy", host, sock.recv(4096).split(b" ")[1].decode())
print("path", os.path.exists(path))
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = ConsoleRig()
    try:
        yield made
    finally:
        made.close()


def test_a_request_is_approved_once_seen(rig: ConsoleRig) -> None:
    row = rig.ask()
    anna = rig.person("anna")
    assert row["id"] in [each["id"] for each in anna.get("/requests").json["items"]]
    path = f"/requests/{quote(row['id'], safe='')}"
    stale = anna.post(f"{path}/approve", {"version": "0" * 16})
    assert (stale.status, stale.json["reason_code"]) == (412, "review.stale")
    done = anna.post(f"{path}/approve", {"version": row["version"], "ttl_s": 300})
    assert (done.status, done.json["state"]) == (200, "active")
    assert done.json["approvals"][0]["by"] == "anna"


def test_who_asks_does_not_approve(rig: ConsoleRig) -> None:
    row = rig.ask(by="anna")
    path = f"/requests/{quote(row['id'], safe='')}/approve"
    own = rig.person("anna").post(path, {"version": row["version"]})
    assert (own.status, own.json["reason_code"]) == (403, "meta.sod")
    driver = rig.person("olga").post(path, {"version": row["version"]})
    assert (driver.status, driver.json["reason_code"]) == (403, "auth.role")
    assert rig.person("adam").post(path, {"version": row["version"]}).status == 200


def test_a_browser_signs_in_with_a_password(rig: ConsoleRig) -> None:
    rig.exeat("user", "password", "vera", stdin=f"{PASSWORD}\n")
    wrong = rig.nobody().post("/session", {"name": "vera", "password": "x" * 12}, Origin=rig.origin)
    assert wrong.status == 401
    right = rig.nobody().post("/session", {"name": "vera", "password": PASSWORD}, Origin=rig.origin)
    assert (right.status, right.json["role"]) == (200, "viewer")
    assert "HttpOnly" in right.headers["Set-Cookie"]
    assert rig.nobody().get("/session").status == 401


def test_status_and_files(rig: ConsoleRig) -> None:
    status = rig.browser("adam").get("/status").json
    assert (status["projects"], status["console"]) == (["open", "p", "q"], "up")
    assert f"console door 127.0.0.1:{rig.port}" in rig.exeat("status")
    page = rig.nobody().get("//")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_no_jail_reaches_it(rig: ConsoleRig) -> None:
    """Neither by an address nor by its socket, under a policy that opens all it can."""
    path = str(rig.run_dir / "console" / "api.sock")
    words = ("/usr/bin/python3", "-c", KNOCK, str(rig.port), path)
    said = rig.exeat("run", "--quiet", "--project", "open", "--", *words).splitlines()
    assert [line for line in said if not line.endswith(("closed", "403"))] == ["path False"]
    assert len(said) == 9
