"""Three books of every flow: `python -m bench.reconcile [--flows N] [--short]`, as root. Exit 1: they differ.

`exeat up` in a network namespace of its own; clients make tunnels to an origin that answer, half-close,
are reset by either side, carry bulk, or nothing, while nftables drops one packet in 200 so that TCP
retransmits. (The kernel's netem would do the same; not every kernel has it.) Compared, flow by flow:

    ledger       the `close` record
    kernel       its own last count of the upstream socket, told to this process when the socket ended
    application  what client and origin agreed to send, where nobody reset the connection

Dark bytes are those of the gateway's connections that no flow names, and of its packets that go
neither to the origin, to clients, nor to the resolver (nftables, by uid).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pwd
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import enter_namespace
from tests.support.standalone import Standalone

from exeat.ledger import records
from exeat.ledger.books import Books
from exeat.ledger.reader import find_ledgers, read
from exeat.ledger.records import Kind
from exeat.ledger.sock_ends import End, SocketEnds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

NAME, ADDRESS, FIRST_PORT = "origin.example.org", "203.0.113.1", 7000
DOOR = ("127.0.0.1", 3128)
ACCEPTED = {DOOR[1], *range(FIRST_PORT, FIRST_PORT + 6)}  # own ports of sockets that were accepted
BULK = 300_000
LOSS = 5  # packets of 1000
AT_ONCE = 96
PATIENCE_S = 15.0  # a reset that is dropped on its way is not sent again: somebody has to give up
SETTLE_S = 30.0


class Shape(NamedTuple):
    """A kind of flow, at FIRST_PORT + its number. `out` and `into` are payload; None: a reset cuts it."""

    name: str
    share: int
    out: int | None
    into: int | None


SHAPES = (
    Shape("answer", 50, 700, 1500),
    Shape("half-close", 20, 3000, 9000),
    Shape("client resets", 10, None, None),
    Shape("origin resets", 10, None, None),
    Shape("bulk", 5, 10, BULK),
    Shape("nothing", 5, 0, 0),
)
TURNS = [number for number, shape in enumerate(SHAPES) for _ in range(shape.share)]
PORTS = f"[{', '.join(str(FIRST_PORT + number) for number in range(len(SHAPES)))}]"
POLICY = f"""
egress: v1
project: bench
posture: allowlist
allow:
  - {{id: origin, to: {NAME}, ports: {PORTS}}}
"""
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "bench"\n'


def ruleset(uid: int, resolver_port: int) -> str:
    ports = f"{FIRST_PORT}-{FIRST_PORT + len(SHAPES) - 1}"
    return f"""
table inet books {{
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
    tcp dport {ports} counter name origin return
    tcp sport {{ 3128, 1080 }} counter name clients return
    udp sport 53 counter name clients return
    meta l4proto {{ tcp, udp }} th dport {resolver_port} counter name resolver return
    counter name dark
    update @strangers {{ meta l4proto . th sport . th dport }}
  }}
  chain in {{
    type filter hook input priority -300;
    tcp dport {ports} numgen random mod 1000 < {LOSS} counter name dropped drop
    tcp sport {ports} numgen random mod 1000 < {LOSS} counter name dropped drop
  }}
}}
"""


# --- origin and clients


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _origin(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    shape = SHAPES[number]
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        if shape.name == "half-close":
            await reader.read(-1)
        elif shape.name != "nothing":
            await reader.readexactly(shape.out or 100)
        if shape.name == "client resets":
            writer.write(b"d" * 20_000)
            await reader.read(-1)
        elif shape.name == "origin resets":
            writer.write(b"d" * 20_000)
            _reset(writer)
            return
        else:
            writer.write(b"d" * (shape.into or 0))
            await writer.drain()
            await reader.read(-1) if shape.name != "half-close" else None
    writer.close()


async def origin() -> None:
    """Serve all shapes until the parent closes stdin."""
    for number in range(len(SHAPES)):

        async def talk(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shape: int = number
        ) -> None:
            await _origin(shape, reader, writer)

        await asyncio.start_server(talk, ADDRESS, FIRST_PORT + number, backlog=4096)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _flow(number: int) -> str:
    """One tunnel; what went wrong, or ""."""
    shape = SHAPES[number]
    try:
        reader, writer = await asyncio.open_connection(*DOOR)
    except OSError as error:
        return f"door: {error}"
    place = f"{NAME}:{FIRST_PORT + number}"
    try:
        return await asyncio.wait_for(_talk(shape, place, reader, writer), PATIENCE_S)
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        return "" if shape.into is None else f"{shape.name}: {type(error).__name__}"
    finally:
        writer.close()


async def _talk(shape: Shape, place: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head:
        return head.split(b"\r\n")[0].decode("latin-1")
    writer.write(b"u" * (shape.out if shape.out is not None else 100))
    if shape.name == "half-close":
        writer.write_eof()
    if shape.name == "client resets":
        await reader.read(1000)
        _reset(writer)
    elif shape.into is None:
        await reader.read(-1)
    else:
        await reader.readexactly(shape.into)
    return ""


async def clients(count: int) -> None:
    """Make `count` flows, AT_ONCE at a time; print what went wrong, as JSON."""
    wrong: Counter[str] = Counter()
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            if said := await _flow(TURNS[number * 37 % len(TURNS)]):
                wrong[said] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    print(json.dumps(wrong))


# --- the books


class Ear(threading.Thread):
    """Keeps what the kernel tells of the ends of connections, but for those of clients to the door.

    Not by uid: of a socket that was closed the kernel does not say whose it was.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ends, self._over = SocketEnds(), threading.Event()
        self.heard: list[End] = []

    def run(self) -> None:
        import select

        poller = select.poll()
        poller.register(self._ends.fileno(), select.POLLIN)
        while not self._over.is_set():
            poller.poll(50)
            self.heard += [
                end for end in self._ends.read() if end.port not in ACCEPTED and end.peer_port != DOOR[1]
            ]

    def finish(self) -> int:
        """How often the kernel dropped something."""
        self._over.set()
        self.join()
        self._ends.close()
        return self._ends.lost


class Result(NamedTuple):
    flows: int
    seconds: float
    exact: int
    cut: int
    blank: int
    unexplained: int
    application_exact: int
    application_wrong: int
    unmatched: tuple[int, int]
    on_the_way: int
    unread: int
    dark: int
    dark_packets: int
    lost_events: int
    dropped: int
    retransmitted: int
    payload: int
    wire: int
    packets: int
    client_errors: dict[str, int]

    @property
    def problems(self) -> list[str]:
        named = {
            "payload bytes unexplained": self.unexplained,
            "flows that the application counts otherwise": self.application_wrong,
            "flows without the kernel's book": self.unmatched[0],
            "dark bytes": self.dark,
            "dark packets": self.dark_packets,
        }
        return [f"{count} {what}" for what, count in named.items() if count]


def measure(count: int) -> Result:
    """In this thread's namespace."""
    with name_server(zone_handler([(NAME, 60, "A", ADDRESS)])) as server, _helper("origin") as ready:
        assert ready.stdout is not None
        ready.stdout.readline()
        made = Standalone(server.address, {"bench": POLICY}, IDENTITY)
        try:
            uid = pwd.getpwnam("exeat").pw_uid
            subprocess.run(["nft", "-f", "-"], input=ruleset(uid, server.address[1]), text=True, check=True)
            made.up()
            ear = Ear()
            ear.start()
            before = time.monotonic()
            with _helper("clients", str(count)) as process:
                said, _ = process.communicate()
            seconds = time.monotonic() - before
            books = _settled(made.base / "state", ear)
            return _result(made.base / "state", books, ear.finish(), seconds, json.loads(said))
        finally:
            made.close()


def _settled(state: Path, ear: Ear) -> Books:
    """Read both books until every flow has both, or nothing more comes."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        books = Books()
        for end in list(ear.heard):
            books.ended(end)
        opened = 0
        for seq, record in _flows(state):
            opened += (record.kind is Kind.OPEN) - (record.kind is Kind.CLOSE)
            books.record(seq, record)
        if (opened == 0 and books.waiting[0] == 0) or time.monotonic() > deadline:
            return books
        time.sleep(1)


def _flows(state: Path) -> Iterator[tuple[int, records.Record]]:
    for directory in find_ledgers(state):
        for seq, data in read(directory):
            if records.recall(data).kind in (Kind.OPEN, Kind.CLOSE):
                yield seq, records.decode(data)


def _result(state: Path, books: Books, lost: int, seconds: float, wrong: dict[str, int]) -> Result:
    waiting = books.waiting
    tally = books.settle()
    exact = different = flows = retransmitted = 0
    for _, record in _flows(state):
        if record.kind is not Kind.CLOSE or record.dest is None:
            continue
        flows += 1
        retransmitted += record.retrans
        shape = SHAPES[record.dest.port - FIRST_PORT]
        if shape.out is not None:
            fits = (record.bytes_out, record.bytes_in) == (shape.out, shape.into)
            exact, different = exact + fits, different + (not fits)
    for finding in tally.findings[:5]:
        print(f"differs: out {finding.out:+d} in {finding.into:+d}: {finding.record}", file=sys.stderr)
    counters = _counters()
    if counters["dark"][0]:
        print(_strangers(), file=sys.stderr)
    return Result(
        flows,
        seconds,
        tally.exact,
        tally.cut,
        tally.blank,
        tally.unexplained,
        exact,
        different,
        waiting,
        tally.out_on_the_way,
        tally.in_unread,
        tally.dark_bytes,
        counters["dark"][0],
        lost,
        counters["dropped"][0],
        retransmitted,
        tally.bytes_out,
        counters["origin"][1],
        counters["origin"][0],
        wrong,
    )


def _strangers() -> str:
    """Protocol, source and destination port of the dark packets."""
    words = ["nft", "list", "set", "inet", "books", "strangers"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout[:2000]


def _counters() -> dict[str, tuple[int, int]]:
    """(packets, bytes of IP) of each named counter."""
    done = subprocess.run(["nft", "-j", "list", "counters"], capture_output=True, text=True, check=True)
    found = [each["counter"] for each in json.loads(done.stdout)["nftables"] if "counter" in each]
    return {each["name"]: (each["packets"], each["bytes"]) for each in found}


@contextlib.contextmanager
def _helper(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.reconcile", "--part", *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def report(found: Result) -> str:
    headers = found.wire - found.payload
    lines = [
        f"{found.flows} flows in {found.seconds:.0f} s; {found.dropped} packets dropped on purpose,"
        f" {found.retransmitted} segments sent again",
        f"ledger = kernel to the byte: {found.exact}; cut with bytes on their way: {found.cut}"
        f" ({found.on_the_way} out not acknowledged, {found.unread} in not read)",
        f"reset by the gateway, which the kernel keeps no count of: {found.blank}; the record's own agree",
        f"ledger = application to the byte: {found.application_exact}, not: {found.application_wrong}",
        f"payload bytes unexplained: {found.unexplained}",
        f"dark bytes: {found.dark}; dark packets: {found.dark_packets}",
        f"without the kernel's book: {found.unmatched[0]} flows; events lost: {found.lost_events} times",
        f"towards the origin: {found.payload} bytes of payload, {found.wire} of IP, {found.packets} packets:"
        f" {headers / max(1, found.packets):.1f} a packet for headers, handshakes and what was sent again",
    ]
    lines += [f"clients: {count} x {what}" for what, count in found.client_errors.items()]
    lines += [f"NOT MET: {problem}" for problem in found.problems] or ["the books agree"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.reconcile", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--flows", type=int, default=100_000, metavar="N")
    parser.add_argument("--short", action="store_true", help="2,000 flows: does it work at all?")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "origin": origin,
            "clients": lambda: clients(int(args.part[1])),
        }
        asyncio.run(parts[args.part[0]]())  # type: ignore[arg-type]
        return 0
    if os.geteuid() != 0:
        print("bench.reconcile: needs root", file=sys.stderr)
        return 2
    results: list[Result] = []

    def body() -> None:
        enter_namespace()
        results.append(measure(2000 if args.short else args.flows))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if not results:
        return 2
    print(report(results[0]))
    return 1 if results[0].problems else 0


if __name__ == "__main__":
    sys.exit(main())
