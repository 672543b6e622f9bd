"""`[routing]`: who on this machine cannot live in a jail and is confined by nftables instead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import field_validator, model_validator

from exeat.appliance.sections import Agent, Endpoints, Project, Section, endpoints, source_cidr
from exeat.policy.addresses import parse_address
from exeat.policy.identity import CgroupPath, Identities, Identity, Uids
from exeat.policy.model import Subject
from exeat.sandbox.cgroup import layout
from exeat.sandbox.rules import Cgroup, Host, Table, Target, Veth

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exeat.appliance.config import Config

_UIDS = re.compile(r"(0|[1-9][0-9]{0,9})(?:-([1-9][0-9]{0,9}))?", re.ASCII)
_MOUNTS = Path("/proc/self/mountinfo")


def parse_uids(text: str) -> tuple[int, int]:
    """`N` or `LOW-HIGH` as (low, high). Raises ValueError."""
    match = _UIDS.fullmatch(text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not low <= high < 2**32 - 1:
        raise ValueError(f"`{text}` is neither a uid nor LOW-HIGH")
    return low, high


class RoutingHost(Section):
    """Processes of this machine: in `cgroup` (below the v2 root) or with a uid `N` or `LOW-HIGH`."""

    project: Project
    agent: Agent = "host"
    cgroup: str | None = None
    uid: str | None = None

    @model_validator(mode="after")
    def _usable(self) -> RoutingHost:
        self.member()
        return self

    def member(self) -> Host:
        """As the rules take it. Raises ValueError."""
        uids: tuple[tuple[int, int], ...] = ()
        if self.uid is not None:
            uids = (parse_uids(self.uid),)
        cgroup = None if self.cgroup is None else Cgroup(self.cgroup)
        return Host(f"{self.project}/{self.agent}", cgroup, uids)


class RoutingVeth(Section):
    """What is behind a network interface of this machine, and the only addresses it may send from."""

    project: Project
    agent: Agent = "container"
    interface: str
    addresses: tuple[str, ...]

    @model_validator(mode="after")
    def _usable(self) -> RoutingVeth:
        self.member()
        return self

    def member(self) -> Veth:
        """As the rules take it. Raises ValueError."""
        sources = []
        for text in self.addresses:
            source = source_cidr(text)
            if source is None:
                raise ValueError(f"`{text}` is neither an address nor a CIDR without host bits")
            sources.append(source)
        return Veth(f"{self.project}/{self.agent}", self.interface, tuple(sources))


class Routing(Section):
    """`never`: places that no pinhole may reach (Redis, an API), whatever a lease says."""

    host: tuple[RoutingHost, ...] = ()
    veth: tuple[RoutingVeth, ...] = ()
    never: Endpoints = ()

    @field_validator("veth")
    @classmethod
    def _interfaces(cls, value: tuple[RoutingVeth, ...]) -> tuple[RoutingVeth, ...]:
        if len({veth.interface for veth in value}) != len(value):
            raise ValueError("an interface stands here twice")
        return value

    @model_validator(mode="after")
    def _one_each(self) -> Routing:
        labels = [member.label for member in self.members]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"project and agent {label} stand in two entries: give each an agent")
        return self

    @property
    def members(self) -> tuple[Host | Veth, ...]:
        return (*(host.member() for host in self.host), *(veth.member() for veth in self.veth))


def host_table(config: Config, own_uids: Iterable[int] = ()) -> Table:
    """The warden's table. Raises ValueError when it would confine one of exeat's own users."""
    members = config.routing.members
    for member in members:
        for low, high in member.uids if isinstance(member, Host) else ():
            for uid in own_uids:
                if low <= uid <= high:
                    raise ValueError(f"[[routing.host]] {member.label}: uid {uid} is exeat's own")
    guard, redirected = endpoints(config.dns.listen), endpoints(config.proxy.transparent)
    doors = [*_places((*config.proxy.listen, *config.proxy.listen_socks), "tcp")]
    doors += [*_places(config.dns.listen, "tcp"), *_places(config.dns.listen, "udp")]
    never = [*_places(config.routing.never, "tcp"), *_places(config.routing.never, "udp")]
    hybrid = layout(_MOUNTS.read_text(), "").mask
    return Table(
        members=members,
        doors=tuple(doors),
        transparent=redirected[0][1] if redirected else 0,
        dns=guard[0][1] if guard else 0,
        never=tuple(never),
        prefix="unified/" if hybrid else "",
    )


def identities(config: Config) -> Identities:
    """Who the clients outside jails are: `[[identity]]` first, then what is confined. They have no job."""
    found = [(each.place(), each.project, each.agent) for each in config.identity]
    for host in config.routing.host:
        found += [(CgroupPath(host.cgroup), host.project, host.agent)] if host.cgroup else []
        found += [(Uids(*parse_uids(host.uid)), host.project, host.agent)] if host.uid else []
    for veth in config.routing.veth:
        found += [(source, veth.project, veth.agent) for source in veth.member().sources]
    node = config.node.name
    return Identities(
        Identity(source, Subject(project, agent, "", "", node)) for source, project, agent in found
    )


def _places(texts: Endpoints, proto: str) -> list[Target]:
    return [Target(parse_address(host), proto, port) for host, port in endpoints(texts)]
