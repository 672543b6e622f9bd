"""The agents' desk through the real proxy: by HTTP, inside a tunnel, and with the protocol's own SDK."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import in_namespace, read_all, read_head
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: builds
posture: allowlist
allow:
  - {id: site, to: builds.example.org, ports: 7000}
deny:
  - {id: never, to: paste.example.net}
"""
IDENTITIES = """
[[identity]]
source = "127.0.0.1"
project = "builds"
agent = "ci"
[[identity]]
source = "127.0.0.7"
project = "builds"
agent = "other"
"""
DESK = "http://exeat.internal"


def alone(body: Callable[[Standalone], None]) -> None:
    def run() -> None:
        with name_server(zone_handler([])) as server:
            made = Standalone(server.address, {"builds": POLICY}, IDENTITIES)
            try:
                made.up()
                body(made)
                assert made.down() == 0
            finally:
                made.close()

    in_namespace(run)


def connect(source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", 3128), 10, source_address=(source, 0))


def say(text: bytes, source: str = "127.0.0.1") -> tuple[int, bytes]:
    """Status and body of the answer to one request, byte for byte as given."""
    with connect(source) as sock:
        sock.sendall(text)
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
        return int(head.split()[1]), body


def ask(method: str, path: str, given: Any = None, source: str = "127.0.0.1", more: str = "") -> Any:
    body = b"" if given is None else json.dumps(given).encode()
    kind = "Content-Type: application/json\r\n" if body else ""
    head = f"{method} {DESK}{path} HTTP/1.1\r\nHost: exeat.internal\r\n{kind}{more}"
    status, answer = say(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, source)
    return status, (json.loads(answer) if answer[:1] == b"{" else answer.decode())


def test_an_agent_asks_waits_and_gives_up_but_never_decides() -> None:
    def body(made: Standalone) -> None:
        status, text = ask("GET", "/")
        assert status == 200
        assert "agent ci of project builds" in text
        assert ask("GET", "/why?to=paste.example.net")[1]["reason"] == "rule.deny"
        why = ask("GET", "/why?to=new.example.org")[1]
        assert (why["verdict"], why["leasable"]) == ("deny", True)

        wanted = {"to": "new.example.org", "reason": "the build needs it", "ttl": "10m", "bytes": "5MB"}
        status, row = ask("POST", "/leases", wanted)
        assert (status, row["state"], row["max_bytes"]) == (201, "requested", 5_000_000)
        short = row["id"].rpartition("/")[2]
        assert ask("GET", f"/leases/{short}")[1] == row
        # Another agent of the project neither sees it nor ends it.
        assert ask("GET", f"/leases/{short}", source="127.0.0.7")[0] == 404
        assert ask("DELETE", f"/leases/{short}", source="127.0.0.7")[0] == 404
        assert ask("GET", "/leases", source="127.0.0.7")[1]["leases"] == []

        with connect() as waiting:
            waiting.sendall(
                f"GET {DESK}/leases/{short}?wait=30 HTTP/1.1\r\nHost: exeat.internal\r\n\r\n".encode()
            )
            approved = made.exeat("lease", "approve", row["id"], "--as", "anna")
            assert approved.returncode == 0, approved.stderr
            assert b'"state":"active"' in read_all(waiting)
        assert ask("GET", "/why?to=new.example.org")[1]["verdict"] == "allow"
        assert ask("DELETE", f"/leases/{short}")[1]["state"] == "revoked"
        assert ask("GET", "/why?to=new.example.org")[1]["verdict"] == "deny"
        assert ask("POST", f"/leases/{short}/approve", {})[0] == 405
        told = [r.actor for r in made.records() if r.kind is Kind.LEASE and r.lease_id == row["id"]]
        assert told == ["ci", "anna", "ci"]

    alone(body)


def test_a_person_asks_and_waits_at_the_command_line() -> None:
    def body(made: Standalone) -> None:
        def asks(host: str, answer: str) -> subprocess.CompletedProcess[str]:
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(
                    made.exeat, "request", host, "--project", "builds", "--as", "ci", "--wait", "20s"
                )
                (row,) = wait_for(lambda: json.loads(made.exeat("lease", "ls", "--json").stdout))
                assert made.exeat("lease", answer, row["id"], "--as", "anna").returncode == 0
                return waiting.result()

        assert asks("no.example.org", "deny").returncode == 1
        yes = asks("yes.example.org", "approve")
        assert yes.returncode == 0
        assert "active" in yes.stdout
        assert "waits for a person" in yes.stderr
        late = made.exeat("request", "late.example.org", "--project", "builds", "--wait", "1ms")
        assert late.returncode == 1
        assert "requested" in late.stdout
        wrong = made.exeat("request", "x.example.org", "--project", "builds", "--wait", "soon")
        assert (wrong.returncode, "--wait soon" in wrong.stderr) == (2, True)

    alone(body)


def test_what_is_no_question_is_refused_and_says_why() -> None:
    def body(_made: Standalone) -> None:
        start = f"POST {DESK}/leases HTTP/1.1\r\nHost: exeat.internal\r\n"
        json_type = "Content-Type: application/json\r\n"
        for text, status, code in (
            (f"{start}{json_type}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411, "desk.length"),
            (f"{start}{json_type}Content-Length: 99999\r\n\r\n", 413, "desk.too_large"),
            (f"{start}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}", 415, "desk.json"),
            (
                f"{start}Origin: http://evil.example\r\n{json_type}Content-Length: 2\r\n\r\n{{}}",
                403,
                "desk.origin",
            ),
            (f"{start}{json_type}Content-Length: 2\r\n\r\n{{}}", 400, "desk.malformed"),
            (f"{start}{json_type}Content-Length: 1\r\n\r\n[", 400, "desk.malformed"),
            (f"PUT {DESK}/leases HTTP/1.1\r\nHost: x\r\n\r\n", 405, "desk.method"),
            (f"GET {DESK}/secret HTTP/1.1\r\nHost: x\r\n\r\n", 404, "desk.path"),
            (f"GET {DESK}/why HTTP/1.1\r\nHost: x\r\n\r\n", 400, "desk.malformed"),
            (f"GET {DESK}/why?to=a..b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed.host"),
            (f"GET {DESK}/leases/x?wait=y HTTP/1.1\r\nHost: x\r\n\r\n", 400, "desk.malformed"),
        ):
            got, said = say(text.encode())
            assert got == status, text
            assert code.encode() in said, text
        # A bounded number of requests waits for people, however many are made.
        made = [ask("POST", "/leases", {"to": f"h{n}.example.org", "reason": "x"})[0] for n in range(10)]
        assert made == [201] * 8 + [429] * 2

    alone(body)


def test_a_tunnel_to_the_desk_carries_questions_and_nothing_else() -> None:
    def body(_made: Standalone) -> None:
        for early in (False, True):
            with connect() as sock:
                asked = b"GET /leases HTTP/1.1\r\nHost: exeat.internal\r\n\r\n"
                tunnel = b"CONNECT exeat.internal:80 HTTP/1.1\r\nHost: exeat.internal:80\r\n\r\n"
                sock.sendall(tunnel + (asked if early else b""))
                assert read_head(sock).startswith(b"HTTP/1.1 200")
                if not early:
                    sock.sendall(asked)
                assert b'{"leases":[],"more":0}' in read_all(sock)
        with connect() as sock:
            sock.sendall(b"CONNECT exeat.internal:80 HTTP/1.1\r\nHost: exeat.internal:80\r\n\r\n")
            read_head(sock)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: builds.example.org\r\n\r\n")
            assert b"http.host_mismatch" in read_all(sock)
        with connect() as sock:  # the name leads to the desk on port 80 only
            sock.sendall(b"CONNECT exeat.internal:443 HTTP/1.1\r\nHost: exeat.internal:443\r\n\r\n")
            assert read_head(sock).startswith(b"HTTP/1.1 403")

    alone(body)


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
def test_the_protocols_own_client_asks_for_a_lease(mode: str) -> None:
    async def talk() -> None:
        async with httpx2.AsyncClient(proxy="http://127.0.0.1:3128", trust_env=False) as http:
            transport = streamable_http_client(f"{DESK}/mcp", http_client=http)
            async with Client(transport, mode=mode) as client:
                tools = {tool.name for tool in (await client.list_tools()).tools}
                assert tools == {
                    "why_blocked",
                    "request_lease",
                    "lease_status",
                    "list_my_leases",
                    "cancel_request",
                }
                why = await client.call_tool("why_blocked", {"to": "new.example.org"})
                assert why.structured_content["leasable"]
                asked = await client.call_tool("request_lease", {"to": "new.example.org", "reason": "a test"})
                lease = asked.structured_content["id"]
                status = await client.call_tool("lease_status", {"lease": lease})
                assert status.structured_content["state"] == "requested"
                wrong = await client.call_tool("lease_status", {"lease": "nobodys"})
                assert wrong.is_error
                ended = await client.call_tool("cancel_request", {"lease": lease})
                assert ended.structured_content["state"] == "revoked"
                mine = await client.call_tool("list_my_leases", {})
                assert [row["id"] for row in mine.structured_content["leases"]] == [lease]

    alone(lambda _made: asyncio.run(talk()))
