"""What held when a decision was made, rebuilt from the records of control.

Nothing here is taken from control's own database: `policy`, `lease` and `job` records say which documents
were bound, which leases ran, what was stopped and what the node knew of itself. Each says in `generation`
the snapshot that held when it was made; it holds in later ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.ledger import records
from exeat.ledger.reader import read
from exeat.ledger.records import Kind, Record
from exeat.policy.baseline import BASELINE
from exeat.policy.leases import Lease
from exeat.policy.snapshot import EVERYONE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PLACE: Final = "place"  # `decision` of the record that says what a `Place` holds
_ROOM: Final = 4096  # of `data`
_BINDS: Final = frozenset({"first", "narrows", "widens"})
_FOLLOWING: Final = frozenset({Kind.RESERVE, Kind.PROGRESS, Kind.CLOSE, Kind.ORPHAN, Kind.RESUME})
_CHANGES: Final = frozenset({Kind.POLICY, Kind.LEASE, Kind.JOB})

Change = tuple[int, Record]


def _packed(value: object) -> bytes:
    """As JSON; nothing if that is more than a record holds."""
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return data if len(data) <= _ROOM else b""


def lease_data(lease: Lease) -> bytes:
    """What a record of the lease holds of it: all but the requester's words."""
    said = lease.to_json()
    del said["reason"]
    return _packed(said)


class Place(NamedTuple):
    """What a node knows of itself, as `Snapshot.message` takes it."""

    treat_as_public: tuple[str, ...]
    control: tuple[str, ...]
    host_local: tuple[str, ...]

    def data(self) -> bytes:
        return _packed(self._asdict())

    @classmethod
    def parse(cls, data: bytes) -> Place:
        """Raises ValueError."""
        said = json.loads(data)
        if not isinstance(said, dict) or said.keys() != set(cls._fields):
            raise ValueError("not a place")
        return cls(*(tuple(map(str, said[name])) for name in cls._fields))


@dataclass
class InForce:
    """Digests by project and by job, the baseline's ("": none), leases by id, what the kill switch stops.

    `place` is None while no record says it. `unknown` are leases whose record does not hold them. `since`
    is the record by which a document came into force.
    """

    projects: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    baseline: str = ""
    leases: dict[str, Lease] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    killed: set[str] = field(default_factory=set)
    place: Place | None = None
    since: dict[str, int] = field(default_factory=dict)

    def judges(self, project: str, job: str) -> set[str]:
        """Digests of the documents that may judge the job: one it brought along, and the project's."""
        return {self.jobs.get(job, ""), self.projects.get(project, "")} - {""}

    def apply(self, seq: int, record: Record) -> None:
        """One more record of those that `changes` gives."""
        if record.kind is Kind.LEASE:
            self._lease(record)
        elif record.kind is Kind.JOB:
            if record.decision == "start" and record.policy_digest:
                self.jobs[record.job] = record.policy_digest.hex()
        elif record.decision == PLACE:
            self._place(record)
        elif record.decision in _BINDS and record.project:
            self._bind(seq, record.project, record.policy_digest.hex())
        elif record.decision == "kill.on":
            self.killed.add(record.project or EVERYONE)
        elif record.decision == "kill.off":
            self.killed.discard(record.project or EVERYONE)

    def _lease(self, record: Record) -> None:
        self.leases.pop(record.lease_id, None)
        self.unknown.discard(record.lease_id)
        try:
            lease = Lease.from_json(json.loads(record.data))
        except ValueError:
            self.unknown.add(record.lease_id)
        else:
            self.leases[lease.id] = lease

    def _place(self, record: Record) -> None:
        try:
            self.place = Place.parse(record.data)
        except ValueError:
            self.place = None
        if record.actor == "start":  # what the folder holds now follows, all of it
            self.projects.clear()
            self.baseline = ""

    def _bind(self, seq: int, project: str, digest: str) -> None:
        if project == BASELINE:
            self.baseline = digest
        elif digest:
            self.projects[project] = digest
        else:
            self.projects.pop(project, None)
        self.since[digest] = seq


class Story(NamedTuple):
    """A record of a ledger, and all changes of what was in force, before and after it."""

    seq: int
    record: Record
    changes: list[Change]

    def in_force(self, *, by_generation: bool) -> InForce:
        """What held for the snapshot that the record names, or (else) for all that stands before it.

        The two differ while a change is on its way: it is on the ledger, and a gateway does not know yet.
        """
        number, found = self.record.generation, InForce()
        for seq, record in self.changes:
            known = by_generation and number and record.generation
            if record.generation < number if known else seq < self.seq:
                found.apply(seq, record)
        return found


def story(directory: Path, seq: int) -> Story | None:
    """The story of record `seq`, or, if that follows a flow, of the flow's `open`. None: there is no such.

    Reads the whole ledger, looking into few records. Raises ReaderError, RecordError, OSError.
    """
    wanted, changes = None, list[Change]()
    for number, data in read(directory):
        if number == seq:
            wanted = records.decode(data)
        elif _is_change(data):
            changes.append((number, records.decode(data)))
    if wanted is not None and wanted.kind in _FOLLOWING:
        seq, wanted = _opening(read(directory), wanted.flow) or (seq, wanted)
    return None if wanted is None else Story(seq, wanted, changes)


def _is_change(data: bytes) -> bool:
    """Whether a stored record is of a kind in `_CHANGES`: an array's head, the schema, the kind."""
    at = 2 if data[0] < 0x98 else 3  # RFC 8949 section 3.1: up to 23 items are counted in the first byte
    return data[at] in _CHANGES


def _opening(entries: Iterable[tuple[int, bytes]], flow: bytes) -> Change | None:
    for number, data in entries:
        if flow in data and (found := records.decode(data)).kind is Kind.OPEN and found.flow == flow:
            return number, found
    return None


def snapshot_parts(found: InForce) -> dict[str, Any]:
    """What `Snapshot.message` takes of it, documents aside."""
    place = found.place or Place((), (), ())
    return {"leases": found.leases.values(), "killed": found.killed, **place._asdict()}
