"""Random traffic, half closes, resets, cuts and late reservations through many relays on one loop.

`rounds(kind, seed, count)` raises AssertionError where a relay lets a byte pass that it should not, loses
one, changes one, or has one that no book knows. As a program: `relay_chaos.py MODULE SEED COUNT` does it with
the compiled relay in that shared object.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import socket
import sys
from typing import TYPE_CHECKING, Final

if __name__ == "__main__":  # before anything imports the module that was installed
    spec = importlib.util.spec_from_file_location("exeat.proxy._relay", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exeat.proxy._relay"] = module
    spec.loader.exec_module(module)

from exeat.ledger.reactor import Reactor
from exeat.proxy.ends import End, reset_on_close
from exeat.proxy.gate import Gate
from exeat.proxy.relay import Relay
from exeat.proxy.relaying import DOWN, UP, StopRelay
from exeat.proxy.relays import COMPILED, Relays, poller

if TYPE_CHECKING:
    from exeat.proxy.relaying import Relaying

TUNNELS: Final = 6  # at the same time
STEPS: Final = 60  # of each
SIZES: Final = (1, 7, 500, 16_384, 16_385, 70_000, 400_000)
PATTERN: Final = random.Random(1).randbytes(8 << 20)  # a byte says where it belongs


class Holding:
    """An intake that lets bytes go late, in other pieces, and sometimes stops the tunnel."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._kept = b""
        self.done = self.over = False

    def take(self, data: memoryview) -> bytes:
        self._kept += bytes(data)
        if self._dice.random() < 0.02:
            raise StopRelay("test.stop")
        self.done = self._dice.random() < 0.2
        cut = len(self._kept) if self.done else self._dice.randrange(len(self._kept) + 1)
        passing, self._kept = self._kept[:cut], self._kept[cut:]
        return passing

    def end(self) -> None:
        if self._kept:
            raise StopRelay("test.held")


class Peer:
    """One far end: what it has said and heard is PATTERN from its beginning."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.said = self.heard = 0
        self.ended = self.gone = False

    def say(self, size: int) -> None:
        if not self.ended and not self.gone:
            with contextlib.suppress(OSError):
                self.said += self.sock.send(PATTERN[self.said : self.said + size])

    def hear(self, size: int) -> bool:
        """False when there is nothing to hear now, or any more."""
        if self.gone:
            return False
        try:
            data = self.sock.recv(size)
        except OSError:
            return False
        assert data == PATTERN[self.heard : self.heard + len(data)], "other bytes than were said"
        self.heard += len(data)
        return bool(data)

    def end(self) -> None:
        if not self.ended and not self.gone:
            self.ended = True
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        self.gone = True
        reset_on_close(self.sock)
        self.sock.close()


class Run:
    """A tunnel, its two peers, and a ledger that answers when it likes."""

    def __init__(self, reactor: Reactor, relays: Relays, dice: random.Random) -> None:
        self.dice = dice
        near, mine = _pair()
        other, far = _pair()
        self.client, self.origin = Peer(near), Peer(far)
        self.ours = (mine, other)
        self.asked: list[int] = []
        self.gate = Gate(self.asked.append)
        self.reasons: list[str] = []
        self.relays = relays
        ends = End(reactor, mine), End(reactor, other)
        watched = [way for way in (UP, DOWN) if dice.random() < 0.3]
        self.looks = bool(watched)
        self.relay: Relaying
        if watched:
            self.relay = relay = relays.watchable(*ends, self.gate, self.reasons.append)
            for way in watched:
                relay.watch(way, Holding(dice))
        else:
            self.relay = relays.relay(*ends, self.gate, self.reasons.append)
        if dice.random() < 0.3:  # there is something to hear before it starts
            for peer in (self.client, self.origin):
                peer.say(dice.choice(SIZES))
                dice.choice((peer.end, peer.abort, int))()
            reactor.turn(0)
        self.gate.grant(self.gate.first_ceiling(0))
        self.relay.start()

    def step(self) -> None:
        dice = self.dice
        peer, other = (self.client, self.origin) if dice.random() < 0.5 else (self.origin, self.client)
        match dice.choices(range(6), (40, 40, 12, 3, 1, 1))[0]:
            case 0:
                peer.say(dice.choice(SIZES))
            case 1:
                other.hear(dice.choice(SIZES))
            case 2:
                self.answer()
            case 3:
                peer.end()
            case 4:
                peer.abort()
            case _:
                self.relay.end("cut")
        if isinstance(self.relay, Relay) and dice.random() < 0.2:
            self.relay = self.relays.settled(self.relay, self.gate, self.reasons.append)
        self.check()

    def answer(self) -> None:
        """The ledger: as much as asked for."""
        for ceiling in self.asked[:]:
            self.asked.remove(ceiling)
            if not self.reasons:
                self.gate.grant(ceiling)
                self.relay.kick()

    def check(self) -> None:
        out, back = self.relay.counts()
        read = out + back + self.relay.undelivered(UP) + self.relay.undelivered(DOWN)
        assert self.gate.taken <= self.gate.reserved
        assert out + back <= self.gate.taken <= read, "bytes passed that no reservation covers"
        assert self.looks or read == self.gate.taken, "bytes that no book knows"
        assert self.origin.heard <= out <= self.client.said
        assert self.client.heard <= back <= self.origin.said
        assert len(self.reasons) == self.relay.ended

    def all_heard(self) -> bool:
        out, back = self.relay.counts()
        return (self.origin.gone or self.origin.heard == out) and (
            self.client.gone or self.client.heard == back
        )

    def finish(self, reactor: Reactor) -> None:
        """Whatever is still to be said is heard, unless somebody is gone."""
        self.client.end()
        self.origin.end()
        for _ in range(2_000):
            self.answer()
            self.client.hear(1 << 20)
            self.origin.hear(1 << 20)
            if self.reasons and (self.reasons != ["eof"] or self.all_heard()):
                break
            reactor.turn(0.002)
        self.check()
        assert self.reasons, "it never ends"
        if self.reasons == ["eof"]:
            assert self.relay.counts() == (self.client.said, self.origin.said)
            assert self.all_heard(), "the end came before the last bytes"
        self.relay.end("again")
        assert len(self.reasons) == 1
        self.gate.stop()
        for sock in (*self.ours, self.client.sock, self.origin.sock):
            sock.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connected = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    connected.setblocking(False)
    accepted.setblocking(False)
    return connected, accepted


def rounds(kind: str, seed: int, count: int) -> dict[str, int]:
    """How often the tunnels of so many rounds ended for which reason."""
    dice, errors = random.Random(seed), list[BaseException]()
    reactor = Reactor(errors.append, poller(kind))
    relays = Relays(reactor)
    found: dict[str, int] = {}
    for _ in range(count):
        runs = [Run(reactor, relays, dice) for _ in range(TUNNELS)]
        for _ in range(STEPS * TUNNELS):
            dice.choice(runs).step()
            if dice.random() < 0.5:
                reactor.turn(0)
            assert not errors, errors
        for run in runs:
            run.finish(reactor)
            found[run.reasons[0]] = found.get(run.reasons[0], 0) + 1
    assert relays.attached == 0, "some are still the core's"
    relays.pipes.close()
    reactor.close()
    return found


if __name__ == "__main__":
    print(rounds(COMPILED, int(sys.argv[2]), int(sys.argv[3])))
