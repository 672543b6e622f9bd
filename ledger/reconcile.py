"""Double entry: what the ledger says passed against what the kernel's sockets counted, flow by flow.

The kernel's counts stand in the `close` records (TCP_INFO of both sockets, read at the end; payload
bytes). They must agree exactly. Pure: records in, findings out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import records
from exeat.ledger.records import Kind
from exeat.policy.tariff import HEADER_4, HEADER_6

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exeat.ledger.records import Record

REWRITTEN: Final = ("http", "host")  # name_source of requests whose head the proxy writes anew


class Drift(NamedTuple):
    """A flow whose books differ. `differences` is ledger minus kernel in bytes, per pair of books."""

    seq: int
    flow: bytes
    job: str
    host: str
    differences: dict[str, int]


@dataclass(slots=True)
class Account:
    """Totals over flows that were closed with exact counts, and what cannot be compared."""

    flows: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    kernel_out: int = 0
    kernel_in: int = 0
    headers: int = 0  # bytes on the wire that are no payload: segments times header size
    retransmitted: int = 0  # segments or bytes sent again, as the kernel counts them
    drifting: int = 0
    uncounted: int = 0  # flows without counts of the kernel
    orphaned: int = 0  # flows with bounds only
    open: int = 0


@dataclass(slots=True)
class Reconciliation:
    """`total`, the same per job, and every flow that drifts, in the order of the ledger."""

    total: Account = field(default_factory=Account)
    jobs: dict[str, Account] = field(default_factory=dict)
    drifts: list[Drift] = field(default_factory=list)


def reconcile(entries: Iterable[tuple[int, bytes]], job: str = "") -> Reconciliation:
    """Compare the books of all flows (of `job`, if given). Raises RecordError."""
    result = Reconciliation()
    unsettled: dict[bytes, tuple[str, bool]] = {}  # job, is it orphaned
    for seq, data in entries:
        brief = records.recall(data)
        if brief.kind is Kind.OPEN:
            unsettled[brief.flow] = (brief.job, False)
        elif brief.kind is Kind.ORPHAN:
            opened = unsettled.get(brief.flow, (brief.job, False))
            unsettled[brief.flow] = (opened[0], True)
        elif brief.kind is Kind.CLOSE:
            unsettled.pop(brief.flow, None)
            if not job or brief.job == job:
                _close(result, seq, records.decode(data))
    for name, orphaned in unsettled.values():
        if not job or name == job:
            for account in _accounts(result, name):
                account.orphaned += orphaned
                account.open += not orphaned
    return result


def _accounts(result: Reconciliation, job: str) -> tuple[Account, Account]:
    return result.total, result.jobs.setdefault(job, Account())


def _close(result: Reconciliation, seq: int, record: Record) -> None:
    found = differences(record)
    header = HEADER_6 if record.dest is not None and len(record.dest.ip) == 16 else HEADER_4
    for account in _accounts(result, record.job):
        account.flows += 1
        account.bytes_out += record.bytes_out
        account.bytes_in += record.bytes_in
        account.kernel_out += record.kernel_out
        account.kernel_in += record.kernel_in
        account.headers += header * (record.segs_out + record.segs_in)
        account.retransmitted += record.retrans
        account.uncounted += found is None
        account.drifting += bool(found)
    if found:
        host = record.dest.host if record.dest is not None else ""
        result.drifts.append(Drift(seq, record.flow, record.job, host, found))


def differences(record: Record) -> dict[str, int] | None:
    """Where the books of a `close` differ, in bytes; None if the kernel was not asked.

    A flow that never had a connection upstream has no segments and may have no bytes; a client on a
    Unix socket has no counts. A request whose head was rewritten differs on the client's side by
    nature, and is compared on the network's side only.
    """
    if not record.segs_out and not record.segs_in and not (record.kernel_out or record.kernel_in):
        return None if record.bytes_out or record.bytes_in else {}
    pairs = {
        "upstream out": record.bytes_out - record.kernel_out,
        "upstream in": record.bytes_in - record.kernel_in,
    }
    if record.client_kernel_out or record.client_kernel_in:
        pairs["client in"] = record.bytes_in - record.client_kernel_in
        if record.name_source not in REWRITTEN:
            pairs["client out"] = record.bytes_out - record.client_kernel_out
    return {name: difference for name, difference in pairs.items() if difference}
