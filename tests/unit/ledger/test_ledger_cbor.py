"""RFC 8949 appendix A, and everything that is not the one encoding of a value."""

from __future__ import annotations

import pytest

from exeat.ledger.cbor import CborError, decode, encode

APPENDIX_A = [
    (0, "00"),
    (1, "01"),
    (10, "0a"),
    (23, "17"),
    (24, "1818"),
    (25, "1819"),
    (100, "1864"),
    (1000, "1903e8"),
    (1000000, "1a000f4240"),
    (1000000000000, "1b000000e8d4a51000"),
    (18446744073709551615, "1bffffffffffffffff"),
    (-18446744073709551616, "3bffffffffffffffff"),
    (-1, "20"),
    (-10, "29"),
    (-100, "3863"),
    (-1000, "3903e7"),
    (False, "f4"),
    (True, "f5"),
    (None, "f6"),
    (b"", "40"),
    (b"\x01\x02\x03\x04", "4401020304"),
    ("", "60"),
    ("a", "6161"),
    ("IETF", "6449455446"),
    ('"\\', "62225c"),
    ("\u00fc", "62c3bc"),
    ("\u6c34", "63e6b0b4"),
    ("\U00010151", "64f0908591"),
    ([], "80"),
    ([1, 2, 3], "83010203"),
    ([1, [2, 3], [4, 5]], "8301820203820405"),
    (list(range(1, 26)), "98190102030405060708090a0b0c0d0e0f101112131415161718181819"),
]

REFUSED = {
    "nothing": "",
    "two values": "0000",
    "long form of 0": "1800",
    "long form of 23": "1817",
    "two bytes for 255": "1900ff",
    "four bytes for 65535": "1a0000ffff",
    "eight bytes for 2^32-1": "1b00000000ffffffff",
    "long length": "580101",
    "reserved 28": "1c",
    "reserved 30": "1e",
    "indefinite bytes": "5f42010243030405ff",
    "indefinite text": "7f657374726561646d696e67ff",
    "indefinite array": "9fff",
    "break": "ff",
    "map": "a10102",
    "tag": "c11a514b67b0",
    "half float": "f93c00",
    "double": "fb3ff199999999999a",
    "undefined": "f7",
    "simple 16": "f0",
    "simple 255": "f8ff",
    "cut integer": "19ff",
    "cut string": "6261",
    "cut array": "8201",
    "array longer than the data": "9bffffffffffffffff",
    "string longer than the data": "7bffffffffffffffff",
    "bad UTF-8": "61ff",
    "surrogate": "63eda080",
    "overlong UTF-8": "62c080",
    "nested nine deep": "81" * 9 + "00",
}


@pytest.mark.parametrize(("value", "wire"), APPENDIX_A)
def test_appendix_a_both_ways(value: object, wire: str) -> None:
    assert encode(value).hex() == wire  # type: ignore[arg-type]
    assert decode(bytes.fromhex(wire)) == value
    assert type(decode(bytes.fromhex(wire))) is type(value)


@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED.keys())
def test_anything_else_is_refused(wire: str) -> None:
    with pytest.raises(CborError):
        decode(bytes.fromhex(wire))


@pytest.mark.parametrize("value", [1 << 64, -(1 << 64) - 1, 1.5, {}, {"a": 1}, "\ud800", [[[[[[[[[1]]]]]]]]]])
def test_values_outside_the_subset_are_refused(value: object) -> None:
    with pytest.raises(CborError):
        encode(value)  # type: ignore[arg-type]
