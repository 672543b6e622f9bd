"""What a job of bench.console does in its jail, on the system's own Python, alone.

    console_job.py flows RATE HOST   so many flows a second; for each line of stdin, how many there were
    console_job.py held HOST:PORT    for each line of stdin: a CONNECT, and when its answer came

Answers stand on stdout, a line each: a number; or a status and seconds since 1970.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

WORKERS = 4
BEHIND_S = 1.0
LONGEST_S = 55.0
HEAD_BYTES = 65_536


def proxy() -> tuple[str, int]:
    door = urlsplit(os.environ["http_proxy"])
    assert door.hostname is not None
    assert door.port is not None
    return door.hostname, door.port


def asked(request: str) -> bytes:
    """The beginning of the answer; the connection is over then."""
    with socket.create_connection(proxy(), LONGEST_S) as sock:
        sock.sendall(request.encode())
        return sock.recv(HEAD_BYTES)


class Flows:
    """Opens `rate` of them a second, one for each request, and tells how many there were."""

    def __init__(self, rate: float, host: str) -> None:
        self._step = WORKERS / rate
        self._request = f"GET http://{host}/bytes/1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        self._done = [0] * WORKERS
        for n in range(WORKERS):
            threading.Thread(target=self._go_on, args=(n,), daemon=True).start()

    def _go_on(self, worker: int) -> None:
        begun = time.monotonic()
        while True:
            self._done[worker] += asked(self._request).startswith(b"HTTP/1.1 200")
            left = begun + self._done[worker] * self._step - time.monotonic()
            time.sleep(max(0.0, left))
            begun += max(0.0, -left - BEHIND_S)  # more than that is not made up for

    def count(self) -> int:
        return sum(self._done)


def main() -> None:
    what, *words = sys.argv[1:]
    flows = Flows(float(words[0]), words[1]) if what == "flows" else None
    for _ in sys.stdin:
        if flows is not None:
            print(flows.count(), flush=True)
            continue
        answer = asked(f"CONNECT {words[0]} HTTP/1.1\r\nHost: {words[0]}\r\n\r\n")
        print(answer.split(b" ", 2)[1].decode(), time.time(), flush=True)


main()
