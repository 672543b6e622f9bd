"""The questions `exeat lab demo` asks of the evidence (pure: records and log events in, findings out).

Three parties counted the same bytes without each other: the ledger (what the relay passed), the
kernel (TCP_INFO of both sockets, in each `close` record) and the far side (each origin's own
socket). Ledger and kernel must be equal in every close, all three in every flow that ended by
itself. When a flow was cut or its relay killed, bytes were on their way: the far side may then lie
between what the ledger knows passed and what it had reserved, and this says so.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exeat.ledger.reconcile import REWRITTEN
from exeat.ledger.records import Dest, Kind, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Event = dict[str, Any]
_ENDED_BY_ITSELF = "eof"  # the close reason when both sides had said all they had to say


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
    closed: bool
    rewritten: bool  # plain HTTP: the gateway sends a head of its own, so the client's bytes differ
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
        whole=last.kind is Kind.CLOSE and last.close_reason == _ENDED_BY_ITSELF,
        closed=last.kind is Kind.CLOSE,
        rewritten=opened.name_source in REWRITTEN,
        kernel=(last.kernel_out, last.kernel_in, last.client_kernel_out, last.client_kernel_in),
    )


def against_kernel(found: Iterable[Flow]) -> dict[str, Any]:
    """Ledger and TCP_INFO of both sockets, flow by flow. `differ` holds what does not match."""
    closed = [flow for flow in found if flow.closed]
    differ = [
        {"to": _end(flow), "ledger": [flow.out, flow.into], "kernel": list(flow.kernel)}
        for flow in closed
        if not _agrees(flow)
    ]
    return {
        "flows": len(closed),
        "bytes_out": sum(flow.out for flow in closed),
        "bytes_in": sum(flow.into for flow in closed),
        "kernel_out": sum(flow.kernel[0] for flow in closed),
        "kernel_in": sum(flow.kernel[1] for flow in closed),
        "differ": differ,
    }


def _agrees(flow: Flow) -> bool:
    client_out = flow.kernel[2] if flow.rewritten else flow.out
    return flow.kernel == (flow.out, flow.into, client_out, flow.into)


def against_origins(found: Iterable[Flow], events: Iterable[Event]) -> dict[str, Any]:
    """Ledger and the far side's own counts, as multisets per destination.

    `unexplained`: connections that carried a client's bytes and that no flow accounts for, and
    flows that ended by themselves and that no origin saw.
    """
    seen = [event for event in events if event["ev"] == "close"]
    carried = [event for event in seen if event["received"]]
    left = list(found)
    rest = []
    for event in carried:
        same = next((flow for flow in left if _equal(flow, event)), None)
        if same is None:
            rest.append(event)
        else:
            left.remove(same)
    bounded, unexplained = _bound(rest, [flow for flow in left if not flow.whole])
    unexplained += [{"ledger": [_end(flow), flow.out, flow.into]} for flow in left if flow.whole]
    return {
        "connections": len(carried),
        "equal": len(carried) - len(rest),
        "within_bounds": bounded,
        "empty": len(seen) - len(carried),
        "unexplained": unexplained,
    }


def _equal(flow: Flow, event: Event) -> bool:
    return (_end(flow), flow.out, flow.into) == (event["local"], event["received"], event["sent"])


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


def verdicts(records: Iterable[Record], host: str, port: int) -> tuple[str, list[str]]:
    """By which rule or lease was `host`:`port` let through ("" when it was not), and the codes of
    its refusals. Port 0: lookups.

    Without a host: refusals of what named no host that anyone could have meant.
    """
    opened = ""
    codes: list[str] = []
    for record in records:
        dest = record.dest or Dest()
        if dest.host != host:
            continue
        if host and port == 0 and record.kind is Kind.DNS:
            opened = opened or _by(record) * (record.decision == "allow")
            codes += [record.reason_code] * (record.decision != "allow")
        elif dest.port == port and record.kind in (Kind.OPEN, Kind.DENY):
            opened = opened or _by(record) * (record.kind is Kind.OPEN)
            codes += [record.reason_code] * (record.kind is Kind.DENY)
    return opened, codes


def _by(record: Record) -> str:
    if record.lease_id:
        return f"lease {record.lease_id}"
    return f"rule {record.rule_id}" if record.rule_id else record.reason_code


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
