"""The whole guard with its upstream over TLS: answers, and none when the server is not who it must be."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import dns.rcode
import pytest
from tests.support.dns_servers import NameServer, zone_handler
from tests.support.dot_servers import DotServer, dot_server
from tests.support.guard_rig import Rig, answers, ask, ede

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ZONE = zone_handler([
    ("www.wild.net", 60, "A", "203.0.113.1"),
    ("alias.wild.net", 60, "CNAME", "www.wild.net."),
    ("inside.wild.net", 60, "A", "10.0.0.1"),
])  # fmt: skip
POLICY = "{egress: v1, project: p, posture: allowlist, allow: [{to: [.wild.net]}]}"


@contextmanager
def guarded(folder: Path, server: DotServer) -> Iterator[Rig]:
    rig = Rig(folder, (server.server[:2],), NameServer(ZONE))
    rig.settings = replace(rig.settings, upstreams=(server.server,), upstream_ca=folder / "ca.pem")
    rig.start_guard()
    try:
        rig.snapshot(POLICY)
        yield rig
    finally:
        rig.close()


def test_jail_and_proxy_are_answered_over_one_connection(tmp_path: Path) -> None:
    with dot_server(tmp_path, ZONE) as server, guarded(tmp_path, server) as rig:
        jail = rig.jail("j", "p")
        assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.1"}
        assert answers(ask(jail.tcp, "alias.wild.net", tcp=True)) == {"203.0.113.1"}
        assert rig.resolve("www.wild.net")["ok"] is True
        assert ede(ask(jail.udp, "inside.wild.net")) == [(15, "address.not_public")]
        asked = len(server.raw)
        assert ask(jail.udp, "www.denied.org").rcode() is dns.rcode.NXDOMAIN
        assert len(server.raw) == asked
        assert server.connections == 1


@pytest.mark.parametrize(("certificate", "name"), [("evil", "api.example.org"), ("north", "x.example.org")])
def test_a_server_that_is_not_who_it_must_be_means_no_answer(
    tmp_path: Path, certificate: str, name: str
) -> None:
    with (
        dot_server(tmp_path, ZONE, certificate=certificate, name=name) as server,
        guarded(tmp_path, server) as rig,
    ):
        reply = ask(rig.jail("j", "p").udp, "www.wild.net")
        assert reply.rcode() is dns.rcode.SERVFAIL
        assert ede(reply) == [(22, "dns.unavailable")]
        assert rig.resolve("www.wild.net")["error"] == "dns.unavailable"
        assert server.raw == []
