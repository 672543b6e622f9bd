"""Laws of the encodings, the framing and the flow table, on generated input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from exeat.ledger import cbor, flows, records, segment, verify_offline, wire
from exeat.ledger.merkle import Frontier
from exeat.ledger.records import _LAYOUT, Dest, Kind, Record, RecordError

if TYPE_CHECKING:
    import pytest

U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: records.printable(text, 16))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=40)
    | st.text(st.characters(codec="utf-8"), max_size=40),
    lambda inner: st.lists(inner, max_size=30),
    max_leaves=30,
)
DESTS = st.builds(Dest, TEXT, st.integers(0, 65535), TEXT, st.sampled_from([b"", b"1234", bytes(16)]), TEXT)


def _field(default: object) -> st.SearchStrategy[Any]:
    return {int: U64, str: TEXT, bytes: st.binary(max_size=16)}.get(type(default), st.none() | DESTS)


RECORDS = st.builds(
    Record,
    kind=st.sampled_from(Kind),
    **{
        field.name: st.just(field.default) | _field(field.default)
        for field in _LAYOUT
        if field.name != "flow"
    },
    flow=st.binary(min_size=16, max_size=16),
)


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES)
def test_cbor_round_trip(value: Any) -> None:
    if _depth(value) <= cbor.MAX_DEPTH:
        assert cbor.decode(cbor.encode(value)) == value


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_cbor_accepts_only_what_it_would_write(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except cbor.CborError:
        return
    assert cbor.encode(value) == data


@given(RECORDS)
def test_record_round_trip(record: Record) -> None:
    data = records.encode(record)
    assert records.decode(data) == record
    assert records.inspect(data) == records.recall(data)
    assert all(value == getattr(record, name) for name, value in records.inspect(data)._asdict().items())
    assert len(data) <= records.MAX_RECORD


@given(RECORDS)
def test_the_independent_parser_agrees(record: Record) -> None:
    kind, parts = verify_offline.parse_record(records.encode(record))
    assert kind == record.kind.label
    for field, value in zip(_LAYOUT, parts, strict=True):
        mine = getattr(record, field.name)
        assert value == (list(mine) if isinstance(mine, Dest) else mine)


@given(RECORDS, st.data())
@settings(max_examples=200)
def test_decode_of_anything_gives_a_record_or_a_record_error(record: Record, data: st.DataObject) -> None:
    wire_bytes = bytearray(records.encode(record))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(wire_bytes) - 1))
        wire_bytes[at] = data.draw(st.integers(0, 255))
    damaged = bytes(wire_bytes[: data.draw(st.integers(0, len(wire_bytes)))])
    for candidate in (bytes(wire_bytes), damaged):
        try:
            found = records.decode(candidate)
        except RecordError:
            continue
        assert records.encode(found) == candidate
        verify_offline.parse_record(candidate)


@given(st.text(max_size=60), st.integers(0, 40))
def test_printable_always_fits(text: str, cap: int) -> None:
    safe = records.printable(text, cap)
    assert len(safe.encode()) <= cap
    assert records.printable(safe, cap) == safe
    assert records.decode(records.encode(Record(Kind.DENY, detail=safe))).detail == safe


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=8), st.data())
def test_a_scan_of_damaged_frames_gives_a_prefix(bodies: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(segment.frame(seq, b"R", body) for seq, body in enumerate(bodies))
    clean = list(segment.scan(whole + bytes(40)))
    assert [found.payload for found in clean] == bodies
    cut = data.draw(st.integers(0, len(whole)))
    assert list(segment.scan(whole[:cut])) == [found for found in clean if found.end <= cut]
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
        assert list(segment.scan(bytes(flipped))) == [found for found in clean if found.end <= at]


@given(st.lists(st.binary(max_size=8), max_size=40), st.integers(0, 40))
def test_a_frontier_can_be_put_down_and_taken_up(leaves: list[bytes], at: int) -> None:
    whole, part = Frontier(), Frontier()
    whole.extend(leaves)
    part.extend(leaves[:at])
    part = Frontier(part.size, part.peaks)
    part.extend(leaves[at:])
    assert (part.size, part.peaks, part.root()) == (whole.size, whole.peaks, whole.root())


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=10), st.integers(0, 2**32 - 1))
def test_requests_round_trip(batch: list[bytes], number: int) -> None:
    datagram = wire.pack_request(number, batch)
    assert wire.request_number(datagram) == number
    assert wire.request_records(datagram) == batch


@given(st.binary(max_size=60))
def test_any_datagram_is_a_request_or_refused(datagram: bytes) -> None:
    try:
        number, batch = wire.request_number(datagram), wire.request_records(datagram)
    except wire.WireError:
        return
    assert wire.pack_request(number, batch) == datagram


STEPS = st.lists(
    st.tuples(
        st.sampled_from([Kind.OPEN, Kind.RESERVE, Kind.PROGRESS, Kind.CLOSE, Kind.RESUME, Kind.ORPHAN]),
        st.integers(0, 3),  # flow
        st.integers(1, 2),  # owner
        st.integers(0, 100),
    ),
    max_size=60,
)


@given(STEPS)
def test_what_the_table_stores_adds_up(steps: list[tuple[Kind, int, int, int]]) -> None:
    """Whatever clients send, each flow is stored as one open, then at most one close; and a table
    carried over or replayed from the stored records answers the same."""
    table = flows.FlowTable()
    stored: list[bytes] = []
    for kind, number, owner, amount in steps:
        record = Record(kind, flow=bytes([number]) * 16, bytes_out=amount, reserved=amount)
        try:
            state, repeats = flows.step(table.state(record.flow), record, len(stored), owner)
        except flows.FlowError:
            continue
        table.put(record.flow, state)
        if repeats is None:
            stored.append(records.encode(record))
    order = [(found.flow, found.kind) for found in map(records.decode, stored)]
    for number in range(4):
        kinds = [kind for flow, kind in order if flow == bytes([number]) * 16]
        assert kinds[:1] in ([], [Kind.OPEN])
        assert kinds.count(Kind.OPEN) <= 1
        assert kinds.count(Kind.CLOSE) <= 1
        assert kinds.count(Kind.ORPHAN) <= 1
        if Kind.CLOSE in kinds:
            assert kinds[-1] is Kind.CLOSE
        found = [each for each in map(records.decode, stored) if each.flow == bytes([number]) * 16]
        counts = [each.bytes_out for each in found if each.kind is Kind.PROGRESS]
        assert counts == sorted(counts)
    replayed, carried = flows.FlowTable(), flows.FlowTable()
    for seq, data in enumerate(stored):
        replayed.replay(seq, data)
    carried.restore(table.carry())
    assert replayed.carry() == carried.carry() == table.carry()


def test_the_oldest_settled_flows_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "_REMEMBERED", 8)
    table = flows.FlowTable()
    names = [bytes([number]) * 16 for number in range(20)]
    for seq, flow in enumerate(names):
        table.put(flow, flows.SettledFlow(seq, seq + 1, orphaned=False))
    assert [flow for flow in names if table.state(flow) is not None] == names[-8:]
    carried = flows.FlowTable()
    carried.restore(table.carry())
    assert [flow for flow in names if carried.state(flow) is not None] == names[-8:]
