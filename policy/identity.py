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


class Identity(NamedTuple):
    """Clients from `source` are `subject`: a network, a uid, a Unix socket's path, or `user:NAME`."""

    source: Cidr | int | str
    subject: Subject


class Identities:
    """Sources and the subjects they stand for. Of two equal sources the first one counts."""

    def __init__(self, identities: Iterable[Identity]) -> None:
        self._uids: dict[int, Subject] = {}
        self._paths: dict[str, Subject] = {}
        self._users: dict[str, Subject] = {}
        networks: dict[tuple[int, int], dict[int, Subject]] = {}
        for source, subject in identities:
            if isinstance(source, int):
                self._uids.setdefault(source, subject)
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

    def of_peer(self, path: str, uid: int) -> Subject:
        """The subject behind a connection to the Unix socket `path`: its uid's, else the path's."""
        return self._uids.get(uid) or self._paths.get(path) or NOBODY
