"""What a yes would let out, before it is said: bytes, their cost at most, a flow that newly passes, and what
is in the payload that the agent showed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.console import explored
from exeat.appliance.console.lease_view import NO_NETWORK, Payload, RequestRow, request_row, visible
from exeat.appliance.errors import RefusedError
from exeat.appliance.prices import tariff
from exeat.policy.errors import MalformedError
from exeat.policy.names import parse_host
from exeat.policy.tariff import Wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exeat.appliance.console.routing import Call

_NANO: Final = 1_000_000_000


def shown(call: Call, row: Mapping[str, Any], flows: Iterable[Mapping[str, Any]] = ()) -> RequestRow:
    """A request with what is known of it here."""
    made = request_row(row, flows, passkey=bool(call.console.config.passkeys.rp_id))
    more: dict[str, Any] = {"cost_usd": cost_usd(call, made)}
    note = call.console.payloads.of(made.id)
    if note is not None:
        more["payload"] = _payload(note)
        more["classification"] = [f"line {hit['line']}: {visible(hit['kind'])}" for hit in note["hits"]]
    flags = [*made.flags, "secrets"] if note is not None and note["hits"] else made.flags
    return made.model_copy(update={"preview": made.preview.model_copy(update=more), "flags": flags})


def cost_usd(call: Call, row: RequestRow) -> float | None:
    """At most: all bytes the dearer way. None without a limit, or a price for this place."""
    prices, most = tariff(call.console.config.prices), row.preview.bytes
    if prices is None or most is None:
        return None
    try:
        host = parse_host(row.dest.host.lstrip(".*"))
    except MalformedError:
        return None
    address = None if isinstance(host, str) else host
    ways = (Wire(most, 0), Wire(0, most))
    costs = [prices.cost(host, address, row.dest.port, way) for way in ways]
    return max((cost for cost in costs if cost is not None), default=0) / _NANO if None not in costs else None


async def with_witness(call: Call, row: Mapping[str, Any], made: RequestRow) -> RequestRow:
    """With a flow that it would newly let out. Without one where that cannot be found out now."""
    if made.dest.protocol in NO_NETWORK:  # it lets nothing out
        return made
    try:
        policy = (await call.control("policy.show", project=row["project"]))["policy"]
        found = await explored.ask(
            call,
            "preview",
            policy=policy["canonical"],
            baseline=policy["baseline"],
            to=row["to"],
            ports=row["ports"],
            protocols=row["proto"],
            speech=row["speech"],
        )
    except RefusedError as error:
        text = f"{made.preview.widens}; what it newly opens could not be found out: {error}"
    else:
        text = f"{made.preview.widens}; {found['text']}"
    return made.model_copy(update={"preview": made.preview.model_copy(update={"widens": text})})


def _payload(note: Mapping[str, Any]) -> Payload:
    return Payload(
        name=visible(note["name"]),
        bytes=note["bytes"],
        sha256=note["sha256"],
        text=note["text"],
        looked=note["looked"],
        note=note["note"],
        head=[visible(line) for line in note["head"]],
    )
