"""A process of a few threads that ends with SIGTERM."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def stop_on_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT, from now on."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_all(threads: Sequence[threading.Thread], ready: Callable[[], None]) -> int:
    """Start them, say so, and wait for the last to end. Returns the exit code."""
    for thread in threads:
        thread.start()
    ready()
    for thread in threads:
        thread.join()
    return 0
