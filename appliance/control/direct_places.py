"""Which places a direct lease opens, and for whom (pure).

A pinhole is for one member of the host's table, one host, one port, one protocol: what cannot be said so
narrowly cannot be leased `via: direct`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.appliance.control.lease_rows import host_text
from exeat.appliance.errors import RefusedError
from exeat.policy.model import Address
from exeat.policy.scopes import Reach

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from exeat.policy.leases import Lease
    from exeat.policy.scopes import Scope

MAX_PLACES: Final = 16  # of one lease, members included
DEFAULT_BYTES: Final = 256 << 20  # what a direct lease may move where nobody said how much
DNS_PORT: Final = 53
_WIDTHS: Final = {4: 32, 6: 128}


class Place(NamedTuple):
    """One pinhole of one lease. `member` is the label of an entry of `[routing]`, PROJECT/AGENT."""

    lease: str
    member: str
    host: str | Address
    port: int
    proto: str

    @property
    def agent(self) -> str:
        return self.member.partition("/")[2]

    @property
    def words(self) -> tuple[str, str, str, int, str]:
        """As text and numbers, the host as `parse_host` takes it."""
        return self.lease, self.member, host_text(self.host), self.port, self.proto

    @property
    def text(self) -> str:
        return f"{host_text(self.host)}:{self.port}/{self.proto}"


def places(lease: Lease, labels: Collection[str]) -> list[Place]:
    """All places of a direct lease, for every member of `labels` that it is for.

    Raises RefusedError: `direct.scope` for what is no exact place, `direct.member` where nobody could
    use it, `direct.places` for more than MAX_PLACES.
    """
    wanted = [target for scope in lease.to for target in _targets(lease, scope)]
    if lease.except_:
        raise RefusedError("direct.scope", "a direct lease takes no `except`: name the places themselves")
    members = [label for label in labels if _is_for(lease, label)]
    if not members:
        raise RefusedError(
            "direct.member",
            f"nobody of project {lease.project} has a way past the proxy: a job of `exeat run` has a "
            "loopback and no route. Only members of [[routing.host]] and [[routing.veth]] can be direct; "
            "for a job, ask without --direct",
        )
    found = [
        Place(lease.id, member, host, port, proto)
        for member in members
        for host, port in wanted
        for proto in lease.protocols
    ]
    if len(found) > MAX_PLACES:
        raise RefusedError(
            "direct.places", f"{len(found)} pinholes at once are too many: at most {MAX_PLACES}"
        )
    return found


def _is_for(lease: Lease, label: str) -> bool:
    project, _, agent = label.partition("/")
    return project == lease.project and not lease.job and (not lease.agents or agent in lease.agents)


def _targets(lease: Lease, scope: Scope) -> Iterator[tuple[str | Address, int]]:
    host = _host(scope)
    for low, high in scope.ports or lease.ports:
        if high - low >= MAX_PLACES:
            raise RefusedError("direct.scope", f"`{scope}`: a direct lease names its ports one by one")
        for port in range(low, high + 1):
            if port == DNS_PORT:
                raise RefusedError("direct.scope", "lookups go to the guard, never through a pinhole")
            yield host, port


def _host(scope: Scope) -> str | Address:
    if scope.reach is Reach.HOST:
        return scope.name
    net = scope.net
    if net is not None and net.length == _WIDTHS[net.family]:
        return Address(net.family, net.value)
    raise RefusedError("direct.scope", f"`{scope}`: a direct lease is for one host or address, not for many")
