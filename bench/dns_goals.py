"""The table and the goals of bench.dns: figures in, text out."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from bench.dns_load import LOADS, Server, percentile

if TYPE_CHECKING:
    from collections.abc import Mapping

NAN = float("nan")
UNBOUNDS = ("unbound", "unbound-rpz")


class Figures(NamedTuple):
    """All that one run measured. Times in `clients` are milliseconds, all others microseconds."""

    servers: Mapping[str, Server]
    clients: Mapping[str, list[float]]
    pins: list[float]
    calm: list[list[float]]  # latencies of one jail, by rounds
    flood: list[list[float]]  # the same while another jail asks as fast as it can


class Goal(NamedTuple):
    """`most`: the figure must not be above the target; else it must not be below."""

    what: str
    figure: float
    target: float
    unit: str
    most: bool = True

    @property
    def met(self) -> bool:
        return self.figure <= self.target if self.most else self.figure >= self.target

    def line(self) -> str:
        sign = "<=" if self.most else ">="
        word = "met    " if self.met else "NOT met"
        return f"{word} {self.what}: {self.figure:.2f} (goal {sign} {self.target:g} {self.unit})"


def cpu(server: Server, load: str) -> float:
    return statistics.median(server.cpu[load])


def tail(server: Server, load: str, share: float) -> float:
    """The median over the rounds: one round with a disturbance does not count, two of three do."""
    return statistics.median(percentile(each, share) for each in server.latency[load])


def table(figures: Figures) -> list[str]:
    lines = [
        "| server | hot q/s (CPU us) | deny | mix | lost | hot p50/p99 us | deny p50/p99 us |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in figures.servers.values():
        cells = [f"{statistics.median(one.qps[load]) / 1000:.1f}k ({cpu(one, load):.1f})" for load in LOADS]
        cells.append(str(one.lost))
        cells += [f"{tail(one, load, 0.5):.0f}/{tail(one, load, 0.99):.0f}" for load in ("hot", "deny")]
        lines.append(f"| {one.name} | {' | '.join(cells)} |")
    return lines


def goals(figures: Figures) -> list[Goal]:
    """Ratios are of CPU time per query: more than 1 is cheaper than the other server."""
    mine = figures.servers["exeat"]

    def ratio(load: str, *names: str) -> float:
        """Against the best of those."""
        others = [cpu(figures.servers[name], load) for name in names if name in figures.servers]
        return min(others) / cpu(mine, load) if others else NAN

    calm = statistics.median(percentile(each, 0.99) for each in figures.calm)
    flood = statistics.median(percentile(each, 0.99) for each in figures.flood)
    return [
        Goal("cached, against the better unbound", ratio("hot", *UNBOUNDS), 1.0, "x", False),
        Goal("cached, against dnsmasq", ratio("hot", "dnsmasq"), 1.5, "x", False),
        Goal("cached, against dnslib's server", ratio("hot", "dnslib"), 40, "x", False),
        Goal("mix with 10 % misses through TLS, against unbound", ratio("mix", "unbound"), 0.9, "x", False),
        Goal("cached p99 at 5000 q/s", tail(mine, "hot", 0.99), 200, "us"),
        Goal("denied p99 at 5000 q/s", tail(mine, "deny", 0.99), 150, "us"),
        Goal("p99 of pinning before an answer", percentile(figures.pins, 0.99), 40, "us"),
        Goal(f"p99 of one jail while another floods ({flood:.0f} us), to without", flood / calm, 1.5, "x"),
        Goal(
            "first denial of a name in a program with glibc, p50",
            percentile(figures.clients["glibc"], 0.5),
            1,
            "ms",
        ),
        Goal(
            "first denial of a name in a program with musl, p50",
            percentile(figures.clients["musl"], 0.5),
            1,
            "ms",
        ),
        Goal("approval until the last client has the address", figures.clients["approval"][-1], 1000, "ms"),
    ]
