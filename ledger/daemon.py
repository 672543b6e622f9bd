"""The ledger process: the one writer of the evidence, on one thread.

Requests that have arrived when the loop comes round form one group: one write, one fdatasync, then
all replies. A reply of status 0 is sent after the records are durable and never before.

When the disk fails or is full the store latches: everything is refused with status 1, and once a
second the ledger is opened again from the disk. When that succeeds (and a `gap` record could be
made durable) every client connection is dropped, so that clients reconnect, reclaim their flows
with `resume` and send again what they have no answer for.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exeat.ledger import keys, records, wire
from exeat.ledger import reactor as loop
from exeat.ledger.counted import Counted
from exeat.ledger.doors import Doors
from exeat.ledger.flows import NOBODY, TRACKED, FlowError, FlowTable, OpenFlow, State, step
from exeat.ledger.note import NoteError
from exeat.ledger.publish import Publishing
from exeat.ledger.reader import ledger_of, origin_of
from exeat.ledger.records import Kind, Record, RecordError
from exeat.ledger.retention import EVERYTHING, Dropping, Rules
from exeat.ledger.store import SEGMENT_BYTES, Store, StoreError
from exeat.ledger.supervised import beat
from exeat.ledger.upkeep import Upkeep
from exeat.ledger.wire import REPLY, Status, WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exeat.ledger.doors import Client

_BATCH_BYTES: Final = 4 * 1024 * 1024  # a group larger than this is written before more is read
_REOPEN_S: Final = 1.0
_HEAD_SYNC_S: Final = 1.0
# So many records without a checkpoint at most; else one a second. Each costs two commits of the file
# system's journal, and those hold up the records that come in the same milliseconds.
_CHECKPOINT_RECORDS: Final = 65_536
_EXIT_OK, _EXIT_UNUSABLE, _EXIT_UNREACHABLE = 0, 2, 3


@dataclass(frozen=True)
class LedgerSettings:
    """What the process needs to know.

    `writers` maps uids to a role of `ledger.doors.ROLES`; uid 0 may connect without one. The ledger lies in
    `state_dir`/ledger/<SHA-256 of the origin `exeat/<node>`>; it is created only if `create`.
    """

    state_dir: Path
    run_dir: Path
    node: str
    writers: Mapping[int, str]
    create: bool = True
    segment_bytes: int = SEGMENT_BYTES
    rules: Rules = EVERYTHING
    grace_s: float = 5.0  # how long open flows wait for their owner after a start

    @property
    def origin(self) -> str:
        return origin_of(self.node)

    @property
    def directory(self) -> Path:
        return ledger_of(self.state_dir, self.origin)

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "ledger" / "ledger.sock"


def serve(settings: LedgerSettings, ready: Callable[[], None]) -> int:
    """Run until SIGTERM. Returns the exit code: 0 clean, 2 a broken ledger, 3 nothing to write to."""
    reactor = loop.Reactor()
    try:
        daemon = Daemon(settings, reactor)
    except StoreError as error:
        print(f"exeat: ledger: {error}", file=sys.stderr)
        return _EXIT_UNREACHABLE if isinstance(error.__cause__, OSError) else _EXIT_UNUSABLE
    except OSError as error:
        print(f"exeat: ledger: {error}", file=sys.stderr)
        return _EXIT_UNREACHABLE
    reactor.stop_on_signals()
    beat(reactor)
    ready()
    reactor.run()
    daemon.close()
    reactor.close()
    return _EXIT_OK


@dataclass(slots=True)
class _Answer:
    client: Client
    number: int
    status: Status
    seq: int = 0


class Daemon:
    """The batch being collected, and the store under it; the clients are behind `ledger.doors`."""

    def __init__(self, settings: LedgerSettings, reactor: loop.Reactor) -> None:
        self._settings = settings
        self._reactor = reactor
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._answers: list[_Answer] = []
        self._commit_due = False
        self._short_of_room = False
        self._grace: loop.Timer | None = None
        self._table, self._store = self._open_store(create=settings.create)
        self._publishing = Publishing(settings.directory, settings.rules)
        dropping = Dropping(settings.directory, lambda: self._table.oldest(), lambda: self._store.size)
        self._upkeep = Upkeep(settings.directory, self._own, dropping)
        self._told = 0  # up to where the publisher knows
        self._counted = Counted(settings.socket_path.parent)
        try:
            self._begin()
            self._doors = Doors(reactor, settings.socket_path, settings.writers, self)
        except (OSError, StoreError):
            self._store.close()
            raise
        reactor.call_later(_HEAD_SYNC_S, self._tick)

    # --- the store

    def _open_store(self, *, create: bool) -> tuple[FlowTable, Store]:
        table, directory = FlowTable(), self._settings.directory
        size = self._settings.segment_bytes
        now = time.time_ns()
        if create and not any((directory / "seg").glob("*.seg")):
            origin = self._settings.origin
            return table, Store.create(directory, origin, now, observer=table, segment_bytes=size)
        return table, Store.open(directory, now, observer=table, segment_bytes=size)

    def _begin(self, gap: str = "") -> None:
        """Write what a start owes the ledger, and give open flows time to be reclaimed."""
        found = self._store.recovery
        if found.torn_bytes:
            gap += f"{'; ' if gap else ''}torn tail: {found.torn_bytes} bytes of an unfinished write dropped"
        detail = f"ledger started with {self._store.size} records, {len(self._table)} open flows"
        start = [self._own(Kind.BOOT, detail=detail, boot_id=_boot_id(), data=self._public_key())]
        if gap:
            start.append(self._own(Kind.GAP, detail=records.printable(gap), count=1))
        self._store.append([records.encode(record) for record in start], time.time_ns())
        if self._grace is not None:
            self._grace.cancel()
        self._grace = self._reactor.call_later(self._settings.grace_s, lambda: self._orphan(NOBODY))

    def _public_key(self) -> bytes:
        """Of the key that signs checkpoints: each start says which it is."""
        directory = self._settings.directory
        try:
            keys.ensure(directory, self._settings.origin)
            keys.settle(directory)
            return keys.verifier(directory).public
        except (NoteError, keys.KeyMissingError) as error:
            print(f"exeat: ledger: nothing will be signed: {error}", file=sys.stderr)
            return b""

    def _own(self, kind: Kind, **fields: object) -> Record:
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return Record(kind, time.time_ns(), boot, node=self._settings.node, actor="ledger", **fields)  # type: ignore[arg-type]

    def _reopen(self) -> None:
        reason = self._store.latched
        self._store.close()
        try:
            self._table, self._store = self._open_store(create=False)
            self._begin(f"nothing could be recorded: {reason}")
        except (OSError, StoreError):
            self._reactor.call_later(_REOPEN_S, self._reopen)
            return
        print("exeat: ledger writes again", file=sys.stderr)
        self._doors.drop_all()

    def _tick(self) -> None:
        self._reactor.call_later(_HEAD_SYNC_S, self._tick)
        was = self._store.latched
        self._prepare()
        with suppress(StoreError):  # it latches, like any other failure
            self._store.sync_head()
        if self._store.latched and not was:
            self._say_latched()
        self._run_errands()
        self._tell_publisher()
        self._counted.tell(self._store.size, self._store.latched)

    def _prepare(self) -> None:
        was, self._short_of_room = self._short_of_room, not self._store.prepare()
        if self._short_of_room and not was and not self._store.latched:
            left = self._store.room // 1024
            print(f"exeat: ledger: the disk is full; room is left for {left} KiB of records", file=sys.stderr)

    def _run_errands(self) -> None:
        if self._store.latched:
            return
        for record in self._upkeep.due():
            self._commit()  # what waits has its numbers already
            try:
                self._store.append([records.encode(record)], time.time_ns())
            except StoreError:
                self._say_latched()
                return

    def _tell_publisher(self) -> None:
        if self._store.size > self._told and not self._store.latched:
            self._told = self._store.size
            self._publishing.tell(self._told, self._store.root())

    def _say_latched(self) -> None:
        print(f"exeat: {self._store.latched}; nothing new is let through until it can", file=sys.stderr)
        self._reactor.call_later(_REOPEN_S, self._reopen)

    # --- requests

    def request(self, client: Client, number: int, datagram: bytes) -> None:
        """Into the batch; answered when that is durable, or when it cannot be."""
        answer = _Answer(client, number, Status.UNAVAILABLE)
        if not self._store.latched:
            try:
                answer.seq = self._admit(client, wire.request_records(datagram))
                answer.status = Status.DURABLE
            except (WireError, RecordError, FlowError):
                answer.status = Status.REFUSED
        self._answers.append(answer)
        if self._batch_bytes > _BATCH_BYTES:
            self._commit()
        else:
            self._schedule_commit()

    def gone(self, owner: int) -> None:
        """Settle what a client leaves open."""
        self._orphan(owner)

    def _admit(self, client: Client, encoded: list[bytes]) -> int:
        """Judge a request's records together; take all of them into the batch, or none (raises)."""
        staged: dict[bytes, State] = {}
        fresh: list[bytes] = []
        first: int | None = None
        seq = self._next_seq()
        for data in encoded:
            record = records.inspect(data)
            if record.kind not in client.kinds:
                raise RecordError("not a kind this client may write")
            repeats: int | None = None
            if record.kind in TRACKED:
                flow = record.flow
                before = staged[flow] if flow in staged else self._table.state(flow)
                staged[flow], repeats = step(before, record, seq, client.owner)
            if first is None:
                first = seq if repeats is None else repeats
            if repeats is None:
                fresh.append(data)
                seq += 1
        for flow, state in staged.items():
            self._table.put(flow, state)
        self._take(fresh)
        return first or 0

    def _next_seq(self) -> int:
        return self._store.size + len(self._batch)

    def _take(self, encoded: list[bytes]) -> None:
        self._batch.extend(encoded)
        self._batch_bytes += sum(map(len, encoded))

    def _orphan(self, owner: int) -> None:
        """Settle the open flows of `owner`: lower bound what was reported, upper what was reserved."""
        for flow, state in self._table.owned_by(owner):
            record = self._orphan_record(flow, state)
            settled, _ = step(state, record, self._next_seq(), owner)
            self._table.put(flow, settled)
            self._take([records.encode(record)])
        if self._batch:
            self._schedule_commit()

    def _orphan_record(self, flow: bytes, state: OpenFlow) -> Record:
        return self._own(
            Kind.ORPHAN,
            flow=flow,
            bytes_out=state.bytes_out,
            bytes_in=state.bytes_in,
            reserved=state.reserved,
            job=state.job,
            close_reason="client.gone" if state.owner != NOBODY else "restart",
        )

    # --- group commit

    def _schedule_commit(self) -> None:
        if not self._commit_due:
            self._commit_due = True
            self._reactor.call_soon(self._commit)

    def _commit(self) -> None:
        self._commit_due = False
        batch, answers = self._batch, self._answers
        self._batch, self._batch_bytes, self._answers = [], 0, []
        if batch:
            self._append(batch, answers)
        for answer in answers:
            self._doors.reply(answer.client, REPLY.pack(answer.number, answer.status, answer.seq))
        if batch and not self._short_of_room:  # else once a second is often enough to try
            self._prepare()
        # Not before the publisher's process was forked off: that is no time for a second thread.
        if batch and self._told and (spare := self._store.spare()) is not None:
            spare.begin()

    def _append(self, batch: list[bytes], answers: list[_Answer]) -> None:
        was, began = self._store.latched, time.perf_counter()
        try:
            self._store.append(batch, time.time_ns())
            self._counted.appended(time.perf_counter() - began)
            if self._store.size - self._told >= _CHECKPOINT_RECORDS:
                self._tell_publisher()
        except StoreError:
            for answer in answers:
                if answer.status is Status.DURABLE:
                    answer.status, answer.seq = Status.UNAVAILABLE, 0
            if not was:
                self._say_latched()

    def close(self) -> None:
        """Finish what is in hand. Open flows stay open: the next start gives them their grace."""
        self._commit()
        self._doors.close()
        size, root = self._store.size, self._store.root()
        self._store.close()
        self._publishing.close(size, root)


def _boot_id() -> bytes:
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return bytes.fromhex(text.replace("-", ""))
