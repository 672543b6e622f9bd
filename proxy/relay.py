"""Moves the bytes of one tunnel between two sockets, in the kernel when there are many.

Per direction: while messages are small, `recv_into` a shared buffer and `send`; when a read
fills the buffer, `splice` through a pipe, until splices get small again. What is readable or
writable is remembered by the two ends (`proxy.ends`), which are edge-triggered.

The rules that keep it honest:
- A pipe is empty before anything is spliced into it, so EAGAIN always names the source.
- Bytes count when the destination's kernel took them. What was read but not written at a cut
  was not delivered; it was covered by the reservation all the same.
- EOF passes on (SHUT_WR) only after everything before it was written; RST passes on as RST.
- After a short read the source counts as drained, unless a hang-up was seen.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from exeat.ledger.reactor import EPOLLERR
from exeat.proxy.relaying import StopRelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.reactor import Reactor
    from exeat.proxy.ends import End
    from exeat.proxy.gate import Gate
    from exeat.proxy.pipes import Pipe, PipePool
    from exeat.proxy.relaying import Intake

COPY_BYTES: Final = 16 * 1024  # a read that fills this much is bulk
SMALL_SPLICE: Final = 2 * 1024  # splices below this are not
SPLICE_BYTES: Final = 1024 * 1024
TURN_BYTES: Final = 1024 * 1024  # per direction and turn of the loop: keeps tunnels fair

_buffer = memoryview(bytearray(COPY_BYTES))  # one loop, one thread: shared by all tunnels


class _Direction:
    """One way through the tunnel. Raises OSError from the socket that failed."""

    __slots__ = (
        "bulk",
        "count",
        "eof",
        "gate",
        "held",
        "intake",
        "pending",
        "pipe",
        "pipes",
        "shut",
        "sink",
        "source",
        "unpaid",
    )

    def __init__(self, source: End, sink: End, gate: Gate, pipes: PipePool) -> None:
        self.source, self.sink, self.gate, self.pipes = source, sink, gate, pipes
        self.eof = self.shut = self.bulk = False
        self.pending: memoryview | None = None
        self.unpaid: bytes | memoryview = b""  # an intake held it back until the reservation was short
        self.pipe: Pipe | None = None
        self.held = 0  # bytes in the pipe
        self.count = 0  # bytes the sink's kernel took
        self.intake: Intake | None = None

    def pump(self, budget: int) -> bool:
        """Move what can be moved; True when only the budget stopped it."""
        while True:
            if self.pending is not None and not self._flush():
                return False
            if self.held and not self._drain():
                return False
            if self.unpaid and self.gate.room > 0:
                self._pay()
                continue
            if self.eof and not self.unpaid:
                self._finish()
                return False
            intake = self.intake
            if not self.source.readable or self.gate.room <= 0 or (intake is not None and intake.over):
                self._release()
                return False
            if budget <= 0:
                return True
            budget -= self._splice() if self.bulk and intake is None else self._copy()

    @property
    def complete(self) -> bool:
        """The intake has seen all that is to pass, and it has passed."""
        intake = self.intake
        return intake is not None and intake.over and not self.undelivered

    def _pay(self) -> None:
        unpaid, self.unpaid = self.unpaid, b""
        self.pass_on(unpaid)

    def _copy(self) -> int:
        want = min(COPY_BYTES, self.gate.room)
        try:
            got = self.source.sock.recv_into(_buffer, want)
        except BlockingIOError:
            self.source.readable = False
            return 0
        if got < want and not self.source.hangup:
            self.source.readable = False
        if not got:
            self._ended()
            return 0
        self.bulk = got == COPY_BYTES
        self._offer(_buffer[:got])
        return got

    def _offer(self, data: memoryview) -> None:
        if self.intake is None:
            self.pass_on(data)
            return
        intake = self.intake
        passing = intake.take(data)
        if intake.done and self.intake is intake:  # one intake may have put another in its place
            self.intake = None
        if passing:
            self.pass_on(passing)

    def pass_on(self, passing: bytes | memoryview) -> None:
        """Send judged bytes; what the sink does not take now stays pending."""
        room = self.gate.room
        if len(passing) > room:
            self.unpaid = bytes(passing[room:])
            passing = passing[:room]
        self.gate.take(len(passing))
        sent = 0
        if self.sink.writable:
            try:
                sent = self.sink.sock.send(passing)
            except BlockingIOError:
                self.sink.writable = False
            except OSError:
                self.pending = memoryview(bytes(passing))  # for the books: it was read
                raise
        self.count += sent
        if sent < len(passing):
            self.pending = memoryview(bytes(passing[sent:]))

    def _flush(self) -> bool:
        while self.pending is not None:
            if not self.sink.writable:
                return False
            try:
                sent = self.sink.sock.send(self.pending)
            except BlockingIOError:
                self.sink.writable = False
                return False
            self.count += sent
            self.pending = self.pending[sent:] if sent < len(self.pending) else None
        return True

    def _splice(self) -> int:
        if self.pipe is None:
            try:
                self.pipe = self.pipes.take()
            except OSError:  # out of descriptors: copying needs none
                return self._copy()
        try:
            got = os.splice(
                self.source.fd,
                self.pipe[1],
                min(SPLICE_BYTES, self.gate.room),
                flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE,
            )
        except BlockingIOError:
            self.source.readable = False
            return 0
        if not got:
            self._ended()
            return 0
        self.bulk = got >= SMALL_SPLICE
        self.held = got
        self.gate.take(got)
        return got

    def _drain(self) -> bool:
        while self.held and self.pipe is not None:
            if not self.sink.writable:
                return False
            try:
                sent = os.splice(
                    self.pipe[0],
                    self.sink.fd,
                    self.held,
                    flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE,
                )
            except BlockingIOError:
                self.sink.writable = False
                return False
            self.held -= sent
            self.count += sent
        return True

    def _ended(self) -> None:
        if self.intake is not None:
            self.intake.end()
        self.eof = True

    def _finish(self) -> None:
        self._release()
        if not self.shut:
            self.sink.sock.shutdown(socket.SHUT_WR)
            self.shut = True  # only now: a reset peer gets no FIN, and the kernel counts none

    def _release(self) -> None:
        if self.pipe is not None and not self.held:
            self.pipes.give(self.pipe)
            self.pipe = None

    @property
    def undelivered(self) -> int:
        """Bytes read from the source that the sink has not taken."""
        return self.held + len(self.unpaid) + (len(self.pending) if self.pending is not None else 0)

    def drop(self) -> None:
        self.intake = None
        if self.pipe is not None:
            self.pipes.drop(self.pipe) if self.held else self.pipes.give(self.pipe)
            self.pipe = None


class Relay:
    """A tunnel. `on_end(reason)` is called once: `eof`, `reset`, or what `end` was told.

    From that call on nobody hears of the two ends, and they are the owner's to count and close.
    `activity` is the reactor time of the last event.
    """

    __slots__ = (
        "_on_end",
        "_queued",
        "_reactor",
        "activity",
        "client",
        "down",
        "ended",
        "up",
        "upstream",
    )

    def __init__(
        self,
        reactor: Reactor,
        pipes: PipePool,
        client: End,
        upstream: End,
        gate: Gate,
        on_end: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._on_end: Callable[[str], None] | None = on_end
        self._queued = False
        self.client, self.upstream = client, upstream
        self.up = _Direction(client, upstream, gate, pipes)
        self.down = _Direction(upstream, client, gate, pipes)
        self.activity = reactor.woke
        self.ended = False

    def start(self, first: bytes = b"") -> None:
        """Take over both ends and send `first`, bytes of the client that are already judged."""
        self.client.heard_by(self._on_client)
        self.upstream.heard_by(self._on_upstream)
        if first:
            try:
                self.up.pass_on(first)
            except OSError:
                self.end("reset")
        self.kick()

    def watch(self, way: int, intake: Intake | None) -> None:
        """Have `intake` look at what passes this way from here on."""
        (self.up, self.down)[way].intake = intake

    def counts(self) -> tuple[int, int]:
        """Bytes delivered, out and in."""
        return self.up.count, self.down.count

    def undelivered(self, way: int) -> int:
        """Bytes read from the source that the sink has not taken."""
        return (self.up, self.down)[way].undelivered

    @property
    def up_ended(self) -> bool:
        return self.up.eof

    @property
    def up_told(self) -> bool:
        return self.up.shut

    @property
    def down_ended(self) -> bool:
        return self.down.eof

    @property
    def down_told(self) -> bool:
        return self.down.shut

    def kick(self) -> None:
        """Go on after something other than a socket changed, such as the reservation."""
        if not self._queued and not self.ended:
            self._queued = True
            self._reactor.call_soon(self._turn)

    def end(self, reason: str) -> None:
        """Stop moving bytes. What to do with the sockets is up to the owner's `on_end`."""
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        self.ended = True
        self.client.silence()
        self.upstream.silence()
        self.up.drop()
        self.down.drop()
        on_end(reason)

    def let_go(self) -> bool:
        """Leave both ends to another relay: if nobody looks, no bytes are under way and none has ended."""
        both = self.up, self.down
        if self.ended or any(way.eof or way.undelivered or way.intake is not None for way in both):
            return False
        self._on_end = None
        self.ended = True
        for way in both:
            way.drop()
        return True

    def _on_client(self, events: int) -> None:
        self._event(self.client, events)

    def _on_upstream(self, events: int) -> None:
        self._event(self.upstream, events)

    def _event(self, end: End, events: int) -> None:
        self.activity = self._reactor.woke
        end.note(events)
        self._turn()
        # What came before a reset has been moved by now; a direction that was finished before would
        # never touch this socket again and so never learn of it.
        if events & EPOLLERR and not self.ended and _failed(end.sock):
            self.end("reset")

    def _turn(self) -> None:
        self._queued = False
        if self.ended:
            return
        up, down = self.up, self.down
        try:
            more = up.pump(TURN_BYTES)
            more = down.pump(TURN_BYTES) or more
        except StopRelay as stop:
            self.end(stop.reason)
        except OSError:
            self.end("reset")
        else:
            if (up.shut and down.shut) or down.complete:
                self.end("eof")
            elif more:
                self.kick()


def _failed(sock: socket.SocketType) -> bool:
    """Whether the error was still there to be taken: a send that met it has ended the tunnel before."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
