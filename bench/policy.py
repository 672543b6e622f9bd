"""The policy core against its goals: `python -m bench.policy [--short]`.

Prints a table, then `N of M goals met`; exit 1 while one is not, or could not be measured. Peers
(Cedar, Z3) are measured in the same run, on the same policies, with everything pre-parsed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import policy_world as world
from bench.policy_swap import stalls

from exeat.policy.model import Address, Request, Subject
from exeat.policy.rules import Kind
from exeat.policy.snapshot import Snapshot
from exeat.policy.usage import Usage
from exeat.policy.widens import widens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exeat.policy.document import Document


class Row(NamedTuple):
    what: str
    value: float
    goal: float | None  # None: for information
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        if self.goal is None:
            return True
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def __str__(self) -> str:
        if self.goal is None:
            return f"{self.what:<62}{self.value:>10.2f} {self.unit}"
        bound = ">=" if self.at_least else "<="
        return (
            f"{self.what:<62}{self.value:>10.2f} {self.unit:<4}{bound} {self.goal:<6g}"
            f"{'met' if self.met else 'MISSED'}"
        )


def _microseconds(call: Callable[[Any], object], items: Iterable[Any]) -> list[float]:
    """How long each call takes, one by one; the clock's own cost (about 0.05 us) is in it."""
    clock = time.perf_counter_ns
    times = []
    for item in items:
        start = clock()
        call(item)
        times.append((clock() - start) / 1000)
    return sorted(times)


def _decisions(rules: int, asked: int, p50: float, p99: float) -> list[Row]:
    """`Snapshot.decide` with 1,000 leases and three budgets: places never asked for before, then warm."""
    document = world.document(rules)
    message = Snapshot.message(
        generation=1,
        fresh_ms=1,
        documents=[document],
        projects={world.PROJECT: document.digest},
        leases=world.leases(1000, rules),
    )
    snapshot, usage = Snapshot.load(message), Usage()
    # What a gateway does after a swap: a policy is not garbage, and walking it takes long.
    gc.collect()
    gc.freeze()

    def ask(request: Request) -> object:
        return snapshot.decide(request, world.NOW_MS, usage)

    def look_up(host: str) -> object:
        return snapshot.decide_lookup(who, host, world.NOW_MS, usage)

    who = Subject(world.PROJECT, "agent-1", "job-1", node="node-1")
    requests = world.requests(document, asked)
    cold = _microseconds(ask, requests)
    # The quietest of five passes: other processes of the machine are not what is measured.
    warm = min((_microseconds(ask, requests) for _ in range(5)), key=lambda times: _at(times, 0.5))
    lookups = _microseconds(look_up, [q.host for q in requests if isinstance(q.host, str)])
    gc.unfreeze()
    name = f"{rules:,} rules, leases and budgets"
    return [
        Row(f"decide p50, {name}", _at(warm, 0.50), p50, "us"),
        Row(f"decide p99, {name}", _at(warm, 0.99), p99, "us"),
        Row(f"decide p50, {name}, first asked", _at(cold, 0.50), None, "us"),
        Row(f"decide p99, {name}, first asked", _at(cold, 0.99), None, "us"),
        Row(f"lookup p50, {name}", _at(lookups, 0.50), None, "us"),
    ]


def _at(times: list[float], part: float) -> float:
    return times[min(len(times) - 1, int(len(times) * part))]


_LOAD = """
import gc, json, sys, time
from exeat.policy.snapshot import Snapshot
gc.disable()  # as the gateway's loader does while it compiles
message = json.load(open(sys.argv[1]))
start = time.process_time()
Snapshot.load(message)
took = time.process_time() - start
# Not ru_maxrss: that of a child begins with what its parent held.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([took, int(peak.split()[1]) / 1024]))
"""


def _loading(rules: int) -> list[Row]:
    """A snapshot message with one large policy, in a fresh process: verify, load, compile, bind."""
    document = world.document(rules)
    message = Snapshot.message(
        generation=1, fresh_ms=1, documents=[document], projects={world.PROJECT: document.digest}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.json"
        path.write_text(json.dumps(message), encoding="ascii")
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, str(path)], check=True, capture_output=True, text=True
        )
    seconds, mib = json.loads(done.stdout)
    scale = rules / 100_000
    return [
        Row(f"load and compile {rules:,} rules from JSON (CPU)", seconds, 6 * scale, "s"),
        Row(f"resident memory after it, {rules:,} rules", mib, 300, "MiB"),
    ]


def _swapping(rules: int) -> list[Row]:
    """What a running flow would wait at most while a gateway takes over a large policy."""
    first, second = stalls(rules)
    return [
        Row(f"longest stall of the loop while {rules:,} rules come in", first * 1e3, None, "ms"),
        Row(f"longest stall of the loop while {rules:,} rules are swapped", second * 1e3, None, "ms"),
    ]


def _cedar(asked: int) -> list[Row]:
    """Times slower than ours: Cedar on the rules of the same policy that it can express."""
    import cedarpy

    document = _plain(world.document(1000))
    policies = cedarpy.PolicySet.from_str("\n".join(map(_cedar_rule, document.rules)))
    entities = cedarpy.Entities.from_json_str("[]")
    requests = [q for q in world.requests(document, asked) if isinstance(q.host, str) or q.host.family == 4]
    snapshot = Snapshot.load(
        Snapshot.message(
            generation=1, fresh_ms=1, documents=[document], projects={world.PROJECT: document.digest}
        )
    )
    usage = Usage()

    def ask(request: Request) -> object:
        return snapshot.decide(request, world.NOW_MS, usage)

    def ask_cedar(request: dict[str, object]) -> object:
        return cedarpy.is_authorized(request, policies, entities)

    _microseconds(ask, requests)
    ours = _microseconds(ask, requests)
    theirs = _microseconds(ask_cedar, [_cedar_request(q) for q in requests])
    ratio = statistics.median(theirs) / statistics.median(ours)
    return [
        Row(
            f"times faster than Cedar ({statistics.median(theirs):.0f} us), 1,000 rules",
            ratio,
            100,
            "x",
            True,
        )
    ]


def _plain(document: Document) -> Document:
    """Only what Cedar and Z3 are given too: allow and deny by host or network, and port."""
    kept = [
        replace(rule, except_=(), agents=frozenset(), nodes=frozenset(), when=None, budget="")
        for rule in document.rules
        if rule.kind is not Kind.ASK
    ]
    return replace(document, rules=tuple(kept), budgets={})


def _cedar_rule(rule: world.Rule) -> str:
    scope = rule.to[0]
    if scope.net is not None:
        place = f'context has ip && context.ip.isInRange(ip("{scope.net}"))'
    elif scope.reach == "host":
        place = f'context has host && context.host == "{scope.name}"'
    else:
        place = f'context has host && context.host like "*.{scope.name}"'
        if scope.reach == "tree":
            place = (
                f'context has host && (context.host == "{scope.name}" || context.host like "*.{scope.name}")'
            )
    ports = " || ".join(f"(context.port >= {low} && context.port <= {high})" for low, high in rule.ports)
    effect = "forbid" if rule.kind is Kind.DENY else "permit"
    return f'@id("{rule.id}") {effect} (principal, action, resource) when {{ {place} && ({ports}) }};'


def _cedar_request(request: Request) -> dict[str, object]:
    context: dict[str, object] = {"port": request.port}
    if isinstance(request.host, Address):
        text = ".".join(map(str, request.host.packed()))
        context["ip"] = {"__extn": {"fn": "ip", "arg": text}}
    else:
        context["host"] = request.host
    return {"principal": 'A::"a"', "action": 'Action::"connect"', "resource": 'R::"r"', "context": context}


def _proofs(large: int) -> list[Row]:
    rows = []
    for rules, goal, unit, factor in ((1000, 100.0, "ms", 1e3), (large, 5.0 * large / 100_000, "s", 1.0)):
        document = world.document(rules)
        other = replace(document, rules=document.rules[1:]) if rules == large else world.document(rules, 9)
        for name, a, b in (("same or less", document, other), ("more", other, document)):
            start = time.perf_counter()
            widens(a, b, now_ms=world.NOW_MS)
            kind = "one rule changed" if rules == large else "two unlike policies"
            took = (time.perf_counter() - start) * factor
            rows.append(Row(f"widens, {rules:,} rules, {kind}, {name}", took, goal, unit))
    return rows


def _z3(pairs: int) -> list[Row]:
    from bench.policy_z3 import z3_widens

    ours = theirs = 0.0
    for seed in range(pairs):
        a = _plain(world.document(100 + 100 * (seed % 2), seed))
        cut = replace(a, rules=(*a.rules[:seed], *a.rules[seed + 1 :]))
        a, b = (a, cut) if seed % 3 else (cut, a)
        start = time.perf_counter()
        witness = widens(a, b, now_ms=world.NOW_MS)
        middle = time.perf_counter()
        other = z3_widens(a, b)
        theirs += time.perf_counter() - middle
        ours += middle - start
        if (witness is not None) is not other:
            raise SystemExit(f"pair {seed}: we say {witness}, Z3 says {other}")
    name = f"times faster than Z3 ({theirs / pairs * 1e3:.0f} ms a pair), 100-200 rules"
    return [Row(name, theirs / ours, 10, "x", True)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.policy", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a tenth of the large policy, fewer requests")
    short = parser.parse_args().short
    asked, large = (5_000, 10_000) if short else (50_000, 100_000)
    parts: list[Callable[[], list[Row]]] = [
        lambda: _decisions(1000, asked, 5, 20),
        lambda: _decisions(large, asked, 10, 50),
        lambda: _loading(large),
        lambda: _swapping(large),
        lambda: _cedar(200 if short else 1000),
        lambda: _proofs(large),
        lambda: _z3(4 if short else 20),
    ]
    met = total = 0
    for part in parts:
        for row in part():
            print(row, flush=True)
            if row.goal is not None:
                met += row.met
                total += 1
    print(f"{met} of {total} goals met")
    return 0 if met == total else 1


if __name__ == "__main__":
    sys.exit(main())
