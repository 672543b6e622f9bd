"""The questions `exeat lab demo` asks of the evidence (pure: records and log events in, findings out).

Three parties counted the same bytes without each other: the ledger (what the relay passed), the
kernel (TCP_INFO of both sockets, in each `close` record) and the far side (each origin's own
socket). For a flow that ended by itself all three must be equal. For one that was cut, or whose
relay was killed, the far side can only lie between what the ledger knows passed and what it had
reserved, and this says so instead of pretending.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exeat.ledger.records import Kind, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Event = dict[str, Any]


@dataclass(frozen=True)
class Flow:
    """One flow as the ledger tells it. `whole`: it ended by itself and its counts are exact."""

    ip: str
    port: int
    sni: str
    out: int
    into: int
    reserved: int
    whole: bool
    kernel: tuple[int, int, int, int]  # upstream out, in; client out, in


def flows(records: Iterable[Record]) -> list[Flow]:
    """Every flow that was opened, with its final counts; an open one without an end is an orphan."""
    opened: dict[bytes, Record] = {}
    ended: dict[bytes, Record] = {}
    reserved: dict[bytes, int] = defaultdict(int)
    for record in records:
        if record.kind is Kind.OPEN:
            opened[record.flow] = record
        elif record.kind in (Kind.CLOSE, Kind.ORPHAN):
            ended[record.flow] = record
        reserved[record.flow] = max(reserved[record.flow], record.reserved)
    return [_flow(opened[flow], ended.get(flow), reserved[flow]) for flow in opened]


def _flow(opened: Record, end: Record | None, reserved: int) -> Flow:
    dest = opened.dest
    if dest is None:
        raise ValueError("an open record without a destination")
    last = end or opened
    return Flow(
        ip=str(ipaddress.ip_address(dest.ip)),
        port=dest.port,
        sni=dest.sni,
        out=last.bytes_out,
        into=last.bytes_in,
        reserved=reserved,
        whole=last.kind is Kind.CLOSE and last.close_reason in ENDED_BY_THEMSELVES,
        kernel=(last.kernel_out, last.kernel_in, last.client_kernel_out, last.client_kernel_in),
    )


# The reasons of a close in which both sides had said all they had to say.
ENDED_BY_THEMSELVES = frozenset({"", "eof", "done"})


def against_kernel(found: Iterable[Flow]) -> dict[str, Any]:
    """Ledger and TCP_INFO of both sockets, flow by flow. `differ` holds what does not match."""
    whole = [flow for flow in found if flow.whole]
    differ = [
        {"to": f"{flow.ip}:{flow.port}", "ledger": [flow.out, flow.into], "kernel": list(flow.kernel)}
        for flow in whole
        if flow.kernel != (flow.out, flow.into, flow.out, flow.into)
    ]
    return {
        "flows": len(whole),
        "bytes_out": sum(flow.out for flow in whole),
        "bytes_in": sum(flow.into for flow in whole),
        "kernel_out": sum(flow.kernel[0] for flow in whole),
        "kernel_in": sum(flow.kernel[1] for flow in whole),
        "differ": differ,
    }


def against_origins(found: Iterable[Flow], events: Iterable[Event]) -> dict[str, Any]:
    """Ledger and the far side's own counts, as multisets per destination.

    `unexplained`: connections that carried a client's bytes and that no flow accounts for, and
    flows that ended by themselves and that no origin saw.
    """
    seen = [event for event in events if event["ev"] == "close"]
    carried = [event for event in seen if event["received"]]
    exact = Counter((f"{_end(f)}", f.out, f.into) for f in found if f.whole)
    cut = [flow for flow in found if not flow.whole]
    rest = []
    matched = 0
    for event in carried:
        key = (event["local"], event["received"], event["sent"])
        if exact[key] > 0:
            exact[key] -= 1
            matched += 1
        else:
            rest.append(event)
    bounded, unexplained = _bound(rest, cut)
    unexplained += [{"ledger": list(key)} for key, count in exact.items() for _ in range(count)]
    return {
        "connections": len(carried),
        "equal": matched,
        "within_bounds": bounded,
        "empty": len(seen) - len(carried),
        "unexplained": unexplained,
    }


def _end(flow: Flow) -> str:
    return f"[{flow.ip}]:{flow.port}" if ":" in flow.ip else f"{flow.ip}:{flow.port}"


def _bound(events: list[Event], cut: list[Flow]) -> tuple[int, list[Event]]:
    """Give each leftover connection a cut flow to the same place whose bounds hold it."""
    free = list(cut)
    unexplained: list[Event] = []
    for event in events:
        fits = next((f for f in free if _end(f) == event["local"] and _holds(f, event)), None)
        if fits is None:
            unexplained.append(
                {"origin": event["local"], "received": event["received"], "sent": event["sent"]}
            )
        else:
            free.remove(fits)
    return len(events) - len(unexplained), unexplained


def _holds(flow: Flow, event: Event) -> bool:
    """What the far side took in was paid for in advance; what came back is no more than it sent."""
    return bool(event["received"] <= flow.reserved and flow.into <= event["sent"])


def verdicts(records: Iterable[Record], host: str, port: int) -> tuple[bool, list[str]]:
    """Was a flow to `host`:`port` opened, and with which codes was one refused. Port 0: lookups."""
    opened = False
    codes: list[str] = []
    for record in records:
        dest = record.dest
        if dest is None or dest.host != host:
            continue
        if port == 0 and record.kind is Kind.DNS:
            opened |= record.decision == "allow"
            codes += [record.reason_code] * (record.decision != "allow")
        elif port and dest.port == port and record.kind in (Kind.OPEN, Kind.DENY):
            opened |= record.kind is Kind.OPEN
            codes += [record.reason_code] * (record.kind is Kind.DENY)
    return opened, codes


def lookups(events: Iterable[Event]) -> Counter[str]:
    """How often each name reached the name server, lower-cased."""
    return Counter(event["name"].lower() for event in events if event["ev"] == "query")


def leaks(asked: Mapping[str, int], forbidden: Iterable[str]) -> dict[str, int]:
    """The forbidden names, or names below them, that were asked for."""
    return {
        name: count
        for name, count in asked.items()
        if any(name == wrong or name.endswith("." + wrong) for wrong in forbidden)
    }
