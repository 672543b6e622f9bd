"""What came of an attempt: the client's own account beside what the far side saw. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.redteam.cases import Case

_TCP, _UDP = 6, 17


@dataclass(frozen=True)
class Verdict:
    """`problems` is empty when the proxy did what is expected of it."""

    case: str
    problems: tuple[str, ...]
    stopped: str = ""

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class World:
    """What is allowed to be seen anywhere: the arena's table."""

    home: frozenset[str]
    ports: dict[str, list[int]]
    udp: dict[str, list[int]]
    resolver: str
    allowed: tuple[str, ...]
    denied: tuple[str, ...]

    @classmethod
    def of(cls, arena: dict[str, Any]) -> World:
        ports = {host: list(numbers) for host, numbers in arena["ports"].items()}
        return cls(
            frozenset(ports),
            ports,
            arena["udp"],
            arena["resolver"],
            tuple(arena["allowed"]),
            tuple(arena["denied"]),
        )

    def may_ask(self, name: str) -> bool:
        plain = name.lower().rstrip(".")
        if any(_covers(scope, plain) for scope in self.denied):
            return False
        return any(_covers(scope, plain) for scope in self.allowed)


def _covers(scope: str, name: str) -> bool:
    """`.name` is it and all below; `name` only it."""
    return name == scope.removeprefix(".") or (scope.startswith(".") and name.endswith(scope))


def judge(world: World, case: Case, result: dict[str, Any], news: dict[str, list[Any]]) -> Verdict:
    problems = intrusions(world, news, case.dns)
    received = "".join(seen["data"] for seen in (*news["tcp"], *news["udp"]) if seen["port"] != 53)
    datagrams = len(news["udp"])
    heard = "".join(result["heard"])
    problems += [f"{text!r} reached an origin" for text in case.unseen if text in received]
    problems += [f"{text!r} reached the client" for text in case.unwanted if text in heard]
    asked = [question["name"] for question in news["dns"]]
    if case.quiet and asked:
        problems.append(f"asked the resolver for {asked[0]!r}")
    problems += [f"asked for {name!r} as it was spelled" for name in case.spelling if name in asked]
    if case.expect == "allowed" and result["stopped"]:
        problems.append(f"it must work and did not: {result['stopped']}")
    if case.expect == "refused":
        if received or datagrams:
            problems.append(f"{len(received)} bytes reached an origin: {received[:60]!r}")
        if not case.dial and (dials := _dials(world, news)):
            problems.append(f"dialled {', '.join(dials)}")
    return Verdict(case.id, tuple(problems), result["stopped"])


def intrusions(world: World, news: dict[str, list[Any]], names: tuple[str, ...] = ()) -> list[str]:
    """What may never be seen, whatever was sent: other hosts, other ports, other names."""
    found = []
    for seen in (*news["tcp"], *news["udp"]):
        if seen["where"] == "loopback":
            found.append(f"spoke to {seen['host']}:{seen['port']} on the gateway itself")
    for packet in news["packets"]:
        host, port, protocol = packet["host"], packet["port"], packet["protocol"]
        if host == world.resolver and port == 53:
            continue
        known = {_TCP: world.ports, _UDP: world.udp}.get(protocol, {})
        if port not in known.get(host, ()):
            found.append(f"protocol {protocol} to {host}:{port}")
    for question in news["dns"]:
        name = question["name"]
        if not world.may_ask(name) and name.lower().rstrip(".") not in names:
            found.append(f"asked the resolver for {name!r}")
    return sorted(set(found))


def _dials(world: World, news: dict[str, list[Any]]) -> list[str]:
    return sorted(
        {
            f"{packet['host']}:{packet['port']}"
            for packet in news["packets"]
            if packet["protocol"] == _TCP and packet["host"] in world.home
        }
    )
