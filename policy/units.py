"""Sizes, durations, rates, sums and instants of policy files: case-sensitive, no guessing.

Every function takes the text as written and raises UnitError (`unit.size`, `unit.duration`,
`unit.count`, `unit.usd`, `unit.rate`, `unit.time`, `unit.overflow`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from exeat.policy.errors import UnitError

MAX = 2**63 - 1
_WHOLE = r"0|[1-9][0-9]{0,39}"  # bounded: int() refuses thousands of digits
_SIZE = re.compile(rf"({_WHOLE})(?:\.([0-9]{{1,18}}))?(B|KB|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?")
_SIZES = {
    "B": 1,
    **{unit: 1000**power for power, unit in enumerate(("kB", "MB", "GB", "TB"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), 1)},
}
_SIZES["KB"] = _SIZES["kB"]
_DURATIONS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile(
    "".join(rf"(?:({_WHOLE}){unit}(?!s))?" for unit in "dhm") + rf"(?:({_WHOLE})s)?(?:({_WHOLE})ms)?"
)
_COUNT = re.compile(_WHOLE)
_USD = re.compile(rf"({_WHOLE})(?:\.([0-9]{{1,6}}))?")
_TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,3}))?Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _bounded(value: int, text: str) -> int:
    if value > MAX:
        raise UnitError("unit.overflow", f"`{text}` is too large")
    return value


def parse_size(text: str) -> int:
    """Bytes. A bare number is bytes; a fraction must come out as whole bytes."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UnitError("unit.size", f"`{text}` is not a size: write it like 200MB or 1GiB")
    whole, fraction, unit = match.groups()
    factor = _SIZES[unit or "B"]
    scale = 10 ** len(fraction or "")
    value, rest = divmod(int(whole + (fraction or "")) * factor, scale)
    if rest or (fraction and factor == 1):
        raise UnitError("unit.size", f"`{text}` is not a whole number of bytes")
    return _bounded(value, text)


def parse_duration(text: str) -> int:
    """Milliseconds, more than zero. Units d h m s ms, each at most once, largest first."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise UnitError("unit.duration", f"`{text}` is not a duration: write it like 30m or 1h30m")
    parts = zip(match.groups(), _DURATIONS.values(), strict=True)
    value = sum(int(number) * factor for number, factor in parts if number is not None)
    if value == 0:
        raise UnitError("unit.duration", f"`{text}` is zero")
    return _bounded(value, text)


def parse_count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise UnitError("unit.count", f"`{text}` is not a whole number")
    return _bounded(int(text), text)


def parse_usd(text: str) -> int:
    """Micro-dollars; at most six decimals."""
    match = _USD.fullmatch(text)
    if match is None:
        raise UnitError("unit.usd", f"`{text}` is not a sum in dollars: write it like 5 or 0.50")
    whole, fraction = match.groups()
    return _bounded(int(whole) * 1_000_000 + int((fraction or "").ljust(6, "0")), text)


def _window(text: str) -> int:
    return _DURATIONS[text] if text in _DURATIONS else parse_duration(text)


def _split_rate(text: str) -> tuple[str, int]:
    amount, slash, window = text.partition("/")
    if not slash:
        raise UnitError("unit.rate", f"`{text}` has no window: write it like 200MB/1d or 600/m")
    return amount, _window(window)


def parse_rate_size(text: str) -> tuple[int, int]:
    """(bytes, window in ms)."""
    amount, window = _split_rate(text)
    return parse_size(amount), window


def parse_rate_count(text: str) -> tuple[int, int]:
    """(count, window in ms)."""
    amount, window = _split_rate(text)
    return parse_count(amount), window


def parse_rate_usd(text: str) -> tuple[int, int]:
    """(micro-dollars, window in ms)."""
    amount, window = _split_rate(text)
    return parse_usd(amount), window


def parse_time(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 instant in UTC, with `Z`."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise UnitError("unit.time", f"`{text}` is not an instant in UTC: write it like 2026-01-05T12:00:00Z")
    *fields, fraction = match.groups()
    year, month, day, hour, minute, second = (int(field) for field in fields)
    try:
        instant = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise UnitError("unit.time", f"`{text}` is not an instant: {error}") from None
    return (instant - _EPOCH) // timedelta(milliseconds=1) + int((fraction or "0").ljust(3, "0"))


def format_time(ms: int) -> str:
    """The inverse of `parse_time`."""
    instant = _EPOCH + timedelta(milliseconds=ms)
    text = instant.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text.rjust(20 - 1, '0')}{f'.{ms % 1000:03d}' if ms % 1000 else ''}Z"


def format_usd(micro: int) -> str:
    whole, part = divmod(micro, 1_000_000)
    return f"{whole}.{part:06d}".rstrip("0").rstrip(".")
