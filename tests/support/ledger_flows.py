"""A gateway's own ledger client with flows that go on by themselves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.support.ledgers import record

from exeat.ledger.client import LedgerClient
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.ledger.reactor import Reactor

AT_ONCE = 16
PAYLOAD = 700  # bytes a flow passes each way


class Gateway:
    """Flows that open, reserve, and close by themselves, AT_ONCE of them, over one client."""

    def __init__(self, reactor: Reactor, path: Path) -> None:
        self.client = LedgerClient(reactor, path, give_up_s=60)
        self.client.on_reconnect = self._resume
        self._reactor = reactor
        self.opened: set[int] = set()  # acknowledged, and not closed yet
        self.closed: set[int] = set()  # acknowledged
        self.failed: list[int] = []
        self.answers = 0
        self.stopping = False
        self._last = 0
        for _ in range(AT_ONCE):
            self._next()

    def turn_until(self, condition: Callable[[], bool], what: str) -> None:
        """Let the flows go on until then; bounded, since only a failure gets there."""
        for _ in range(50_000):
            if condition():
                return
            self._reactor.turn(0.1)
        raise AssertionError(f"never happened: {what}")

    def finish(self) -> None:
        """Begin no more flows, and see the others to their end."""
        self.stopping = True
        self.turn_until(lambda: len(self.closed) + len(self.failed) == self._last, "all flows have ended")
        self.client.close()

    def _next(self) -> None:
        if self.stopping:
            return
        self._last += 1
        flow = self._last
        records = [record(Kind.OPEN, flow, job=f"job-{flow % 3}"), record(Kind.RESERVE, flow, reserved=1000)]
        self.client.append(records, partial(self._on_open, flow))

    def _on_open(self, flow: int, durable: bool) -> None:
        self.answers += 1
        if not durable:
            self.failed.append(flow)
            return
        self.opened.add(flow)
        more = [
            record(Kind.RESERVE, flow, reserved=2 * PAYLOAD),
            record(Kind.PROGRESS, flow, bytes_out=PAYLOAD, reserved=2 * PAYLOAD),
        ]
        self.client.append(more, partial(self._on_more, flow))

    def _on_more(self, flow: int, durable: bool) -> None:
        self.answers += 1
        if not durable:
            self.failed.append(flow)
            return
        close = record(Kind.CLOSE, flow, bytes_out=PAYLOAD, bytes_in=PAYLOAD, reserved=2 * PAYLOAD)
        self.client.append([close], partial(self._on_close, flow))

    def _on_close(self, flow: int, durable: bool) -> None:
        self.answers += 1
        self.opened.discard(flow)
        (self.closed.add if durable else self.failed.append)(flow)
        self._next()

    def _resume(self) -> None:
        for flow in sorted(self.opened):
            self.client.append([record(Kind.RESUME, flow)], lambda _durable: None, alone=True)
