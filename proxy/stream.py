"""The intakes of a tunnel in which HTTP/1.1 is spoken (`tunnel_requests` says what may pass)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exeat.proxy.answer import AnswerHead
from exeat.proxy.fields import HttpError
from exeat.proxy.relaying import DOWN, UP, StopRelay

if TYPE_CHECKING:
    from exeat.proxy.relay import Relay
    from exeat.proxy.tunnel_requests import TunnelRequests


def watch(requests: TunnelRequests, relay: Relay) -> RequestsSide:
    """Look at what both sides say from here on. The client's side is also returned."""
    if requests.asking:
        relay.watch(DOWN, _UpgradeSide(requests, relay))
    side = RequestsSide(requests)
    relay.watch(UP, side)
    return side


class RequestsSide:
    def __init__(self, requests: TunnelRequests) -> None:
        self._requests = requests

    @property
    def done(self) -> bool:
        return self._requests.switched

    @property
    def over(self) -> bool:
        """Nothing is read behind an Upgrade until its answer is there."""
        return self._requests.asking

    def take(self, data: memoryview) -> bytes | memoryview:
        try:
            return self._requests.take(data)
        except HttpError as error:
            raise StopRelay(error.code) from None

    def end(self) -> None:
        if self._requests.within_head:
            raise StopRelay("http.request_line")


class _UpgradeSide:
    """Reads the head that answers an Upgrade, and lets everything pass as it is."""

    def __init__(self, requests: TunnelRequests, relay: Relay) -> None:
        self._requests = requests
        self._relay: Relay | None = relay
        self._head = AnswerHead()
        self.done = False
        self.over = False

    def take(self, data: memoryview) -> memoryview:
        left: bytes | memoryview = data
        try:
            while not self.done and self._head.feed(left):
                left, head = self._head.rest, self._head
                self._head = AnswerHead()
                if head.status == 101 or not head.interim:
                    self._answered(switched=head.status == 101)
        except HttpError:
            raise StopRelay("http.upgrade") from None  # whether it was granted, nobody can say
        return data

    def _answered(self, *, switched: bool) -> None:
        self._requests.switched = switched
        self._requests.asking = False
        self.done = True
        if self._relay is not None:
            self._relay.kick()
            self._relay = None

    def end(self) -> None:
        """The server is gone; so is whatever the Upgrade was for."""
