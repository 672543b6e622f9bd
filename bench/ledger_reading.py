"""Reading: verification, tiles, export, questions, budgets, reconciliation."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from bench.ledger_parts import DAY_MS, PER_FLOW, Goal, flows, quantile, rates, timed

from exeat.ledger import bundle, index, keys, questions
from exeat.ledger.merkle import Frontier
from exeat.ledger.packing import Packing
from exeat.ledger.publish import Publisher
from exeat.ledger.reader import find_segments, first_record, read
from exeat.ledger.reconcile import reconcile
from exeat.ledger.segment import OVERHEAD as FRAME
from exeat.ledger.since import gists_since
from exeat.ledger.store import Store
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


GROUP: Final = 10 * PER_FLOW  # records


class Unsynced:
    """The store's system calls, without waiting for the disk: nobody needs these records after a crash."""

    open, close, pwrite, rename, unlink = os.open, os.close, os.pwrite, os.rename, os.unlink

    def fdatasync(self, fd: int) -> None:
        """Not now."""

    fsync = fdatasync


def build(base: Path, count: int) -> Store:
    """A ledger of `count` records over ten days, in groups as a busy gateway makes them."""
    store = Store.create(base, "exeat/bench", 1, io=Unsynced())
    keys.ensure(base, "exeat/bench")
    batch: list[bytes] = []
    for parts in flows(count // PER_FLOW, days=10):
        batch += parts
        if len(batch) >= GROUP:
            store.append(batch, 1)
            batch = []
    if batch:
        store.append(batch, 1)
    return store


def _pack(directory: Path, size: int) -> None:
    packing = Packing(directory)
    while packing.step(size):
        pass


def reading_goals(base: Path, *, short: bool) -> Iterator[Goal]:
    count = 150_000 if short else 1_000_000
    store = build(base / "ledger", count)
    store.close()
    size, directory = store.size, store.directory
    data = [part for _, part in read(directory)]
    stored = sum(map(len, data)) / size + FRAME
    yield Goal("bytes a record of a flow in the newest segment, with frame", stored, "B")
    yield from rates("packing sealed segments, records a second", size, lambda: _pack(directory, size))
    *sealed, newest = find_segments(directory)
    stored = sum(path.stat().st_size for path in sealed) / first_record(newest)
    yield Goal("stored bytes a record of a flow, sealed and packed", stored, "B", 170)
    yield Goal("   for a whole flow: open, reserve, close", stored * PER_FLOW, "B")
    yield from rates("RFC 6962 tree alone, records a second", size, lambda: Frontier().extend(data))
    data.clear()
    yield from rates(
        "tiles and checkpoint, records a second",
        size,
        lambda: Publisher(directory).publish(size, store.root()),
    )
    bundle.export(directory, base / "bundle")
    exported = sum(path.stat().st_size for path in (base / "bundle").iterdir())
    yield Goal("exported bytes a record", exported / size, "B", 40)
    yield from rates(
        "reading for budgets, records a second",
        size,
        lambda: sum(1 for _ in gists_since(directory.parent, 0)),
    )
    yield from rates("reconciliation, flows a second", size // PER_FLOW, lambda: reconcile(read(directory)))
    found = reconcile(read(directory))
    yield Goal("   payload bytes unexplained", len(found.drifts), "B", 0)


def _verified(directory: Path, *, quick: bool) -> None:
    report = verify(directory, two=True, quick=quick)
    assert report.ok
    assert report.quick == quick


def question_goals(base: Path, *, short: bool) -> Iterator[Goal]:
    """Questions over ten days of records, the last of them of now; and all of them verified."""
    count = 900_000 if short else 10_000_000
    found: list[Store] = []
    yield from rates(
        "ledger made for the questions, records a second",
        count,
        lambda: found.append(build(base / "ledger" / "q", count)),
    )
    found[0].close()
    size, directory = found[0].size, found[0].directory
    _pack(directory, size)
    yield from rates(
        "index made from nothing, records a second", size, lambda: index.open_index(directory).close()
    )
    opened = index.open_index(directory)
    kept = (directory / "derived" / "index.sqlite").stat().st_size
    yield Goal("   bytes on disk for each", kept / size, "B")
    yield from rates(
        "verified, hashes and order (--quick), records a second",
        size,
        lambda: _verified(directory, quick=True),
        1_000_000,
    )
    yield from rates("verified in full, records a second", size, lambda: _verified(directory, quick=False))
    # The window ends now and moves on with each time of asking, so that it begins in the midst of an hour.
    last = opened.fresh().t
    asked = [questions.Question(since=last - DAY_MS - minute * 60_000) for minute in range(0, 60, 4)]
    for name, by_rows, bound in (("", False, 50), ("   the same row by row", True, None)):
        ask = partial(questions.sums, opened, keys=("project", "host"), by_rows=by_rows)
        taken = [timed(partial(ask, each)) * 1e3 for each in asked]
        name = name or f"bytes per host per project, last 24 h of {size:,} records"
        yield Goal(f"{name}, p50", quantile(taken, 0.5), "ms", bound)
        yield Goal("   p95", quantile(taken, 0.95), "ms")
    yield Goal("   groups in the answer", len(questions.sums(opened, asked[0], ("project", "host"))), "")
    opened.close()
    command = [sys.executable, "-m", "exeat", "--state-dir", str(base), "ledger", "query"]
    command += ["--sum", "project,host", "--since", "24h", "--format", "csv"]
    taken = [timed(lambda: subprocess.run(command, check=True, capture_output=True)) * 1e3 for _ in range(20)]
    yield Goal("   `exeat ledger query` for it, from start to end, p95", quantile(taken, 0.95), "ms", 1000)
