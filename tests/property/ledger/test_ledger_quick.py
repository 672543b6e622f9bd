"""The fast encoding and judging of records against the slow ones: the same, or left to them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exeat.ledger import cbor, grammar, records, verify_offline
from exeat.ledger.quick import Outline
from exeat.ledger.records import _LAYOUT, Dest, Kind, Record, RecordError

WORDS = st.sampled_from(["", "a", "job-1", "x" * 16, "x" * 17, "y" * 24, "z" * 64, "z" * 65, "n" * 128, "`"])
TEXTS = WORDS | st.sampled_from(["é", "a\n", "\u202e", "e" * 255, "e" * 256, "f" * 1024])
EDGES = st.sampled_from([0, 1, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1, 2**64, -1, True])
BLOBS = st.sampled_from([b"", b"\x00" * 4, b"\x11" * 16, b"\x22" * 32, b"\x33" * 33, b"\x44" * 300])
IPS = st.sampled_from([b"", b"\x01" * 4, b"\x02" * 16, b"\x03" * 5])
PORTS = st.sampled_from([0, 1, True, 443, 65535, 65536, -1])
DESTS = st.none() | st.builds(Dest, TEXTS, PORTS, WORDS, IPS, TEXTS) | st.builds(Dest, WORDS, st.just(443))
TIMES = st.integers(2**32 - 1, 2**32) | st.integers(1_700_000_000_000_000_000, 1_800_000_000_000_000_000)


VALUES = sorted(
    {*range(0, 256, 23), 1, 0x17, 0x18, 0x19, 0x1A, 0x1B, 0x40, 0x5F, 0x60, 0x78, 0x7F, 0x80, 0x98, 0xF6}
)


def _field(name: str, default: object) -> st.SearchStrategy[Any]:
    if name in ("t_real_ns", "t_boot_ns"):
        return TIMES
    if name == "flow":
        return st.sampled_from([b"", b"F" * 16, b"f" * 15])
    usual = {int: EDGES, str: TEXTS, bytes: BLOBS}.get(type(default), DESTS)
    fitting = {int: st.integers(0, 2**40), str: st.just("job-1"), bytes: st.just(b"1" * 16)}
    return st.just(default) | fitting.get(type(default), DESTS) | usual


# Any mixture; and records of which all but a few fields are fit, as nearly all are.
RECORDS = st.builds(
    Record, kind=st.sampled_from(Kind), **{field.name: _field(field.name, field.default) for field in _LAYOUT}
)
FIT: dict[str, Any] = {
    "t_real_ns": 1_790_000_000_000_000_000,
    "t_boot_ns": 5_000_000_000,
    "flow": b"F" * 16,
    "bytes_out": 1500,
    "reserved": 65536,
    "job": "job-1",
    "dest": Dest("files.example.org", 443, "tcp", b"\x01" * 4, "files.example.org"),
    "policy_digest": b"\x22" * 32,
}
NEARLY = st.builds(
    lambda kind, changes: Record(kind, **{**FIT, **changes}),
    st.sampled_from(Kind),
    st.lists(
        st.sampled_from(_LAYOUT).flatmap(
            lambda field: st.tuples(st.just(field.name), _field(field.name, field.default))
        ),
        max_size=6,
    ).map(dict),
)


def slow_encode(record: Record) -> bytes | None:
    values = list(records._values(record))
    while values and values[-1] == _LAYOUT[len(values) - 1].default:
        values.pop()
    try:
        records._check(record.kind, values)
        return cbor.encode([records.SCHEMA, int(record.kind), *values])
    except (RecordError, cbor.CborError):
        return None


def slow_inspect(data: bytes) -> records.Brief | None:
    try:
        return records._brief(*records._parse(data))
    except RecordError:
        return None


def quick_or_not(call: Any, argument: Any) -> Any:
    try:
        return call(argument)
    except RecordError:
        return None


@given(st.lists(RECORDS | NEARLY, min_size=1, max_size=4))
@settings(max_examples=300)
def test_encode_gives_the_same_bytes(some: list[Record]) -> None:
    for record in some:
        data = slow_encode(record)
        assert quick_or_not(records.encode, record) == data
        if data is not None:
            assert records.inspect(data) == slow_inspect(data)


def composed(record: Record) -> bytes | None:
    fields = records._values(record)
    heading = records.heading(fields[6:21])
    return None if heading is None else records.compose(record.kind, fields[:6], heading, fields[21:])


@given(NEARLY | RECORDS)
@settings(max_examples=400)
def test_a_record_put_together_from_parts_is_the_same(record: Record) -> None:
    quick = composed(record)
    assert quick is None or quick == slow_encode(record)


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.CLOSE, Kind.RESUME])
def test_the_usual_record_is_put_together(kind: Kind) -> None:
    record = Record(kind, **FIT, corr_id="r-1", cookie=70000)
    assert composed(record) == slow_encode(record) is not None


@given(NEARLY, st.data())
@settings(max_examples=300)
def test_inspect_judges_damage_the_same(record: Record, data: st.DataObject) -> None:
    clean = slow_encode(record)
    if clean is None:
        return
    records.inspect(clean)  # now it is remembered
    changed = bytearray(clean)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.sampled_from([0, 0x18, 0x40, 0x60, 0x78, 0x80, 0xF6, 0xFF, 0x1B, 0x0A]))
    cut = data.draw(st.integers(0, len(changed)) | st.just(len(changed)))
    tail = data.draw(st.sampled_from([b"", b"\x00", b"\x60"]))
    damaged = bytes(changed[:cut]) + tail
    assert quick_or_not(records.inspect, damaged) == slow_inspect(damaged)


def verifiers(data: bytes) -> tuple[Any, Any]:
    """What the verifier's grammar and its parser say; None for refused."""
    answers: list[Any] = []
    for call in (grammar.brief, verify_offline.parse_record):
        try:
            answers.append(call(data))
        except ValueError:
            answers.append(None)
    if answers[1] is not None:
        kind, fields = answers[1]
        answers[1] = (kind, tuple(fields[2:6]))
    return answers[0], answers[1]


@given(NEARLY, st.data())
@settings(max_examples=300)
def test_the_verifiers_grammar_is_its_parser(record: Record, data: st.DataObject) -> None:
    clean = slow_encode(record)
    if clean is None:
        return
    changed = bytearray(clean)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.sampled_from([0, 0x18, 0x40, 0x60, 0x78, 0x80, 0xF6, 0xFF, 0x1B, 0x0A]))
    for candidate in (clean, bytes(changed)):
        quick, slow = verifiers(candidate)
        assert quick == slow


def test_the_verifiers_grammar_with_every_byte_changed() -> None:
    clean = records.encode(Record(Kind.CLOSE, **FIT, close_reason="eof", kernel_out=70000))
    assert grammar._grammar(clean[1]).fullmatch(clean)
    for at in range(len(clean)):
        for value in VALUES:
            quick, slow = verifiers(clean[:at] + bytes([value]) + clean[at + 1 :])
            assert quick == slow, (at, value)


@given(st.binary(max_size=80))
@example(b"")
def test_inspect_of_anything(data: bytes) -> None:
    assert quick_or_not(records.inspect, data) == slow_inspect(data)


def test_every_byte_changed_every_way() -> None:
    """Of one usual record: each byte set to every value that means something to a reader, and others."""
    clean = records.encode(Record(Kind.CLOSE, **FIT, close_reason="eof", kernel_out=70000))
    assert records._quick.inspect(clean) is not None
    for at in range(len(clean)):
        for value in VALUES:
            damaged = clean[:at] + bytes([value]) + clean[at + 1 :]
            assert quick_or_not(records.inspect, damaged) == slow_inspect(damaged), (at, value)


WHO = [field.name for field in _LAYOUT[6:21] if field.name != "src"]


@given(NEARLY, NEARLY)
@settings(max_examples=300)
def test_an_outline_is_of_its_record(one: Record, other: Record) -> None:
    """`who` is the same for two records exactly if they agree in all that it stands for."""
    outlines = list[Outline]()
    for record in (one, other):
        data = slow_encode(record)
        found = records.outline(data) if data is not None else None
        if found is None:
            return
        assert found[:6] == (
            record.kind,
            record.t_real_ns,
            record.flow,
            record.bytes_out,
            record.bytes_in,
            record.reserved,
        )
        assert (found.times, found.cost_nano_usd) == (record.count, record.cost_nano_usd)
        outlines.append(found)
    same = all(getattr(one, name) == getattr(other, name) for name in WHO)
    assert (outlines[0].who == outlines[1].who) is same


@pytest.mark.parametrize("last", [{"src": "127.0.0.1:40001"}, {"episode": "e"}, {"node": "n1"}, {"count": 2}])
def test_an_outline_of_records_of_any_length(last: dict[str, Any]) -> None:
    """Where the trailing fields were left out, they are what they are where they were sent."""
    short = records.outline(records.encode(Record(Kind.DENY, **FIT, **last)))
    long = records.outline(records.encode(Record(Kind.DENY, **FIT, **last, cookie=1)))
    priced = records.outline(records.encode(Record(Kind.DENY, **FIT, **last, cost_nano_usd=9, tariff="t")))
    assert short is not None
    assert short == long
    assert priced == short._replace(cost_nano_usd=9)


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.RESERVE, Kind.CLOSE, Kind.DENY])
@pytest.mark.parametrize("more", [{"cookie": 99}, {"src": "127.0.0.1:40001"}, {"src": "s", "node": "n1"}])
def test_the_usual_is_quick(kind: Kind, more: dict[str, Any]) -> None:
    """Else all of the above would compare the slow way with itself."""
    record = Record(kind, **FIT, **more)
    data = records._quick.encode(kind, records._values(record))
    assert data == slow_encode(record)
    assert records._quick.inspect(data) is not None


def test_the_ports_of_clients_do_not_fill_the_memory() -> None:
    quick = records._quick
    quick._made.clear()
    quick._judged.clear()
    for port in range(100):
        records.inspect(records.encode(Record(Kind.OPEN, **FIT, src=f"127.0.0.1:{port}", node="n1")))
    assert len(quick._made) == len(quick._judged) == 1
