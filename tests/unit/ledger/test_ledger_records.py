"""The record's bytes are final: golden encodings, bounds, and what a decoder must refuse."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from exeat.ledger import cbor
from exeat.ledger.records import Dest, Kind, Record, RecordError, decode, encode, printable

FLOW = bytes(range(16))
OPEN = Record(
    Kind.OPEN,
    t_real_ns=1790000000000000000,
    t_boot_ns=5000000000,
    flow=FLOW,
    reserved=65536,
    job="crawl-1",
    project="crawler",
    agent="a1",
    dest=Dest("files.example.org", 443, "tcp", b"\xcb\x00\x71\x05", "files.example.org"),
    decision="allow",
    reason_code="rule.allow",
    rule_id="allow-files",
    generation=3,
    policy_digest=bytes(32),
    posture="allowlist",
    name_source="connect",
    src="proxy4",
    node="n1",
)
GOLDEN_OPEN = (
    "97 01 01 1b18d75b8423f30000 1b000000012a05f200 50000102030405060708090a0b0c0d0e0f 00 00 1a00010000"
    " 67637261776c2d31 67637261776c6572 626131"
    " 85 7166696c65732e6578616d706c652e6f7267 1901bb 63746370 44cb007105 7166696c65732e6578616d706c652e6f7267"
    " 65616c6c6f77 6a72756c652e616c6c6f77 6b616c6c6f772d66696c6573 60 03"
    " 5820" + "00" * 32 + " 69616c6c6f776c697374 67636f6e6e656374 6670726f787934 60 626e31"
)


def test_the_bytes_of_an_open_record_never_change() -> None:
    assert encode(OPEN) == bytes.fromhex(GOLDEN_OPEN)
    assert decode(bytes.fromhex(GOLDEN_OPEN)) == OPEN


def test_the_smallest_record_is_four_bytes_less_its_times() -> None:
    assert encode(Record(Kind.BOOT)).hex() == "82010b"
    assert decode(bytes.fromhex("82010b")) == Record(Kind.BOOT)


def test_kind_numbers_never_change() -> None:
    names = "open reserve progress close deny dns lease policy reconcile gap boot key witness orphan resume"
    names += " anomaly job attest admin"
    assert [kind.label for kind in Kind] == names.split()
    assert [kind.value for kind in Kind] == list(range(1, 20))


def test_a_typical_flow_takes_about_a_hundred_bytes_a_record() -> None:
    reserve = Record(Kind.RESERVE, OPEN.t_real_ns, OPEN.t_boot_ns, FLOW, 70000, 90000, 262144)
    close = replace(reserve, kind=Kind.CLOSE, job="crawl-1", close_reason="eof", duration_ms=1234)
    close = replace(close, kernel_out=70000, kernel_in=90000, client_kernel_out=70000, client_kernel_in=90000)
    assert len(encode(OPEN)) <= 210
    assert len(encode(reserve)) <= 56
    assert len(encode(close)) <= 112


@pytest.mark.parametrize("field", [field.name for field in fields(Record)][1:])
def test_every_field_survives_alone(field: str) -> None:
    values = {int: 7, str: "x", bytes: b"y" * 16, type(None): Dest("h", 1, "udp", b"\0" * 16, "s")}
    default = getattr(Record(Kind.DNS), field)
    record = replace(Record(Kind.DNS), **{field: values[type(default)]})
    assert decode(encode(record)) == record


@pytest.mark.parametrize(
    "change",
    [
        {"flow": b""},
        {"flow": b"short"},
        {"flow": b"x" * 17},
        {"bytes_out": -1},
        {"bytes_in": 1 << 64},
        {"count": True},
        {"reserved": 1.0},
        {"job": "x" * 65},
        {"job": b"bytes"},
        {"job": "two\nlines"},
        {"detail": "tab\t"},
        {"detail": "\x1b[2J"},
        {"detail": "\x7f"},
        {"detail": "\x85"},
        {"detail": "right\u202eleft"},
        {"detail": "line\u2028"},
        {"detail": "zero\u200bwidth"},
        {"detail": "\ufeff"},
        {"detail": "\ud800"},
        {"detail": "\U000e0041"},
        {"detail": "\u00fc" * 513},
        {"policy_digest": b"x" * 33},
        {"boot_id": b"x" * 17},
        {"data": b"x" * 4097},
        {"dest": ("h", 1, "tcp", b"", "")},
        {"dest": Dest("h", 65536, "tcp")},
        {"dest": Dest("h", -1, "tcp")},
        {"dest": Dest("h\r\n", 1, "tcp")},
        {"dest": Dest("h" * 256, 1, "tcp")},
        {"dest": Dest("h", 1, "tcp", b"12345")},
        {"dest": Dest("h", 1, "tcp", b"", "s\x00")},
    ],
)
def test_fields_out_of_bounds_are_not_encoded(change: dict[str, object]) -> None:
    with pytest.raises(RecordError):
        encode(replace(OPEN, **change))  # type: ignore[arg-type]


def array(*items: object) -> bytes:
    return cbor.encode(list(items))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        array(),
        array(1),
        array(2, 11),
        array(True, 11),
        array(1, 0),
        array(1, 20),
        array(1, True),
        array(1, "boot"),
        array(1, 11, 0),  # a default at the end
        array(1, 11, 5, 0),
        array(1, 11, *[0] * 41),
        array(1, 11, "5"),
        array(1, 11, -5),
        array(1, 11, None, 5),
        array(1, 11, False, 5),
        array(1, 1, 5),  # an open record without its flow
        array(1, 11, 0, 0, b"x" * 15, 1),
        array(1, 11, 0, 0, b"", 0, 0, 0, "", "", "", ["h", 1, "tcp", b""]),
        array(1, 11, 0, 0, b"", 0, 0, 0, "", "", "", ["h", 1, "tcp", b"", "", ""]),
        array(1, 11, 0, 0, b"", 0, 0, 0, "", "", "", ["h", "1", "tcp", b"", ""]),
        array(1, 11, 0, 0, b"", 0, 0, 0, "a\nb"),
        b"\x98\x02\x01\x0b",  # long form of the array's length
        encode(OPEN) + b"\x00",
        encode(OPEN)[:-1],
        array(1, 11, *[0, 0, b""] * 6000),
    ],
)
def test_decode_refuses_everything_else(data: bytes) -> None:
    with pytest.raises(RecordError):
        decode(data)


def test_printable_makes_any_text_fit() -> None:
    assert printable("plain text") == "plain text"
    assert printable("a\nb\x1b[0m\u202e") == "a\\u000ab\\u001b[0m\\u202e"
    assert printable("\ud800") == "\\ud800"
    assert printable("\u00fc" * 10, cap=5) == "\u00fc\u00fc"
    record = Record(Kind.DENY, detail=printable("\x00" * 5000 + "\ud800"))
    assert decode(encode(record)) == record
