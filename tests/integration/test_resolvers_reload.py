"""The list of public resolvers is a file of the configuration, read again with the policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.rcode
import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.guard_rig import answers, ask, ede
from tests.support.proxy_world import in_namespace
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.dns_servers import NameServer

pytestmark = pytest.mark.root

DOOR = ("127.0.0.1", 53)
POLICY = "{egress: v1, project: builds, posture: public}"
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "builds"\n'
ZONE = [(name, 60, "A", "203.0.113.1") for name in ("dns.google", "x.doh.org", "doh.org", "www.test.org")]
REFUSED = (15, "dns.encrypted_resolver")


def alone(text: str, body: Callable[[Standalone, NameServer], None]) -> None:
    """`body` with a gateway whose `resolvers_file` holds `text`."""

    def run() -> None:
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, {"builds": POLICY}, IDENTITY)
            (made.base / "conf.d").mkdir()
            (made.base / "conf.d" / "dns.toml").write_text(
                f'[dns]\nresolvers_file = "{made.base}/list.txt"\n'
            )
            (made.base / "list.txt").write_text(text)
            try:
                made.up()
                body(made, server)
                assert made.down() == 0
            finally:
                made.close()

    in_namespace(run)


def refused(name: str) -> bool:
    reply = ask(DOOR, name)
    assert (REFUSED in ede(reply)) == (reply.rcode() is dns.rcode.NXDOMAIN)
    return REFUSED in ede(reply)


def test_a_new_list_is_in_force_after_a_reload() -> None:
    def body(made: Standalone, server: NameServer) -> None:
        assert not refused("dns.google")  # the file takes the place of exeat's own list
        assert refused("x.doh.org")
        (made.base / "list.txt").write_text("# newer\ndoh.org\ndns.google\n")
        assert made.exeat("policy", "reload").returncode == 0  # it opens nothing
        wait_for(lambda: refused("dns.google"))
        seen = server.seen.total()
        assert refused("X.Doh.Org")
        assert server.seen.total() == seen
        (record,) = [r for r in made.records() if r.kind is Kind.POLICY and r.detail.startswith("public res")]
        assert (record.decision, record.actor, record.detail) == (
            "narrows",
            "root",
            "public resolvers: 2 names",
        )

        (made.base / "list.txt").write_text("dns.google\n")
        one = made.exeat("policy", "reload", "--as", "ann")
        assert one.returncode == 1
        assert "no longer refuse doh.org" in one.stderr
        assert refused("doh.org")
        assert made.exeat("policy", "reload", "--as", "ann", "--reviewed-by", "ben").returncode == 0
        wait_for(lambda: not refused("doh.org"))

        (made.base / "list.txt").write_text("dns.google\n\nnot a name\n")
        bad = made.exeat("policy", "reload")
        assert bad.returncode == 1
        assert f"{made.base}/list.txt:3: `not a name`" in bad.stderr
        assert "list.txt:3" in made.exeat("status").stdout
        assert refused("dns.google")  # the old list holds
        made.kill("guard")  # and a guard that starts anew gets it
        wait_for(lambda: _answers(made) and refused("dns.google"))

    alone("doh.org\n", body)


def _answers(made: Standalone) -> bool:
    try:
        return answers(ask(DOOR, "www.test.org")) == {"203.0.113.1"}
    except OSError:
        return False


def test_a_bad_list_at_the_start_leaves_that_of_the_package() -> None:
    def body(made: Standalone, _server: NameServer) -> None:
        assert refused("dns.google")
        assert not refused("doh.org")
        assert "list.txt:1" in made.exeat("status").stdout

    alone("*.doh.org\n", body)
