"""Control's database when it is damaged or gone: set aside, and made anew from what the ledger knows.

Only what confines comes back: what the kill switch stops, the time that was seen, and the jobs that
ran, so that they are ended and recorded. Leases never come back; nor does the queue.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from exeat.appliance.control.evidence import Evidence
from exeat.appliance.control.jobs import Job
from exeat.appliance.control.kill import Stop
from exeat.appliance.control.store import DamagedError, Store
from exeat.ledger.files import sync_dir
from exeat.ledger.reader import ReaderError, dropped_before, find_ledgers, read_records
from exeat.ledger.records import Kind
from exeat.policy.snapshot import EVERYONE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exeat.appliance.config import Config
    from exeat.ledger.records import Record

_LOST: Final = "leases, the queue and flows past the proxy are lost"
_UNSURE: Final = "the ledger does not tell what else was stopped, so everything is (exeat kill off)"
_OF_CONTROL: Final = frozenset({Kind.POLICY, Kind.LEASE, Kind.JOB})


class Known:
    """What the ledger says of the present."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.stops: dict[str, Stop] = {}
        self.jobs: dict[str, Job] = {}
        self.latest_ms = 0
        self.seen = False  # has control written anything?
        for record in records:
            self.latest_ms = max(self.latest_ms, record.t_real_ns // 1_000_000)
            self.seen = self.seen or record.kind in _OF_CONTROL
            if record.kind is Kind.POLICY:
                self._policy(record)
            elif record.kind is Kind.JOB:
                self._job(record)

    def _policy(self, record: Record) -> None:
        scope = record.project or EVERYONE
        if record.decision == "kill.on":  # whether for the network only is not said: so for jobs, too
            self.stops[scope] = Stop(record.actor, record.detail, record.t_real_ns // 1_000_000)
        elif record.decision == "kill.off":
            self.stops.pop(scope, None)

    def _job(self, record: Record) -> None:
        if record.decision == "start":
            self.jobs[record.job] = Job(record.job, record.project, record.agent, [], 0)
        elif record.decision == "exit":
            self.jobs.pop(record.job, None)


def opened(config: Config) -> Store:
    """The database. One that is damaged is set aside first; of one that is gone the ledger knows.

    Raises StoreError, OSError.
    """
    path = config.state_dir / "control" / "control.sqlite"
    ready = path.with_suffix(".rebuilt")
    if ready.exists():  # a control that was killed in between
        _put_in_place(ready, path)
    try:
        if path.exists() or not _was_there(config):
            return Store(path)
        said = f"{path}: it is gone"
    except DamagedError as error:
        said = f"{error}: it is set aside"
    print(f"control: {said}; {_LOST}", file=sys.stderr, flush=True)
    _rebuild(config, ready, said)
    _put_in_place(ready, path)
    return Store(path)


def _was_there(config: Config) -> bool:
    """Has there been a control before? The ledger says so, or, without one, the policies it kept."""
    known, sure = _known(config.state_dir)
    if known.seen:
        return True
    kept = config.state_dir / "control" / "documents"
    return not sure and kept.is_dir() and any(kept.iterdir())


def _rebuild(config: Config, ready: Path, error: str) -> None:
    part = ready.with_suffix(".part")
    for left in part.parent.glob(f"{part.name}*"):
        left.unlink()
    store = Store(part)
    known, sure = _known(config.state_dir)
    if not sure:
        known.stops[EVERYONE] = Stop("control", _UNSURE, time.time_ns() // 1_000_000)
    for scope, stop in known.stops.items():
        store.save_kill(scope, json.dumps(asdict(stop)))
    for name, job in known.jobs.items():
        store.save_job(name, json.dumps(job.row()))
    store.keep_latest_ms(known.latest_ms)
    evidence = Evidence(config.run_dir / "ledger" / "ledger.sock", config.node.name, store)
    said = f"{error}; {_LOST}{'' if sure else f'; {_UNSURE}'}"
    store.save_owed(
        evidence.anomaly(project="", agent="", what="damaged", detail=said, count=len(known.jobs))
    )
    store.close()
    part.rename(ready)


def _known(state_dir: Path) -> tuple[Known, bool]:
    """And whether that is all: not where the ledger cannot be read, or no longer has its beginning."""
    try:
        ledgers = find_ledgers(state_dir)
        known = Known(record for _, record in read_records(state_dir / "ledger"))
        return known, bool(ledgers) and not any(map(dropped_before, ledgers))
    except (ReaderError, OSError, ValueError) as error:
        print(f"control: the ledger cannot be read: {error}", file=sys.stderr, flush=True)
        return Known(), False


def _put_in_place(ready: Path, path: Path) -> None:
    aside = f"{path.name}.damaged-{time.time_ns()}"
    for ending in ("", "-wal", "-shm"):  # a log that stays would be played into the new file
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(path.with_name(aside + ending))
    ready.rename(path)
    sync_dir(os, path.parent)
