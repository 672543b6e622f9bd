"""One request in absolute form and its answer, on a client connection that may carry more.

The request goes to an upstream connection of its own and the answer ends it, so that no two
requests ever share one. What the client sends beyond its request is kept for the next one; what
the origin sends beyond its answer goes nowhere. After an Upgrade that the origin agreed to, both
sides pass as they are: it is a tunnel to this one destination, whatever is said in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from exeat.proxy.answer import Answer
from exeat.proxy.body import BodyFramer
from exeat.proxy.fields import HttpError
from exeat.proxy.relaying import DOWN, UP, StopRelay

if TYPE_CHECKING:
    from exeat.proxy.connect import RequestHead
    from exeat.proxy.relay import Relay

MAX_AHEAD: Final = 64 * 1024  # bytes of the next requests that are read while this one runs


@dataclass(frozen=True, slots=True)
class Before:
    """What a request leaves of its client's connection to the next one.

    `sent` bytes the client has had, `heard` those it sent for earlier requests, `early` what has
    been read of it since, `unwanted` the rest of a refused request's body. `ends`: there will be
    no next one, the client has only to read its answer and close.
    """

    sent: int
    heard: int
    early: bytes = b""
    unwanted: BodyFramer = field(default_factory=lambda: BodyFramer(0))
    ends: bool = False


class Exchange:
    """`first` is what goes out first: the head, and as much of the body as came with it.

    `early` is what the client sent behind the head. Raises HttpError when the body is broken.
    """

    def __init__(self, asked: RequestHead, early: bytes) -> None:
        self.asked = asked
        self.body = BodyFramer(asked.length)
        self.answer = Answer(asked.method, upgrade=asked.upgrade, persistent=asked.persistent, old=asked.old)
        used = self.body.take(early)
        self.first = asked.upstream + early[:used]
        self.next = bytearray(early[used:])
        self.taken = used  # bytes of the body
        self.withheld = 0  # bytes of the origin that did not go on, less those that we added
        self.relay: Relay | None = None

    def watch(self, relay: Relay) -> None:
        self.relay = relay
        relay.watch(UP, _RequestSide(self))
        relay.watch(DOWN, _AnswerSide(self))

    @property
    def reusable(self) -> bool:
        """Both ended where they should: the client may go on with its next request."""
        return self.body.done and self.answer.reusable


class _RequestSide:
    """The body of the request, and no more of it than that."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @property
    def done(self) -> bool:
        return self._exchange.answer.switched

    @property
    def over(self) -> bool:
        """Enough was read ahead. After an Upgrade the answer decides what comes next."""
        exchange = self._exchange
        if exchange.answer.switched or not exchange.body.done:
            return False
        return exchange.asked.upgrade or len(exchange.next) >= MAX_AHEAD

    def take(self, data: memoryview) -> bytes | memoryview:
        exchange = self._exchange
        if exchange.answer.switched:
            return data
        try:
            used = exchange.body.take(data)
        except HttpError as error:
            raise StopRelay(error.code) from None
        exchange.taken += used
        exchange.next += data[used:]
        return data[:used]

    def end(self) -> None:
        if not self._exchange.body.done:
            raise StopRelay("http.body")


class _AnswerSide:
    """The answer, and nothing behind it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._ended = False

    @property
    def done(self) -> bool:
        return self._exchange.answer.switched

    @property
    def over(self) -> bool:
        return self._ended or self._exchange.answer.done

    def take(self, data: memoryview) -> bytes | memoryview:
        exchange = self._exchange
        try:
            passing = exchange.answer.take(data)
        except HttpError as error:
            raise StopRelay(error.code) from None
        exchange.withheld += len(data) - len(passing)
        if exchange.answer.switched:
            self._switch(exchange)
        return passing

    @staticmethod
    def _switch(exchange: Exchange) -> None:
        if exchange.next:  # said before the origin agreed: nobody knows in which protocol
            raise StopRelay("http.upgrade")
        if exchange.relay is not None:
            exchange.relay.kick()  # what the client has said since has not been read

    def end(self) -> None:
        if not self._exchange.answer.begun:
            raise StopRelay("http.no_answer")
        self._ended = True
