"""A guard that starts anew knows nothing: no answer, no permission and no pin of the one before it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.guard_rig import answers, ask, ede
from tests.support.proxy_world import in_namespace
from tests.support.running import wait_for
from tests.support.standalone import Standalone

if TYPE_CHECKING:
    from tests.support.dns_servers import NameServer

pytestmark = pytest.mark.root

DOOR = ("127.0.0.1", 53)
POLICY = (
    "{egress: v1, project: builds, posture: allowlist, allow: [{to: [www.example.org, more.example.org]}]}"
)
NARROW = "{egress: v1, project: builds, posture: allowlist, allow: [{to: more.example.org}]}"
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "builds"\n'
ZONE = [(f"{name}.example.org", 30, "A", "203.0.113.1") for name in ("www", "more")]


def silent(name: str) -> bool:
    try:
        dns.query.udp(dns.message.make_query(name, "A"), DOOR[0], 0.4, DOOR[1])
    except dns.exception.Timeout:
        return True
    return False


def served(name: str) -> bool:
    try:
        return bool(answers(ask(DOOR, name)))
    except (OSError, dns.exception.Timeout):
        return False


def test_a_new_guard_has_no_permission_of_the_old_one() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        for _ in range(4):  # decided, cached, remembered by its bytes, pinned
            assert answers(ask(DOOR, "www.example.org")) == {"203.0.113.1"}
        assert "www.example.org" in made.exeat("dns", "pins").stdout
        control, old = made.pid_of("control"), made.pid_of("guard")
        os.kill(control, signal.SIGSTOP)
        try:
            made.kill("guard")
            wait_for(lambda: made.pid_of("guard") not in (0, old))
            wait_for(lambda: made.exeat("dns", "pins").stdout == "no answers stand\n")
            assert silent("www.example.org")  # nobody tells it what holds
            (made.base / "policies" / "builds.yaml").write_text(NARROW)
        finally:
            os.kill(control, signal.SIGCONT)
        assert made.exeat("policy", "reload").returncode == 0
        wait_for(lambda: served("more.example.org"))
        wait_for(lambda: ede(ask(DOOR, "www.example.org")) == [(15, "posture.default_deny")])
        before = server.seen["www.example.org", "A"]
        assert ask(DOOR, "www.example.org").rcode() is dns.rcode.NXDOMAIN
        assert server.seen["www.example.org", "A"] == before

    def run() -> None:
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, {"builds": POLICY}, IDENTITY)
            try:
                made.up()
                body(made, server)
                assert made.down() == 0
            finally:
                made.close()

    in_namespace(run)
