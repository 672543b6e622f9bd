"""The answers people ask to see (`exeat dns pins`): which subject was told which address, until when.

A book may be large and lookups must not wait for it: it is read one subject per turn of the loop.
Who may ask is decided where the request comes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.policy.addresses import MalformedError, format_address, parse_address
from exeat.policy.names import parse_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.dns.pins import Pin, Pins
    from exeat.ledger.ipc import Message
    from exeat.ledger.reactor import Reactor
    from exeat.policy.model import Address, Subject

MAX_ROWS: Final = 2000
_KNOWN: Final = frozenset({"id", "verb", "project", "job", "name", "address", "limit"})


class FilterError(ValueError):
    """What was asked for cannot be understood; the message is for the person who asked."""


class Filter(NamedTuple):
    """Which pins are wanted; "" and None stand for any. `name` takes in the names below it."""

    project: str = ""
    job: str = ""
    name: str = ""
    address: Address | None = None
    limit: int = MAX_ROWS

    def wants(self, subject: Subject) -> bool:
        return self.project in ("", subject.project) and self.job in ("", subject.job)

    def takes(self, pin: Pin) -> bool:
        named = not self.name or pin.host == self.name or pin.host.endswith("." + self.name)
        return named and self.address in (None, pin.address)


def read_filter(message: Message) -> Filter:
    """The filter of a `pins` request. Raises FilterError."""
    texts = {field: message.get(field, "") for field in ("project", "job", "name", "address")}
    limit = message.get("limit", MAX_ROWS)
    if not set(message) <= _KNOWN or not all(isinstance(text, str) for text in texts.values()):
        raise FilterError("a pins request has project, job, name and address, all text, and limit")
    if type(limit) is not int or not 1 <= limit <= MAX_ROWS:
        raise FilterError(f"limit is not a number from 1 to {MAX_ROWS}")
    try:
        name = parse_host(texts["name"].removeprefix(".")) if texts["name"] else ""
        address = parse_address(texts["address"]) if texts["address"] else None
    except MalformedError as error:
        raise FilterError(f"neither a host name nor an address [{error.code}]") from None
    if not isinstance(name, str):
        raise FilterError("name is an address: ask for it as address")
    return Filter(texts["project"], texts["job"], name, address, limit)


def gather(reactor: Reactor, pins: Pins, wanted: Filter, done: Callable[[dict[str, Any]], None]) -> None:
    """`done` gets `{rows, total}`: at most `wanted.limit` rows of the `total` there are."""
    _Gathering(reactor, pins, wanted, done).step()


class _Gathering:
    def __init__(
        self, reactor: Reactor, pins: Pins, wanted: Filter, done: Callable[[dict[str, Any]], None]
    ) -> None:
        self._reactor = reactor
        self._pins = pins
        self._wanted = wanted
        self._done = done
        self._left = sorted((subject for subject in pins.subjects() if wanted.wants(subject)), reverse=True)
        self._rows: list[dict[str, Any]] = []
        self._total = 0

    def step(self) -> None:
        if not self._left:
            self._done({"rows": self._rows, "total": self._total})
            return
        subject = self._left.pop()
        found = [pin for pin in self._pins.of(subject) if self._wanted.takes(pin)]
        self._total += len(found)
        self._rows += [_row(subject, pin) for pin in found[: self._wanted.limit - len(self._rows)]]
        self._reactor.call_soon(self.step)


def _row(subject: Subject, pin: Pin) -> dict[str, Any]:
    return {
        "project": subject.project,
        "agent": subject.agent,
        "job": subject.job,
        "name": pin.host,
        "address": format_address(pin.address),
        "left_s": round(pin.left_s, 1),
    }
