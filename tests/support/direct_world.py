"""A host with an appliance and members of `[routing]`, and an Internet that only a pinhole leads to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
from tests.support.dns_servers import NameServer, Record, name_server, zone_handler
from tests.support.host_world import AGENT_UID, OUT4, OUT6, UNIFIED, Place, World, ip
from tests.support.proxy_world import in_namespace
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.appliance import config
from exeat.appliance.client import Client
from exeat.appliance.errors import NotReachableError
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.records import Record as LedgerRecord

ROOT = Path(__file__).parents[2]
SLICE = f"exeat-direct-{os.getpid()}.slice"
NAME = "db.example.org"
# What the documentation shows.
POLICY = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "routing.md").read_text(), re.DOTALL)[0]
CONFIG = f"""
[[routing.host]]
cgroup = "{SLICE}"
uid = "61200-61209"
project = "agents"
[[prices]]
name = "transit"
to = ["{NAME}"]
out_per_gb = 1_000_000_000
in_per_gb = 1_000_000_000
"""


ASK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(30)
    sock.sendto(bytes.fromhex(sys.argv[1]), ("127.0.0.1", 53))
    print(sock.recv(4096).hex())
"""


class DirectWorld(World):
    """Made inside `in_namespace`. `zone` is what the name server says; it may be changed."""

    def __init__(self, server: NameServer, zone: list[Record], budgets: str) -> None:
        self.slice = UNIFIED / SLICE
        self.server, self.zone = server, zone
        self.internet = Place(lambda _sock, _data: b"internet", ((22,), (51820,)))
        internet = self.internet.open()
        self._link("out0", "198.51.100.1/24", "2001:db8:2::1/64", internet, (f"{OUT4}/24", f"{OUT6}/64"))
        ip("addr", "add", "198.51.100.3/24", "dev", "far0", inside=internet)
        self.internet.serve()
        self.made = Standalone(server.address, {"agents": f"{POLICY}{budgets}\n"}, CONFIG)
        text = self.made.config.read_text()
        more = '"203.0.113.0/24", "198.51.100.0/24"'
        self.made.config.write_text(text.replace('"203.0.113.0/24"', more))
        self.made.up()

    def exeat(self, *words: str) -> str:
        done = self.made.exeat(*words)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.exeat(*words, "--json"))

    def lease(self, to: str, *words: str) -> str:
        """A direct lease, granted; its id."""
        asked = ("lease", "request", to, "--project", "agents", "--direct", "--as", "ann", *words)
        name = self.json(*asked)["id"]
        self.exeat("lease", "approve", name, "--as", "ben")
        return str(name)

    def open(self, lease: str, count: int = 1) -> list[dict[str, Any]]:
        """What the lease has open, once that are `count`."""

        def live() -> Any:
            rows = [row for row in self._direct(lease) if "flow" in row]
            return rows if len(rows) == count else None

        found: list[dict[str, Any]] = wait_for(live)
        return found

    def shut(self, lease: str) -> list[str]:
        """Why what the lease would open is not."""
        return [row["reason"] for row in self._direct(lease) if "reason" in row]

    def _direct(self, lease: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = self.call("lease.show", lease=lease)["lease"].get("direct", [])
        except NotReachableError:
            found = []
        return found

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """As the command line asks control."""
        client = Client(config.load(self.made.config))
        try:
            return client.call(verb, **arguments)
        finally:
            client.close()

    def looked_up(self, name: str) -> list[str]:
        """The addresses that the guard answers a member."""
        query = dns.message.make_query(name, "A").to_wire()
        done = subprocess.run(
            [sys.executable, "-I", "-c", ASK, query.hex()],
            capture_output=True, text=True, timeout=30, preexec_fn=self.entering(AGENT_UID, self.slice),
            check=True,
        )  # fmt: skip
        reply = dns.message.from_wire(bytes.fromhex(done.stdout))
        return [item.to_text() for rrset in reply.answer for item in rrset]

    def of_kind(self, *kinds: Kind) -> list[LedgerRecord]:
        return [record for record in self.made.records() if record.kind in kinds]

    def closed(self, count: int = 1) -> list[LedgerRecord]:
        """The `close` records of direct flows, once there are so many."""

        def found() -> list[LedgerRecord]:
            rows = [record for record in self.of_kind(Kind.CLOSE) if record.name_source == "direct"]
            return rows if len(rows) >= count else []

        return wait_for(found)

    def close(self) -> None:
        self.made.close()
        self.internet.close()
        with contextlib.suppress(FileNotFoundError):
            self.slice.rmdir()


def in_direct_world(body: Callable[[DirectWorld], None], budgets: str = "") -> None:
    """An appliance with one member, `agents/host`; NAME leads to OUT4."""

    def run() -> None:
        zone: list[Record] = [(NAME, 1, "A", OUT4)]
        with name_server(zone_handler(zone)) as server:
            world = DirectWorld(server, zone, budgets)
            try:
                body(world)
                assert world.made.down() == 0
            finally:
                world.close()

    in_namespace(run)
