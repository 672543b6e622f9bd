"""The desk: what a client asks of exeat itself, at a name that leads nowhere else.

`http://exeat.internal/` is answered by control: why something is refused, which leases there are,
and requests for more. A request arrives here like any other in absolute form, or in a tunnel to
port 80 of the name; its body is read whole, control is asked with the subject of the socket it
came by, and its answer ends the connection. Nothing leaves the machine for it, and nothing here
decides: control knows what an agent may ask.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Final

from exeat.proxy.body import BodyFramer
from exeat.proxy.doors import Arrival, DoorError, http_refusal, read_head
from exeat.proxy.redirected import OriginParser

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.ipc import Message
    from exeat.policy.model import Subject
    from exeat.proxy.connect import RequestHead
    from exeat.proxy.refusal import Refusal

    Told = Callable[[int, str, bytes], None]  # status, media type and body of an answer

HOST: Final = "exeat.internal"
PORT: Final = 80
MAX_BODY: Final = 32 * 1024  # bytes of a question
MAX_ANSWER: Final = 16 * 1024  # bytes; what a socket's buffer takes at once
MAX_OPEN: Final = 8  # questions of one subject that wait for their answer
WAIT_S: Final = 60.0

_PHRASES: Final = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    429: "Too Many Requests",
}


class DeskDoor:
    """The door of a client that has a tunnel to the desk: its requests are in origin-form."""

    def __init__(self) -> None:
        self._parser = OriginParser(HOST, PORT)

    def feed(self, data: bytes) -> tuple[bytes, Arrival | None]:
        head = read_head(self._parser, data)
        if head is None:
            return b"", None
        if head.host != HOST:
            raise DoorError("http.host_mismatch")
        return b"", Arrival("desk", HOST, PORT, self._parser.rest, self._parser.consumed, head)

    def established(self) -> bytes:
        return b""

    def refused(self, why: Refusal, asked: RequestHead | None, *, stays: bool) -> bytes:
        return http_refusal(why, asked, stays=stays)


def unacceptable(asked: RequestHead) -> str:
    """The reason code why this cannot be a question, "" if it can.

    A page in a job's browser must not ask in the job's name: what has an Origin is refused, and a
    body must be JSON, which a page cannot send elsewhere without asking first (Fetch, CORS protocol).
    """
    fields = asked.upstream.lower().split(b"\r\n")
    if any(field.startswith(b"origin:") for field in fields):
        return "desk.origin"
    if asked.length is None or asked.upgrade:
        return "desk.length"
    if asked.length and not any(field.startswith(b"content-type: application/json") for field in fields):
        return "desk.json"
    return "desk.too_large" if asked.length > MAX_BODY else ""


class Question:
    """One request, whose body is still being read. What comes behind it is not looked at."""

    def __init__(self, asked: RequestHead) -> None:
        line, _, _ = asked.upstream.partition(b"\r\n")
        self.method, self.path, _ = (word.decode("ascii", "replace") for word in line.split(b" "))
        self._framer = BodyFramer(asked.length)
        self._body = bytearray()

    def feed(self, data: bytes) -> bool:
        """Whether it is whole."""
        self._body += data[: self._framer.take(data)]
        return self._framer.done

    @property
    def body(self) -> bytes:
        return bytes(self._body)


class Desk:
    """Questions on their way to control and back. `send` tells control, or returns False."""

    def __init__(self, send: Callable[[dict[str, Any]], bool]) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[Subject, Told]] = {}

    def ask(self, subject: Subject, question: Question, told: Told) -> Callable[[], None] | str:
        """How to forget it again; or the reason code why nobody was asked."""
        if sum(1 for whose, _ in self._open.values() if whose == subject) >= MAX_OPEN:
            return "limit.asks"
        number = next(self._numbers)
        message = {
            "t": "desk",
            "question": number,
            "subject": subject._asdict(),
            "method": question.method,
            "path": question.path,
            "body": question.body.decode("utf-8", "replace"),
        }
        if not self._send(message):
            return "desk.unavailable"
        self._open[number] = subject, told
        return lambda: self._forget(number)

    def _forget(self, number: int) -> None:
        self._open.pop(number, None)

    def said(self, message: Message) -> None:
        """Control's answer: `status`, `type`, `body`."""
        number, status, kind, body = (message.get(key) for key in ("question", "status", "type", "body"))
        if not isinstance(number, int):
            return
        _, told = self._open.pop(number, (None, None))
        if told is not None and isinstance(status, int) and isinstance(kind, str) and isinstance(body, str):
            told(status, kind, body.encode())


def answer(status: int, kind: str, body: bytes, *, head: bool) -> bytes:
    """The whole HTTP/1.1 response; `head`: to a HEAD, without its body."""
    if len(body) > MAX_ANSWER:
        status, kind, body = 500, "application/json", json.dumps({"error": "desk.answer"}).encode()
    lines = [
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Error')}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + (b"" if head else body)
