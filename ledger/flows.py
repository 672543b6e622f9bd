"""What the ledger knows of flows that are open: enough to settle them if nobody closes them.

Pure. One flow goes: nothing -> open -> settled (closed, or orphaned). `step` is the whole table of
transitions; it never changes anything, so a request is judged record by record and applied only if
all of it holds.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from exeat.ledger import cbor, records
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY: Final = 0  # the owner of a flow whose client has not come back yet
_REMEMBERED: Final = 65536  # settled flows kept so that a repeated close is known for what it is
_CARRIED: Final = 4096  # of them, into a new segment


class FlowRecord(Protocol):
    """What `step` looks at: a `Record`, or a `Brief` of one."""

    @property
    def kind(self) -> Kind: ...
    @property
    def flow(self) -> bytes: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def reserved(self) -> int: ...
    @property
    def job(self) -> str: ...


class FlowError(Exception):
    """The record does not fit what its flow did before."""


class OpenFlow(NamedTuple):
    """`open_seq` is the number of its `open` record; `owner` the connection that answers for it."""

    open_seq: int
    bytes_out: int
    bytes_in: int
    reserved: int
    job: str
    owner: int


class SettledFlow(NamedTuple):
    """`last_seq` is the number of the `close` or `orphan` record."""

    open_seq: int
    last_seq: int
    orphaned: bool


State: TypeAlias = OpenFlow | SettledFlow | None
TRACKED: Final = frozenset({Kind.OPEN, Kind.RESERVE, Kind.PROGRESS, Kind.CLOSE, Kind.ORPHAN, Kind.RESUME})


def step(state: State, record: FlowRecord, seq: int, owner: int) -> tuple[State, int | None]:
    """The flow's next state, and the number of the record this one repeats (then it is not stored).

    `seq` is the number the record would get. Raises FlowError.
    """
    if isinstance(state, OpenFlow):
        return _step_open(state, record, seq, owner)
    if isinstance(state, SettledFlow):
        return _step_settled(state, record, seq)
    if record.kind is not Kind.OPEN:
        raise FlowError(f"{record.kind.label} of a flow that was never opened")
    return OpenFlow(seq, record.bytes_out, record.bytes_in, record.reserved, record.job, owner), None


def _step_open(state: OpenFlow, record: FlowRecord, seq: int, owner: int) -> tuple[State, int | None]:
    if record.kind is Kind.ORPHAN:  # written by the ledger alone, whoever owned the flow
        return SettledFlow(state.open_seq, seq, orphaned=True), None
    if state.owner not in (NOBODY, owner):
        raise FlowError(f"{record.kind.label} of a flow that another connection owns")
    if record.kind is Kind.OPEN:
        return state._replace(owner=owner), state.open_seq
    if record.kind is Kind.CLOSE:
        return SettledFlow(state.open_seq, seq, orphaned=False), None
    if record.kind is Kind.PROGRESS and record.bytes_out + record.bytes_in < state.bytes_out + state.bytes_in:
        return state, state.open_seq  # sent again after a later one: it says nothing that is not known
    grown = OpenFlow(
        state.open_seq,
        max(state.bytes_out, record.bytes_out),
        max(state.bytes_in, record.bytes_in),
        max(state.reserved, record.reserved),
        state.job,
        owner,
    )
    return grown, None


def _step_settled(state: SettledFlow, record: FlowRecord, seq: int) -> tuple[State, int | None]:
    if record.kind is Kind.OPEN:
        return state, state.open_seq
    if record.kind is Kind.CLOSE and state.orphaned:  # exact counts are better evidence than bounds
        return SettledFlow(state.open_seq, seq, orphaned=False), None
    if record.kind is Kind.CLOSE or (record.kind is Kind.PROGRESS and not state.orphaned):
        return state, state.last_seq
    raise FlowError(f"{record.kind.label} of a flow that is settled")


class FlowTable:
    """All open flows and the recently settled ones; the store's `Observer`."""

    def __init__(self) -> None:
        self._open: dict[bytes, OpenFlow] = {}
        # Oldest first. Not a dict: finding the first key of one walks over all that were removed before it.
        self._settled: OrderedDict[bytes, SettledFlow] = OrderedDict()

    def state(self, flow: bytes) -> State:
        return self._open.get(flow) or self._settled.get(flow)

    def put(self, flow: bytes, state: State) -> None:
        if isinstance(state, OpenFlow):
            self._open[flow] = state
        elif state is not None:
            self._open.pop(flow, None)
            self._settled[flow] = state
            if len(self._settled) > _REMEMBERED:
                self._settled.popitem(last=False)

    def owned_by(self, owner: int) -> list[tuple[bytes, OpenFlow]]:
        return [(flow, state) for flow, state in self._open.items() if state.owner == owner]

    def oldest(self) -> int | None:
        """The number of the oldest `open` record of a flow that is open."""
        return min((state.open_seq for state in self._open.values()), default=None)

    def unfinished(self) -> list[tuple[bytes, OpenFlow | SettledFlow]]:
        """The flows that may still have something to say: open, or orphaned and perhaps closed late."""
        late = ((flow, state) for flow, state in self._settled.items() if state.orphaned)
        return [*self._open.items(), *late]

    def __len__(self) -> int:
        return len(self._open)

    def carry(self) -> bytes:
        """The table as bytes, for the head of a new segment (owners are not part of it)."""
        settled = islice(reversed(self._settled.items()), _CARRIED)
        return cbor.encode(
            [
                [[flow, *state[:-1]] for flow, state in self._open.items()],
                [[flow, *state] for flow, state in settled][::-1],
            ]
        )

    def restore(self, carry: bytes) -> None:
        """The reverse of `carry`; nothing carried is an empty table."""
        if not carry:
            return
        for flow, state in _carried(carry):
            self.put(flow, state)

    def replay(self, seq: int, record: bytes) -> None:
        """Follow a record that is in the ledger already."""
        found = records.recall(record)
        if found.kind in TRACKED:
            # It fitted when it was written; what does not fit now was settled before the carry's memory.
            with suppress(FlowError):
                state, _ = step(self.state(found.flow), found, seq, NOBODY)
                self.put(found.flow, state)


def _carried(carry: bytes) -> Iterator[tuple[bytes, OpenFlow | SettledFlow]]:
    tables = cbor.decode(carry)
    match tables:
        case [list() as opened, list() as settled]:
            pass
        case _:
            raise cbor.CborError("carry is not two tables")
    for row in opened:
        match row:
            case [bytes() as flow, int() as seq, int() as out, int() as into, int() as top, str() as job]:
                yield flow, OpenFlow(seq, out, into, top, job, NOBODY)
            case _:
                raise cbor.CborError("carry: not an open flow")
    for row in settled:
        match row:
            case [bytes() as flow, int() as seq, int() as last, bool() as orphaned]:
                yield flow, SettledFlow(seq, last, orphaned)
            case _:
                raise cbor.CborError("carry: not a settled flow")
