"""What `bench.ledger` measures with: flows as the gateway writes them, clocks, and lines of the table."""

from __future__ import annotations

import contextlib
import os
import random
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import records
from exeat.ledger.records import Dest, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAY_NS: Final = 86_400 * 10**9
DAY_MS: Final = 86_400_000
PER_FLOW: Final = 3  # records
_CEILINGS: Final = (1 << 16, 1 << 19)  # with the open, and later


class Goal(NamedTuple):
    """One line of the table; `value` met `bound` or not. Without a bound it is there to compare."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    least: bool = False  # the bound is a minimum

    @property
    def met(self) -> bool:
        return self.bound is None or (self.value >= self.bound if self.least else self.value <= self.bound)

    def line(self) -> str:
        wanted = "" if self.bound is None else f"{'>=' if self.least else '<='} {self.bound:,g}"
        verdict = "" if self.bound is None else ("met" if self.met else "NOT MET")
        return f"{self.name:<58}{self.value:>14,.1f} {self.unit:<6}{wanted:>14}  {verdict}"


def compose(kind: Kind, front: records.Front, who: bytes, tail: tuple[object, ...]) -> bytes:
    made = records.compose(kind, front, who, tail)
    assert made is not None
    return made


def heading(job: int, host: str, src: str) -> bytes:
    """Who, where and why of a flow: 50 jobs of 10 projects."""
    made = records.heading(
        (
            *(f"job-{job}", f"project-{job % 10}", f"agent-{job % 7}"),
            Dest(host, 443, "tcp", bytes((203, 0, 113, job)), host),
            *("allow", "rule.allow", f"rule-{job}", "", 12, bytes(range(32)), "allowlist", "connect", src),
            *("", "node-1"),
        )
    )
    assert made is not None
    return made


class Flows:
    """Flows of 50 jobs of 10 projects, 40 hosts each, always the same row of them."""

    def __init__(self) -> None:
        self._chance = random.Random(1)
        self._jailed: dict[tuple[int, str], bytes] = {}

    def flow(self, now_ns: int) -> list[bytes]:
        """The records of one flow: an open with its first reserve, another reserve, a close."""
        chance = self._chance.random
        job = int(chance() * 50)
        host = f"h{job * 10 + int(chance() * 40)}.example.org"
        # Half of the jobs are in jails; the others come by a door on loopback, each flow from another port.
        if job % 2:
            who = self._jailed.get((job, host)) or heading(job, host, "proxy4")
            self._jailed[job, host] = who
        else:
            who = heading(job, host, f"127.0.0.1:{32768 + int(chance() * 28000)} 127.0.0.1:3128")
        when = now_ns, 10**13 + now_ns % 10**12, self._chance.randbytes(16)
        out, into = 300 + int(chance() * 4700), 1000 + int(chance() * 500_000)
        first, second = _CEILINGS
        cookie = (0, b"", "", "", 0, 0, 0, 0, 0, 0, 0, 0, 1 + int(chance() * (1 << 20)))
        counts = (0, b"", "", "eof", 412, out, into, out, into, 9, into // 1400 + 4)
        return [
            compose(Kind.OPEN, (*when, 0, 0, first), who, cookie),
            records.encode(records.Record(Kind.RESERVE, *when, 0, 0, second)),
            compose(Kind.CLOSE, (*when, out, into, second), who, counts),
        ]


def flows(count: int, *, days: int = 0) -> Iterator[list[bytes]]:
    """`count` flows, spread over the last `days`."""
    made, now = Flows(), time.time_ns()
    for number in range(count):
        yield made.flow(now - days * DAY_NS + days * DAY_NS * number // count)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Taken(NamedTuple):
    """Seconds: on the wall, and of CPU in this process and the children it waited for."""

    wall: float
    cpu: float


@contextlib.contextmanager
def timing(found: list[Taken]) -> Iterator[None]:
    """Adds what the body took."""
    start, before = time.perf_counter(), os.times()
    yield
    after = os.times()
    found.append(Taken(time.perf_counter() - start, sum(after[:4]) - sum(before[:4])))


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rates(name: str, count: int, call: Callable[[], object], bound: float | None = None) -> Iterator[Goal]:
    """How many a second, and what each takes of a CPU: the first is bounded."""
    found: list[Taken] = []
    with timing(found):
        call()
    yield Goal(name, count / found[0].wall, "/s", bound, least=True)
    yield Goal("   CPU for each", found[0].cpu / count * 1e6, "us")
