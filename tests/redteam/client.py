"""Plays attempts, one JSON line in, one JSON line out. Standard library only: it runs in a jail.

An attempt is a list of steps that are nothing but bytes; what they mean is the corpus's business.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import time
from typing import Any

LIMIT = 256 * 1024
CONNECT_S = 5.0


class Stopped(Exception):
    """A step did not get what it needs: the attempt ends here."""


class Attempt:
    def __init__(self, endpoints: dict[str, list[Any]], ca: str) -> None:
        self._endpoints = endpoints
        self._ca = ca
        self._sock: socket.socket | None = None
        self._held: socket.socket | None = None  # an association ends with its connection
        self._last = b""
        self._kept = b""  # read together with a head, and not part of it
        self.heard: list[str] = []

    def play(self, steps: list[dict[str, Any]]) -> str:
        """ "" when every step was played, else why it ended."""
        try:
            for number, step in enumerate(steps):
                try:
                    getattr(self, f"_do_{step['op']}")(step)
                except (Stopped, OSError, ssl.SSLError) as error:
                    return f"step {number} ({step['op']}): {str(error) or type(error).__name__}"
            return ""
        finally:
            self._close()

    def _close(self) -> None:
        for sock in (self._sock, self._held):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.close()
        self._sock = self._held = None

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise Stopped("not connected")
        return self._sock

    def _do_open(self, step: dict[str, Any]) -> None:
        self._close()
        host, port = step.get("at") or self._endpoints[step["to"]]
        if step["to"] == "dns" or step.get("datagrams"):
            self._sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            self._sock.connect((host, port))
            return
        self._sock = socket.create_connection((host, port), CONNECT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _do_associate(self, _step: dict[str, Any]) -> None:
        """From here on what is sent are datagrams, to where the answer that was read last says."""
        control, reply = self._socket(), self._last
        place = socket.inet_ntop(socket.AF_INET, reply[4:8]), int.from_bytes(reply[8:10], "big")
        self._held, self._sock = control, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.connect(place)

    def _do_send(self, step: dict[str, Any]) -> None:
        sock, data = self._socket(), bytes.fromhex(step["hex"])
        sock.settimeout(CONNECT_S)
        size = step.get("segments", 0)
        if not size:
            sock.sendall(data)
            return
        for at in range(0, len(data), size):
            sock.sendall(data[at : at + size])
            time.sleep(0.001)  # a segment of its own each

    def _do_read(self, step: dict[str, Any]) -> None:
        """Until the end of a head, `count` bytes, end of file, or `wait` seconds."""
        sock, deadline = self._socket(), time.monotonic() + step.get("wait", 5.0)
        until, got = step.get("until", "eof"), self._kept
        self._kept = b""
        while len(got) < LIMIT and not self._enough(got, until, step):
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = sock.recv(step["count"] - len(got) if until == "count" else 65536)
            except (TimeoutError, ConnectionError):
                break
            if not data:
                break
            got += data
        if until == "head":
            # A server that speaks first may be heard in the same segment as the head.
            head, end, self._kept = got.partition(b"\r\n\r\n")
            got = head + end
        self._last = got
        self.heard.append(got.decode("latin-1"))

    def _enough(self, got: bytes, until: str, step: dict[str, Any]) -> bool:
        if until == "head":
            return b"\r\n\r\n" in got
        if until == "count":
            return len(got) >= int(step["count"])
        if until == "text":
            return str(step["text"]).encode("latin-1") in got
        return until == "some" and bool(got)

    def _do_need(self, step: dict[str, Any]) -> None:
        """What was read last starts with, or contains, one of these; else stop."""
        starts = [bytes.fromhex(text) for text in step.get("starts", [])]
        holds = [bytes.fromhex(text) for text in step.get("holds", [])]
        if any(map(self._last.startswith, starts)) or any(text in self._last for text in holds):
            return
        raise Stopped(f"got {self._last[:80]!r}")

    def _do_tls(self, step: dict[str, Any]) -> None:
        context = ssl.create_default_context(cadata=self._ca)
        sock = self._socket()
        sock.settimeout(CONNECT_S)
        self._sock = context.wrap_socket(sock, server_hostname=step["name"])

    def _do_shut(self, step: dict[str, Any]) -> None:
        self._socket().shutdown(socket.SHUT_WR)

    def _do_pause(self, step: dict[str, Any]) -> None:
        time.sleep(step["seconds"])


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        case = json.loads(line)
        attempt = Attempt(settings["endpoints"], settings["ca"])
        stopped = attempt.play(case["steps"])
        print(json.dumps({"id": case["id"], "stopped": stopped, "heard": attempt.heard}), flush=True)


if __name__ == "__main__":
    main()
