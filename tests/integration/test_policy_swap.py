"""A policy of 100,000 rules comes into force under live flows, and another takes its place."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

import pytest
from bench import policy_world
from tests.support.proxy_world import HOME, PUBLIC, Origin, World, in_namespace

from exeat.ledger.records import Kind
from exeat.policy.rules import Kind as RuleKind
from exeat.policy.rules import Rule
from exeat.policy.scopes import parse_ports, parse_scope
from exeat.policy.snapshot import Snapshot

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from exeat.policy.document import Document

pytestmark = pytest.mark.root

FLOWS = 12
SMALL = "{egress: v1, project: p, allow: [{id: live, to: live.example.org, ports: 7000}]}"


def large(seed: int, *hosts: str) -> Document:
    """100,000 rules, and one for these hosts."""
    rule = Rule(
        "live", RuleKind.ALLOW, tuple(map(parse_scope, hosts)), parse_ports(["7000"]), ("tcp",), order=-1
    )
    made = policy_world.document(100_000, seed)
    return dataclasses.replace(made, project="p", rules=(rule, *made.rules), budgets=made.budgets)


def tell(world: World, document: Document) -> None:
    world.generation += 1
    message = Snapshot.message(
        generation=world.generation,
        fresh_ms=60_000,
        documents=[document],
        projects={"p": document.digest},
        treat_as_public=PUBLIC,
    )
    world.control.tell("snapshot", message)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


class Flows:
    """Live tunnels, each asking and being answered until the end; a silent one fails by its timeout."""

    def __init__(self, world: World) -> None:
        self._over = threading.Event()
        self.failed: list[BaseException] = []
        self.rounds = [0] * FLOWS
        self.socks = [world.tunnel("live.example.org", 7000) for _ in range(FLOWS)]
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(FLOWS)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        sock = self.socks[number]
        try:
            while not self._over.wait(0.005):
                sock.sendall(b"\0ping")
                assert sock.recv(64), "the flow was dropped"
                self.rounds[number] += 1
        except BaseException as error:
            self.failed.append(error)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        for sock in self.socks:
            sock.close()


def opens(world: World, host: str) -> bool:
    status, _, sock = world.ask(b"CONNECT %s:7000 HTTP/1.1\r\n\r\n" % host.encode())
    sock.close()
    return status == 200


def until_open(world: World, host: str) -> int:
    """How many times a new flow was refused before the policy that admits it was in force."""
    refused = 0
    while not opens(world, host):
        refused += 1
        assert refused < 2000
        threading.Event().wait(0.05)
    return refused


def test_no_flow_is_dropped(tmp_path: Path) -> None:
    def body() -> None:
        with World(tmp_path, SMALL) as world:
            world.guard.names = {f"{name}.example.org": [HOME] for name in ("live", "first", "second")}
            Origin(7000, echo)
            flows = Flows(world)
            for seed, host in ((3, "first.example.org"), (5, "second.example.org")):
                before = list(flows.rounds)
                tell(world, large(seed, "live.example.org", host))
                until_open(world, host)
                assert opens(world, "live.example.org")
                assert all(now > was for now, was in zip(flows.rounds, before, strict=True))
            assert not opens(world, "first.example.org")  # the second policy does not have it
            flows.end()
            assert flows.failed == []
            closed = world.closes(FLOWS)
            assert {record.close_reason for record in closed} <= {"eof", "reset"}
            assert not [r for r in world.records() if r.kind is Kind.ORPHAN]

    in_namespace(body)
