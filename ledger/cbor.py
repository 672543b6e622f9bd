"""Deterministic CBOR, the few types the ledger needs.

RFC 8949 section 4.2.1 (core deterministic encoding), restricted to: integers of 64 bits,
byte strings, text strings, arrays, null and booleans, all of definite length. One value has
exactly one encoding; the decoder refuses every other spelling of it, so that decoding and
encoding again gives back the same bytes. Pure: bytes in, values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

Value: TypeAlias = int | bytes | str | bool | Sequence["Value"] | None

MAX_DEPTH: Final = 8
_MAX_U64: Final = (1 << 64) - 1
_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _SIMPLE = 0, 1, 2, 3, 4, 7
_SIMPLE_VALUES: Final[dict[int, bool | None]] = {20: False, 21: True, 22: None}
_WIDTHS: Final = {24: 1, 25: 2, 26: 4, 27: 8}
# What the argument must be at least, given how many bytes follow: shorter forms are mandatory.
_LEAST: Final = {1: 24, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}


class CborError(ValueError):
    """The bytes are not the deterministic encoding of one value, or a value cannot be encoded."""


def head(major: int, argument: int) -> bytes:
    """Initial byte and argument of an item, in the shortest form. Raises CborError over 64 bits."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    if argument < 1 << 8:
        return bytes((major << 5 | 24, argument))
    if argument < 1 << 16:
        return bytes((major << 5 | 25,)) + argument.to_bytes(2, "big")
    if argument < 1 << 32:
        return bytes((major << 5 | 26,)) + argument.to_bytes(4, "big")
    if argument <= _MAX_U64:
        return bytes((major << 5 | 27,)) + argument.to_bytes(8, "big")
    raise CborError("integer needs more than 64 bits")


def encode(value: Value) -> bytes:
    """The one encoding of `value`. Raises CborError for a type or an integer outside the subset."""
    out: list[bytes] = []
    _encode(value, out, 0)
    return b"".join(out)


def _encode(value: Value, out: list[bytes], depth: int) -> None:
    if value is None:
        out.append(b"\xf6")
    elif isinstance(value, bool):  # before int: bool is one
        out.append(b"\xf5" if value else b"\xf4")
    elif isinstance(value, int):
        out.append(head(_UINT, value) if value >= 0 else head(_NINT, -1 - value))
    elif isinstance(value, bytes):
        out.append(head(_BYTES, len(value)))
        out.append(value)
    elif isinstance(value, str):
        text = _utf8(value)
        out.append(head(_TEXT, len(text)))
        out.append(text)
    elif isinstance(value, (list, tuple)):
        if depth >= MAX_DEPTH:
            raise CborError("arrays nested too deep")
        out.append(head(_ARRAY, len(value)))
        for item in value:
            _encode(item, out, depth + 1)
    else:
        raise CborError(f"cannot encode a {type(value).__name__}")


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise CborError("text has no UTF-8 form") from None


def decode(data: bytes) -> Value:
    """The value whose encoding is exactly `data`. Raises CborError, and nothing else."""
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise CborError("bytes after the value")
    return value


def first_items(data: bytes, count: int) -> list[Value]:
    """The first `count` items of an array (fewer if it has fewer), for bytes that were decoded before.

    Raises CborError as far as it looks, which is no further than it must.
    """
    if not data or data[0] >> 5 != _ARRAY:
        raise CborError("not an array")
    length, at = _argument(data, 1, data[0] & 31)
    items: list[Value] = []
    for _ in range(min(length, count)):
        item, at = _decode(data, at, 1)
        items.append(item)
    return items


def _decode(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if at >= len(data):
        raise CborError("ends inside a value")
    first = data[at]
    if first < 24:  # the two commonest items first: a small number, a short text
        return first, at + 1
    major, info = first >> 5, first & 31
    if major == _TEXT and info < 24:
        return _string(data, at + 1, info, _TEXT)
    if major == _SIMPLE:
        if info not in _SIMPLE_VALUES:
            raise CborError("floats and other simple values are not allowed")
        return _SIMPLE_VALUES[info], at + 1
    argument, at = _argument(data, at + 1, info)
    if major == _UINT:
        return argument, at
    if major == _NINT:
        return -1 - argument, at
    if major in (_BYTES, _TEXT):
        return _string(data, at, argument, major)
    if major == _ARRAY:
        return _array(data, at, argument, depth)
    raise CborError("maps and tags are not allowed")


def _argument(data: bytes, at: int, info: int) -> tuple[int, int]:
    if info < 24:
        return info, at
    width = _WIDTHS.get(info)
    if width is None:
        raise CborError("reserved or indefinite length")
    end = at + width
    if end > len(data):
        raise CborError("ends inside a value")
    argument = int.from_bytes(data[at:end], "big")
    if argument < _LEAST[width]:
        raise CborError("not the shortest form")
    return argument, end


def _string(data: bytes, at: int, length: int, major: int) -> tuple[bytes | str, int]:
    end = at + length
    if end > len(data):
        raise CborError("ends inside a string")
    raw = data[at:end]
    if major == _BYTES:
        return raw, end
    try:
        return raw.decode(), end
    except UnicodeDecodeError:
        raise CborError("text is not UTF-8") from None


def _array(data: bytes, at: int, length: int, depth: int) -> tuple[list[Value], int]:
    if depth >= MAX_DEPTH:
        raise CborError("arrays nested too deep")
    if length > len(data) - at:  # an item is at least one byte: no allocation by announcement
        raise CborError("ends inside an array")
    items: list[Value] = []
    for _ in range(length):
        item, at = _decode(data, at, depth + 1)
        items.append(item)
    return items, at
