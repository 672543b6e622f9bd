"""Who a client outside every jail is: the most specific source that holds it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.policy.addresses import WIDTH, Cidr
from exeat.policy.model import Address, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable

USER: Final = "user:"  # before a name that a client proves with a password

# The subject of a client that no identity knows: the core refuses it, `meta.attribution`.
NOBODY: Final = Subject("", "")


class Uids(NamedTuple):
    """Users from `low` to `high`, both included."""

    low: int
    high: int


class CgroupPath(NamedTuple):
    """A cgroup and all below it: `agents.slice/a`, below the root of the v2 tree."""

    path: str


class Identity(NamedTuple):
    """Clients from `source` are `subject`: a network, users, a cgroup, a Unix socket's path, `user:NAME`."""

    source: Cidr | Uids | CgroupPath | str
    subject: Subject


class Identities:
    """Sources and the subjects they stand for. Of two equal sources the first one counts."""

    def __init__(self, identities: Iterable[Identity]) -> None:
        self._uids: dict[Uids, Subject] = {}
        self._cgroups: dict[str, Subject] = {}
        self._paths: dict[str, Subject] = {}
        self._users: dict[str, Subject] = {}
        networks: dict[tuple[int, int], dict[int, Subject]] = {}
        for source, subject in identities:
            if isinstance(source, Uids):
                self._uids.setdefault(source, subject)
            elif isinstance(source, CgroupPath):
                self._cgroups.setdefault(f"/{source.path}", subject)
            elif isinstance(source, str) and source.startswith(USER):
                self._users.setdefault(source.removeprefix(USER), subject)
            elif isinstance(source, str):
                self._paths.setdefault(source, subject)
            else:
                shift = WIDTH[source.family] - source.length
                networks.setdefault((source.family, shift), {}).setdefault(source.value >> shift, subject)
        # The longest prefix, which leaves the fewest bits to shift out, comes first.
        self._networks = {
            family: [(shift, networks[of, shift]) for of, shift in sorted(networks) if of == family]
            for family in WIDTH
        }

    def of_address(self, address: Address) -> Subject:
        """The subject behind a client's address, NOBODY when no network holds it."""
        for shift, known in self._networks[address.family]:
            subject = known.get(address.value >> shift)
            if subject is not None:
                return subject
        return NOBODY

    def of_user(self, name: str) -> Subject:
        """The subject of a client that has proved to be `name`."""
        return self._users.get(name, NOBODY)

    @property
    def by_process(self) -> bool:
        """Does any source need more of a client than its address?"""
        return bool(self._uids or self._cgroups)

    def of_process(self, uid: int, cgroup: str) -> Subject | None:
        """The subject behind a process: its cgroup's (the deepest that is known), else its uid's."""
        while cgroup not in self._cgroups:
            if not cgroup:
                return self._of_uid(uid)
            cgroup = cgroup.rpartition("/")[0]
        return self._cgroups[cgroup]

    def of_peer(self, path: str, uid: int) -> Subject:
        """The subject behind a connection to the Unix socket `path`: its uid's, else the path's."""
        return self._of_uid(uid) or self._paths.get(path) or NOBODY

    def _of_uid(self, uid: int) -> Subject | None:
        """Of several ranges the narrowest one counts, of equal ones the first."""
        holding = [users for users in self._uids if users.low <= uid <= users.high]
        return self._uids[min(holding, key=lambda users: users.high - users.low)] if holding else None
