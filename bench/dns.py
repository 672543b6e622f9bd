"""The guard beside other resolvers, in one run on one machine: `python -m bench.dns`.

All run at the same time and take turns: each has CPU 1 to itself, as far as the machine lets it;
load (dnsperf), authority (nsd) and ledger have CPU 0. All enforce an allowlist of 1000 names: the
guard with its policy core, ledger records, pins, tunnel budgets and per-client limits on (only the
limit on misses per second is lifted, for it would end the measurement), unbound twice (local zones,
RPZ), dnsdist and dnsmasq with their own options, dnslib's own server with none. Misses go through
TLS where the server can. CPU microseconds per query is the figure that neighbours disturb least,
and what the ratios are of; latency is worth something on an idle machine or with --fifo.

What programs wait (glibc, musl) is measured on a whole appliance in a network of its own.

Needs root and Debian's dnsperf, nsd, unbound, dnsdist, dnsmasq-base, gcc and musl-tools.
Exit status 1 while a goal is not met, 2 when something is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.dns_clients import measured
from bench.dns_goals import Figures, goals, table
from bench.dns_guard import guard, pin_times, run_guard, run_ledger
from bench.dns_load import (
    LOAD_CPU,
    SERVER_CPU,
    Queries,
    Server,
    answers,
    dnsperf,
    free_port,
    latencies,
    measure,
    output,
    path_with_sbin,
    running,
    wait_until,
    warm,
)
from bench.dns_peers import PEERS, Authority, run_dnslib, write_authority
from bench.loader import tree

TOOLS = {
    "dnsperf": "dnsperf", "nsd": "nsd", "unbound": "unbound", "dnsdist": "dnsdist",
    "dnsmasq": "dnsmasq-base", "taskset": "util-linux", "gcc": "gcc", "musl-gcc": "musl-tools",
}  # fmt: skip
SLOW_RATE = 1000  # queries per second of latency for a server that cannot do RATE


class Plan(argparse.Namespace):
    """The command line."""

    seconds: float
    rounds: int
    only: str
    fifo: str

    @property
    def fifo_latency(self) -> bool:
        return self.fifo != "none"

    @property
    def fifo_load(self) -> bool:
        return self.fifo == "all"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default 3)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (default 5)")
    parser.add_argument("--short", action="store_true", help="1 round of 1 second: to see that it works")
    parser.add_argument("--only", default="", help="comma-separated servers beside exeat (default all)")
    parser.add_argument(
        "--fifo",
        choices=("none", "latency", "all"),
        default="none",
        help="SCHED_FIFO for server and load: while latency is measured (some percent of a CPU), or "
        "also under full load, which starves all else on both CPUs for --seconds at a time",
    )
    parser.add_argument("--child", choices=("guard", "ledger", "dnslib"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--authority", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--ca", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limited", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(namespace=Plan())
    if args.child == "guard":
        run_guard(args.folder, args.authority, args.ca, limited=args.limited)
    elif args.child == "ledger":
        run_ledger(args.folder)
    elif args.child == "dnslib":
        run_dnslib(args.port, args.authority)
    else:
        if args.short:
            args.seconds, args.rounds = 1.0, 1
        return compare(args)
    return 0


def compare(plan: Plan) -> int:
    path_with_sbin()
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        print(f"bench: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="exeat-bench-") as text:
        figures = run(plan, Path(text))
    print("\n".join(table(figures)))
    found = goals(figures)
    for goal in found:
        print(goal.line())
    count = sum(goal.met for goal in found)
    print(f"{count} of {len(found)} goals met")
    return 0 if count == len(found) else 1


def run(plan: Plan, folder: Path) -> Figures:
    folder.chmod(0o755)
    queries = Queries(folder)
    where = Authority(free_port(), free_port(), folder / "ca.pem")
    names = [name for name in PEERS if not plan.only or name in plan.only.split(",")]
    with ExitStack() as stack:
        nsd = stack.enter_context(running(write_authority(folder, where), LOAD_CPU, folder, "nsd"))
        wait_until(lambda: answers(where.port), "nsd")
        mine = stack.enter_context(guard(folder / "guard", where, limited=False))
        servers = {"exeat": Server("exeat", mine.jail("j"), mine.pid)}
        for name in names:
            port = free_port()
            argv = PEERS[name](folder, port, where)
            process = stack.enter_context(running(argv, SERVER_CPU, folder, name))
            servers[name] = Server(name, port, process.pid, *([SLOW_RATE] if name == "dnslib" else []))
        for server in servers.values():
            take_turns_begin(server, queries)
        helpers = [*tree(nsd.pid), mine.ledger_pid] if plan.fifo_load else []
        for _ in range(plan.rounds):
            round_of(plan, queries, servers, helpers)
    calm, flood = isolation(plan, folder / "limited", where, queries)
    return Figures(servers, measured(folder, fifo=plan.fifo_latency), pin_times(), calm, flood)


def take_turns_begin(server: Server, queries: Queries) -> None:
    """Caches fill and names are seen for the first time."""
    wait_until(lambda: answers(server.port), server.name)
    for file in (queries.hot, queries.deny):
        warm(server, file)


def round_of(plan: Plan, queries: Queries, servers: dict[str, Server], helpers: list[int]) -> None:
    """The mix comes last: its many new names push out what the others repeat."""
    files = {"hot": queries.hot, "deny": queries.deny}
    for load, file in files.items():
        for server in servers.values():
            warm(server, file)
            measure(server, load, file, plan.seconds, helpers)
    for load, file in files.items():
        for server in servers.values():
            warm(server, file)  # what is remembered ends while the others have their turns
            found = latencies(server, file, plan.seconds, fifo=plan.fifo_latency)
            server.latency.setdefault(load, []).append(found)
    mix = queries.mix(plan.seconds)
    for server in servers.values():
        measure(server, "mix", mix, plan.seconds, helpers)


def isolation(
    plan: Plan, folder: Path, where: Authority, queries: Queries
) -> tuple[list[list[float]], list[list[float]]]:
    """Latencies of one jail by itself, and while another asks for denied names as fast as it can."""
    calm, flood = [], []
    strange = queries.strange(int(100_000 * plan.seconds))
    with (
        running(["nsd", "-d", "-c", str(folder.parent / "nsd.conf")], LOAD_CPU, folder.parent, "nsd"),
        guard(folder, where, limited=True) as control,
    ):
        quiet, loud = (Server(name, control.jail(name), control.pid) for name in ("quiet", "loud"))
        wait_until(lambda: answers(quiet.port), "the guard with limits")
        warm(quiet, queries.hot)
        for _ in range(plan.rounds):
            calm.append(latencies(quiet, queries.hot, plan.seconds, fifo=plan.fifo_latency))
            longer = plan.seconds + 1
            pouring = dnsperf(loud.port, strange, longer, prefix=("nice", "-n", "19"))
            flood.append(latencies(quiet, queries.hot, plan.seconds, fifo=plan.fifo_latency))
            output(pouring, longer)
    return calm, flood


if __name__ == "__main__":
    sys.exit(main())
