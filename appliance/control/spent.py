"""What was spent before: counters of budgets and leases, out of the ledger.

The counters live in the gateway, where they are charged, and die with it. A gateway process that
starts is told what the records say was spent in the windows that still run. A flow that nobody
closed counts with everything it had reserved, as upload: more than it used, never less. What flows
have cost is what their records say, by the prices of then.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from exeat.ledger.reader import ReaderError
from exeat.ledger.records import Kind
from exeat.ledger.since import gists_since
from exeat.policy.addresses import from_packed
from exeat.policy.errors import MalformedError
from exeat.policy.model import Request, Subject
from exeat.policy.names import recorded_host
from exeat.policy.rules import ALWAYS
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from exeat.ledger.since import Gist
    from exeat.policy.snapshot import Snapshot
    from exeat.policy.tariff import Price, Tariff

RETRY_S = 1.0
GRAIN_MS = 1000  # no budget counts in a shorter window
COUNTERS = ("connections", "lookups", "bytes_up", "bytes_down", "nano_usd")
NANO = 1000  # nano-USD in one of the micro-USD that budgets count


@dataclass
class _Open:
    """A flow without a close so far."""

    project: str
    budgets: tuple[str, ...]
    lease: str
    at_ms: int
    reserved: int = 0
    bytes_in: int = 0
    price: Price | None = None  # of now: no record says what an open flow costs


@dataclass
class Spent:
    """Sums by project, budgets and second; and by lease."""

    rows: dict[tuple[str, tuple[str, ...], int], dict[str, int]] = field(default_factory=dict)
    leases: dict[str, dict[str, int]] = field(
        default_factory=lambda: defaultdict(lambda: {"bytes": 0, "uses": 0})
    )

    def add(self, flow: _Open, at_ms: int, **amounts: int) -> None:
        if not flow.budgets:
            return
        key = (flow.project, flow.budgets, at_ms - at_ms % GRAIN_MS)
        row = self.rows.setdefault(key, dict.fromkeys(COUNTERS, 0))
        for counter, amount in amounts.items():
            row[counter] += amount

    def message(self, role: str) -> dict[str, Any]:
        """The hub message. Lookups are charged by the guard, everything else by the proxy."""
        mine = ("lookups",) if role == "guard" else ("connections", "bytes_up", "bytes_down", "usd")
        rows = [
            {
                "project": project,
                "budgets": list(budgets),
                "at_ms": at_ms,
                **{name: row[name] for name in mine},
            }
            for (project, budgets, at_ms), row in self._in_dollars()
            if any(row[name] for name in mine)
        ]
        leases = [] if role == "guard" else [{"lease": name, **used} for name, used in self.leases.items()]
        return {"t": "spent", "rows": rows, "leases": leases}

    def _in_dollars(self) -> Iterator[tuple[tuple[str, tuple[str, ...], int], dict[str, int]]]:
        """The rows in the order of time, with `usd`. What is less than a micro-USD is carried on to the next
        row of the same budgets, and counted whole in the first: a start forgets nothing."""
        carried: dict[tuple[str, tuple[str, ...]], int] = defaultdict(lambda: NANO - 1)
        for key, row in sorted(self.rows.items(), key=lambda item: item[0][2]):
            micro, carried[key[:2]] = divmod(carried[key[:2]] + row["nano_usd"], NANO)
            yield key, {**row, "usd": micro}


class Since(NamedTuple):
    """From when on records count, in milliseconds: those of `budgets`; and those of leases, `earliest`."""

    budgets: int
    earliest: int


async def spent_before(
    ledger: Path, snapshot: Snapshot, since: Since, tariff: Tariff | None, role: str
) -> dict[str, Any]:
    """The hub message for a gateway process that has just started. While the ledger cannot be read there
    is no answer, and the process opens nothing."""

    def read() -> dict[str, Any]:
        records = gists_since(ledger, since.earliest * 1_000_000)
        return replay(records, snapshot, since.budgets, tariff).message(role)

    while True:
        try:
            return await asyncio.to_thread(read)
        except (OSError, ValueError, ReaderError) as error:
            print(f"control: the ledger cannot be read for budgets: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(RETRY_S)


def longest_window_ms(snapshot: Snapshot) -> int:
    """The longest window that any budget in force counts in (0: no budgets)."""
    return max(
        (
            limit.window_ms
            for policy in snapshot.policies.values()
            for budget in policy.document.budgets.values()
            for limit in budget.limits
        ),
        default=0,
    )


def replay(records: Iterable[Gist], snapshot: Snapshot, since_ms: int, tariff: Tariff | None = None) -> Spent:
    """Sum up `records` (oldest first); those of budgets from `since_ms` on, those of leases all.

    Records from before `since_ms` may be left out but for the flows that went on (`ledger.since`),
    and as far as no lease that still counts was used by them.
    """
    spent = Spent()
    flows: dict[bytes, _Open] = {}
    for record in records:
        at_ms = record.t_real_ns // 1_000_000
        if record.kind is Kind.OPEN:
            flow = _opened(record, snapshot, at_ms)
            flow.price = _price(record, tariff) if tariff is not None else None
            flows[record.flow] = flow
            if flow.lease:
                spent.leases[flow.lease]["uses"] += 1
            if at_ms >= since_ms:
                spent.add(flow, at_ms, connections=1)
        elif record.kind is Kind.DNS and record.who.decision == "allow" and at_ms >= since_ms:
            spent.add(_opened(record, snapshot, at_ms), at_ms, lookups=max(1, record.times))
        elif record.flow in flows:
            _follow(spent, flows, record, at_ms, since_ms)
    for flow in flows.values():
        up, price = max(flow.reserved - flow.bytes_in, 0), flow.price
        cost = price.per_flow + price.reserve(max(flow.reserved, flow.bytes_in)) if price is not None else 0
        _settle(spent, flow, (up, flow.bytes_in, cost), flow.at_ms, since_ms)
    return spent


def _price(record: Gist, tariff: Tariff) -> Price | None:
    dest = record.who.dest
    if dest is None:
        return None
    try:
        host = recorded_host(dest.host)
    except MalformedError:
        return None
    return tariff.price(host, from_packed(dest.ip) if dest.ip else None, dest.port)


def _follow(spent: Spent, flows: dict[bytes, _Open], record: Gist, at_ms: int, since_ms: int) -> None:
    flow = flows[record.flow]
    flow.reserved = max(flow.reserved, record.reserved)
    flow.bytes_in = max(flow.bytes_in, record.bytes_in)
    flow.at_ms = at_ms
    if record.kind is Kind.CLOSE:
        del flows[record.flow]
        used = (record.bytes_out, record.bytes_in, record.cost_nano_usd)
        _settle(spent, flow, used, at_ms, since_ms)


def _settle(spent: Spent, flow: _Open, used: tuple[int, int, int], at_ms: int, since_ms: int) -> None:
    """`used`: bytes up and down, nano-USD."""
    up, down, cost = used
    if flow.lease:
        spent.leases[flow.lease]["bytes"] += up + down
    if at_ms >= since_ms:
        spent.add(flow, at_ms, bytes_up=up, bytes_down=down, nano_usd=cost)


def _opened(record: Gist, snapshot: Snapshot, at_ms: int) -> _Open:
    """Which budgets the policy in force now would charge for it."""
    who, dest = record.who, record.who.dest
    flow = _Open(who.project, (), who.lease_id, at_ms, reserved=record.reserved)
    if dest is None:
        return flow
    subject = Subject(who.project, who.agent, who.job, who.episode, who.node)
    try:
        host = recorded_host(dest.host)
    except MalformedError:
        return flow
    if record.kind is not Kind.DNS:
        resolved = (from_packed(dest.ip),) if dest.ip else ()
        request = Request(subject, host, dest.port, dest.protocol or "tcp", resolved)
        flow.budgets = snapshot.decide(request, at_ms, Usage()).budgets
    elif isinstance(host, str):
        flow.budgets = snapshot.decide_lookup(subject, host, at_ms, Usage()).budgets
    document = snapshot.document_for(subject)
    if not flow.budgets and document is not None:  # let out by a lease or a policy that is no more
        flow.budgets = tuple(name for name in ALWAYS if name in document.budgets)
    return flow
