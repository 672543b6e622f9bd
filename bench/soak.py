"""A soak: `python -m bench.soak [--short]`, as root. Exit 0 when nothing leaks, 1 when something does.

`exeat up` with everything on holds 10,000 idle tunnels while 200 new ones a second come and go, for 10
minutes. Looked at meanwhile: memory and descriptors of every process, sockets, conntrack entries and
elements of nft sets of its network namespace. Then all clients leave, and what they took must be given
back; and the ledger must hold each flow once opened and once closed, with the bytes that passed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import exeat_alone
from bench.loader import ECHO, Loader, LoadError, compiled, prepare, pss_kib, room_for_tunnels
from bench.peers import ORIGIN
from tests.support.proxy_world import enter_namespace

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.exeat_alone import Exeat

    from exeat.ledger.records import Record

PROCESSES = ("proxy", "guard", "ledger", "control", "warden")
BYTES = 64  # each way, of every tunnel
CONNTRACK = Path("/proc/sys/net/netfilter/nf_conntrack_count")
SETTLING_S = 60
KIB_PER_TUNNEL, KIB_SLACK = 0.02, 1536  # growth that is no leak: allocators keep some, caches fill
# The ledger remembers so many settled flows (ledger/flows.py); until it does, it grows by each.
REMEMBERED, KIB_PER_REMEMBERED = 65_536, 0.9
SLACK = 16  # descriptors, sockets: connections between our own processes come and go


class Sample(NamedTuple):
    """What is held at one moment. `kib` and `fds` by process."""

    kib: dict[str, int]
    fds: dict[str, int]
    sockets: int
    conntrack: int
    set_elements: int


class Check(NamedTuple):
    """One line of the table."""

    name: str
    found: str
    allowed: str
    met: bool


class Load(NamedTuple):
    """How many idle tunnels, how many new ones a second, how long."""

    idle: int
    rate: int
    seconds: float

    @property
    def passing(self) -> int:
        return int(self.rate * self.seconds)


def take(exeat: Exeat) -> Sample:
    """Look at everything once. From a thread of the namespace, hence `thread-self`."""
    pids = {name: exeat.made.pid_of(name) for name in PROCESSES}
    sockets = Path("/proc/thread-self/net/sockstat").read_text()
    inuse = re.search(r"^TCP: inuse (\d+)", sockets, re.MULTILINE)
    return Sample(
        {name: pss_kib([pid]) for name, pid in pids.items()},
        {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()},
        int(inuse.group(1)) if inuse else 0,
        int(CONNTRACK.read_text()) if CONNTRACK.exists() else 0,
        _set_elements(),
    )


def _set_elements() -> int:
    done = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["nftables"]
    return sum(len(each["set"].get("elem", [])) for each in found if "set" in each)


def leaks(
    before: Sample, busy: Sample, late: Sample, after: Sample, *, warmed: int, passed: int
) -> list[Check]:
    """Judge four looks: none connected, half way, the end of the load, all gone again.

    `warmed` tunnels were settled before `busy`, and `passed` more before `late`, which differs in
    nothing else.
    """
    checks = []
    for name in PROCESSES:
        room = KIB_SLACK + KIB_PER_TUNNEL * passed
        if name == "ledger":
            room += KIB_PER_REMEMBERED * min(passed, max(0, REMEMBERED - warmed))
        grown = late.kib[name] - busy.kib[name]
        checks.append(_at_most(f"{name}: KiB grown under load", grown, int(room)))
    for name in PROCESSES:
        grown = late.fds[name] - busy.fds[name]
        checks.append(_at_most(f"{name}: descriptors grown under load", grown, SLACK))
        checks.append(_at_most(f"{name}: descriptors kept", after.fds[name] - before.fds[name], SLACK))
    for what in ("sockets", "conntrack", "set_elements"):
        kept = getattr(after, what) - getattr(before, what)
        checks.append(_at_most(f"{what.replace('_', ' ')} kept", kept, SLACK))
    return checks


def evidence(records: Iterable[Record], tunnels: int, verified: bool) -> list[Check]:
    """Judge the ledger: as many flows as there were tunnels, each opened, closed and counted once."""
    opened: Counter[bytes] = Counter()
    closed: Counter[bytes] = Counter()
    wrong_bytes = lost = 0
    for record in records:
        if record.kind is Kind.OPEN:
            opened[record.flow] += 1
        elif record.kind is Kind.CLOSE:
            closed[record.flow] += 1
            wrong_bytes += (record.bytes_out, record.bytes_in) != (BYTES, BYTES)
        elif record.kind in (Kind.ORPHAN, Kind.GAP, Kind.DENY):
            lost += 1
    return [
        _exactly("flows opened", len(opened), tunnels),
        _exactly("flows opened twice", opened.total() - len(opened), 0),
        _exactly("flows never closed", len(opened.keys() - closed.keys()), 0),
        _exactly("flows closed twice or never opened", (closed - opened).total(), 0),
        _exactly("closes with other byte counts", wrong_bytes, 0),
        _exactly("orphans, gaps and denials", lost, 0),
        Check("ledger verify", "ok" if verified else "failed", "ok", verified),
    ]


def _at_most(name: str, found: int, allowed: int) -> Check:
    return Check(name, f"{found:,}", f"<= {allowed:,}", found <= allowed)


def _exactly(name: str, found: int, wanted: int) -> Check:
    return Check(name, f"{found:,}", f"{wanted:,}", found == wanted)


def soak(loader: Loader, load: Load) -> list[Check]:
    core = (os.cpu_count() or 1) - 1
    with loader.origin(*ORIGIN), exeat_alone.started("connect", core) as exeat:
        say(f"warming up, then {load.idle:,} idle tunnels ...")
        warmed = _pass(loader, exeat, load._replace(seconds=2))
        before = take(exeat)
        with loader.running("idle", exeat.tunnels(ECHO), load.idle, 0, size=BYTES) as idle:
            idle.wait_begin()
            idling = take(exeat)
            half = load._replace(seconds=load.seconds / 2)
            say(f"{load.rate} new tunnels a second for {half.seconds:g} s, which fills what is bounded ...")
            warmed += _pass(loader, exeat, half)
            busy = _settled(exeat, idling)
            say(f"and for {half.seconds:g} s more ...")
            passed = _pass(loader, exeat, half)
            late = _settled(exeat, idling)
            still_up = idle.result()["up"]
        say("all clients are gone; waiting for what they held ...")
        after = _settled(exeat, before)
        _show(before, idling, busy, late, after)
        exeat.made.down()
        say("reading the ledger ...")
        state = exeat.made.base / "state"
        verified = exeat.made.exeat("ledger", "verify", "--state-dir", str(state)).returncode == 0
        return [
            _exactly("idle tunnels that stayed", still_up, load.idle),
            *leaks(before, busy, late, after, warmed=warmed, passed=passed),
            *evidence(exeat.made.records(), warmed + passed + load.idle, verified),
        ]


def _pass(loader: Loader, exeat: Exeat, load: Load) -> int:
    """New tunnels at the load's rate, begun when due: how many; LoadError when one fails."""
    with loader.running("rate", exeat.tunnels(ECHO), load.rate, load.seconds, size=BYTES) as running:
        running.wait_begin()
        found = running.result(load.seconds)
    if found["failed"]:
        raise LoadError(f"{found['failed']} of {load.passing} tunnels failed: {found['first_failure']}")
    return int(found["done"])


def _settled(exeat: Exeat, wanted: Sample) -> Sample:
    """The first look at which no more descriptors and sockets are held than there were, or the last one."""
    deadline = time.monotonic() + SETTLING_S
    while True:
        found = take(exeat)
        given_back = (
            found.fds["proxy"] <= wanted.fds["proxy"] + SLACK and found.sockets <= wanted.sockets + SLACK
        )
        if given_back or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _show(*samples: Sample) -> None:
    """How it went, for people: a row for each thing, a column for each look."""
    heads = ("none", "idle up", "half way", "at the end", "all gone")
    print(f"{'held':<26}" + "".join(f"{head:>14}" for head in heads))
    for name in PROCESSES:
        print(f"{name + ', KiB':<26}" + "".join(f"{each.kib[name]:>14,}" for each in samples))
        print(f"{name + ', descriptors':<26}" + "".join(f"{each.fds[name]:>14,}" for each in samples))
    for what in ("sockets", "conntrack", "set_elements"):
        print(f"{what.replace('_', ' '):<26}" + "".join(f"{getattr(each, what):>14,}" for each in samples))
    print()


def report(checks: Sequence[Check]) -> int:
    for check in checks:
        verdict = "held" if check.met else "LEAK"
        print(f"{verdict}  {check.name:<42}{check.found:>12}   allowed {check.allowed}")
    print(f"{sum(check.met for check in checks)} of {len(checks)} held")
    return 0 if all(check.met for check in checks) else 1


def say(text: str) -> None:
    print(f"soak: {text}", file=sys.stderr, flush=True)


def run(load: Load) -> int:
    prepare()
    room = room_for_tunnels() - 2 * load.rate
    if load.idle > room:
        say(f"the limit of descriptors allows {room:,} idle tunnels here")
        load = load._replace(idle=room)
    with compiled() as loader:
        return report(soak(loader, load))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true", help="500 idle tunnels and 50 a second for 10 s")
    parser.add_argument("--idle", type=int, default=10_000, help="idle tunnels (10,000)")
    parser.add_argument("--rate", type=int, default=200, help="new tunnels a second (200)")
    parser.add_argument("--seconds", type=float, default=600, help="how long (600)")
    args = parser.parse_args()
    load = Load(500, 50, 10) if args.short else Load(args.idle, args.rate, args.seconds)
    os.sched_setaffinity(0, {0})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the appliance ends with us
    enter_namespace()
    try:
        return run(load)
    except LoadError as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
