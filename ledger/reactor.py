"""A plain epoll loop with timers: what the proxy, the guard and the ledger run on.

One thread, level or edge triggered as each caller asks, no tasks and no futures. A callback
that raises is a bug in exeat; the loop hands it to `on_error` and goes on, because one broken
flow must not take the others with it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from time import CLOCK_BOOTTIME, clock_gettime
from typing import Protocol

EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT
EPOLLRDHUP = select.EPOLLRDHUP
EPOLLET = select.EPOLLET
EPOLLERR = select.EPOLLERR
EPOLLHUP = select.EPOLLHUP
# For a socket that is registered once and for its whole life: see `hand_over` and `forget`.
EDGES = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET

Callback = Callable[[int], None]


class Timer:
    """A call that will be made once, unless cancelled."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


def _print_error(error: BaseException) -> None:
    traceback.print_exception(error, file=sys.stderr)


class Poller(Protocol):
    """What a loop waits with: `select.epoll`, or something that does more in the meantime."""

    def register(self, fd: int, eventmask: int, /) -> None: ...

    def modify(self, fd: int, eventmask: int, /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]: ...

    def close(self) -> None: ...


class Reactor:
    """`add` descriptors, `call_later`, then `run` until `stop`."""

    def __init__(
        self, on_error: Callable[[BaseException], None] = _print_error, poller: Poller | None = None
    ) -> None:
        self.poller: Poller = poller if poller is not None else select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._new: set[int] = set()  # registered since the last wait: what it reported is not about them
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: list[Callable[[], None]] = []
        self.woke = self.now()  # when the last wait ended; what happens in one turn is of one time
        self.stopped = False  # set by `stop`, for good
        self._on_error = on_error

    def now(self) -> float:
        """Seconds of CLOCK_BOOTTIME: goes on through suspend, so no timer over-lives a lease."""
        return clock_gettime(CLOCK_BOOTTIME)

    def add(self, fd: int, events: int, callback: Callback) -> None:
        self.poller.register(fd, events)
        self._callbacks[fd] = callback
        self._new.add(fd)

    def modify(self, fd: int, events: int, callback: Callback | None = None) -> None:
        self.poller.modify(fd, events)
        if callback is not None:
            self._callbacks[fd] = callback

    def hand_over(self, fd: int, callback: Callback) -> None:
        """From now on `callback` hears of a descriptor that stays registered as it is."""
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop hearing of a descriptor that is edge-triggered and soon closed, without a system call.

        Closing takes a socket out of the kernel's set, if no other descriptor refers to it.
        """
        self._callbacks.pop(fd, None)

    def remove(self, fd: int) -> None:
        """Forget a descriptor. Call it before closing the descriptor; unknown ones are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self.poller.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run before the next wait; for work that must not grow the stack."""
        self._soon.append(callback)

    def stop(self) -> None:
        self.stopped = True

    def run(self) -> None:
        while not self.stopped:
            self.turn()

    def turn(self, max_wait: float = 60.0) -> None:
        """One round: wait for events (at most `max_wait` seconds), call back, run due timers."""
        wait = 0.0 if self._soon else self._wait(max_wait)
        self._new.clear()
        happened = self.poller.poll(wait, 512)
        self.woke = self.now()
        for fd, events in happened:
            callback = self._callbacks.get(fd)
            # An earlier callback of this round may have closed it, and another socket have its number.
            if callback is not None and fd not in self._new:
                try:  # as `guarded` does, without another call for each event
                    callback(events)
                except Exception as error:
                    self._on_error(error)
        soon, self._soon = self._soon, []
        for call in soon:
            self.guarded(call)
        self._run_timers()

    def _wait(self, max_wait: float) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return max_wait
        return min(max_wait, max(0.0, self._timers[0][0] - self.now()))

    def _run_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                self.guarded(callback)

    def guarded(self, call: Callable[..., None], *args: int) -> None:
        """Call it; what it raises goes to `on_error`, so that whoever is next gets their call too."""
        try:
            call(*args)
        except Exception as error:
            self._on_error(error)

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT end `run` after the current round."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        self.add(read, EPOLLIN, lambda _: _drain(read))

    def close(self) -> None:
        self.poller.close()


def _drain(fd: int) -> None:
    while True:
        try:
            if not os.read(fd, 4096):
                return
        except BlockingIOError:
            return
