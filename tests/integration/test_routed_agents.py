"""Agents of the host, confined by the appliance: who they are comes from the kernel, not from them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.host_world import UNIFIED
from tests.support.proxy_world import HOME, Origin, in_namespace, read_head
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

SLICE = f"exeat-agents-{os.getpid()}.slice"
POLICY = """
egress: v1
project: {project}
posture: allowlist
allow:
  - {{id: site, to: {host}, ports: [80, 7000]}}
"""
ROUTING = f"""
[[identity]]
source = "127.0.0.0/8"
project = "people"
agent = "local"
[[identity]]
source = "cgroup:{SLICE}/inner"
project = "inner"
[[routing.host]]
cgroup = "{SLICE}"
uid = "61200-61209"
project = "agents"
"""
ZONE = [(f"{name}.example.org", 60, "A", HOME) for name in ("agents", "people", "inner")]

# Asks the proxy for each name, with everything a client might say about itself; then goes around it.
CLIENT = """
import errno, json, socket, sys
def ask(name):
    with socket.create_connection(("127.0.0.1", 3128), 10) as sock:
        sock.sendall(b"GET http://%s:7000/ HTTP/1.1\\r\\nHost: %s:7000\\r\\nX-Forwarded-For: 127.0.0.7\\r\\n"
                     b"Forwarded: for=127.0.0.7\\r\\nX-Exeat-Project: people\\r\\n"
                     b"Proxy-Authorization: Basic cGVvcGxlOng=\\r\\n\\r\\n" % (name, name))
        return sock.makefile("rb").readline().split()[1].decode()
def lookup(name, server):
    query = b"\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + b"".join(
        bytes((len(part),)) + part for part in name.split(b".")) + b"\\0\\0\\1\\0\\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.connect((server, 53))
        sock.send(query)
        return sock.recv(2048)[3] & 15
def around():
    with socket.socket() as sock:
        sock.settimeout(30)
        code = sock.connect_ex(("203.0.113.1", 7000))
        return errno.errorcode.get(code, str(code))
names = [b"agents.example.org", b"people.example.org", b"inner.example.org"]
print(json.dumps([[ask(name) for name in names], [lookup(name, sys.argv[1]) for name in names], around()]))
"""


# Knows of no proxy.
PLAIN = """
import json, socket, sys
def get(name):
    with socket.create_connection(("203.0.113.1", 80), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % name)
        return sock.makefile("rb").readline().split()[1].decode()
print(json.dumps([get(name + b".example.org") for name in (b"agents", b"people", b"inner")]))
"""


def client(cgroup: Path, uid: int, server: str = "127.0.0.1", program: str = CLIENT) -> Any:
    def enter() -> None:
        (cgroup / "cgroup.procs").write_text("0")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(uid)

    done = subprocess.run(
        [sys.executable, "-I", "-c", program, server],
        capture_output=True, text=True, timeout=60, preexec_fn=enter, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def answer_once(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def routed(body: Callable[[Standalone], None], proxy: str = "") -> None:
    """A started appliance that confines SLICE, and an origin on every name."""

    def run() -> None:
        policies = {name: POLICY.format(project=name, host=f"{name}.example.org") for name in
                    ("agents", "people", "inner")}  # fmt: skip
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, policies, proxy + ROUTING)
            try:
                Origin(7000, answer_once)
                made.up()
                body(made)
                assert made.down() == 0
            finally:
                made.close()
                Origin.close_all()
                for folder in (UNIFIED / SLICE / "inner", UNIFIED / SLICE):
                    with contextlib.suppress(FileNotFoundError):
                        folder.rmdir()

    in_namespace(run)


def test_the_cgroup_is_who_it_is_whatever_it_says() -> None:
    def body(made: Standalone) -> None:
        inner = UNIFIED / SLICE / "inner"
        inner.mkdir()
        for cgroup, uid, allowed in (
            (UNIFIED / SLICE, 0, 0),
            (UNIFIED / SLICE, 61_205, 0),
            (UNIFIED, 61_205, 0),  # outside the cgroup: the uid
            (UNIFIED, 61_210, 1),  # neither: the address
            (inner, 61_205, 2),
        ):
            asked, looked_up, around = client(cgroup, uid)
            assert asked == ["200" if number == allowed else "403" for number in range(3)]
            assert looked_up == [0 if number == allowed else 3 for number in range(3)]
            # Origins are on this host: who is not confined reaches them, and only they do.
            assert around == "EHOSTUNREACH" if allowed != 1 else around == "0"
        opens = [(r.project, r.agent) for r in made.records() if r.kind is Kind.OPEN]
        assert opens == [("agents", "host")] * 3 + [("people", "local"), ("inner", "client")]

    routed(body)


def test_lookups_sent_to_another_server_are_answered_by_the_guard_for_whoever_asks() -> None:
    def body(_made: Standalone) -> None:
        _, looked_up, _ = client(UNIFIED / SLICE, 61_205, "203.0.113.2")
        assert looked_up == [0, 3, 3]

    routed(body)


def test_a_table_that_was_changed_is_repaired_and_everybody_hears_of_it() -> None:
    def body(made: Standalone) -> None:
        before = made.exeat("status")
        assert "confined   agents/host, by table " in before.stdout
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        wait_for(
            lambda: "ROUTING    repaired 1 times, last: the table is gone" in made.exeat("status").stdout
        )
        assert client(UNIFIED / SLICE, 61_205)[2] == "EHOSTUNREACH"
        repaired = wait_for(lambda: [r for r in made.records() if r.decision == "repaired"])
        assert [(r.kind, r.detail) for r in repaired] == [(Kind.ANOMALY, "1 times: the table is gone")]

    routed(body)


def test_what_knows_of_no_proxy_is_redirected_to_it_and_is_still_who_it_is() -> None:
    def body(made: Standalone) -> None:
        Origin(80, answer_once)
        assert client(UNIFIED / SLICE, 61_205, program=PLAIN) == ["200", "403", "403"]
        assert client(UNIFIED, 61_205, program=PLAIN) == ["200", "403", "403"]
        opens = [(r.project, r.agent, r.dest.host) for r in made.records() if r.kind is Kind.OPEN and r.dest]
        assert opens == [("agents", "host", "agents.example.org")] * 2

    routed(body, 'transparent = ["127.0.0.1:3129", "[::1]:3129"]\n')
