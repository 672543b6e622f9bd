"""The books of bench.reconcile: ledger, kernel and nftables, read while the flows go on."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from bench.reconcile_flows import DOOR, FIRST_PORT, SHAPES

from exeat.ledger import records
from exeat.ledger.books import Books
from exeat.ledger.reader import Follower, find_ledgers
from exeat.ledger.records import Kind
from exeat.ledger.sock_ends import End, SocketEnds

if TYPE_CHECKING:
    from pathlib import Path

ACCEPTED = {DOOR[1], *range(FIRST_PORT, FIRST_PORT + len(SHAPES))}  # own ports of sockets that were accepted
LOSS = 5  # packets of 1000
SETTLE_S = 30.0
TABLE = "inet books"
SHOWN = 5  # findings


def ruleset(uid: int, resolver_port: int) -> str:
    """Counters of what the gateway's user sends, by where it goes."""
    return f"""
table {TABLE} {{
  counter origin {{ }}
  counter clients {{ }}
  counter resolver {{ }}
  counter dark {{ }}
  counter dropped {{ }}
  set strangers {{ type inet_proto . inet_service . inet_service; size 1000; flags dynamic; }}
  chain out {{
    type filter hook output priority 300;
    meta skuid {uid} jump ours
  }}
  chain ours {{
    tcp dport {_ports()} counter name origin return
    tcp sport {{ 3128, 1080 }} counter name clients return
    udp sport 53 counter name clients return
    meta l4proto {{ tcp, udp }} th dport {resolver_port} counter name resolver return
    counter name dark
    update @strangers {{ meta l4proto . th sport . th dport }}
  }}
  chain in {{
    type filter hook input priority -300;
  }}
}}
"""


def _ports() -> str:
    return f"{FIRST_PORT}-{FIRST_PORT + len(SHAPES) - 1}"


def lose() -> None:
    """From now on LOSS packets of 1000 between gateway and origin do not arrive, in both directions."""
    drop = f"numgen random mod 1000 < {LOSS} counter name dropped drop"
    _nft(*(f"add rule {TABLE} in tcp {way} {_ports()} {drop}" for way in ("dport", "sport")))


def lose_nothing() -> None:
    _nft(f"flush chain {TABLE} in")


def load(rules: str) -> None:
    _nft(rules)


def _nft(*lines: str) -> None:
    subprocess.run(["nft", "-f", "-"], input="\n".join(lines), text=True, check=True)


def counters() -> dict[str, tuple[int, int]]:
    """(packets, bytes of IP) of each named counter."""
    done = subprocess.run(["nft", "-j", "list", "counters"], capture_output=True, text=True, check=True)
    found = [each["counter"] for each in json.loads(done.stdout)["nftables"] if "counter" in each]
    return {each["name"]: (each["packets"], each["bytes"]) for each in found}


def strangers() -> str:
    """Protocol, source and destination port of the dark packets."""
    words = ["nft", "list", "set", *TABLE.split(), "strangers"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout[:2000]


class Ear(threading.Thread):
    """Keeps what the kernel tells of the ends of connections, but for those of clients to the door.

    Not by uid: of a socket that was closed the kernel does not say whose it was.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ends, self._over = SocketEnds(), threading.Event()
        self.heard: deque[End] = deque()

    def run(self) -> None:
        poller = select.poll()
        poller.register(self._ends.fileno(), select.POLLIN)
        while not self._over.is_set():
            poller.poll(50)
            self.heard.extend(
                end for end in self._ends.read() if end.port not in ACCEPTED and end.peer_port != DOOR[1]
            )

    def finish(self) -> int:
        """How often the kernel dropped something."""
        self._over.set()
        self.join()
        self._ends.close()
        return self._ends.lost


class Reader:
    """Both books of all flows, taken in as they are written: a million flows fit in no list."""

    def __init__(self, state: Path, ear: Ear) -> None:
        self.books = Books()
        self.flows = self.retransmitted = self.opened = 0
        self.application_exact = self.application_wrong = 0
        self._ear = ear
        self._followers = [Follower(directory) for directory in find_ledgers(state)]

    def look(self) -> None:
        """Take in what there is now."""
        heard = self._ear.heard
        while heard:
            self.books.ended(heard.popleft())
        for follower in self._followers:
            for seq, data in follower.poll():
                if records.recall(data).kind in (Kind.OPEN, Kind.CLOSE):
                    self._take(seq, records.decode(data))

    def _take(self, seq: int, record: records.Record) -> None:
        self.books.record(seq, record)
        self.opened += 1 if record.kind is Kind.OPEN else -1
        if record.kind is not Kind.CLOSE or record.dest is None:
            return
        self.flows += 1
        self.retransmitted += record.retrans
        shape = SHAPES[record.dest.port - FIRST_PORT]
        if shape.out is not None:
            fits = (record.bytes_out, record.bytes_in) == (shape.out, shape.into)
            self.application_exact += fits
            self.application_wrong += not fits

    def settle(self) -> None:
        """Until every flow is in both books, or nothing more comes."""
        deadline = time.monotonic() + SETTLE_S
        self.look()
        while (self.opened or self.books.waiting[0]) and time.monotonic() < deadline:
            time.sleep(0.5)
            self.look()

    def show(self) -> None:
        """What differs, a few of it."""
        for finding in self.books.tally.findings[:SHOWN]:
            print(f"differs: out {finding.out:+d} in {finding.into:+d}: {finding.record}", file=sys.stderr)
