"""Units: case-sensitive, no guessing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.policy import units
from exeat.policy.errors import UnitError

if TYPE_CHECKING:
    from collections.abc import Callable

GOOD: list[tuple[Callable[[str], Any], str, Any]] = [
    (units.parse_size, "0", 0),
    (units.parse_size, "1500", 1500),
    (units.parse_size, "1500B", 1500),
    (units.parse_size, "1kB", 1000),
    (units.parse_size, "1KB", 1000),
    (units.parse_size, "1KiB", 1024),
    (units.parse_size, "1.5KiB", 1536),
    (units.parse_size, "0.5kB", 500),
    (units.parse_size, "1TiB", 1 << 40),
    (units.parse_size, "9223372036854775807", 2**63 - 1),
    (units.parse_duration, "5ms", 5),
    (units.parse_duration, "90s", 90_000),
    (units.parse_duration, "1h30m", 5_400_000),
    (units.parse_duration, "1d2h3m4s5ms", 93_784_005),
    (units.parse_duration, "5m", 300_000),
    (units.parse_rate_size, "200MB/1d", (200_000_000, 86_400_000)),
    (units.parse_rate_count, "600/m", (600, 60_000)),
    (units.parse_rate_count, "0/1h30m", (0, 5_400_000)),
    (units.parse_rate_usd, "0.50/1d", (500_000, 86_400_000)),
    (units.parse_usd, "0.000001", 1),
    (units.parse_time, "2026-01-05T12:00:00Z", 1_767_614_400_000),
    (units.parse_time, "2026-01-05T12:00:00.250Z", 1_767_614_400_250),
]


@pytest.mark.parametrize(("parse", "text", "value"), GOOD)
def test_good(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


BAD: list[tuple[Callable[[str], Any], str, str]] = [
    *[
        (units.parse_size, text, "size")
        for text in [
            "10Mb",
            "10M",
            "10mb",
            "10kb",
            "-5MB",
            "+5MB",
            "5_000",
            "0x10",
            ".5MB",
            "5.MB",
            "1e3",
            "010",
        ]
    ],
    *[
        (units.parse_size, text, "size")
        for text in ["", " ", "10 MB", "10MB ", "10MB\n", "MB", "0.3KiB", "1.5", "1.5B"]
    ],
    (units.parse_size, "\uff19MB", "size"),
    (units.parse_size, "9999999TiB", "overflow"),
    (units.parse_size, "9223372036854775808", "overflow"),
    *[
        (units.parse_duration, text, "duration")
        for text in ["5", "5M", "5H", "30m1h", "1h1h", "0s", "0h0m", "1.5h", "-1h", "01h", "5sec", "5ms1s"]
    ],
    *[(units.parse_duration, text, "duration") for text in ["", " 5m", "5 m", "m", "1h 30m", "\uff15m"]],
    (units.parse_duration, "999999999999999d", "overflow"),
    (units.parse_rate_size, "200MB", "rate"),
    (units.parse_rate_size, "200Mb/1d", "size"),
    (units.parse_rate_size, "200MB/1D", "duration"),
    (units.parse_rate_size, "200MB/", "duration"),
    (units.parse_rate_count, "6.5/m", "count"),
    (units.parse_rate_count, "1k/m", "count"),
    (units.parse_rate_count, "600/0m", "duration"),
    (units.parse_rate_usd, "$5/1d", "usd"),
    (units.parse_rate_usd, "0.0000001/1d", "usd"),
    (units.parse_rate_usd, "-1/1d", "usd"),
    *[
        (units.parse_time, text, "time")
        for text in [
            "2026-01-05T12:00:00+01:00",
            "2026-01-05T12:00:00+00:00",
            "2026-01-05T12:00:00",
            "2026-01-05 12:00:00Z",
            "2026-01-05t12:00:00z",
            "2026-01-05",
            "2026-02-30T00:00:00Z",
            "2026-01-05T24:00:00Z",
            "2026-01-05T12:00:60Z",
            "2026-1-5T12:00:00Z",
            "1767614400",
            "",
        ]
    ],
]


@pytest.mark.parametrize(("parse", "text", "code"), BAD)
def test_bad(parse: Callable[[str], Any], text: str, code: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse(text)
    assert caught.value.code == f"unit.{code}"


@pytest.mark.parametrize("parse", {parse for parse, _, _ in GOOD}, ids=lambda parse: parse.__name__)
def test_absurdly_long_input_is_an_ordinary_error(parse: Callable[[str], Any]) -> None:
    for text in ("9" * 10_000, "1." + "9" * 10_000 + "MB/1d", "9" * 10_000 + "/1d"):
        with pytest.raises(UnitError):
            parse(text)


@given(st.integers(0, 253_402_300_799_999))
def test_time_round_trip(ms: int) -> None:
    assert units.parse_time(units.format_time(ms)) == ms


@given(st.integers(0, 2**63 - 1))
def test_usd_round_trip(micro: int) -> None:
    assert units.parse_usd(units.format_usd(micro)) == micro
