"""exeat beside other proxies, in one run: `python -m bench.proxy [--short]`, as root.

In a network namespace of its own, product by product, each with the same load on the same two cores:
the proxy (of exeat: proxy and guard) on the last one, origin and load generator on the first. The long
form goes round several times and shows medians. Prints a table, the goals, and `N of M goals met`;
exit 1 while one is not met, 2 when it cannot run. Wants gcc, and from Debian: squid tinyproxy privoxy
dante-server microsocks haproxy. What is not installed is named, and what needs it is not met.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bench import exeat_alone, peers
from bench.figures import BOUND, BY_NAME, CONNECT, DIRECT, OURS, SOCKS5, judged, medians, table
from bench.loader import (
    ECHO,
    POUR,
    SINK,
    Loader,
    LoadError,
    Tunnels,
    compiled,
    cpu_s,
    prepare,
    pss_kib,
    room_for_tunnels,
)
from tests.support.proxy_world import enter_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from bench.figures import Goal, Line

SERVICES = {"conn": ECHO, "ping": ECHO, "idle": ECHO, "down": POUR, "up": SINK}
SETTLE_S = 1.0  # of an idle load: what opening took is given back
FAILED_SHARE = 0.01  # of connections: above it a rate is not a result
SHORT_LINES = ("conn32", "conn256", "down8", "up8", "cpu-down8", "ping1-p50", "ping1-p99", "idle1k")
SHORT_PEERS = (DIRECT, BOUND, "squid", "microsocks")


class Product(Protocol):
    """Something that load goes through."""

    def tunnels(self, service: int) -> Tunnels: ...

    def pids(self) -> list[int]: ...

    def relaying(self) -> list[int]: ...

    def parts(self) -> dict[str, list[int]]: ...


class Direct:
    """No proxy: what the machine and the load can do."""

    def tunnels(self, service: int) -> Tunnels:
        place = f"{peers.ORIGIN[0]}:{peers.ORIGIN[1] + service}"
        return Tunnels("direct", place, place)

    def pids(self) -> list[int]:
        return []

    relaying = pids

    def parts(self) -> dict[str, list[int]]:
        return {}


class Plan(NamedTuple):
    """What to measure, how long and how often."""

    names: tuple[str, ...]
    lines: tuple[Line, ...]
    seconds: float
    warm: float
    rounds: int


PEERS = {peer.name: peer for peer in (*peers.PRODUCTS, peers.BOUND)}
NAMES = (*OURS, *(peer.name for peer in peers.PRODUCTS), BOUND, DIRECT)


def started(name: str, core: int) -> AbstractContextManager[Product]:
    if name == DIRECT:
        return contextlib.nullcontext(Direct())
    if name in OURS:
        return exeat_alone.started({CONNECT: "connect", SOCKS5: "socks5"}[name], core)
    return peers.started(PEERS[name], core)


def load(loader: Loader, product: Product, line: Line, plan: Plan) -> dict[str, float]:
    """One load through one product, and what the product's processes used meanwhile."""
    tunnels = product.tunnels(SERVICES[line.mode])
    with loader.running(line.mode, tunnels, line.tunnels, plan.seconds, warm=plan.warm) as running:
        running.wait_begin()
        pids, parts = product.pids(), product.parts()
        before, shares = cpu_s(pids), {name: cpu_s(each) for name, each in parts.items()}
        found = running.result()
        used = cpu_s(pids) - before
        shares = {name: cpu_s(each) - shares[name] for name, each in parts.items()}
    if line.mode in ("conn", "ping") and not found["done"]:
        raise LoadError(f"nothing came back in {plan.seconds:g} s")
    if found["failed"] > FAILED_SHARE * max(found["done"], 1):
        raise LoadError(f"{found['failed']} of {found['done']} failed: {found['first_failure']}")
    if found["rate"]:
        found["cpu_us"] = used / found["done"] * 1e6
        found |= {f"cpu_us {name}": share / found["done"] * 1e6 for name, share in shares.items()}
    if found["GBps"]:
        found["cpu_s_per_GB"] = used / (found["GBps"] * found["seconds"])
    return found


def idle(loader: Loader, product: Product, line: Line) -> dict[str, float]:
    """Memory of a product that was just started, before and after so many tunnels were opened."""
    with loader.running("conn", product.tunnels(ECHO), 32, 0.2, warm=0.2) as warming:
        warming.wait_begin()  # what the first connections bring in is no tunnel's
        warming.result()
    relaying, before = pss_kib(product.relaying()), pss_kib(product.pids())
    with loader.running("idle", product.tunnels(ECHO), line.tunnels, 0, warm=SETTLE_S) as running:
        running.wait_begin()
        # Sums over all processes where the product forks for its clients.
        found = {
            "KiB": (pss_kib(product.relaying()) - relaying) / line.tunnels,
            "KiB of all": (pss_kib(product.pids()) - before) / line.tunnels,
        }
        still_up = running.result()["up"]
    if still_up != line.tunnels:
        raise LoadError(f"only {still_up} of {line.tunnels} idle tunnels stayed")
    return found


class Bench:
    """A run: samples, and what could not be measured and why."""

    def __init__(self, loader: Loader, plan: Plan) -> None:
        self._loader = loader
        self._plan = plan
        self._core = (os.cpu_count() or 1) - 1
        self.samples: dict[tuple[str, str], list[float]] = {}
        self.notes: list[str] = []
        self.shares: dict[str, str] = {}  # of the last round

    def run(self) -> None:
        host, port = peers.ORIGIN
        for turn in range(self._plan.rounds):
            for name in self._plan.names:
                with self._loader.origin(host, port):
                    self._rounds(name, turn)

    def _rounds(self, name: str, turn: int) -> None:
        say(f"round {turn + 1} of {self._plan.rounds}: {name} ...")
        moving = [line for line in self._plan.lines if line.mode != "idle"]
        with self._noted(name, "start"), started(name, self._core) as product:
            for wanted in _by_load(moving):
                with self._noted(name, wanted[0].title):
                    found = load(self._loader, product, wanted[0], self._plan)
                    self._keep(name, wanted, found)
                    self._note_shares(name, wanted[0], found)
        if turn or name == DIRECT:  # memory does not vary; and the load's own is not of interest
            return
        for line in self._plan.lines:
            if line.mode == "idle":
                with self._noted(name, line.title), started(name, self._core) as product:
                    found = idle(self._loader, product, line)
                    self._keep(name, [line], found)
                    if name in OURS:
                        self.notes.append(
                            f"{name}: {line.title}: {found['KiB of all']:.2f} in all its processes"
                        )

    def _keep(self, name: str, lines: Sequence[Line], found: dict[str, float]) -> None:
        for line in lines:
            if line.field in found and not (name == DIRECT and line.field.startswith("cpu")):
                self.samples.setdefault((name, line.name), []).append(found[line.field])

    def _note_shares(self, name: str, line: Line, found: dict[str, float]) -> None:
        """Where a new tunnel's time goes, by process."""
        shares = {key.split()[1]: value for key, value in found.items() if key.startswith("cpu_us ")}
        if line.mode == "conn" and shares:
            text = ", ".join(f"{part} {value:.0f}" for part, value in shares.items())
            self.shares[f"{name}: {line.title}: CPU us per tunnel"] = text

    @contextlib.contextmanager
    def _noted(self, name: str, what: str) -> Iterator[None]:
        """A product that fails at one thing has no figure there; the run goes on and says so."""
        try:
            yield
        except LoadError as error:
            note = f"{name}: {what}: {error}"
            say(note)
            self.notes.append(note)


def _by_load(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that show something of the same load, together."""
    loads: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        loads.setdefault((line.mode, line.tunnels), []).append(line)
    return list(loads.values())


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def _fitting(line: Line) -> Line:
    """An idle line with as many tunnels as one process may have here."""
    room = room_for_tunnels() // 100 * 100
    if line.mode != "idle" or line.tunnels <= room:
        return line
    say(f"{line.title}: the limit of descriptors allows {room:,} here")
    return line._replace(tunnels=room, title=line.title.replace(f"{line.tunnels:,}", f"{room:,}"))


def choose(args: argparse.Namespace) -> Plan:
    """The plan of the command line. Unknown names end the program."""
    short = args.short
    names = (*OURS, *SHORT_PEERS) if short else NAMES
    lines = SHORT_LINES if short else tuple(BY_NAME)
    if args.only:
        words = args.only.split(",")
        if unknown := [word for word in words if word not in (*NAMES, *BY_NAME)]:
            raise LoadError(f"--only knows no {', '.join(unknown)}; it knows {', '.join((*NAMES, *BY_NAME))}")
        names = (
            tuple(name for name in NAMES if name in words or name in OURS)
            if set(words) & set(NAMES)
            else names
        )
        lines = tuple(name for name in BY_NAME if name in words) or lines
    chosen = tuple(_fitting(BY_NAME[name]) for name in lines)
    if short:
        return Plan(names, chosen, 0.6, 0.25, 1)
    return Plan(names, chosen, args.seconds, 0.5, args.rounds)


def show(bench: Bench, plan: Plan, versions: dict[str, str], goals: Sequence[Goal]) -> None:
    shown = [name for name in NAMES if name in plan.names]
    print(f"{machine()}; load average {os.getloadavg()[0]:.1f}")
    print(", ".join(f"{name} {versions[name] or 'NOT INSTALLED'}" for name in shown if name in versions))
    print(
        f"medians of {plan.rounds}, {plan.seconds:g} s each; every proxy on the last core, origin and load on"
    )
    print("the first, exeat's ledger and control on both\n")
    print(table(medians(bench.samples), plan.lines, shown, [peer.name for peer in peers.PRODUCTS]))
    for note in (*dict.fromkeys(bench.notes), *map(": ".join, bench.shares.items())):
        print(f"note: {note}")
    print()
    for goal in goals:
        word = {True: "met   ", False: "MISSED", None: "unsaid"}[goal.met]
        print(f"{word}  {goal.text}")
    if unsaid := sum(goal.met is None for goal in goals):
        print(f"{unsaid} goals cannot be said to be met by a run that left peers out")
    if not_measured := len(BY_NAME) - len(plan.lines):
        print(f"{not_measured} of {len(BY_NAME)} lines were left out")
    print(f"{sum(goal.met is True for goal in goals)} of {len(goals)} goals met")


def document(bench: Bench, plan: Plan, versions: dict[str, str], goals: Sequence[Goal]) -> dict[str, Any]:
    """For --json: everything that was measured, so that another can compare."""
    return {
        "at": int(time.time()),
        "machine": machine(),
        "load_average": os.getloadavg(),
        "versions": versions,
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "samples": [
            {"product": name, "line": line, "values": values}
            for (name, line), values in bench.samples.items()
        ],
        "notes": bench.notes,
        "shares": bench.shares,
        "goals": [goal._asdict() for goal in goals],
    }


def run(args: argparse.Namespace) -> int:
    prepare()
    plan = choose(args)
    versions = {name: peer.version for name, peer in PEERS.items()}
    missing = [name for name, version in versions.items() if not version]
    left_out = [name for name in PEERS if name not in plan.names]
    plan = plan._replace(names=tuple(name for name in plan.names if name not in missing))
    for name in missing:
        say(f"{name} is not installed: apt-get install {PEERS[name].package}")
    with compiled() as loader:
        bench = Bench(loader, plan)
        bench.run()
    products = [peer.name for peer in peers.PRODUCTS]
    goals = judged(medians(bench.samples), plan.lines, products, missing, left_out)
    show(bench, plan._replace(names=(*plan.names, *missing)), versions, goals)
    if args.json:
        args.json.write_text(json.dumps(document(bench, plan, versions, goals), indent=1) + "\n")
    return 0 if all(goal.met for goal in goals) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true", help="fewer products and lines, within a minute")
    parser.add_argument("--only", metavar="NAMES", help="products and lines, with commas between them")
    parser.add_argument("--rounds", type=int, default=3, help="how often to go round (3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample there")
    args = parser.parse_args()
    os.sched_setaffinity(0, {0})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the proxies end with us
    enter_namespace()
    try:
        return run(args)
    except LoadError as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
