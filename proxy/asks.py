"""Flows that wait for a person, and the request ids under which they can be approved.

Equal asks are coalesced: however many flows wait for one destination, control hears of it once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.policy.model import Decision, Request

MAX_PER_JAIL: Final = 64
MAX_REMEMBERED: Final = 4096  # request ids kept for later refusals of the same ask


class Parked(Protocol):
    """A flow that waits: it is asked to decide again."""

    def reconsider(self) -> None: ...


def ask_key(request: Request, host: str) -> str:
    """`project/agent/host:port/proto` (docs/architecture.md)."""
    subject = request.subject
    return f"{subject.project}/{subject.agent}/{host}:{request.port}/{request.proto}"


class AskBook:
    """Who waits under which key. `send` tells control and returns False when it cannot."""

    def __init__(self, send: Callable[[dict[str, Any]], bool]) -> None:
        self._send = send
        self._parked: dict[str, set[Parked]] = {}
        self._asked: dict[str, dict[str, Any]] = {}
        self._ids: OrderedDict[str, str] = OrderedDict()

    def park(self, key: str, flow: Parked, request: Request, host: str, decision: Decision) -> bool:
        """False when nobody can be asked. Control is told of every new episode of waiting."""
        waiting = self._parked.get(key)
        if waiting is None:
            message = {
                "t": "ask",
                "key": key,
                "subject": request.subject._asdict(),
                "host": host,
                "port": request.port,
                "proto": request.proto,
                "rule": decision.rule,
            }
            if not self._send(message):
                return False
            self._asked[key] = message
            waiting = self._parked[key] = set()
        waiting.add(flow)
        return True

    def leave(self, key: str, flow: Parked) -> None:
        waiting = self._parked.get(key)
        if waiting is not None:
            waiting.discard(flow)
            if not waiting:
                del self._parked[key], self._asked[key]

    def pending(self, key: str, request_id: str) -> None:
        """Control gave the ask an id."""
        self._ids[key] = request_id
        self._ids.move_to_end(key)
        while len(self._ids) > MAX_REMEMBERED:
            self._ids.popitem(last=False)

    def request_id(self, key: str) -> str:
        return self._ids.get(key, "")

    def parked(self) -> list[Parked]:
        """Everybody who waits: each is to decide again when the policy or the leases change."""
        return [flow for flows in self._parked.values() for flow in flows]

    def repeat(self) -> None:
        """Tell control again who waits: it may have been restarted, and coalesces by key."""
        for message in list(self._asked.values()):
            self._send({**message, "again": True})
