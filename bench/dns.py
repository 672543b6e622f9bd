"""The guard beside other resolvers, in one run on one machine: `python -m bench.dns`.

Every server gets CPU 1 to itself, as far as the machine lets it; load (dnsperf) and authority
(nsd) have CPU 0. All enforce an allowlist of 1000 names: the guard with its policy core, ledger
records, tunnel budgets and per-client limits on (only the limit on misses per second is lifted,
for it would end the measurement), unbound and dnsmasq with their own zone options, dnslib's own
server with none. CPU microseconds per query is the figure that neighbours disturb least.

Needs Debian's dnsperf, nsd, unbound and dnsmasq-base. Exit status 1 while a goal is not met.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVICES = 1000
POPULAR = 200
ZONE = "bench.net"
NODE = "bench"
FRESH_MS = 600_000
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A running server; `latency` holds microseconds per query at a fixed rate."""

    name: str
    port: int
    pid: int
    qps: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    latency: dict[str, list[float]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(argv: list[str], cpu: int, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program on one CPU; its output goes to FOLDER/NAME.log."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(cpu), *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def write_load(folder: Path, seconds: float) -> None:
    """Query files for dnsperf: hot, deny and mix (70 % popular, 20 % denied, 10 % never asked)."""
    source = random.Random(1)
    popular = [f"pop{i}.svc{i}.{ZONE}" for i in range(POPULAR)]
    weights = [1 / (i + 1) for i in range(POPULAR)]
    hot = source.choices(popular, weights, k=20_000)
    denied = [f"no{i}.denied{i % 100}.org" for i in range(2000)]
    (folder / "hot").write_text("".join(f"{name} A\n" for name in hot))
    (folder / "deny").write_text("".join(f"{name} A\n" for name in source.choices(denied, k=20_000)))
    mix = []
    for i in range(int(160_000 * (seconds + 2))):
        kind = source.random()
        if kind < 0.7:
            mix.append(hot[i % len(hot)])
        elif kind < 0.9:
            mix.append(source.choice(denied))
        else:
            mix.append(f"u{i:x}.svc{i % SERVICES}.{ZONE}")
    (folder / "mix").write_text("".join(f"{name} A\n" for name in mix))


def write_zone(folder: Path, port: int) -> None:
    records = [
        f"{ZONE}. 300 IN SOA ns.{ZONE}. h.{ZONE}. 1 3600 600 86400 30",
        f"{ZONE}. 300 IN NS ns.{ZONE}.",
    ]
    records += [f"ns.{ZONE}. 300 IN A 192.0.2.1"]
    for i in range(SERVICES):
        records.append(f"*.svc{i}.{ZONE}. 300 IN A 198.51.100.{i % 250 + 1}")
    for i in range(POPULAR):
        if i % 4:
            records.append(f"pop{i}.svc{i}.{ZONE}. 300 IN A 198.51.100.{i % 250 + 1}")
        else:
            records.append(f"pop{i}.svc{i}.{ZONE}. 300 IN CNAME edge.svc{i}.{ZONE}.")
    (folder / "zone").write_text("\n".join(records) + "\n")
    (folder / "nsd.conf").write_text(
        f"""server:
  ip-address: 127.0.0.1@{port}
  username: ""
  zonesdir: "{folder}"
  pidfile: "{folder}/nsd.pid"
  database: ""
  xfrdfile: "{folder}/xfrd"
  zonelistfile: "{folder}/zonelist"
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: {folder}/zone
"""
    )


def unbound_config(folder: Path, port: int, authority: int) -> Path:
    lines = [
        "server:", f"  interface: 127.0.0.1@{port}", "  num-threads: 1", "  do-daemonize: no",
        '  chroot: ""', '  username: ""', '  pidfile: ""', f'  directory: "{folder}"', "  use-syslog: no",
        "  do-not-query-localhost: no", '  module-config: "iterator"', "  access-control: 127.0.0.0/8 allow",
        "  outgoing-range: 4096", "  num-queries-per-thread: 2048", "  msg-cache-size: 64m",
        "  rrset-cache-size: 128m", '  local-zone: "." always_nxdomain',
    ]  # fmt: skip
    lines += [f'  local-zone: "svc{i}.{ZONE}" always_transparent' for i in range(SERVICES)]
    lines += [
        "remote-control:", "  control-enable: no", "forward-zone:", f'  name: "{ZONE}"',
        f"  forward-addr: 127.0.0.1@{authority}",
    ]  # fmt: skip
    path = folder / "unbound.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def dnsmasq_config(folder: Path, port: int, authority: int) -> Path:
    lines = [
        f"port={port}", "listen-address=127.0.0.1", "bind-interfaces", "no-resolv", "no-hosts",
        "cache-size=10000", "keep-in-foreground", "user=root", "pid-file", "dns-forward-max=4096",
    ]  # fmt: skip
    lines += [f"server=/svc{i}.{ZONE}/127.0.0.1#{authority}" for i in range(SERVICES)]
    lines.append("address=/#/")  # NXDOMAIN for everything else
    path = folder / "dnsmasq.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def run_dnslib(port: int, authority: int) -> None:
    """dnslib's own forwarding server, as its documentation shows it."""
    from dnslib.proxy import ProxyResolver
    from dnslib.server import DNSLogger, DNSServer

    logger = DNSLogger("-request,-reply,-truncated,-error,-recv,-send,-data")
    DNSServer(ProxyResolver("127.0.0.1", authority, 5), port=port, address="127.0.0.1", logger=logger).start()


def run_ledger(folder: Path) -> None:
    from exeat.ledger.daemon import LedgerSettings, serve

    serve(LedgerSettings(folder / "state", folder / "run", NODE, {os.getuid(): "gateway"}), lambda: None)


def run_guard(folder: Path, authority: int) -> None:
    from exeat.dns import responder
    from exeat.dns.guard import GuardSettings, serve

    responder.MISS_RATE = responder.MISS_BURST = 1e9
    registrable = lambda host: ".".join(host.rsplit(".", 3)[-3:])  # noqa: E731  as if ZONE were a suffix
    uid = os.getuid()
    upstreams = (("127.0.0.1", authority),)
    serve(GuardSettings(folder / "run", upstreams, NODE, uid, uid, registrable=registrable), lambda: None)


@contextmanager
def guard(folder: Path, authority: int) -> Iterator[Server]:
    """The guard and the ledger as processes; this one plays control."""
    from exeat.ledger.ipc import Channel, listen
    from exeat.policy.document import load_policy
    from exeat.policy.model import Subject
    from exeat.policy.snapshot import Snapshot

    for name in ("ledger", "control", "guard"):
        (folder / "run" / name).mkdir(parents=True)
    listener = listen(folder / "run" / "control" / "hub.sock")
    listener.setblocking(True)
    listener.settimeout(20)
    names = ", ".join(f".svc{i}.{ZONE}" for i in range(SERVICES))
    policy = f"{{egress: v1, project: p, posture: allowlist, allow: [{{to: [{names}]}}]}}"
    document = load_policy(policy, file="bench", suffixes=_NoSuffixes())
    message = Snapshot.message(
        generation=1, fresh_ms=FRESH_MS, documents=[document], projects={"p": document.digest},
        treat_as_public=["198.51.100.0/24"],
    )  # fmt: skip
    subject = Subject("p", "a", "j", "", NODE)
    me = [sys.executable, "-m", "bench.dns", "--folder", str(folder), "--authority", str(authority)]
    with running([*me, "--child", "ledger"], 0, folder, "ledger"):
        wait_until((folder / "run" / "ledger" / "ledger.sock").exists)
        with running([*me, "--child", "guard"], 1, folder, "guard") as process:
            sock, _ = listener.accept()
            channel = Channel(sock)
            sock.settimeout(20)
            channel.next()
            channel.send(message)
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("127.0.0.1", 0))
            udp.setblocking(False)
            jail = {
                "t": "jail.add",
                "jail": "j",
                "subject": subject._asdict(),
                "sockets": ["dnsu4"],
                "hold_ms": 1,
            }
            channel.send(jail, (udp.fileno(),))
            yield Server("exeat", udp.getsockname()[1], process.pid)
            channel.close()
            udp.close()
    listener.close()


class _NoSuffixes:
    def is_broad(self, name: str) -> bool:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("bench: a server does not start; see its log")
        time.sleep(0.02)


def answers(port: int) -> bool:
    """Whether the server answers the name that all let through."""
    question = b"\x04pop1\x04svc1\x05bench\x03net\0\0\x01\0\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        sock.connect(("127.0.0.1", port))
        try:
            sock.send(b"\0\x01\x01\0\0\x01\0\0\0\0\0\0" + question)
            reply = sock.recv(4096)
        except OSError:
            return False
        return reply[3] & 15 == 0 and reply[7] > 0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def dnsperf(server: Server, file: Path, seconds: float, *more: str) -> str:
    argv = [
        "taskset", "-c", "0", "dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", str(file),
        "-l", str(seconds), "-c", "10", "-q", "100", "-t", "2", *more,
    ]  # fmt: skip
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def measure(server: Server, load: str, folder: Path, seconds: float) -> None:
    before = cpu_seconds(server.pid)
    out = dnsperf(server, folder / load, seconds)
    used = cpu_seconds(server.pid) - before
    completed = int(re.findall(r"Queries completed:\s+(\d+)", out)[0])
    server.lost[load] = int(re.findall(r"Queries lost:\s+(\d+)", out)[0])
    server.qps[load] = float(re.findall(r"Queries per second:\s+([\d.]+)", out)[0])
    server.cpu[load] = used / max(1, completed) * 1e6


def measure_latency(server: Server, load: str, folder: Path, seconds: float, rate: int) -> None:
    out = dnsperf(server, folder / load, seconds, "-Q", str(rate), "-v")
    found = re.findall(r"^> \S+ \S+ \S+ ([\d.]+)$", out, re.MULTILINE)
    server.latency[load] = sorted(float(each) * 1e6 for each in found)


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def bench_one(server: Server, folder: Path, seconds: float, rounds: int) -> Server:
    wait_until(lambda: answers(server.port))
    for load in ("hot", "deny"):  # caches fill and names are seen for the first time
        dnsperf(server, folder / load, 1)
    per_round: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for load in ("hot", "deny"):
            measure(server, load, folder, seconds)
            per_round.setdefault(load, []).append((server.cpu[load], server.qps[load]))
    measure(server, "mix", folder, seconds)
    for load, found in per_round.items():
        server.cpu[load] = statistics.median(cpu for cpu, _ in found)
        server.qps[load] = statistics.median(qps for _, qps in found)
    rate = 1000 if server.name == "dnslib" else 5000
    for load in ("hot", "deny"):
        measure_latency(server, load, folder, seconds, rate)
    return server


def table(servers: list[Server]) -> None:
    print("| server | hot q/s (CPU us) | deny | mix | lost | hot p50/p99 us | deny p99 us |")
    print("|---|---|---|---|---|---|---|")
    for one in servers:
        cells = [f"{one.qps[load] / 1000:.1f}k ({one.cpu[load]:.1f})" for load in ("hot", "deny", "mix")]
        hot, deny = one.latency["hot"], one.latency["deny"]
        p50, p99 = percentile(hot, 0.5), percentile(hot, 0.99)
        lost = "/".join(str(one.lost[load]) for load in ("hot", "deny", "mix"))
        cells += [lost, f"{p50:.0f}/{p99:.0f}", f"{percentile(deny, 0.99):.0f}"]
        print(f"| {one.name} | {' | '.join(cells)} |")


def goals(servers: dict[str, Server]) -> list[tuple[str, float, str, bool]]:
    """(what, measured, target, met). Ratios are of CPU time per query: more than 1 is cheaper."""
    mine = servers["exeat"]
    found: list[tuple[str, float, str, bool]] = []
    for other, target in (("unbound", 1.0), ("dnsmasq", 1.5), ("dnslib", 40.0)):
        if other in servers:
            ratio = servers[other].cpu["hot"] / mine.cpu["hot"]
            found.append((f"cached, against {other}", ratio, f">= {target}x", ratio >= target))
    if "unbound" in servers:
        ratio = servers["unbound"].cpu["mix"] / mine.cpu["mix"]
        found.append(("mix with 10 % misses, against unbound", ratio, ">= 0.9x", ratio >= 0.9))
    for load, limit in (("hot", 200.0), ("deny", 150.0)):
        p99 = percentile(mine.latency[load], 0.99)
        found.append((f"{load} p99 at 5000 q/s, us", p99, f"<= {limit:.0f}", p99 <= limit))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="comma-separated servers; exeat is always there")
    parser.add_argument("--child", choices=("guard", "ledger", "dnslib"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--authority", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "guard":
        run_guard(args.folder, args.authority)
    elif args.child == "ledger":
        run_ledger(args.folder)
    elif args.child == "dnslib":
        run_dnslib(args.port, args.authority)
    else:
        return compare(args.seconds, args.rounds, set(filter(None, args.only.split(","))))
    return 0


def compare(seconds: float, rounds: int, only: set[str]) -> int:
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    os.environ["PATH"] = search
    missing = [tool for tool in ("dnsperf", "nsd", "taskset") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"bench: needs {' '.join(missing)}")
    done: dict[str, Server] = {}
    with tempfile.TemporaryDirectory(prefix="exeat-bench-") as text, ExitStack() as stack:
        folder, authority = Path(text), free_port()
        write_load(folder, seconds)
        write_zone(folder, authority)
        stack.enter_context(running(["nsd", "-d", "-c", str(folder / "nsd.conf")], 0, folder, "nsd"))
        wait_until(lambda: answers(authority))
        with guard(folder, authority) as server:
            done["exeat"] = bench_one(server, folder, seconds, rounds)
        me = [sys.executable, "-m", "bench.dns", "--child", "dnslib", "--authority", str(authority)]
        others = {
            "unbound": lambda port: ["unbound", "-d", "-c", str(unbound_config(folder, port, authority))],
            "dnsmasq": lambda port: ["dnsmasq", "-C", str(dnsmasq_config(folder, port, authority))],
            "dnslib": lambda port: [*me, "--port", str(port)],
        }
        for name, argv in others.items():
            if (only and name not in only) or (name != "dnslib" and shutil.which(name) is None):
                continue
            port = free_port()
            with running(argv(port), 1, folder, name) as process:
                done[name] = bench_one(Server(name, port, process.pid), folder, seconds, rounds)
    table(list(done.values()))
    found = goals(done)
    for what, value, target, met in found:
        print(f"{'met    ' if met else 'NOT met'} {what}: {value:.2f} ({target})")
    count = sum(met for *_, met in found)
    print(f"{count} of {len(found)} goals met")
    return 0 if count == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
