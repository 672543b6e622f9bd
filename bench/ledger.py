"""The ledger's figures: `python -m bench.ledger [--short] [--dir DIR]`.

A real daemon in a process of its own, real records (a flow is an open, a reserve and a close), a real
disk: DIR must lie on the one that matters. Each figure stands beside what it is measured against in
the same run. Ends with `N of M goals met`; exit code 1 while one is not. --short takes smaller sizes.

Rates and latencies are wall time: a busy machine spoils them. The lines in microseconds of CPU are what
the processes used, user and system, and move much less; a busy second thread of a core still adds to them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.ledger import bundle, index, keys, records
from exeat.ledger import reactor as loop
from exeat.ledger.client import LedgerClient
from exeat.ledger.daemon import LedgerSettings, serve
from exeat.ledger.merkle import Frontier
from exeat.ledger.publish import Publisher
from exeat.ledger.reader import read
from exeat.ledger.reconcile import reconcile
from exeat.ledger.records import Dest, Kind, Record
from exeat.ledger.since import gists_since
from exeat.ledger.store import Store
from exeat.ledger.verify import verify
from exeat.ledger.wire import REPLY, pack_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAY_NS: Final = 86_400 * 10**9
PER_FLOW: Final = 3  # records


class Goal(NamedTuple):
    """One line of the table; `value` met `bound` or not. Without a bound it is there to compare."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    least: bool = False  # the bound is a minimum

    @property
    def met(self) -> bool:
        return self.bound is None or (self.value >= self.bound if self.least else self.value <= self.bound)

    def line(self) -> str:
        wanted = "" if self.bound is None else f"{'>=' if self.least else '<='} {self.bound:,g}"
        verdict = "" if self.bound is None else ("met" if self.met else "NOT MET")
        return f"{self.name:<58}{self.value:>14,.1f} {self.unit:<6}{wanted:>14}  {verdict}"


def flow(chance: random.Random, now_ns: int) -> list[bytes]:
    """The records of one flow: 50 jobs of 10 projects, 40 hosts each."""
    job = chance.randrange(50)
    host = f"h{job * 10 + chance.randrange(40)}.example.org"
    common: dict[str, Any] = {
        "t_real_ns": now_ns,
        "t_boot_ns": 10**13 + now_ns % 10**12,
        "flow": chance.randbytes(16),
    }
    who: dict[str, Any] = {
        "job": f"job-{job}",
        "project": f"project-{job % 10}",
        "agent": f"agent-{job % 7}",
        "node": "node-1",
        "decision": "allow",
        "reason_code": "rule.allow",
        "rule_id": f"rule-{job}",
        "posture": "allowlist",
        "generation": 12,
        "policy_digest": bytes(range(32)),
        "name_source": "connect",
        # Half of the jobs are in jails; the others come by a door on loopback, each flow from another port.
        "src": "proxy4" if job % 2 else f"127.0.0.1:{chance.randrange(32768, 60999)} 127.0.0.1:3128",
        "dest": Dest(host, 443, "tcp", bytes((203, 0, 113, job)), host),
    }
    out, into = chance.randrange(300, 5000), chance.randrange(1000, 500_000)
    counts: dict[str, Any] = {
        "bytes_out": out,
        "bytes_in": into,
        "kernel_out": out,
        "kernel_in": into,
        "client_kernel_out": out,
        "client_kernel_in": into,
        "segs_out": 9,
        "segs_in": into // 1400 + 4,
    }
    ceiling = 1 << 19
    return [
        records.encode(Record(Kind.OPEN, **common, **who, cookie=chance.randrange(1 << 20))),
        records.encode(Record(Kind.RESERVE, **common, reserved=ceiling)),
        records.encode(
            Record(
                Kind.CLOSE, **common, **who, **counts, reserved=ceiling, close_reason="eof", duration_ms=412
            )
        ),
    ]


def flows(count: int, *, days: int = 0) -> Iterator[list[bytes]]:
    """`count` flows, spread over the last `days`."""
    chance, now = random.Random(1), time.time_ns()
    for number in range(count):
        yield flow(chance, now - days * DAY_NS + days * DAY_NS * number // count)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Daemon(NamedTuple):
    """A ledger daemon, and a connection to it."""

    settings: LedgerSettings
    pid: int
    sock: socket.socket

    def cpu(self) -> tuple[float, float]:
        """Microseconds that the writer and its publisher have used so far."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return _cpu(self.pid), sum(_cpu(int(child)) for child in children)


def _cpu(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def daemon(base: Path) -> Iterator[Daemon]:
    """Forked off before the records are made: it must not carry them."""
    settings = LedgerSettings(base / "state", base / "run", "bench", {os.getuid(): "gateway"})
    ready, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        os._exit(serve(settings, lambda: os.close(write)))
    os.close(write)
    os.read(ready, 1)  # its end: the daemon is there
    os.close(ready)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(settings.socket_path))
        yield Daemon(settings, pid, sock)
    os.kill(pid, 15)
    os.waitpid(pid, 0)


def paced(base: Path, rate: int, seconds: float) -> list[float]:
    """Open loop: single records at `rate` a second; latency of each acknowledgement in microseconds.

    Counted from when the record was due, so that a stall is not hidden by the records it holds up.
    """
    taken: list[float] = []
    with daemon(base) as made:
        wanted = (part for parts in flows(int(rate * seconds / PER_FLOW)) for part in parts)
        requests = [pack_request(number, [part]) for number, part in enumerate(wanted)]
        sock = made.sock
        sock.setblocking(False)
        start = time.perf_counter() + 0.1
        sent = 0
        while len(taken) < len(requests):
            if sent < len(requests) and time.perf_counter() >= start + sent / rate:
                with contextlib.suppress(BlockingIOError):
                    sock.send(requests[sent])
                    sent += 1
            with contextlib.suppress(BlockingIOError):
                number, status, _ = REPLY.unpack(sock.recv(64))
                assert status == 0
                taken.append((time.perf_counter() - start - number / rate) * 1e6)
    return taken


def raw_syncs(base: Path, count: int) -> list[float]:
    """pwrite and fdatasync of a record's frame and commit into zeroed room: what the disk asks, in us."""
    fd = os.open(base / "raw", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(4 << 20), 0)
    os.fsync(fd)
    taken = []
    for number in range(count):
        start = time.perf_counter()
        os.pwrite(fd, b"x" * 320, number * 320)
        os.fdatasync(fd)
        taken.append((time.perf_counter() - start) * 1e6)
    os.close(fd)
    return taken


def one_by_one(base: Path, count: int) -> list[float]:
    """Closed loop, one record at a time; microseconds."""
    taken = []
    with daemon(base) as made:
        wanted = [part for parts in flows(count // PER_FLOW) for part in parts]
        sock = made.sock
        for number, part in enumerate(wanted):
            start = time.perf_counter()
            sock.send(pack_request(number, [part]))
            sock.recv(64)
            taken.append((time.perf_counter() - start) * 1e6)
    return taken


class Rate(NamedTuple):
    """How fast, and what each of them cost the writer and the publisher in microseconds of CPU."""

    per_second: float
    writer_us: float
    publisher_us: float


@contextlib.contextmanager
def rated(made: Daemon, count: int, found: list[Rate]) -> Iterator[None]:
    """Adds the rate of `count` things that the body does."""
    start, before = time.perf_counter(), made.cpu()
    yield
    taken, after = time.perf_counter() - start, made.cpu()
    found.append(Rate(count / taken, (after[0] - before[0]) / count, (after[1] - before[1]) / count))


def throughput(base: Path, count: int, batch: int, outstanding: int) -> Rate:
    """Durable records, `batch` to a request."""
    found: list[Rate] = []
    with daemon(base) as made:
        wanted = [part for parts in flows(count // PER_FLOW) for part in parts]
        requests = [pack_request(n, wanted[n * batch : (n + 1) * batch]) for n in range(len(wanted) // batch)]
        with rated(made, len(requests) * batch, found):
            sent = 0
            for done in range(len(requests)):
                while sent < len(requests) and sent - done < outstanding:
                    made.sock.send(requests[sent])
                    sent += 1
                _, status, _ = REPLY.unpack(made.sock.recv(64))
                assert status == 0
    return found[0]


def tunnels(base: Path, count: int, at_once: int) -> Rate:
    """Flows by the gateway's own client: open and first reserve together, then close, `at_once` of them."""
    found: list[Rate] = []
    with daemon(base) as made:
        waiting = list(flows(count))
        reactor = loop.Reactor()
        client = LedgerClient(reactor, made.settings.socket_path)
        while not client.available:
            reactor.turn(1)
        closed = 0

        def next_flow() -> None:
            if waiting:
                opened, reserved, close = waiting.pop()
                client.append([opened, reserved], lambda durable: opened_now(durable, close))

        def opened_now(durable: bool, close: bytes) -> None:
            assert durable
            client.append([close], closed_now)

        def closed_now(durable: bool) -> None:
            nonlocal closed
            assert durable
            closed += 1
            next_flow()

        with rated(made, count, found):
            for _ in range(at_once):
                next_flow()
            while closed < count:
                reactor.turn(1)
        client.close()
        reactor.close()
    return found[0]


class Taken(NamedTuple):
    """Seconds: on the wall, and of CPU in this process and the children it waited for."""

    wall: float
    cpu: float


@contextlib.contextmanager
def timing(found: list[Taken]) -> Iterator[None]:
    """Adds what the body took."""
    start, before = time.perf_counter(), os.times()
    yield
    after = os.times()
    found.append(Taken(time.perf_counter() - start, sum(after[:4]) - sum(before[:4])))


def in_process(base: Path, count: int) -> Taken:
    """Durable records through the store alone, 1,000 to a group."""
    wanted = [part for parts in flows(count // PER_FLOW) for part in parts]
    store = Store.create(base, "exeat/bench", 1)
    found: list[Taken] = []
    with timing(found):
        for first in range(0, len(wanted), 1000):
            store.append(wanted[first : first + 1000], 1)
            store.prepare()
    store.close()
    return found[0]


def sqlite_full(base: Path, count: int, batch: int) -> Taken:
    """The same records as blobs into SQLite, WAL, synchronous=FULL."""
    wanted = [part for parts in flows(count // PER_FLOW) for part in parts]
    base.mkdir()
    db = sqlite3.connect(base / "full.sqlite", isolation_level=None)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    db.execute("create table t (seq integer primary key, data blob)")
    found: list[Taken] = []
    with timing(found):
        for first in range(0, len(wanted), batch):
            db.execute("begin")
            db.executemany(
                "insert into t (data) values (?)", ((part,) for part in wanted[first : first + batch])
            )
            db.execute("commit")
    db.close()
    return found[0]


def append_goals(base: Path, *, short: bool) -> Iterator[Goal]:
    raw = raw_syncs(base, 2000)
    single = one_by_one(base / "a", 3000)
    ratio = quantile(single, 0.5) / quantile(raw, 0.5)
    yield Goal("raw pwrite + fdatasync p50", quantile(raw, 0.5), "us")
    yield Goal("one record at a time, acknowledged durable p50", quantile(single, 0.5), "us")
    yield Goal("   against the raw sync", ratio, "x", 1.5)
    at_rate = paced(base / "b", 5000, 4 if short else 15)
    yield Goal("single records at 5,000 a second, p50", quantile(at_rate, 0.5), "us", 200)
    yield Goal("   p99", quantile(at_rate, 0.99), "us", 1000)
    count = 150_000 if short else 600_000
    best = max(throughput(base / f"c{batch}", count, batch, 16) for batch in (64, 128))
    yield Goal("durable records a second, 64 or 128 to a request", best.per_second, "/s", 200_000, least=True)
    yield Goal("   CPU of the writer for each", best.writer_us, "us", 5)
    yield Goal("   CPU of the publisher for each", best.publisher_us, "us")
    for at_once in (1, 32):
        made = tunnels(base / f"t{at_once}", 4000 if short else 20_000, at_once)
        yield Goal(f"flows a second, {at_once} at once", made.per_second, "/s")
        bound = 42.5 if at_once > 1 else None  # half of what it was when this line was made
        yield Goal("   CPU of the writer for each (three records)", made.writer_us, "us", bound)
    # In turn, in this process, so that both meet the same machine.
    count = 60_000
    pairs = [(in_process(base / f"d{n}", count), sqlite_full(base / f"e{n}", count, 1000)) for n in range(5)]
    for name, taken in (
        ("the store in this process, 1,000 to a group", [ours for ours, _ in pairs]),
        ("SQLite WAL FULL, 1,000 to a transaction", [theirs for _, theirs in pairs]),
    ):
        yield Goal(name, count / min(each.wall for each in taken), "/s")
        yield Goal("   CPU for each", min(each.cpu for each in taken) / count * 1e6, "us")
    ratio = quantile([theirs.wall / ours.wall for ours, theirs in pairs], 0.5)
    yield Goal("   ours against it, median of 5", ratio, "x", 2, least=True)


def build(base: Path, count: int) -> Store:
    """A ledger of `count` records over ten days, published."""
    store = Store.create(base, "exeat/bench", 1)
    keys.ensure(base, "exeat/bench")
    batch: list[bytes] = []
    for parts in flows(count // PER_FLOW, days=10):
        batch += parts
        if len(batch) >= 3000:
            store.append(batch, 1)
            batch = []
    if batch:
        store.append(batch, 1)
    return store


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rates(name: str, count: int, call: Callable[[], object], bound: float | None = None) -> Iterator[Goal]:
    """How many a second, and what each takes of a CPU: the first is bounded."""
    found: list[Taken] = []
    with timing(found):
        call()
    yield Goal(name, count / found[0].wall, "/s", bound, least=True)
    yield Goal("   CPU for each", found[0].cpu / count * 1e6, "us")


def reading_goals(base: Path, *, short: bool) -> Iterator[Goal]:
    count = 150_000 if short else 1_000_000
    store = build(base / "ledger", count)
    store.close()
    size, directory = store.size, store.directory
    data = [part for _, part in read(directory)]
    yield Goal("stored bytes a record, frame included", sum(map(len, data)) / size + 17, "B", 170)
    yield from rates("RFC 6962 tree alone, records a second", size, lambda: Frontier().extend(data))
    data.clear()
    yield from rates(
        "full verification, records a second", size, lambda: verify(directory, two=True), 1_000_000
    )
    yield from rates(
        "tiles and checkpoint, records a second",
        size,
        lambda: Publisher(directory).publish(size, store.root()),
    )
    bundle.export(directory, base / "bundle")
    exported = sum(path.stat().st_size for path in (base / "bundle").iterdir())
    yield Goal("exported bytes a record", exported / size, "B", 40)
    yield from _questions(directory, size)
    yield from rates(
        "reading for budgets, records a second",
        size,
        lambda: sum(1 for _ in gists_since(directory.parent, 0)),
    )
    yield from rates("reconciliation, flows a second", size // PER_FLOW, lambda: reconcile(read(directory)))
    found = reconcile(read(directory))
    yield Goal("   payload bytes unexplained", len(found.drifts), "B", 0)


def _questions(directory: Path, size: int) -> Iterator[Goal]:
    yield from rates(
        "index made from nothing, records a second", size, lambda: index.open_index(directory).close()
    )
    opened = index.open_index(directory)
    since = (time.time_ns() - DAY_NS) // 1_000_000
    question = index.Question(since=since)
    taken = [timed(lambda: index.sums(opened, question, ("project", "host"))) * 1e3 for _ in range(5)]
    yield Goal(f"bytes per host per project, last 24 h of {size:,} records", quantile(taken, 0.5), "ms", 50)
    opened.close()


def core_goals() -> Iterator[Goal]:
    made = [records.decode(part) for parts in flows(3000) for part in parts]
    encoded = [records.encode(record) for record in made]
    best = min(timed(lambda: [records.encode(each) for each in made]) for _ in range(5))
    yield Goal("encoding a record, mean of open, reserve, close", best / len(made) * 1e6, "us")
    best = min(timed(lambda: [records.inspect(each) for each in encoded]) for _ in range(5))
    yield Goal("judging a record, the same", best / len(made) * 1e6, "us")
    best = min(timed(lambda: [records.decode(each) for each in encoded]) for _ in range(5))
    yield Goal("decoding a record, the same", best / len(made) * 1e6, "us")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the ledger.")
    parser.add_argument("--short", action="store_true", help="smaller sizes: about half a minute")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")  # noqa: S108
    args = parser.parse_args(argv)
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        base = Path(name)
        for part in (
            core_goals(),
            append_goals(base, short=args.short),
            reading_goals(base, short=args.short),
        ):
            for goal in part:
                goals.append(goal)
                print(goal.line(), flush=True)
    bound = [goal for goal in goals if goal.bound is not None]
    met = sum(goal.met for goal in bound)
    load = os.getloadavg()[0]
    if load > 2:
        print(f"load {load:.1f} on {os.cpu_count()} cores: neighbours take part in these figures")
    print(f"{met} of {len(bound)} goals met")
    return 0 if met == len(bound) else 1


if __name__ == "__main__":
    sys.exit(main())
