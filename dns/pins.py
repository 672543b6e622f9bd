"""Which names a subject was answered with which address: what a bare address may have meant.

A client that connects to an address looked a name up before, nearly always here. The book gives a
connection its name back where its own first bytes do not say one. It is a hint and no permission:
the name is decided, resolved and vetted anew before anything is dialled. Bounded in memory, lost on
restart, and nothing is written to disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exeat.policy.model import Address, Subject

LEAST_S: Final = 60.0  # clients use an answer for longer than its time to live says
MAX_ADDRESSES: Final = 1024  # of one subject; the oldest goes first
MAX_NAMES: Final = 4  # of one address: more than one is ambiguous, however many there are


class Pin(NamedTuple):
    """One answer that has not ended: it stands for `left_s` more seconds."""

    host: str
    address: Address
    left_s: float


class Pins:
    """`now` is seconds of a clock that never goes back."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._books: dict[Subject, dict[Address, dict[str, float]]] = {}

    def note(self, subject: Subject, host: str, addresses: Iterable[Address], ttl: float) -> None:
        """`subject` was told that `host` has these addresses, for `ttl` seconds."""
        book = self._books.setdefault(subject, {})
        ends = self._now() + max(ttl, LEAST_S)
        for address in addresses:
            names = book.pop(address, {})  # and back in as the youngest
            names.pop(host, None)
            if len(names) >= MAX_NAMES:
                del names[next(iter(names))]
            names[host] = ends
            if len(book) >= MAX_ADDRESSES:
                del book[next(iter(book))]
            book[address] = names

    def names(self, subject: Subject, address: Address) -> list[str]:
        """The names that `address` was answered for and that have not ended, oldest first."""
        now = self._now()
        found = self._books.get(subject, {}).get(address, {})
        return [host for host, ends in found.items() if ends > now]

    def subjects(self) -> list[Subject]:
        """Everybody who was told anything."""
        return list(self._books)

    def of(self, subject: Subject) -> list[Pin]:
        """What `subject` was told and has not ended, by name and address."""
        now = self._now()
        book = self._books.get(subject, {})
        return sorted(
            Pin(host, address, ends - now)
            for address, names in book.items()
            for host, ends in names.items()
            if ends > now
        )

    def forget(self, subject: Subject) -> None:
        self._books.pop(subject, None)
