"""The usual record, encoded and judged fast; whatever is not usual is left to `ledger.records`.

Both functions answer as the slow way would, or not at all (None): tests hold them against each
other on generated records and on damaged ones. Pure, but with a memory: the fields from `job` to
`name_source` say who, where and why. They are the same in many records, so their bytes are kept and
compared, not made or judged again.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.ledger import patterns

if TYPE_CHECKING:
    import re
    from collections.abc import Sequence

_FRONT: Final = 6  # fields: two times, flow, three counts
_WHO: Final = 18  # the fields from _FRONT up to here are remembered together
_SRC: Final = 19  # behind `src`, which differs from flow to flow: it holds the client's port
_NODE: Final = 21  # behind `node`, the last field that says who
_COST: Final = 34  # `cost_nano_usd`, which most records are too short for
_REMEMBERED: Final = 2048  # of such groups
_KEY: Final = 64  # bytes of a group by which it is looked up
_U32: Final = 1 << 32
_U64: Final = 1 << 64
_TIMES_FLOW: Final = struct.Struct(">BQBQB16s")
_TIMES: Final = struct.Struct(">BQBQB")
_AS_U64: Final = struct.Struct(">BQ")
_AS_U32: Final = struct.Struct(">BI")
_AS_U16: Final = struct.Struct(">BH")
_SMALL: Final = tuple(bytes((n,)) if n < 24 else bytes((0x18, n)) for n in range(256))
_TEXT_HEADS: Final = tuple(bytes((0x60 | n,)) if n < 24 else bytes((0x78, n)) for n in range(256))
_BYTES_HEADS: Final = tuple(bytes((0x40 | n,)) if n < 24 else bytes((0x58, n)) for n in range(256))
_ARRAY_HEADS: Final = tuple(bytes((0x80 | n, 1)) if n < 24 else bytes((0x98, n, 1)) for n in range(64))
_EMPTY: Final = {int: b"\x00", str: b"\x60", bytes: b"\x40", type(None): b"\xf6"}
_UINT, _TEXT, _BYTES, _DEST, _PORT, _IP = range(6)
_CODES: Final = {int: _UINT, str: _TEXT, bytes: _BYTES, type(None): _DEST}
_DEST_TYPES: Final = (str, int, str, bytes, str)
_DEST_FIELDS: Final = ((_TEXT, 255), (_PORT, 0), (_TEXT, 16), (_IP, 16), (_TEXT, 255))
_IP_HEADS: Final = frozenset({0x40, 0x44, 0x50})


class _Unusual(Exception):
    """Not for here: the slow way goes on."""


class Outline(NamedTuple):
    """`who` is the encoding of the fields from `job` to `node` without `src`: equal bytes, equal fields."""

    kind: int
    t_real_ns: int
    flow: bytes
    bytes_out: int
    bytes_in: int
    reserved: int
    who: bytes
    times: int  # the record's `count`
    cost_nano_usd: int


class Quick:
    """For records of `layout` (name, default, cap in bytes), whose destinations are of type `dest`.

    `flow_kinds` are the kinds that must name a flow, `kinds` is the largest one.
    """

    def __init__(
        self, layout: Sequence[tuple[str, Any, int]], dest: type, flow_kinds: frozenset[int], kinds: int
    ) -> None:
        self._defaults = tuple(default for _, default, _ in layout)
        self._caps = tuple(cap for *_, cap in layout)
        types = tuple(map(type, self._defaults))
        self._types = types
        self._types_dest = tuple(dest if each is type(None) else each for each in types)
        self._types_front = types[:_FRONT]
        self._types_tail = tuple(types[_NODE:end] for end in range(_NODE, len(types) + 1))  # by length
        self._empty = tuple(_EMPTY[each] for each in types)
        self._fields = tuple((_CODES[each], cap) for each, cap in zip(types, self._caps, strict=True))
        self._who_fields = self._fields[_FRONT:_WHO]
        self._nobody = b"".join((*self._empty[_FRONT:_WHO], *self._empty[_SRC:_NODE]))
        self._no_more = self._defaults[_FRONT:]
        self._dest_at = types.index(type(None))
        self._flow_kinds, self._kinds = flow_kinds, kinds
        self._made: dict[tuple[Any, ...], bytes] = {}
        self._judged: dict[bytes, tuple[bytes, str]] = {}
        self._tails: dict[int, re.Pattern[bytes]] = {}  # of a record's fields behind _WHO, by how many it has

    # --- encoding

    def encode(self, kind: int, values: tuple[Any, ...]) -> bytes | None:
        """The encoding of a record with these fields, all of them; None: not for here."""
        types = tuple(map(type, values))
        if types != self._types_dest and types != self._types:
            return None
        try:
            return self._encode(kind, values)
        except (_Unusual, struct.error):
            return None

    def _encode(self, kind: int, values: tuple[Any, ...]) -> bytes:
        front = self._front(kind, *values[:_FRONT])
        if values[_FRONT:] == self._no_more:
            if not values[_FRONT - 1]:
                raise _Unusual
            return _ARRAY_HEADS[8] + front
        used = len(values)
        while values[used - 1] == self._defaults[used - 1]:
            used -= 1
        if used <= _WHO:
            raise _Unusual
        parts = [_ARRAY_HEADS[used + 2], front, self._who(values[_FRONT:_WHO])]
        self._append_items(parts, values[_WHO:used], _WHO)
        return b"".join(parts)

    def heading(self, fields: tuple[Any, ...]) -> bytes | None:
        """The bytes of the fields from `job` to `node`, for `compose`; None: not for here."""
        types = tuple(map(type, fields))
        if types != self._types_dest[_FRONT:_NODE] and types != self._types[_FRONT:_NODE]:
            return None
        try:
            parts = [self._who(fields[: _WHO - _FRONT])]
            self._append_items(parts, fields[_WHO - _FRONT :], _WHO)
        except (_Unusual, struct.error):
            return None
        return b"".join(parts)

    def compose(
        self, kind: int, front: tuple[int, int, bytes, int, int, int], heading: bytes, tail: tuple[Any, ...]
    ) -> bytes | None:
        """A record from its first six fields, a heading, and the fields behind `node`; None: not for here."""
        used = len(tail)
        while used and tail[used - 1] == self._defaults[_NODE + used - 1]:
            used -= 1
        if not used or tuple(map(type, front)) != self._types_front or not self._fits(tail):
            return None
        try:
            parts = [_ARRAY_HEADS[_NODE + used + 2], self._front(kind, *front), heading]
            self._append_items(parts, tail[:used], _NODE)
        except (_Unusual, struct.error):
            return None
        return b"".join(parts)

    def _fits(self, tail: tuple[Any, ...]) -> bool:
        return tuple(map(type, tail)) == self._types_tail[len(tail)]

    def _front(
        self, kind: int, real: int, boot: int, flow: bytes, out: int, into: int, reserved: int
    ) -> bytes:
        if real < _U32 or boot < _U32 or not 0 < kind <= self._kinds:
            raise _Unusual
        if len(flow) == 16:
            front = _TIMES_FLOW.pack(0x1B, real, 0x1B, boot, 0x50, flow)
        elif flow or kind in self._flow_kinds:
            raise _Unusual
        else:
            front = _TIMES.pack(0x1B, real, 0x1B, boot, 0x40)
        return _SMALL[kind] + front + _uint(out) + _uint(into) + _uint(reserved)

    def _append_items(self, parts: list[bytes], values: tuple[Any, ...], at: int) -> None:
        for value in values:
            if not value:
                parts.append(self._empty[at])
            elif type(value) is int:  # most of what follows who and where
                parts.append(_uint(value))
            else:
                parts.append(self._item(value, at))
            at += 1

    def _who(self, group: tuple[Any, ...]) -> bytes:
        dest = group[self._dest_at - _FRONT]
        if dest is not None and tuple(map(type, dest)) != _DEST_TYPES:
            raise _Unusual  # True equals 1: the memory would not tell them apart
        made = self._made.get(group)
        if made is None:
            parts: list[bytes] = []
            self._append_items(parts, group, _FRONT)
            made = b"".join(parts)
            if len(self._made) >= _REMEMBERED:
                self._made.clear()
            self._made[group] = made
        return made

    def _item(self, value: Any, at: int) -> bytes:
        kind = type(value)
        if kind is int:
            return _uint(value)
        if kind is str:
            return _text(value, self._caps[at])
        if kind is bytes:
            return _bytes(value, self._caps[at])
        host, port, protocol, ip, sni = value
        if not 0 <= port <= 65535 or len(ip) not in (0, 4, 16):
            raise _Unusual
        texts = _text(host, 255), _uint(port), _text(protocol, 16), _bytes(ip, 16), _text(sni, 255)
        return b"\x85" + b"".join(texts)

    # --- judging

    def inspect(self, data: bytes) -> tuple[int, bytes, int, int, int, str] | None:
        """(kind, flow, bytes_out, bytes_in, reserved, job) of a valid record; None: not for here."""
        try:
            return self._inspect(data)
        except (_Unusual, struct.error, IndexError, UnicodeDecodeError):
            return None

    def _inspect(self, data: bytes) -> tuple[int, bytes, int, int, int, str]:
        kind, _, flow, out, into, reserved, at, used = self._head(data)
        if used == _FRONT:
            if not reserved or at != len(data):
                raise _Unusual
            return kind, flow, out, into, reserved, ""
        if used <= _WHO:
            raise _Unusual
        judged = self._who_at(data, at)
        at += len(judged[0])
        tail = self._tails.get(used) or self._tail(used)
        if tail.fullmatch(data, at) is not None:
            return kind, flow, out, into, reserved, judged[1]
        last, end = self._walk(data, at, self._fields[_WHO:used])
        if end != len(data) or data[last:] == self._empty[used - 1]:
            raise _Unusual
        return kind, flow, out, into, reserved, judged[1]

    def _tail(self, used: int) -> re.Pattern[bytes]:
        fields = [(self._types[at], self._caps[at]) for at in range(_WHO, used)]
        self._tails[used] = made = patterns.run(fields, self._empty[used - 1])
        return made

    def outline(self, data: bytes) -> Outline | None:
        """What an index needs of a record that was judged before it was stored; None: not for here."""
        try:
            kind, real, flow, out, into, reserved, at, used = self._head(data)
            if used == _FRONT:
                return Outline(kind, real, flow, out, into, reserved, self._nobody, 0, 0)
            if used <= _WHO:
                return None
            who = self._who_at(data, at)[0]
            _, source = self._walk(data, at + len(who), self._fields[_WHO:_SRC])
            _, end = self._walk(data, source, self._fields[_SRC : min(used, _NODE)])
            who += data[source:end] + b"\x60" * (_NODE - used)
            count = _number(data, end)[0] if used > _NODE else 0
            cost = 0
            if used > _COST:
                cost = _number(data, self._walk(data, end, self._fields[_NODE:_COST])[1])[0]
        except (_Unusual, struct.error, IndexError, UnicodeDecodeError):
            return None
        return Outline(kind, real, flow, out, into, reserved, who, count, cost)

    def _head(self, data: bytes) -> tuple[int, int, bytes, int, int, int, int, int]:
        """kind, t_real_ns, flow, the three counts; offset of `job`; how many fields there are."""
        first, at = data[0], 2
        if first == 0x98 and data[1] >= 24:
            used, at = data[1] - 2, 3
        elif 0x88 <= first < 0x98:
            used = first - 0x82
        else:
            raise _Unusual
        kind = data[at]
        if data[at - 1] != 1 or not 0 < kind <= self._kinds or used > len(self._fields):
            raise _Unusual
        tag, real, tag_, boot, flow_head, flow = _TIMES_FLOW.unpack_from(data, at + 1)
        if tag != 0x1B or tag_ != 0x1B or real < _U32 or boot < _U32:
            raise _Unusual
        if flow_head == 0x50:
            at += 36
        elif flow_head == 0x40 and kind not in self._flow_kinds:
            flow = b""
            at += 20
        else:
            raise _Unusual
        out, at = _number(data, at)
        into, at = _number(data, at)
        reserved, at = _number(data, at)
        return kind, real, flow, out, into, reserved, at, used

    def _who_at(self, data: bytes, at: int) -> tuple[bytes, str]:
        judged = self._judged.get(data[at : at + _KEY])
        if judged is None or not data.startswith(judged[0], at):
            return self._judge(data, at)
        return judged

    def _judge(self, data: bytes, at: int) -> tuple[bytes, str]:
        _, end = self._walk(data, at, self._who_fields)
        who = data[at:end]
        length, start = (who[0] - 0x60, 1) if who[0] < 0x78 else (who[1], 2)
        judged = who, who[start : start + length].decode()
        if len(self._judged) >= _REMEMBERED:
            self._judged.clear()
        self._judged[data[at : at + _KEY]] = judged
        return judged

    def _walk(self, data: bytes, at: int, fields: tuple[tuple[int, int], ...]) -> tuple[int, int]:
        """Offsets of the last field's item and of its end; raises unless all are valid."""
        last = at
        for code, cap in fields:
            last = at
            first = data[at]
            if code == _UINT:
                if first < 24:
                    at += 1
                elif first == 0x19 and data[at + 1]:  # counts are mostly of this size
                    at += 3
                else:
                    _, at = _number(data, at)
            elif code == _TEXT:
                if first == 0x60:
                    at += 1
                    continue
                start, at = _span(data, at, 0x60, cap)
                raw = data[start:at]
                if not (raw.isascii() and raw.decode().isprintable()):
                    raise _Unusual
            elif code == _BYTES:
                if first == 0x40:
                    at += 1
                else:
                    _, at = _span(data, at, 0x40, cap)
            elif code == _DEST:
                at = self._dest(data, at)
            elif code == _PORT:
                if first > 0x19:
                    raise _Unusual
                _, at = _number(data, at)
            elif first not in _IP_HEADS:
                raise _Unusual
            else:
                _, at = _span(data, at, 0x40, cap)
        if at > len(data):
            raise _Unusual
        return last, at

    def _dest(self, data: bytes, at: int) -> int:
        if data[at] == 0xF6:
            return at + 1
        if data[at] != 0x85:
            raise _Unusual
        return self._walk(data, at + 1, _DEST_FIELDS)[1]


def _uint(value: int) -> bytes:
    if value < 0:
        raise _Unusual
    if value < 256:
        return _SMALL[value]
    if value < 65536:
        return _AS_U16.pack(0x19, value)
    if value < _U32:
        return _AS_U32.pack(0x1A, value)
    return _AS_U64.pack(0x1B, value)


def _text(value: str, cap: int) -> bytes:
    if len(value) > min(cap, 255) or not (value.isascii() and value.isprintable()):
        raise _Unusual
    return _TEXT_HEADS[len(value)] + value.encode()


def _bytes(value: bytes, cap: int) -> bytes:
    if len(value) > min(cap, 255):
        raise _Unusual
    return _BYTES_HEADS[len(value)] + value


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer in its shortest form and the offset behind it."""
    first = data[at]
    if first < 24:
        return first, at + 1
    if first == 0x18:
        value, end, least = data[at + 1], at + 2, 24
    elif first == 0x19:
        value, end, least = _AS_U16.unpack_from(data, at)[1], at + 3, 256
    elif first == 0x1A:
        value, end, least = _AS_U32.unpack_from(data, at)[1], at + 5, 65536
    elif first == 0x1B:
        value, end, least = _AS_U64.unpack_from(data, at)[1], at + 9, _U32
    else:
        raise _Unusual
    if value < least:
        raise _Unusual
    return value, end


def _span(data: bytes, at: int, major: int, cap: int) -> tuple[int, int]:
    """Where the content of a string of up to 255 bytes begins and ends."""
    length = data[at] - major
    at += 1
    if length == 24:
        length = data[at]
        at += 1
        if length < 24:
            raise _Unusual
    elif not 0 <= length < 24:
        raise _Unusual
    if length > cap:
        raise _Unusual
    return at, at + length
