"""Where events go. `send` returns when the other side has them, or raises SinkError; nothing is queued here.

| sink | has them when |
|---|---|
| file | fdatasync returned |
| syslog, Unix socket | the socket took them |
| syslog, TCP or TLS | the other kernel acknowledged all bytes: the protocol has no answer of its own |
| webhook, OTLP | the answer is 2xx |
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import socket
import ssl
import stat
import struct
import time
from typing import TYPE_CHECKING, Final, Protocol

from exeat.appliance.stream.events import Event, json_line, otlp, otlp_spans, syslog
from exeat.appliance.stream.post import PATIENCE_S, Poster, SinkError, tls_context
from exeat.policy.addresses import parse_address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exeat.appliance.ledger_config import Stream

_SIOCOUTQ: Final = 0x5411
_LOOKS: Final = 1000
_MIN_SECRET: Final = 16  # bytes
_MAX_SECRET: Final = 4096
_BLOCK: Final = 65536
_TALK: Final = 16  # readings of what a syslog server says, at a time


class Sink(Protocol):
    """Takes events, in order; any may come again after a SinkError or a restart."""

    def send(self, events: Sequence[Event]) -> None: ...
    def close(self) -> None: ...


def open_sink(stream: Stream, node: str) -> Sink:
    """Raises SinkError if its secret cannot be read."""
    scheme, rest = stream.to.split(":", 1)
    if scheme == "file":
        return FileSink(rest)
    if scheme == "syslog+unix":
        return UnixSyslog(rest, node)
    if scheme.startswith("syslog"):
        return TcpSyslog(stream, node)
    return HttpSink(stream, node)


def read_key(path: Path) -> bytes:
    """A shared secret from a file that nobody else can read. Raises SinkError; no message holds it."""
    if not path.is_absolute():
        path = type(path)(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(file.fileno())
            ours = status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o037
            key = file.read(_MAX_SECRET).rstrip(b"\n")
    except OSError as error:
        raise SinkError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode) or not ours:
        raise SinkError(f"{path}: must be a file of root's or of the exporting user's, mode 0440 or less")
    if len(key) < _MIN_SECRET:
        raise SinkError(f"{path}: a secret of less than {_MIN_SECRET} bytes")
    return key


class FileSink:
    """JSON lines appended to `path`; a file that was moved away is begun anew."""

    def __init__(self, path: str) -> None:
        self._path = path

    def send(self, events: Sequence[Event]) -> None:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            with os.fdopen(fd, "r+b", buffering=0) as file:
                data = b"".join(map(json_line, events))
                before = _whole_lines(fd)
                if os.fstat(fd).st_size > before:
                    os.ftruncate(fd, before)  # half a line of one who was killed comes again, whole
                written = file.write(data)
                if written != len(data):
                    os.ftruncate(fd, before)  # no half line stays
                    raise SinkError(f"{self._path}: no room")
                os.fdatasync(fd)
        except OSError as error:
            raise SinkError(f"{self._path}: {error.strerror}") from None

    def close(self) -> None: ...


def _whole_lines(fd: int) -> int:
    """How long the file is up to the end of its last whole line."""
    end = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - _BLOCK)
        if (found := os.pread(fd, end - begin, begin).rfind(b"\n")) >= 0:
            return begin + found + 1
        end = begin
    return 0


class UnixSyslog:
    """Datagrams to a local syslog daemon."""

    def __init__(self, path: str, node: str) -> None:
        self._path, self._node = path, node

    def send(self, events: Sequence[Event]) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect(self._path)
                for event in events:
                    sock.send(syslog(event, self._node))
        except OSError as error:
            raise SinkError(f"{self._path}: {error.strerror or error}") from None

    def close(self) -> None: ...


class TcpSyslog:
    """One connection, messages with their length before them (RFC 6587 section 3.4.1, RFC 5425 for TLS)."""

    def __init__(self, stream: Stream, node: str) -> None:
        self._stream, self._node = stream, node
        self._raw: socket.socket | None = None
        self._sock: socket.socket | ssl.SSLSocket | None = None

    def send(self, events: Sequence[Event]) -> None:
        messages = (syslog(event, self._node) for event in events)
        data = b"".join(b"%d %s" % (len(message), message) for message in messages)
        try:
            sock = self._sock or self._connect()
            self._must_be_open(sock)
            sock.sendall(data)
            self._acknowledged(sock)
        except OSError as error:
            self.close()
            raise SinkError(f"{self._stream.to}: {error.strerror or error}") from None

    def _connect(self) -> socket.socket | ssl.SSLSocket:
        address, port, name = self._stream.syslog_server()
        family = socket.AF_INET if parse_address(address).family == 4 else socket.AF_INET6
        raw = socket.socket(family, socket.SOCK_STREAM)
        try:
            raw.settimeout(PATIENCE_S)
            raw.connect((address, port))
            self._sock = tls_context(self._stream.ca).wrap_socket(raw, server_hostname=name) if name else raw
        except BaseException:
            raw.close()
            raise
        return self._sock

    @staticmethod
    def _must_be_open(sock: socket.socket) -> None:
        """A server that has hung up would take the first write and lose it."""
        sock.setblocking(False)
        try:
            for _ in range(_TALK):  # it says nothing, but TLS has its tickets
                if not sock.recv(4096):
                    raise ConnectionResetError("the server has closed the connection")
            raise ConnectionError("the server talks without end: that is no syslog")
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        finally:
            sock.settimeout(PATIENCE_S)

    def _acknowledged(self, sock: socket.socket) -> None:
        """Wait until the other kernel has every byte (tcp(7), SIOCOUTQ)."""
        for _ in range(_LOOKS):
            if struct.unpack("=i", fcntl.ioctl(sock.fileno(), _SIOCOUTQ, b"\0" * 4))[0] == 0:
                self._must_be_open(sock)
                return
            time.sleep(PATIENCE_S / _LOOKS)
        raise TimeoutError("no acknowledgement")

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock = None


class HttpSink:
    """POST of JSON lines, signed, or of OTLP logs or spans."""

    def __init__(self, stream: Stream, node: str) -> None:
        self._stream, self._node = stream, node
        scheme = stream.to.partition("+")[0]
        self._make = {"otlp": otlp, "otlp-traces": otlp_spans}.get(scheme)
        self._url = stream.to.removeprefix(f"{scheme}+")
        self._secret = read_key(stream.secret) if stream.secret is not None else b""
        self._poster = Poster(self._url, stream.proxy, stream.ca)

    def send(self, events: Sequence[Event]) -> None:
        now_ns = time.time_ns()
        make = self._make
        body = make(events, self._node, now_ns) if make else b"".join(map(json_line, events))
        if not body:
            return
        headers = {"Content-Type": "application/json" if make else "application/x-ndjson"}
        headers["User-Agent"] = "exeat"
        headers["Exeat-First-Seq"] = str(events[0].seq)
        if self._secret:
            headers["Exeat-Signature"] = signature(self._secret, now_ns // 1_000_000_000, body)
        said = self._poster.post(body, headers)
        if make:
            self._must_have_taken_all(said)

    def _must_have_taken_all(self, said: bytes) -> None:
        try:
            partial = json.loads(said or b"{}")["partialSuccess"]
            refused = int(partial.get("rejectedLogRecords") or partial["rejectedSpans"])
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            return  # 2xx without a message we know: taken
        if refused:
            raise SinkError(f"{self._url}: refused {refused} of the events")

    def close(self) -> None: ...


def signature(secret: bytes, time_s: int, body: bytes) -> str:
    """`t=SECONDS,v1=HEX`: HMAC-SHA-256 over `SECONDS.` and the body. The receiver looks at the time too."""
    mac = hmac.new(secret, b"%d." % time_s + body, hashlib.sha256).hexdigest()
    return f"t={time_s},v1={mac}"
