"""exeat as the benches run it: `exeat up` with everything on, in this network namespace.

1,000 rules, the guard and a name server behind it, a durable ledger on the disk below /tmp. Proxy and
guard are pinned to one core; ledger and control may use that one and the load's.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from bench.loader import SINK, Tunnels, tree
from bench.peers import ORIGIN
from tests.support.dns_servers import name_server, zone_handler
from tests.support.standalone import Standalone

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "origin.example.org"
DOORS = {"connect": "127.0.0.1:3128", "socks5": "127.0.0.1:1080"}
RULES = "\n".join(f"  - {{id: r{n}, to: host{n}.example.com, ports: [80, 443]}}" for n in range(999))
PORTS = ", ".join(str(ORIGIN[1] + n) for n in range(SINK + 1))
POLICY = f"""
egress: v1
project: bench
posture: allowlist
allow:
{RULES}
  - {{id: origin, to: {NAME}, ports: [{PORTS}]}}
"""
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "bench"\n'


class Exeat:
    """A running appliance; `protocol` is the door that `tunnels` leads to."""

    def __init__(self, made: Standalone, protocol: str) -> None:
        self.made = made
        self.protocol = protocol

    def tunnels(self, service: int) -> Tunnels:
        return Tunnels(self.protocol, DOORS[self.protocol], f"{NAME}:{ORIGIN[1] + service}")

    def pids(self) -> list[int]:
        assert self.made.process is not None
        return tree(self.made.process.pid)

    def parts(self) -> dict[str, list[int]]:
        """Its processes by name, for saying where the time goes."""
        return {name: [self.made.pid_of(name)] for name in ("proxy", "guard", "ledger", "control")}

    def relaying(self) -> list[int]:
        """The process that tunnels live in."""
        return [self.made.pid_of("proxy")]


@contextlib.contextmanager
def started(protocol: str, core: int) -> Iterator[Exeat]:
    with name_server(zone_handler([(NAME, 60, "A", ORIGIN[0])])) as server:
        made = Standalone(server.address, {"bench": POLICY}, IDENTITY)
        try:
            made.up()
            for name, cores in (
                ("proxy", {core}),
                ("guard", {core}),
                ("ledger", {0, core}),
                ("control", {0, core}),
            ):
                for thread in os.listdir(f"/proc/{made.pid_of(name)}/task"):
                    os.sched_setaffinity(int(thread), cores)
            yield Exeat(made, protocol)
        finally:
            made.close()
