"""Three books of every flow: `python -m bench.reconcile [--flows N] [--short]`, as root. Exit 1: they differ.

`exeat up` in a network namespace of its own; clients make tunnels to an origin that answer, half-close,
are reset by either side, carry bulk, or nothing. While some of them run (`--lossy`), nftables drops one
packet in 200 so that TCP retransmits. (The kernel's netem would do the same; not every kernel has it.)
Compared, flow by flow:

    ledger       the `close` record
    kernel       its own last count of the upstream socket, told to this process when the socket ended
    application  what client and origin agreed to send, where nobody reset the connection

Dark bytes are those of the gateway's connections that no flow names, and of its packets that go
neither to the origin, to clients, nor to the resolver (nftables, by uid).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from bench import reconcile_books, reconcile_flows
from bench.loader import prepare
from bench.reconcile_books import Ear, Reader
from bench.reconcile_flows import ADDRESS, FIRST_PORT, NAME, SHAPES
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import enter_namespace
from tests.support.standalone import Standalone

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK_S = 0.2
PORTS = f"[{', '.join(str(FIRST_PORT + number) for number in range(len(SHAPES)))}]"
POLICY = f"""
egress: v1
project: bench
posture: allowlist
allow:
  - {{id: origin, to: {NAME}, ports: {PORTS}}}
"""
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "bench"\n'


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


def measure(count: int, lossy: int) -> Result:
    """In this thread's namespace: `lossy` flows while packets are dropped, then the rest of `count`."""
    prepare()
    with name_server(zone_handler([(NAME, 60, "A", ADDRESS)])) as server, _helper("origin") as ready:
        assert ready.stdout is not None
        ready.stdout.readline()
        made = Standalone(server.address, {"bench": POLICY}, IDENTITY)
        try:
            uid = pwd.getpwnam("exeat").pw_uid
            reconcile_books.load(reconcile_books.ruleset(uid, server.address[1]))
            made.up()
            ear = Ear()
            ear.start()
            reader = Reader(made.base / "state", ear)
            before = time.monotonic()
            reconcile_books.lose()
            wrong = _clients(lossy, reader)
            reconcile_books.lose_nothing()
            wrong += _clients(count - lossy, reader)
            seconds = time.monotonic() - before
            reader.settle()
            return _result(reader, ear.finish(), seconds, dict(wrong))
        finally:
            made.close()


def _clients(count: int, reader: Reader) -> Counter[str]:
    """Make so many flows, reading the books meanwhile; what went wrong."""
    with _helper("clients", str(count)) as process:
        while process.poll() is None:
            reader.look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
        assert process.stdout is not None
        return Counter(json.loads(process.stdout.read()))


def _result(reader: Reader, lost: int, seconds: float, wrong: dict[str, int]) -> Result:
    waiting = reader.books.waiting
    tally = reader.books.settle()
    reader.show()
    counters = reconcile_books.counters()
    if counters["dark"][0]:
        print(reconcile_books.strangers(), file=sys.stderr)
    return Result(
        reader.flows,
        seconds,
        tally.exact,
        tally.cut,
        tally.blank,
        tally.unexplained,
        reader.application_exact,
        reader.application_wrong,
        waiting,
        tally.out_on_the_way,
        tally.in_unread,
        tally.dark_bytes,
        counters["dark"][0],
        lost,
        counters["dropped"][0],
        reader.retransmitted,
        tally.bytes_out,
        counters["origin"][1],
        counters["origin"][0],
        wrong,
    )


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
    parser.add_argument("--flows", type=int, default=1_000_000, metavar="N")
    parser.add_argument(
        "--lossy", type=int, metavar="N", help="of them, while packets are dropped (one in 20)"
    )
    parser.add_argument("--short", action="store_true", help="2,000 flows: does it work at all?")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        reconcile_flows.origin() if args.part[0] == "origin" else reconcile_flows.clients(int(args.part[1]))
        return 0
    if os.geteuid() != 0:
        print("bench.reconcile: needs root", file=sys.stderr)
        return 2
    count = 2000 if args.short else args.flows
    lossy = max(1000, count // 20) if args.lossy is None else args.lossy
    results: list[Result] = []

    def body() -> None:
        enter_namespace()
        results.append(measure(count, min(count, lossy)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if not results:
        return 2
    print(report(results[0]))
    return 1 if results[0].problems else 0


if __name__ == "__main__":
    sys.exit(main())
