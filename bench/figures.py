"""The lines, goals and tables of bench.proxy: numbers in, text out."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

CONNECT, SOCKS5 = "exeat CONNECT", "exeat SOCKS5"
OURS = (CONNECT, SOCKS5)
DIRECT, BOUND = "direct", "haproxy"


class Line(NamedTuple):
    """One line of the table: a load (bench/load.c), and what of its result is shown."""

    name: str
    title: str
    mode: str
    tunnels: int
    field: str
    more_is_better: bool = True
    first: bool = True  # is it a goal to be first here?


LINES = (
    Line("conn32", "new tunnels/s, 32 in flight", "conn", 32, "rate"),
    Line("conn256", "new tunnels/s, 256 in flight", "conn", 256, "rate"),
    Line("cpu-conn32", "CPU us per new tunnel, 32 in flight", "conn", 32, "cpu_us", False, first=False),
    Line("down1", "GB/s down, 1 tunnel", "down", 1, "GBps"),
    Line("down8", "GB/s down, 8 tunnels", "down", 8, "GBps"),
    Line("down64", "GB/s down, 64 tunnels", "down", 64, "GBps"),
    Line("up1", "GB/s up, 1 tunnel", "up", 1, "GBps"),
    Line("up8", "GB/s up, 8 tunnels", "up", 8, "GBps"),
    Line("up64", "GB/s up, 64 tunnels", "up", 64, "GBps"),
    Line("cpu-down8", "CPU s per GB down, 8 tunnels", "down", 8, "cpu_s_per_GB", False),
    Line("cpu-up8", "CPU s per GB up, 8 tunnels", "up", 8, "cpu_s_per_GB", False),
    Line("ping1-p50", "ping-pong p50 us, 1 tunnel", "ping", 1, "p50_us", False),
    Line("ping1-p99", "ping-pong p99 us, 1 tunnel", "ping", 1, "p99_us", False),
    Line("ping64-p50", "ping-pong p50 us, 64 tunnels", "ping", 64, "p50_us", False),
    Line("ping64-p99", "ping-pong p99 us, 64 tunnels", "ping", 64, "p99_us", False),
    Line("idle1k", "KiB per idle tunnel, 1,000", "idle", 1000, "KiB", False),
    Line("idle10k", "KiB per idle tunnel, 10,000", "idle", 10_000, "KiB", False),
)
BY_NAME = {line.name: line for line in LINES}

Figures = dict[tuple[str, str], float]  # (product, line) -> median


class Goal(NamedTuple):
    """`met` is None where nothing can be said; `text` says why, or what was compared."""

    text: str
    met: bool | None


def medians(samples: Mapping[tuple[str, str], Sequence[float]]) -> Figures:
    return {key: statistics.median(values) for key, values in samples.items() if values}


def best(figures: Figures, line: Line, products: Iterable[str]) -> tuple[str, float] | None:
    """The product that does best on this line, and its figure."""
    found = [(figures[name, line.name], name) for name in products if (name, line.name) in figures]
    if not found:
        return None
    value, name = (max if line.more_is_better else min)(found)
    return name, value


def advantage(line: Line, ours: float, other: float) -> float:
    """How many times better `ours` is: above 1 we are ahead, whichever way the line counts."""
    if line.more_is_better:
        return ours / other if other > 0 else float("inf")
    return other / ours if ours > 0 else float("inf")


class Wanted(NamedTuple):
    """A goal before it is judged: `ours` is the worse of our two forms."""

    lines: tuple[str, ...]
    text: str
    judge: Callable[[Figures, Line, float], bool | None]
    peers: bool = False  # needs every product
    bound: bool = False  # needs HAProxy


def judged(
    figures: Figures,
    lines: Sequence[Line],
    products: Sequence[str],
    missing: Sequence[str],
    left_out: Sequence[str],
) -> list[Goal]:
    """The goals of these lines. Not installed is not met; left out by an option cannot be said."""
    return [
        _judge(wanted, line, figures, missing, left_out)
        for line in lines
        for wanted in _wanted(products)
        if line.name in wanted.lines
    ]


def _wanted(products: Sequence[str]) -> list[Wanted]:
    bulk = ("down1", "down8", "down64", "up1", "up8", "up64")
    every = tuple(line.name for line in LINES if line.first)

    def times_best(least: float) -> Callable[[Figures, Line, float], bool | None]:
        def judge(figures: Figures, line: Line, ours: float) -> bool | None:
            found = best(figures, line, products)
            return None if found is None else advantage(line, ours, found[1]) >= least

        return judge

    def of_bound(figures: Figures, line: Line, ours: float) -> bool | None:
        found = figures.get((BOUND, line.name))
        return None if found is None else ours >= 0.85 * found

    def near_best(figures: Figures, line: Line, ours: float) -> bool | None:
        found = best(figures, line, (*products, BOUND))
        return None if found is None else ours <= 1.2 * found[1]

    return [
        Wanted(every, "first of all CONNECT and SOCKS5 products", times_best(1), peers=True),
        Wanted(bulk, "at least twice the best product", times_best(2), peers=True),
        Wanted(bulk, "within 15 % of HAProxy's splice", of_bound, bound=True),
        Wanted(("conn32", "conn256"), "at least 7,000 with everything on", lambda _f, _l, ours: ours >= 7000),
        Wanted(
            ("ping1-p99", "ping64-p99"),
            "within 1.2 times the best, HAProxy included",
            near_best,
            peers=True,
            bound=True,
        ),
        Wanted(("idle1k", "idle10k"), "at most 2 KiB", lambda _f, _l, ours: ours <= 2),
    ]


def _judge(
    wanted: Wanted, line: Line, figures: Figures, missing: Sequence[str], left_out: Sequence[str]
) -> Goal:
    def needed(names: Sequence[str]) -> list[str]:
        return [name for name in names if (wanted.bound if name == BOUND else wanted.peers)]

    text = f"{line.title}: {wanted.text}"
    found = [figures[form, line.name] for form in OURS if (form, line.name) in figures]
    if not found:
        return Goal(f"{text} (no figure of ours)", met=False)
    ours = min(found) if line.more_is_better else max(found)
    if gone := needed(missing):
        return Goal(f"{text} (not installed: {', '.join(gone)})", met=False)
    verdict = wanted.judge(figures, line, ours)
    if verdict and (absent := needed(left_out)):
        return Goal(f"{text} (left out: {', '.join(absent)})", None)
    return Goal(text, verdict)


def table(figures: Figures, lines: Sequence[Line], names: Sequence[str], products: Sequence[str]) -> str:
    """Markdown: a row for each line that was measured, and how we compare on it."""
    rows = [["", *names, "best product", "CONNECT to it", "SOCKS5 to it", "to HAProxy"]]
    for line in lines:
        if any((name, line.name) in figures for name in names):
            rows.append(
                [
                    line.title,
                    *(_cell(figures, name, line) for name in names),
                    *_ratios(figures, line, products),
                ]
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        "| "
        + " | ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        )
        + " |"
        for row in rows
    )


def _ratios(figures: Figures, line: Line, products: Sequence[str]) -> list[str]:
    found = best(figures, line, products)
    ours = [figures.get((form, line.name)) for form in OURS]
    cells = [found[0] if found else "-"]
    cells += [
        "-" if found is None or own is None else f"{advantage(line, own, found[1]):.2f}x" for own in ours
    ]
    bound = figures.get((BOUND, line.name))
    cells.append("-" if bound is None or ours[0] is None else f"{advantage(line, ours[0], bound):.2f}x")
    return cells


def _cell(figures: Figures, name: str, line: Line) -> str:
    value = figures.get((name, line.name))
    if value is None:
        return "-"
    digits = {"rate": 0, "p50_us": 0, "p99_us": 0, "cpu_us": 0, "cpu_s_per_GB": 3}.get(line.field, 2)
    return f"{value:,.{digits}f}"
