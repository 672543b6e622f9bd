"""The guard rig, asked the normative cases: by the proxy at guard.sock, and by jails over DNS."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import dns.message
from tests.support.dns_servers import zone_handler
from tests.support.door_cases import SteeredClock, SteeredUsage
from tests.support.guard_rig import answers, ede, guard_rig

from exeat.dns import judge
from exeat.policy.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest
    from tests.support.dns_servers import Record as ZoneRecord
    from tests.support.door_cases import DoorCase, State
    from tests.support.guard_rig import Rig

    from exeat.policy.model import Address, Decision, Subject
    from exeat.policy.usage import Usage

_RD = 0x0100
_OPT = b"\x00\x00\x29\x04\xd0" + bytes(6)


@dataclass(frozen=True)
class Answered:
    """One answer. `reason` is "" for addresses; `upstream` says whether anything left the node."""

    reason: str
    addresses: frozenset[str]
    upstream: bool
    rcode: int = 0


@dataclass
class PolicyGuard:
    """`core` and `usage` are the same snapshot and counters, for asking the core beside the guard."""

    rig: Rig
    zone: list[ZoneRecord]
    state: State
    usage: Usage
    core: Snapshot | None = None
    generation: int = 0

    def __post_init__(self) -> None:
        self._doors: dict[Subject, tuple[str, int]] = {}

    def show(self, case: DoorCase) -> None:
        """Make the case's policy, leases, instant, spending and zone the guard's."""
        self.generation += 1
        self.state.clear()
        self.state.update(case.steering())
        message = case.snapshot(self.generation)
        self.core = Snapshot.load(message, self.core)
        self.rig.send(message)
        if case.subject not in self._doors:
            self._add_jail(case.subject)
        self.rig.sync()
        target = case.target
        self.zone[:] = (
            [(target, 60, "AAAA" if ":" in text else "A", text) for text in case.resolved]
            if isinstance(target, str)
            else []
        )

    def _add_jail(self, subject: Subject) -> None:
        door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        door.bind(("127.0.0.1", 0))
        self._doors[subject] = door.getsockname()
        name = f"jail-{len(self._doors)}"
        message = {
            "t": "jail.add", "jail": name, "subject": subject._asdict(), "sockets": ["dnsu4"], "hold_ms": 1
        }  # fmt: skip
        self.rig.send(message, (door.fileno(),))
        door.close()

    def resolve(self, case: DoorCase) -> Answered:
        """Ask as the proxy does for the flow of the case."""
        self.rig.server.seen.clear()
        subject = case.subject._asdict()
        reply = self.rig.resolve(case.host, subject=subject, port=case.port, proto=case.proto)
        upstream = bool(self.rig.server.seen)
        if not reply["ok"]:
            return Answered(reply["error"], frozenset(), upstream)
        found = {f"{a['family']}:{a['value']}" for a in reply["addresses"]}
        return Answered("", frozenset(found), upstream)

    def look_up(self, case: DoorCase, kind: str) -> Answered:
        """Ask as a program in the jail does, for A or AAAA."""
        self.rig.server.seen.clear()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(30)
            sock.connect(self._doors[case.subject])
            sock.send(question(str(case.host), kind))
            reply = dns.message.from_wire(sock.recv(4096))
        reasons = [text for _, text in ede(reply)]
        upstream = bool(self.rig.server.seen)
        return Answered("".join(reasons), frozenset(answers(reply)), upstream, reply.rcode())

    def core_says(self, case: DoorCase, addresses: tuple[Address, ...]) -> Decision:
        """`decide_lookup` of the core, before the name is looked up and with what it leads to."""
        assert self.core is not None
        ask = partial(self.core.decide_lookup, case.subject, str(case.target), case.now_ms, self.usage)
        before = ask()
        return ask(addresses) if before.allowed else before

    def recorded(self) -> dict[tuple[int, str], set[tuple[str, str]]]:
        """(generation, who asked) -> the verdicts and reasons on the ledger."""
        out: dict[tuple[int, str], set[tuple[str, str]]] = {}
        for record in self.rig.dns_records():
            key = record.generation, record.name_source
            out.setdefault(key, set()).add((record.decision, record.reason_code))
        return out


def question(host: str, kind: str) -> bytes:
    """A query with the host's bytes as they are. ValueError for what DNS has no form for."""
    labels = host.removesuffix(".").encode().split(b".")
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if max(map(len, labels)) > 63 or len(name) > 255:
        raise ValueError("no DNS name")
    head = b"".join(n.to_bytes(2, "big") for n in (0x4242, _RD, 1, 0, 0, 1))
    return head + name + {"A": b"\0\x01", "AAAA": b"\0\x1c"}[kind] + b"\0\x01" + _OPT


@contextlib.contextmanager
def policy_guard(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[PolicyGuard]:
    """A guard whose clock stands and whose counters are the case's."""
    state: State = {"now_ms": 0}
    zone: list[ZoneRecord] = []
    patch.setattr(judge, "Clock", lambda: SteeredClock(lambda: state))
    patch.setattr(judge, "Usage", lambda: SteeredUsage(lambda: state))
    with guard_rig(folder, zone_handler(zone)) as rig:
        yield PolicyGuard(rig, zone, state, SteeredUsage(lambda: state))


def in_numbers(case: DoorCase) -> frozenset[str]:
    """The case's addresses in the form of `Answered` at guard.sock."""
    return frozenset(f"{address.family}:{address.value}" for address in case.addresses)


def of_type(case: DoorCase, kind: str) -> tuple[frozenset[str], tuple[Address, ...]]:
    """The case's addresses of type A or AAAA: as text, and as the core takes them."""
    pairs = zip(case.resolved, case.addresses, strict=True)
    mine = [(text, address) for text, address in pairs if (":" in text) == (kind == "AAAA")]
    return frozenset(text for text, _ in mine), tuple(address for _, address in mine)
