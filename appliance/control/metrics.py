"""The metrics of a node, gathered where they are asked for: verb `metrics` of control.sock."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.aio import answers
from exeat.appliance.control.heard import Heard, Rows
from exeat.ledger.counted import SILENT_S, read_counted
from exeat.ledger.reader import find_ledgers
from exeat.ledger.small_files import read_small
from exeat.ledger.tally import MAX_PROJECTS, OTHER
from exeat.policy.snapshot import EVERYONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.appliance.config import Config
    from exeat.appliance.control.server import Control
    from exeat.ledger.ipc import Message
    from exeat.ledger.tally import Tally

LAG_S: Final = 5.0  # how long a part may take to have what control has published
NOTE: Final = "verified.json"  # of the last check of a whole ledger, beside its segments
ROUTES: Final = {"dns": "udp53", "bypass": "dot", "quic": "quic", "rejected": "raw", "spoofed": "raw"}
_PARTS: Final = ("proxy", "guard")
_NANO: Final = 1e-9

Row = tuple[str, list[str], float]


class Metrics:
    """What the parts say (`heard`), what control has counted (`tally`), and how things stand now."""

    def __init__(
        self, control: Control, config: Config, published: Callable[[], tuple[int, float]], tally: Tally
    ) -> None:
        """`published`: which snapshot, and when, in seconds of the monotonic clock."""
        self._control, self._config, self._published = control, config, published
        self._tally = tally
        self._parts = {part: Heard() for part in _PARTS}
        self._whole_at = 0.0  # when every process was last there

    def heard(self, role: str, message: Message) -> None:
        """A `counts` message of a gateway process."""
        if role in self._parts:
            self._parts[role].take(message)

    async def rows(self, _message: Message, _fds: list[int]) -> dict[str, Any]:
        """The verb: rows by name of `metrics.table`, each [labels, value] or [labels, counts, seconds]."""
        roles = self._control.hub.roles
        found = [part.rows(alive=name in roles) for name, part in self._parts.items()]
        own = Heard()
        own.take(json.loads(json.dumps(self._tally.message(0))))
        self._tally.forget()
        config = self._config
        ledger, said = await asyncio.to_thread(_ledger_rows, config.state_dir, config.run_dir)
        heard = Heard()
        heard.take(said)
        found += [own.rows(alive=True), heard.rows(alive=True), ledger]
        found.append(_named([*self._standing(), *self._routes()]))
        return {"metrics": _joined(found)}

    def _standing(self) -> Iterator[Row]:
        yield from self._in_force()
        yield from self._processes()
        yield from self._leases()
        yield from self._jobs()

    def _in_force(self) -> Iterator[Row]:
        control, policies = self._control, self._control.policies
        generation, at = self._published()
        late = time.monotonic() - at > LAG_S
        for part, heard in self._parts.items():
            same = heard.generation == generation or (heard.generation > 0 and not late)
            yield "enforcement_in_sync", [part], part in control.hub.roles and same
        if control.routing.state:
            yield "enforcement_in_sync", ["routing"], not control.routing.state.get("failed")
        for project, digest in islice(sorted(policies.projects.items()), MAX_PROJECTS):
            yield "policy_version_info", [project, digest[:12]], 1
            if (document := policies.documents.get(digest)) is not None:
                yield "posture_info", [project, str(document.posture)], 1
        scopes = control.kill.scopes
        yield "kill_switch", ["*"], EVERYONE in scopes
        yield from (("kill_switch", [scope], 1) for scope in scopes[:MAX_PROJECTS] if scope != EVERYONE)

    def _processes(self) -> Iterator[Row]:
        control = self._control
        roles = control.hub.roles
        up = {"control": True, "proxy": "proxy" in roles, "guard": "guard" in roles}
        up |= {name: answers(self._config.run_dir, name) for name in ("warden", "ledger")}
        yield from (("process_up", [name], there) for name, there in up.items())
        if all(up.values()):
            self._whole_at = time.time()
        yield "node_last_seen_timestamp_seconds", [self._config.node.name], self._whole_at
        yield "build_info", [version("exeat")], 1

    def _leases(self) -> Iterator[Row]:
        """Of states that last; a lease that is over counts as long as control remembers it."""
        states = Counter[tuple[str, str]]()
        oldest: dict[str, float] = {}
        now_ms = time.time_ns() // 1_000_000
        for project, state, since_ms in self._control.leases.standing():
            states[project, state] += 1
            if state == "requested":
                oldest[project] = max(oldest.get(project, 0.0), (now_ms - since_ms) / 1000)
        for (project, state), count in states.items():
            yield "leases", [self._project(project), state], count
        for project in islice(sorted({*self._control.policies.projects, *oldest}), MAX_PROJECTS):
            yield "lease_oldest_pending_seconds", [project], oldest.get(project, 0.0)

    def _jobs(self) -> Iterator[Row]:
        control = self._control
        running = Counter(job.project for job in control.jobs.all.values() if job.code is None)
        queued = Counter(task.project for task in control.scheduler.waiting())
        for project in {*control.policies.projects, *running, *queued}:
            yield "jobs", [self._project(project), "running"], running[project]
            yield "jobs", [self._project(project), "queued"], queued[project]
        for project, nano in control.books.costs.items():
            yield "cost_usd_estimate_total", [self._project(project)], nano * _NANO

    def _routes(self) -> Iterator[Row]:
        """What members of the host's table tried, as its counters have it."""
        for member in self._control.routing.state.get("members", ()):
            project = str(member.get("label", "")).partition("/")[0]
            for counter, kind in ROUTES.items():
                yield "bypass_attempts_total", [self._project(project), kind], int(member.get(counter, 0))

    def _project(self, name: str) -> str:
        known = self._control.policies.projects
        return name if len(known) <= MAX_PROJECTS and name in known else OTHER


def _named(rows: list[Row]) -> Rows:
    found: Rows = {}
    for name, labels, value in rows:
        found.setdefault(name, []).append([labels, float(value)])
    return found


def _joined(sources: list[Rows]) -> Rows:
    """One row for each series, though several parts count it."""
    sums: dict[str, dict[tuple[str, ...], list[Any]]] = {}
    for source in sources:
        for name, rows in source.items():
            series = sums.setdefault(name, {})
            for labels, *values in rows:
                known = series.get(tuple(labels))
                if known is None:
                    series[tuple(labels)] = [labels, *values]
                elif len(values) == 1:
                    known[1] += values[0]
    return {name: list(series.values()) for name, series in sums.items()}


def _ledger_rows(state_dir: Path, run_dir: Path) -> tuple[Rows, dict[str, Any]]:
    """What its folder and its disk say, and the `counts` of its process."""
    said, age_s = read_counted(run_dir)
    if age_s > SILENT_S:  # it hangs, or is gone: so long nothing has become durable
        gauges = [["ledger_fsync_lag_seconds", [], age_s], ["ledger_writable", [], 0]]
        said = {**said, "gauges": gauges}
    rows: list[Row] = []
    for directory in find_ledgers(state_dir):
        files = [entry.stat().st_size for entry in os.scandir(directory / "seg")]
        rows.append(("ledger_bytes", [], float(sum(files))))
        disk = os.statvfs(directory)
        rows.append(("ledger_disk_free_bytes", [], float(disk.f_bavail * disk.f_frsize)))
        rows.append(("ledger_disk_bytes", [], float(disk.f_blocks * disk.f_frsize)))
        rows += _verified(directory)
        break  # a node has one; others in the folder are of an earlier name
    return _named(rows), said


def _verified(directory: Path) -> Iterator[Row]:
    try:
        note = json.loads(read_small(directory / NOTE, 4096))
        yield "ledger_verify_ok", [], float(note["ok"] is True)
        yield "ledger_last_verified_timestamp_seconds", [], int(note["at_ms"]) / 1000
    except (OSError, ValueError, LookupError, TypeError):
        return
