"""Double entry: what the ledger says passed against what the kernel's sockets counted, flow by flow.

The kernel's counts stand in the `close` records (TCP_INFO of both sockets, read at the end; payload
bytes). They must agree exactly. Pure: records in, findings out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import records
from exeat.ledger.records import Kind, Record
from exeat.policy.tariff import HEADER_4, HEADER_6

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

REWRITTEN: Final = ("http", "host")  # name_source of requests whose head the proxy writes anew


_IN_JAIL: Final = "jail:"  # in `src`, before the jail's name


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


def _jail(record: Record) -> str:
    """The jail whose door the client came in by; "" for one outside all jails."""
    door = record.src.partition(" ")[0]
    return door.removeprefix(_IN_JAIL) if door.startswith(_IN_JAIL) else ""


KEYS: Final[dict[str, Callable[[Record], str]]] = {
    "jail": _jail,
    "lease": lambda record: record.lease_id,
    "project": lambda record: record.project,
    "agent": lambda record: record.agent,
    "job": lambda record: record.job,
    "host": lambda record: record.dest.host if record.dest is not None else "",
}


@dataclass(slots=True)
class Reconciliation:
    """`total`, the same per key (of `KEYS`) and value, and every flow that drifts, in the ledger's order."""

    total: Account = field(default_factory=Account)
    groups: dict[str, dict[str, Account]] = field(default_factory=dict)
    drifts: list[Drift] = field(default_factory=list)

    def accounts(self, record: Record) -> list[Account]:
        """All that a flow with this record belongs to."""
        return [
            self.total,
            *(group.setdefault(KEYS[key](record), Account()) for key, group in self.groups.items()),
        ]


def reconcile(
    entries: Iterable[tuple[int, bytes]],
    job: str = "",
    by: Sequence[str] = ("jail", "lease"),
    each: Callable[[int, Record], None] | None = None,
) -> Reconciliation:
    """Compare the books of all flows (of `job`, if given), sum them up `by` keys of `KEYS`.

    `each` gets their `close` records. Raises RecordError.
    """
    result = Reconciliation(groups={key: {} for key in by})
    unsettled: dict[bytes, tuple[bytes, bool]] = {}  # its open, is it orphaned
    for seq, data in entries:
        brief = records.recall(data)
        if brief.kind is Kind.OPEN:
            unsettled[brief.flow] = (data, False)
        elif brief.kind is Kind.ORPHAN:
            unsettled[brief.flow] = (unsettled.get(brief.flow, (data, False))[0], True)
        elif brief.kind is Kind.CLOSE:
            unsettled.pop(brief.flow, None)
            if not job or brief.job == job:
                record = records.decode(data)
                _close(result, seq, record)
                if each is not None:
                    each(seq, record)
    for opening, orphaned in unsettled.values():
        record = records.decode(opening)
        if not job or record.job == job:
            for account in result.accounts(record):
                account.orphaned += orphaned
                account.open += not orphaned
    return result


def header_bytes(record: Record) -> int:
    """On the wire and no payload: segments times the size of their headers."""
    header = HEADER_6 if record.dest is not None and len(record.dest.ip) == 16 else HEADER_4
    return header * (record.segs_out + record.segs_in)


def _close(result: Reconciliation, seq: int, record: Record) -> None:
    found = differences(record)
    for account in result.accounts(record):
        account.flows += 1
        account.bytes_out += record.bytes_out
        account.bytes_in += record.bytes_in
        account.kernel_out += record.kernel_out
        account.kernel_in += record.kernel_in
        account.headers += header_bytes(record)
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
