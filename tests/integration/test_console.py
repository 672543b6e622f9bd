"""The console through its real door: `exeat up` with people who sign in, ask and decide."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from tests.support.console import PASSWORD, ConsoleRig
from tests.support.running import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

# In a jail: what answers on the console's port directly, through the gateway, and at its socket's path.
KNOCK = """
import os, socket, sys
port, path = int(sys.argv[1]), sys.argv[2]
for host in ("127.0.0.1", "localhost", "127.0.0.2", "::1"):
    try:
        socket.create_connection((host, port), timeout=30).close()
        print("direct", host, "open")
    except OSError:
        print("direct", host, "closed")
    with socket.create_connection(("127.0.0.1", 3128), timeout=30) as sock:
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
    for probe in ("live", "ready", "health"):
        assert rig.nobody().get(f"//{probe}").json == {"status": "ok"}
    assert page.status == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_no_jail_reaches_it(rig: ConsoleRig) -> None:
    """Neither by an address nor by its socket, under a policy that opens all it can."""
    path = str(rig.run_dir / "console" / "api.sock")
    words = ("/usr/bin/python3", "-c", KNOCK, str(rig.port), path)
    said = rig.exeat("run", "--quiet", "--project", "open", "--", *words).splitlines()
    assert [line for line in said if not line.endswith(("closed", "403"))] == ["path False"]
    assert len(said) == 9


def test_two_persons(rig: ConsoleRig) -> None:
    """The policy wants two; one who says yes twice is one."""
    row = rig.ask("two.example.org:443")
    path = f"/requests/{quote(row['id'], safe='')}"
    anna, adam = rig.person("anna"), rig.person("adam")
    assert (row["needs"], row["flags"]) == (2, ["second_person"])
    for _ in range(2):
        row = anna.get(path).json
        row = anna.post(f"{path}/approve", {"version": row["version"]}).json
        assert (row["state"], [each["by"] for each in row["approvals"]]) == ("requested", ["anna"])
    left = adam.post(
        "/requests/batch", {"ids": [{k: row[k] for k in ("id", "version")}], "decision": "approve"}
    )
    assert left.json["items"][0]["reason_code"] == "flagged"
    assert adam.post(f"{path}/approve", {"version": row["version"]}).json["state"] == "active"


def test_a_batch_decides_what_has_no_flag(rig: ConsoleRig) -> None:
    rows = [rig.ask(f"batch{n}.github.com") for n in range(2)]
    chosen = [{key: row[key] for key in ("id", "version")} for row in rows]
    chosen[1]["version"] = "0" * 16
    body = {"ids": [*chosen, {"id": "p/x/1", "version": "0" * 16}], "decision": "approve", "ttl_s": 10**6}
    items = rig.person("anna").post("/requests/batch", body).json["items"]
    assert [item["reason_code"] for item in items] == ["ok", "review.stale", "lease.unknown"]
    lease = rig.person("anna").get(f"/leases/{quote(rows[0]['id'], safe='')}").json
    assert lease["ttl_s"] == rows[0]["ttl_s"], "no longer than was asked for"


def test_a_lease_is_renewed_undone_and_revoked(rig: ConsoleRig) -> None:
    anna, olga, adam = (rig.person(name) for name in ("anna", "olga", "adam"))

    def approved(name: str) -> str:
        row = rig.ask(f"{name}.github.com")
        path = quote(row["id"], safe="")
        assert anna.post(f"/requests/{path}/approve", {"version": row["version"], "ttl_s": 60}).status == 200
        return f"/leases/{path}"

    path = approved("kept")
    assert anna.get(path).json["can"] == ["revoke", "renew", "undo"]
    renewed = olga.post(f"{path}/renew", {})
    assert (renewed.status, renewed.json["can"]) == (200, ["revoke", "renew"]), "it is hers: she asked for it"
    late = adam.post(f"{path}/undo", {})
    assert (late.status, late.json["reason_code"]) == (409, "lease.undo"), "it was not his yes"
    undone = anna.post(f"{path}/undo", {"note": "a slip"})
    assert (undone.json["state"], undone.json["ended_why"], undone.json["ended_by"]) == (
        "ended",
        "revoked",
        "anna",
    )
    again = olga.post(f"{path}/renew", {})
    assert (again.status, again.json["reason_code"]) == (409, "state.revoked")
    theirs = approved("theirs")
    assert adam.post(f"{theirs}/revoke", {"note": "enough"}).json["ended_by"] == "adam"
    ended = [row["id"] for row in adam.get("/leases?state=ended").json["items"]]
    assert {quote(each, safe="") for each in ended} >= {path[8:], theirs[8:]}
    assert adam.get(f"/leases/{quote(rig.ask()['id'], safe='')}").status == 404, "a request is no lease yet"


def test_pages_follow_each_other(rig: ConsoleRig) -> None:
    wanted = {rig.ask(f"page{n}.example.net", project="q")["id"] for n in range(5)}
    seen, cursor = [], ""
    for _ in range(3):
        page = rig.person("quin").get(f"/requests?limit=2{cursor}").json
        seen += [row["id"] for row in page["items"]]
        cursor = f"&cursor={quote(page['next'] or '', safe='')}"
    assert (len(seen), set(seen) >= wanted, page["next"]) == (len(set(seen)), True, None)


HOLD = """
import socket
sock = socket.create_connection(("127.0.0.1", 3128), timeout=60)
sock.sendall(b"CONNECT held.github.com:443 HTTP/1.1\\r\\nHost: held.github.com:443\\r\\n\\r\\n")
print(sock.recv(4096).split(b"\\r\\n")[0].decode())
"""


def held(rig: ConsoleRig) -> dict[str, Any]:
    """The request that a flow of a job waits for, as soon as it does."""

    def waiting() -> Any:
        rows = rig.person("anna").get("/requests?project=p").json["items"]
        return next((row for row in rows if row["waiting"] and row["job_id"]), None)

    row: dict[str, Any] = wait_for(waiting)
    return row


def job(rig: ConsoleRig) -> subprocess.Popen[str]:
    words = ("run", "--quiet", "--project", "p", "--hold", "50s", "--", "/usr/bin/python3", "-c", HOLD)
    return subprocess.Popen(rig.command(*words), stdout=subprocess.PIPE, text=True)


def test_a_held_flow_goes_on_once_approved(rig: ConsoleRig) -> None:
    with job(rig) as process:
        row = held(rig)
        assert (row["dest"]["host"], row["agent_id"], row["waiting"], row["tries"]) == (
            "held.github.com",
            "run",
            1,
            1,
        )
        path = f"/requests/{quote(row['id'], safe='')}/approve"
        assert rig.person("anna").post(path, {"version": row["version"]}).status == 200
        said, _ = process.communicate(timeout=40)
    assert "dns.unavailable" in said, "let through, to a name that nobody here can resolve"
    lease = f"/leases/{quote(row['id'], safe='')}/revoke"
    assert rig.person("anna").post(lease, {}).status == 200


def test_a_held_flow_is_cut(rig: ConsoleRig) -> None:
    adam = rig.person("adam")
    with job(rig) as process:
        held(rig)
        (flow,) = adam.get("/flows?project=p").json["items"]
        assert (flow["state"], flow["dest"]) == ("waiting", "held.github.com:443")
        assert rig.person("quin").get("/flows").json == {"items": [], "total": 0}
        assert adam.post(f"/flows/{flow['flow'][:6]}/cut", {"reason": "x"}).status == 404, "whole ids only"
        assert adam.post(f"/flows/{flow['flow']}/cut", {"reason": "enough"}).json == {"cut": 1}
        process.communicate(timeout=40)
    assert adam.get("/flows").json == {"items": [], "total": 0}
    said = rig.exeat("ledger", "tail", "--json", "-n", "20").splitlines()
    assert any('"cut"' in line and '"adam"' in line and "enough" in line for line in said)


def test_it_comes_back_and_nobody_waits_for_it(rig: ConsoleRig) -> None:
    """Killed, it is started again; people stay signed in, and leases are decided without it."""
    adam, row = rig.browser("adam"), rig.ask("back.github.com")
    killed = rig.pid_of("console")
    os.kill(killed, signal.SIGKILL)
    rig.exeat("lease", "approve", row["id"])
    wait_for(lambda: rig.pid_of("console") not in (0, killed))

    def again() -> Any:
        try:
            return adam.get("/session").json["name"] == "adam"
        except OSError:
            return False

    wait_for(again)
    assert adam.get(f"/leases/{quote(row['id'], safe='')}").json["state"] == "active"
