"""Control's own records: leases and policies, durable before they take effect."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from exeat.appliance.errors import RefusedError
from exeat.ledger.client import LedgerError, append_blocking, stamps
from exeat.ledger.records import Kind, Record, encode, printable

if TYPE_CHECKING:
    from pathlib import Path


class Evidence:
    """Writes to the ledger at `path`; raises RefusedError(`ledger.unavailable`)."""

    def __init__(self, path: Path, node: str) -> None:
        self._path = path
        self._node = node

    async def lease(
        self, *, lease: str, project: str, agent: str, actor: str, state: str, detail: str
    ) -> None:
        """One change of state of a lease, durable when this returns."""
        real, boot = stamps()
        record = Record(
            kind=Kind.LEASE,
            t_real_ns=real,
            t_boot_ns=boot,
            project=project,
            agent=agent,
            lease_id=lease,
            decision=state,
            actor=printable(actor, 128),
            node=self._node,
            detail=printable(detail),
        )
        await self._append([encode(record)])

    async def _append(self, records: list[bytes]) -> None:
        try:
            await asyncio.to_thread(append_blocking, self._path, records)
        except (LedgerError, OSError) as error:
            raise RefusedError("ledger.unavailable", f"the ledger cannot record: {error}") from None
