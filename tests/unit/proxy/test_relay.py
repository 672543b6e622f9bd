"""The relay between real sockets on loopback: bytes, ends, resets, back-pressure, and both books."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from exeat.ledger.reactor import Reactor
from exeat.proxy import tcpinfo
from exeat.proxy.ends import End, reset_on_close
from exeat.proxy.gate import Gate
from exeat.proxy.relay import Relay
from exeat.proxy.relaying import DOWN, UP, StopRelay
from exeat.proxy.relays import BUILT, COMPILED, PYTHON, Relays, poller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exeat.proxy.relaying import Intake, Relaying


KINDS = (PYTHON, COMPILED) if BUILT else (PYTHON,)


def abort(sock: socket.socket) -> None:
    reset_on_close(sock)
    sock.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Connected and accepted end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connected = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    connected.settimeout(30)
    accepted.settimeout(30)
    return connected, accepted


class Bench:
    """client <-> [client_side  relay  upstream] <-> origin, the relay in the middle on its own loop."""

    def __init__(self, kind: str, grant: Callable[[int], int | None] = lambda ceiling: ceiling) -> None:
        self.client, self.client_side = tcp_pair()
        self.upstream, self.origin = tcp_pair()
        self.client_side.setblocking(False)
        self.upstream.setblocking(False)
        self.reactor = Reactor(self._failed, poller(kind))
        self.relays = Relays(self.reactor)
        self.asked: list[int] = []
        self.ended: list[str] = []
        self.failures: list[BaseException] = []
        self._grant = grant
        self.gate = Gate(self._ask)
        self.ends = End(self.reactor, self.client_side), End(self.reactor, self.upstream)
        self.relay: Relaying = self.relays.relay(*self.ends, self.gate, self.ended.append)

    def watch(self, way: int, intake: Intake) -> None:
        """Before it starts: have somebody look at what passes."""
        self.relay = relay = self.relays.watchable(*self.ends, self.gate, self.ended.append)
        relay.watch(way, intake)

    def settle(self) -> Relaying:
        """Nobody looks any more, as far as the test knows."""
        if isinstance(self.relay, Relay):
            self.relay = self.relays.settled(self.relay, self.gate, self.ended.append)
        return self.relay

    def _failed(self, error: BaseException) -> None:
        self.failures.append(error)

    def _ask(self, ceiling: int) -> None:
        """The ledger, which answers later."""
        self.asked.append(ceiling)
        granted = self._grant(ceiling)
        if granted is not None:
            self.reactor.call_soon(lambda: self.grant(granted))

    def grant(self, ceiling: int) -> None:
        self.gate.grant(ceiling)
        self.relay.kick()

    def start(self, first: bytes = b"") -> None:
        self.gate.grant(self.gate.first_ceiling(len(first)))
        self.relay.start(first)

    def run(self, until: Callable[[], bool], rounds: int = 3_000) -> None:
        for _ in range(rounds):
            if until():
                assert not self.failures, self.failures
                return
            self.reactor.turn(0.01)
        raise AssertionError(f"never happened; ended={self.ended} failures={self.failures}")

    def run_to_end(self) -> str:
        self.run(lambda: bool(self.ended))
        return self.ended[0]

    def counts(self) -> tuple[int, int]:
        return self.relay.counts()

    def kernel(self) -> tuple[int, int, int, int]:
        """(out, in) by the upstream socket's book, (out, in) by the client socket's."""
        relay = self.relay
        upstream = tcpinfo.kernel_count(
            self.upstream, connected=True, fin_sent=relay.up_told, fin_received=relay.down_ended
        )
        client = tcpinfo.kernel_count(
            self.client_side, connected=False, fin_sent=relay.down_told, fin_received=relay.up_ended
        )
        assert upstream is not None
        assert client is not None
        return upstream.sent, upstream.received, client.received, client.sent

    def idle_pipes(self) -> int:
        return self.relays.idle_pipes

    def close(self) -> None:
        for sock in (self.client, self.client_side, self.upstream, self.origin):
            sock.close()
        self.relays.pipes.close()
        self.reactor.close()


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def read_exactly(sock: socket.socket, count: int) -> int:
    got = 0
    while got < count:
        got += len(sock.recv(count - got))
    return got


class Side(threading.Thread):
    """A peer in a thread of its own, so that it can block."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.result: object = None
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            self.result = self._work()


def test_small_messages_both_ways(bench: Bench) -> None:
    bench.start(b"first ")
    bench.client.sendall(b"ping")
    bench.origin.sendall(b"pong!")
    bench.run(lambda: bench.counts() == (10, 5))
    assert bench.origin.recv(100) == b"first ping"
    assert bench.client.recv(100) == b"pong!"
    assert bench.kernel() == (10, 5, 4, 5)  # `first` did not come through the client's socket here


@pytest.mark.parametrize("who", ["client", "origin"])
def test_half_close_passes_on_and_the_other_way_stays_open(bench: Bench, who: str) -> None:
    bench.start()
    near, far = (bench.client, bench.origin) if who == "client" else (bench.origin, bench.client)
    data = os.urandom(3_000_000)
    sender = Side(lambda: (near.sendall(data), near.shutdown(socket.SHUT_WR)))
    reader = Side(lambda: read_all(far))
    bench.run(lambda: not reader.is_alive())
    sender.join()
    assert reader.result == data
    assert not bench.ended
    far.sendall(b"answer")
    bench.run(lambda: sum(bench.counts()) == 3_000_006)
    far.shutdown(socket.SHUT_WR)
    assert bench.run_to_end() == "eof"
    assert read_all(near) == b"answer"
    out, back = bench.counts()
    assert bench.kernel() == (out, back, out, back)


def test_fifty_megabytes_each_way_arrive_whole(bench: Bench) -> None:
    bench.start()
    total = 50_000_000
    block = os.urandom(1 << 20)

    def send(sock: socket.socket) -> str:
        digest, sent = hashlib.sha256(), 0
        while sent < total:
            piece = block[: min(len(block), total - sent)]
            sock.sendall(piece)
            digest.update(piece)
            sent += len(piece)
        sock.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    def receive(sock: socket.socket) -> str:
        digest = hashlib.sha256()
        while data := sock.recv(1 << 20):
            digest.update(data)
        return digest.hexdigest()

    sides = [Side(lambda s=s, f=f: f(s)) for s in (bench.client, bench.origin) for f in (send, receive)]  # type: ignore[misc]
    bench.run(lambda: bool(bench.ended), rounds=200_000)
    for side in sides:
        side.join(30)
    assert bench.ended == ["eof"]
    assert sides[0].result == sides[3].result
    assert sides[1].result == sides[2].result
    assert bench.counts() == (total, total)
    assert bench.kernel() == (total, total, total, total)
    assert bench.gate.taken == 2 * total <= bench.gate.reserved


def test_a_reader_that_never_reads_stops_the_sender(bench: Bench) -> None:
    bench.start()
    bench.origin.setblocking(False)
    pushed = 0
    stuck = 0
    while stuck < 20 and pushed < 200_000_000:
        try:
            pushed += bench.origin.send(b"x" * 65536)
            stuck = 0
        except BlockingIOError:
            stuck += 1
        bench.reactor.turn(0.005)
    assert stuck == 20, "the origin could push without end"
    assert pushed < 100_000_000  # two socket buffers and a pipe, however the kernel tunes them
    got = 0
    while got < pushed:
        bench.reactor.turn(0.005)
        bench.client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            got += len(bench.client.recv(1 << 20))
    assert got == pushed == bench.counts()[1]


@pytest.mark.parametrize("who", ["client", "origin"])
def test_reset_ends_the_tunnel_as_reset(bench: Bench, who: str) -> None:
    bench.start()
    bench.client.sendall(b"a")
    bench.run(lambda: bench.counts()[0] == 1)
    near, far = (bench.client, bench.origin) if who == "client" else (bench.origin, bench.client)
    abort(near)
    assert bench.run_to_end() == "reset"
    abort(bench.client_side)
    abort(bench.upstream)
    with pytest.raises(ConnectionResetError):
        read_all(far)


def test_reset_is_seen_after_its_direction_has_ended(bench: Bench) -> None:
    bench.start()
    bench.client.shutdown(socket.SHUT_WR)
    bench.run(lambda: bench.relay.up_told)
    assert read_all(bench.origin) == b""
    abort(bench.client)
    bench.run(lambda: bool(bench.ended) or bool(bench.origin.send(b"x")))
    assert bench.run_to_end() == "reset"


def test_bytes_before_a_reset_are_delivered(bench: Bench) -> None:
    bench.start()
    bench.origin.sendall(b"last words")
    abort(bench.origin)
    assert bench.run_to_end() == "reset"
    assert bench.client.recv(100) == b"last words"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_passes_above_the_reservation(kind: str) -> None:
    bench = Bench(kind, grant=lambda _: None)
    try:
        bench.start()
        sender = Side(lambda: bench.client.sendall(b"x" * 1_000_000))
        bench.run(lambda: bench.gate.room == 0)
        for _ in range(20):
            bench.reactor.turn(0.001)
        assert bench.gate.taken == bench.gate.reserved == bench.counts()[0]
        bench.grant(2_000_000)
        got = 0
        while got < 1_000_000:
            bench.reactor.turn(0.01)
            if select.select([bench.origin], [], [], 0)[0]:
                got += len(bench.origin.recv(1 << 20))
        sender.join(30)
        assert not bench.failures
    finally:
        bench.close()


def test_a_cut_says_what_was_on_its_way(bench: Bench) -> None:
    """After a cut the two books still agree: unacknowledged and unread bytes are in the kernel's."""
    bench.start()
    bench.origin.setblocking(False)
    for _ in range(400):
        with contextlib.suppress(BlockingIOError):
            bench.origin.send(b"y" * 65536)
        bench.reactor.turn(0)
    bench.relay.end("kill")
    assert bench.ended == ["kill"]
    out, back = bench.counts()
    kernel_out, kernel_in, client_out, client_in = bench.kernel()
    assert (kernel_out, client_out) == (out, 0)
    assert client_in == back
    assert kernel_in == bench.counts()[1] + bench.relay.undelivered(DOWN)
    bench.relay.end("again")
    assert bench.ended == ["kill"]


class Upper:
    """An intake that lets nothing through before a full stop, and stops at a bang."""

    over = False

    def __init__(self) -> None:
        self.done = False
        self._kept = b""

    def take(self, data: memoryview) -> bytes:
        self._kept += bytes(data)
        if b"!" in self._kept:
            raise StopRelay("test.bang")
        if b"." not in self._kept:
            return b""
        self.done = True
        return self._kept

    def end(self) -> None:
        raise StopRelay("test.end")


def test_an_intake_holds_bytes_back_until_it_is_done(bench: Bench) -> None:
    bench.watch(UP, Upper())
    bench.start()
    bench.client.sendall(b"wait")
    bench.origin.sendall(b"the server may speak first")
    bench.run(lambda: bench.counts()[1] == 26)
    assert bench.counts()[0] == 0
    bench.client.sendall(b" done.")
    bench.run(lambda: bench.counts()[0] == 10)
    assert bench.origin.recv(100) == b"wait done."
    bench.client.sendall(b"free!")
    bench.run(lambda: bench.counts()[0] == 15)


def test_when_nobody_looks_any_more_it_goes_on_in_the_fastest_way(bench: Bench) -> None:
    looking = Upper()
    bench.watch(UP, looking)
    bench.start()
    bench.client.sendall(b"wait")
    bench.run(lambda: bool(looking._kept))
    watched = bench.relay
    assert isinstance(watched, Relay)
    assert bench.settle() is watched  # somebody holds bytes
    bench.client.sendall(b"d.")
    bench.run(lambda: bench.counts()[0] == 6)
    assert bench.settle().counts() == (6, 0)
    assert (bench.relay is watched) == (bench.relays.kind == PYTHON)
    taken = bench.gate.taken
    assert taken == 6
    bench.client.sendall(b"x" * 100_000)  # more than was reserved at first
    reader = Side(lambda: read_exactly(bench.origin, 100_006))
    bench.origin.sendall(b"back")
    bench.run(lambda: bench.counts() == (100_006, 4))
    reader.join(30)
    assert bench.gate.taken == 100_010
    for sock in (bench.client, bench.origin):
        sock.shutdown(socket.SHUT_WR)
    assert bench.run_to_end() == "eof"
    assert bench.kernel() == (100_006, 4, 100_006, 4)


@pytest.mark.parametrize("how", ["bang", "end"])
def test_an_intake_can_stop_the_tunnel(bench: Bench, how: str) -> None:
    bench.watch(UP, Upper())
    bench.start()
    bench.client.sendall(b"x!" if how == "bang" else b"x")
    if how == "end":
        bench.client.shutdown(socket.SHUT_WR)
    assert bench.run_to_end() == f"test.{how}"
    assert bench.counts() == (0, 0)


def test_no_pipe_and_no_descriptor_is_held_by_an_idle_tunnel(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    bench.start()
    reader = Side(lambda: read_exactly(bench.origin, 4_000_000))
    sender = Side(lambda: bench.client.sendall(b"z" * 4_000_000))
    bench.run(lambda: bench.counts()[0] == 4_000_000)
    sender.join(30)
    reader.join(30)
    bench.run(lambda: len(os.listdir("/proc/self/fd")) == before + 2 * bench.idle_pipes())
