"""Control's own records: leases, policies and jobs."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from exeat.appliance.errors import RefusedError
from exeat.ledger.client import LedgerError, append_blocking, stamps
from exeat.ledger.in_force import PLACE, Place, lease_data
from exeat.ledger.records import Kind, Record, encode, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exeat.appliance.control.jobs import Job
    from exeat.appliance.control.store import Store
    from exeat.policy.leases import Lease

PATIENCE_S = 2.0  # a revocation may be waiting behind this write


class Evidence:
    """Makes records, and writes them to the ledger at `path`. What is owed is kept in `store`."""

    def __init__(self, path: Path, node: str, store: Store) -> None:
        self._path = path
        self._node = node
        self._store = store
        self.generation = 0  # of the snapshot that holds: what a record says holds in later ones
        self.written: Callable[[Sequence[bytes]], None] = lambda _records: None  # hears of what is durable
        self._owed = store.load_owed()
        self._paying = asyncio.Lock()

    def lease(self, lease: Lease, actor: str, detail: str) -> bytes:
        """The record of one change of state of a lease, made before the gateway hears of it."""
        said = self._record(Kind.LEASE, lease.project, actor, str(lease.state), detail)
        agents = ",".join(sorted(lease.agents))
        return encode(replace(said, agent=agents, lease_id=lease.id, data=lease_data(lease)))

    def place(self, place: Place, *, starts: bool = False) -> bytes:
        """The record of what the node knows of itself. `starts`: records of all policies in force follow."""
        said = self._record(Kind.POLICY, "", "start" if starts else "", PLACE, "own addresses and doors")
        return encode(replace(said, data=place.data()))

    def policy(self, *, project: str, digest: str, actor: str, verdict: str, detail: str) -> bytes:
        """The record of a policy that is put in force: `verdict` is first, narrows, widens, shadow; or
        of the kill switch (kill.on, kill.off), without a digest.
        """
        said = self._record(Kind.POLICY, project, actor, verdict, detail)
        return encode(replace(said, policy_digest=bytes.fromhex(digest)))

    def anomaly(self, *, project: str, agent: str, what: str, detail: str, count: int) -> bytes:
        """The record of something that should not be: `what` is repaired, failed, attempts or damaged."""
        said = self._record(Kind.ANOMALY, project, "", what, detail)
        return encode(replace(said, agent=agent, count=count))

    def attest(self, *, what: str, digest: str, data: bytes, detail: str, job: Job | None = None) -> bytes:
        """The record of what enforces (control/attest.py): on the node, or in the jail of `job`."""
        said = replace(self._record(Kind.ATTEST, "", "", what, detail), policy_digest=bytes.fromhex(digest))
        if job is not None:
            said = replace(said, job=job.name, project=job.project, agent=job.agent)
        return encode(replace(said, data=data))

    def drift(self, flow: Record | None, detail: str, count: int) -> bytes:
        """The record of a flow whose bytes are not those of the kernel; None stands for `count` of them."""
        said = replace(self._record(Kind.RECONCILE, "", "", "drift", detail), count=count)
        if flow is not None:
            said = replace(
                said,
                flow=flow.flow,
                project=flow.project,
                job=flow.job,
                agent=flow.agent,
                dest=flow.dest,
                bytes_out=flow.bytes_out,
                bytes_in=flow.bytes_in,
                kernel_out=flow.kernel_out,
                kernel_in=flow.kernel_in,
            )
        return encode(said)

    def job(
        self,
        *,
        job: str,
        project: str,
        agent: str,
        digest: str,
        what: str,
        reason: str,
        detail: str,
        code: int,
        ran_ms: int,
        actor: str = "",
        lease: str = "",
    ) -> bytes:
        """The record of a job: `what` is start, pause, resume, exit, device.open, device.close, or what
        `actor` did with its edit (control/edits.py); `reason` is how it ended.
        """
        said = self._record(Kind.JOB, project, actor, what, detail)
        return encode(
            replace(
                said,
                job=job,
                agent=agent,
                policy_digest=bytes.fromhex(digest),
                reason_code=reason,
                count=code,
                duration_ms=ran_ms,
                lease_id=lease,
            )
        )

    def _record(self, kind: Kind, project: str, actor: str, decision: str, detail: str) -> Record:
        real, boot = stamps()
        return Record(
            kind=kind,
            t_real_ns=real,
            t_boot_ns=boot,
            project=project,
            decision=decision,
            actor=printable(actor, 128),
            node=self._node,
            generation=self.generation if kind in (Kind.LEASE, Kind.POLICY) else 0,
            detail=printable(detail),
        )

    async def owe(self, record: bytes, *, instead_of_job: str = "", task: str = "", end: str = "") -> None:
        """Write it now if that can be; else it stays owed, in order, until `pay` succeeds.

        Kept first, so that it outlives this process; one that dies between the two may write it twice.
        With `instead_of_job` that job's row goes as the record is kept, and the `task` it was of is told of
        its `end`: all or nothing.
        """
        self._owed.append((self._kept(record, instead_of_job, task, end), record))
        await self.pay()

    def _kept(self, record: bytes, job: str, task: str, end: str) -> int:
        """Its number in the database, 0 where that cannot be written: then it is owed from memory only."""
        try:
            return self._store.save_owed(record, instead_of_job=job, task=task, end=end)
        except sqlite3.Error as error:
            print(f"control: what the ledger is owed cannot be kept: {error}", file=sys.stderr, flush=True)
            return 0

    async def pay(self) -> None:
        """Write what is owed, oldest first."""
        async with self._paying:
            while self._owed:
                number, record = self._owed[0]
                try:
                    await self.write(record)
                except RefusedError:
                    return
                del self._owed[0]
                with suppress(sqlite3.Error):  # then it is written once more by the next process
                    self._store.delete_owed(number)

    async def write(self, *records: bytes) -> None:
        """Durable when this returns; raises RefusedError(`ledger.unavailable`)."""
        try:
            await asyncio.to_thread(append_blocking, self._path, list(records), timeout=PATIENCE_S)
        except (LedgerError, OSError) as error:
            raise RefusedError("ledger.unavailable", f"the ledger cannot record: {error}") from None
        self.written(records)
