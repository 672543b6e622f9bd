"""The gateway alone with everything on: `python -m bench.proxy [--short]`, as root.

In a network namespace of its own: `exeat up` with 1,000 rules, the guard and a durable ledger, proxy
and guard pinned to one core, origin and load to another, the ledger where there is room. Prints a
table, then `N of M goals met`; exit 1 while one is not. The load is Python too: where it is the bound,
"direct" shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import HOME, in_namespace
from tests.support.standalone import Standalone

PORT = 7000
NAME = "origin.example.org"
PROXY = "127.0.0.1:3128"
RULES = "\n".join(f"  - {{id: r{n}, to: host{n}.example.com, ports: [80, 443]}}" for n in range(999))
POLICY = f"""
egress: v1
project: bench
posture: allowlist
allow:
{RULES}
  - {{id: origin, to: {NAME}, ports: [{PORT}, {PORT + 1}]}}
"""
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "bench"\n'
SYSCTLS = (
    "net.ipv4.ip_local_port_range=10000 65000",
    "net.core.somaxconn=16384",
    # Else one line has no ports left for the next, and connect(2) searches for long.
    "net.ipv4.tcp_tw_reuse=1",
)


class Line(NamedTuple):
    """One line of the table: what is measured, and the goal where there is one."""

    name: str
    mode: str
    count: int
    field: str
    goal: float | None = None
    at_least: bool = True


LINES = (
    Line("new tunnels/s, 32 in flight", "conn", 32, "rate", 7000),
    Line("new tunnels/s, 256 in flight", "conn", 256, "rate", 7000),
    Line("GB/s down, 1 tunnel", "down", 1, "GBps"),
    Line("GB/s down, 8 tunnels", "down", 8, "GBps"),
    Line("ping-pongs/s, 1 tunnel", "ping", 1, "rate"),
    Line("ping-pong p99 in us, 64 tunnels", "ping", 64, "p99_us"),
)
IDLE = Line("KiB of the proxy per idle tunnel", "idle", 1000, "KiB", 2.0, at_least=False)


def load(mode: str, proxy: str, count: int, seconds: float) -> dict[str, Any]:
    host = HOME if proxy == "direct" else NAME
    target = f"{host}:{PORT + (mode == 'down')}"
    words = [sys.executable, "-m", "bench.proxy_load", mode, target, proxy, str(count), str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_kib(pid: int) -> int:
    """What the process has in memory, shared pages divided by their users."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0])


def idle_kib(pid: int, count: int) -> float:
    before = pss_kib(pid)
    words = [sys.executable, "-m", "bench.proxy_load", "idle", f"{NAME}:{PORT}", PROXY, str(count), "0"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(2)
        found = (pss_kib(pid) - before) / count
        process.communicate()
    return found


def show(line: Line, value: float, direct: float | None, note: str) -> bool:
    met = line.goal is None or (value >= line.goal if line.at_least else value <= line.goal)
    ratio = f"{value / direct:6.2f} of direct" if direct else " " * 16
    sign = ">=" if line.at_least else "<="
    goal = "" if line.goal is None else f"  goal {sign} {line.goal:g}: {'met' if met else 'MISSED'}"
    print(f"{line.name:<36}{value:>12,.2f}  {ratio}  {note}{goal}", flush=True)
    return met


def measure(made: Standalone, seconds: float, idle: int) -> int:
    """The table; how many goals are missed."""
    proxy = made.pid_of("proxy")
    last = (os.cpu_count() or 1) - 1
    for name, cores in (("proxy", {last}), ("guard", {last}), ("ledger", {0, last})):
        os.sched_setaffinity(made.pid_of(name), cores)
    missed = 0
    for line in LINES:
        direct = load(line.mode, "direct", line.count, seconds / 2)[line.field]
        before = cpu_s(proxy)
        found = load(line.mode, PROXY, line.count, seconds)
        # The warm-up's share is in it: a little more than the truth.
        used = (cpu_s(proxy) - before) / (seconds + 1)
        missed += not show(line, found[line.field], direct, f"proxy at {used:4.0%} of a core")
    line = IDLE._replace(count=idle)
    missed += not show(line, idle_kib(proxy, idle), None, f"{idle} tunnels")
    return missed


def run(seconds: float, idle: int) -> int:
    for setting in SYSCTLS:
        subprocess.run(["sysctl", "-qw", setting], check=True)
    with name_server(zone_handler([(NAME, 60, "A", HOME)])) as server:
        made = Standalone(server.address, {"bench": POLICY}, IDENTITY)
        words = [sys.executable, "-m", "bench.proxy_load", "origin", HOME, str(PORT)]
        origin = subprocess.Popen(words, stdout=subprocess.PIPE)
        try:
            assert origin.stdout is not None
            origin.stdout.readline()
            made.up()
            return measure(made, seconds, idle)
        finally:
            origin.kill()
            origin.communicate()
            made.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="within a minute")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each line")
    args = parser.parse_args()
    missed: list[int] = []
    os.sched_setaffinity(0, {0})
    in_namespace(lambda: missed.append(run(2.0 if args.short else args.seconds, 1000)))
    goals = sum(line.goal is not None for line in (*LINES, IDLE))
    print(f"{goals - missed[0]} of {goals} goals met")
    return 1 if missed[0] else 0


if __name__ == "__main__":
    sys.exit(main())
