"""What the lab's services share: readiness, an event log, and a clean end.

A service is told its folders by arguments, says that it listens by writing one byte to the
descriptor `--ready-fd`, and ends on SIGTERM. Whoever starts it reads that byte, or the end of
the stream when the service died first: nobody has to guess with a sleep.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_IP_TRANSPARENT = (socket.SOL_IP, 19)  # linux/in.h
_IPV6_TRANSPARENT = (socket.IPPROTO_IPV6, 75)  # linux/in6.h


class EventLog:
    """JSON lines, one `write` each, so that a reader never sees half an event."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"ev": event, "t": round(time.time(), 6), **fields})
        os.write(self._fd, line.encode() + b"\n")


def arguments(description: str) -> argparse.Namespace:
    """`--events FILE --run-dir DIR --ready-fd N`, the same for every service."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    return parser.parse_args()


def run_until_told(ready_fd: int) -> None:
    """Say that everything listens, then wait for SIGTERM or SIGINT."""
    stop = {signal.SIGTERM, signal.SIGINT}
    os.write(ready_fd, b"\n")
    os.close(ready_fd)
    signal.sigwait(stop)


def block_signals() -> None:
    """Before any thread starts, so that only `run_until_told` takes them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def tcp_listener(port: int, family: socket.AddressFamily, any_address: bool) -> socket.socket:
    """A listener on every address of the namespace, one family only.

    With `any_address` it may answer from addresses that only a routing rule makes local.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    if any_address:
        sock.setsockopt(*(_IP_TRANSPARENT if family is socket.AF_INET else _IPV6_TRANSPARENT), 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", port))
    sock.listen(512)
    return sock


def serve_tcp(port: int, handle: Callable[[socket.socket], None], *, any_address: bool = False) -> None:
    """Accept on `port` over IPv4 and IPv6, each connection in a thread of its own."""
    for family in (socket.AF_INET, socket.AF_INET6):
        start(_accept_loop, tcp_listener(port, family, any_address), handle)


def _accept_loop(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    while True:
        connection, _ = listener.accept()
        start(handle, connection)


def start(call: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=call, args=args, daemon=True).start()


def endpoint(address: tuple[Any, ...]) -> str:
    """`host:port` of a socket address, brackets around IPv6."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
