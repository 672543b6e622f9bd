"""Appending: latency, rate, and what a record costs, beside the disk's own sync and SQLite."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.ledger_parts import PER_FLOW, Goal, Taken, flows, quantile, timing

from exeat.ledger import reactor as loop
from exeat.ledger import records
from exeat.ledger.client import LedgerClient
from exeat.ledger.daemon import LedgerSettings, serve
from exeat.ledger.records import Dest
from exeat.ledger.store import Store
from exeat.ledger.wire import REPLY, pack_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


COLUMNS: Final = (
    *("t_real_ns", "t_boot_ns", "flow", "bytes_out", "bytes_in", "reserved", "job", "project", "agent"),
    *("dest", "decision", "reason_code", "rule_id", "generation", "policy_digest", "posture", "name_source"),
    *("src", "node", "close_reason", "duration_ms", "cookie"),
)


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


def raw_syncs(base: Path, count: int, rate: int = 0) -> list[float]:
    """pwrite and fdatasync of a record's frame and commit into zeroed room: what the disk asks, in us.

    With `rate` as many a second, each counted from when it was due, as in `paced`.
    """
    fd = os.open(base / "raw", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(320 * count), 0)
    os.fsync(fd)
    taken = []
    begin = time.perf_counter()
    for number in range(count):
        start = begin + number / rate if rate else time.perf_counter()
        while time.perf_counter() < start:
            pass
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


def in_process(base: Path, count: int) -> Taken:
    """Durable records through the store alone, 1,000 to a group."""
    wanted = [part for parts in flows(count // PER_FLOW) for part in parts]
    store = Store.create(base, "exeat/bench", 1)
    found: list[Taken] = []
    with timing(found):
        for first in range(0, len(wanted), 1000):
            store.append(wanted[first : first + 1000], 1)
            store.prepare()
            if (spare := store.spare()) is not None:  # as the daemon does
                spare.begin()
    store.close()
    return found[0]


def sqlite_full(base: Path, count: int, batch: int, columns: tuple[str, ...] = ()) -> Taken:
    """The same records into SQLite, WAL, synchronous=FULL: as blobs, or their fields in columns."""
    wanted = [part for parts in flows(count // PER_FLOW) for part in parts]
    rows: list[tuple[object, ...]] = [(part,) for part in wanted]
    if columns:
        rows = [tuple(map(_plain, attrgetter(*columns)(records.decode(part)))) for part in wanted]
    base.mkdir()
    db = sqlite3.connect(base / "full.sqlite", isolation_level=None)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    db.execute(f"create table t (seq integer primary key, {', '.join(columns) or 'data blob'})")
    insert = f"insert into t values (null{', ?' * len(rows[0])})"  # noqa: S608 - question marks
    found: list[Taken] = []
    with timing(found):
        for first in range(0, len(rows), batch):
            db.execute("begin")
            db.executemany(insert, rows[first : first + batch])
            db.execute("commit")
    db.close()
    return found[0]


def _plain(value: object) -> object:
    """Of a record's field, what a column can hold."""
    if isinstance(value, Dest):
        return f"{value.host}:{value.port}/{value.protocol}"
    return value - (1 << 63) if isinstance(value, int) and value >= 1 << 63 else value


def against_sqlite(base: Path) -> Iterator[Goal]:
    """In turn, in this process, so that all meet the same machine."""
    count = 60_000
    ways: dict[str, Callable[[Path], Taken]] = {
        "the store in this process, 1,000 to a group": lambda at: in_process(at, count),
        "SQLite WAL FULL, the fields in 22 columns": lambda at: sqlite_full(at, count, 1000, COLUMNS),
        "SQLite WAL FULL, a record as one blob": lambda at: sqlite_full(at, count, 1000),
    }
    runs = [[way(base / f"d{turn}-{at}") for at, way in enumerate(ways.values())] for turn in range(5)]
    for at, name in enumerate(ways):
        taken = [run[at] for run in runs]
        yield Goal(name, count / min(each.wall for each in taken), "/s")
        yield Goal("   CPU for each", min(each.cpu for each in taken) / count * 1e6, "us")
        if at:
            ratio = quantile([run[at].wall / run[0].wall for run in runs], 0.5)
            bound = 2.0 if at == 1 else None
            yield Goal("   ours against it, median of 5", ratio, "x", bound, least=True)


def signed_after(base: Path, times: int) -> list[float]:
    """How long a record is durable before a signed checkpoint covers it, in milliseconds."""
    taken = []
    with daemon(base) as made:
        checkpoint = made.settings.directory / "checkpoint"
        for number, parts in enumerate(flows(times)):
            made.sock.send(pack_request(number, parts))
            _, _, seq = REPLY.unpack(made.sock.recv(64))
            start = time.perf_counter()
            while not checkpoint.exists() or int(checkpoint.read_text().split("\n")[1]) <= seq:
                time.sleep(0.002)
            taken.append((time.perf_counter() - start) * 1e3)
    return taken


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
    alone = raw_syncs(base, len(at_rate), rate=5000)
    yield Goal("   raw pwrite + fdatasync at that rate, nobody else, p50", quantile(alone, 0.5), "us")
    yield Goal("   p99", quantile(alone, 0.99), "us")
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
    yield from against_sqlite(base)
    yield Goal(
        "a durable record is under a signed checkpoint after", max(signed_after(base / "s", 5)), "ms", 5000
    )
