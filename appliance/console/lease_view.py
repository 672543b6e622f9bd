"""Leases and requests as the API shows them, made from control's rows (`control/lease_rows.py`). Pure."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, Final, Literal

import idna

from exeat.appliance.console.models import Out
from exeat.policy.errors import MalformedError
from exeat.policy.names import parse_authority

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exeat.appliance.console.auth.principal import Principal

TTL_CHOICES_S: Final = (300, 900, 1800, 3600, 4 * 3600, 8 * 3600)
MANY_TRIES: Final = 20
NO_NETWORK: Final = ("device", "file")  # what a lease may be of that no flow goes to
UNDO_MS: Final = 60_000  # how long an approval can be undone by who gave it
LIVE: Final = ("active", "revoking")
# Characters that make text look like other text (Unicode TR 36): never shown, and a reason to look twice.
_HIDDEN: Final = frozenset({"Cf", "Cc", "Co", "Cs", "Cn"})


class Dest(Out):
    """Where to. `host` is in ASCII, as policies and the ledger have it; `sni` is not known before a flow."""

    host: str
    port: int
    protocol: str
    sni: str | None = None


class Rung(Out):
    """One choice of scope; `widest` is what was asked for."""

    scope: str
    label: str
    widest: bool


class Approval(Out):
    by: str
    at_ms: int


class Payload(Out):
    """What the agent says it wants to send; nothing makes it send just this. `looked`: all of it was looked
    through for secrets; `note` says why not. `head` is its beginning, secrets left out."""

    name: str
    bytes: int
    sha256: str
    text: bool
    looked: bool
    note: str
    head: list[str]


class Preview(Out):
    """What a yes lets out: bytes at most (None: no limit), their cost at most, what newly opens, and what
    kinds of secrets are in which line of the payload."""

    bytes: int | None
    cost_usd: float | None
    widens: str
    classification: list[str]
    payload: Payload | None = None


class RequestRow(Out):
    """A request. `reason` is the requester's own text; show it as a quotation, never as ours."""

    id: str
    version: str
    state: str
    project_id: str
    agent_id: str
    requester: str
    job_id: str
    episode_id: str
    node_id: str
    dest: Dest
    punycode: str | None
    unicode: str | None
    reason: str
    tries: int
    first_ms: int
    last_ms: int
    expires_ms: int
    waiting: int
    preview: Preview
    ladder: list[Rung]
    ttl_s: int
    ttl_choices_s: list[int]
    flags: list[str]
    approvals: list[Approval]
    needs: int
    passkey: bool
    ended_by: str


class LeaseRow(Out):
    """A lease that was approved. Times in ms since 1970. `live_*` are of flows that live now (None: the
    proxy does not say); `can` is what the caller may do with it: revoke, renew, undo."""

    id: str
    version: str
    state: Literal["active", "ended"]
    ended_why: str
    project: str
    agent: str
    job: str
    episode: str
    requester: str
    scope: str
    host: str
    port: int
    proto: str
    speech: list[str]
    direct: bool
    reason: str
    granted_by: list[str]
    granted_ms: int
    expires_ms: int
    ended_by: str
    ttl_s: int
    max_ttl_s: int
    bytes_limit: int | None
    uses_limit: int | None
    live_flows: int | None
    live_bytes: int | None
    can: list[str]


def request_row(
    row: Mapping[str, Any],
    flows: Iterable[Mapping[str, Any]],
    *,
    passkey: bool = False,
) -> RequestRow:
    """`flows` are the node's, of which some wait for this; `passkey`: a yes takes one."""
    asked = row["asked"] or {}
    dest = _dest(row)
    reason = visible(row["reason"])
    ascii_name = dest.host if any(label.startswith("xn--") for label in dest.host.split(".")) else None
    agent = next(iter(row["agents"]), "")
    return RequestRow(
        id=row["id"],
        version=row["version"],
        state=row["state"],
        project_id=row["project"],
        agent_id=agent,
        requester=row["requester"],
        job_id=row["job"] or asked.get("job", ""),
        episode_id=asked.get("episode", ""),
        node_id=asked.get("node", ""),
        dest=dest,
        punycode=ascii_name,
        unicode=_unicode(ascii_name) if ascii_name is not None else None,
        reason=reason,
        tries=asked.get("tries", 1),
        first_ms=row["requested"],
        last_ms=asked.get("last_ms", row["requested"]),
        expires_ms=row["lapses"],
        waiting=_waiting(row, agent, dest, flows),
        preview=Preview(bytes=row["max_bytes"], cost_usd=None, widens=_opens(row, dest), classification=[]),
        ladder=_ladder(row),
        ttl_s=row["ttl_ms"] // 1000,
        ttl_choices_s=ttl_choices(row["ttl_ms"] // 1000),
        flags=_flags(row, dest, ascii_name, asked.get("tries", 1)),
        approvals=[Approval(**each) for each in row["approved"]],
        needs=row["approvals_needed"],
        passkey=passkey,
        ended_by=row["ended_by"],
    )


def lease_row(
    row: Mapping[str, Any], who: Principal, now_ms: int, flows: Iterable[Mapping[str, Any]] | None = None
) -> LeaseRow:
    """`flows` are the node's that live, None where nobody says."""
    asked, dest = row["asked"] or {}, _dest(row)
    active = row["state"] in LIVE
    mine = None if flows is None else [flow for flow in flows if flow.get("lease") == row["id"]]
    return LeaseRow(
        id=row["id"],
        version=row["version"],
        state="active" if active else "ended",
        ended_why="" if active else row["state"],
        project=row["project"],
        agent=next(iter(row["agents"]), ""),
        job=row["job"] or asked.get("job", ""),
        episode=asked.get("episode", ""),
        requester=row["requester"],
        scope=_scope(row),
        host=dest.host,
        port=dest.port,
        proto=dest.protocol,
        speech=row["speech"],
        direct="direct" in row["speech"],
        reason=visible(row["reason"]),
        granted_by=row["approvals"],
        granted_ms=row["activated"],
        expires_ms=row["exp"],
        ended_by=row["ended_by"],
        ttl_s=row["ttl_ms"] // 1000,
        max_ttl_s=row["max_ttl_ms"] // 1000,
        bytes_limit=row["max_bytes"],
        uses_limit=row["max_uses"],
        live_flows=None if mine is None else len(mine),
        live_bytes=None if mine is None else sum(flow["bytes_out"] + flow["bytes_in"] for flow in mine),
        can=_can(row, who, now_ms) if active else [],
    )


def undoable(row: Mapping[str, Any], name: str, now_ms: int) -> bool:
    """Whether it is by this person's yes that it holds, given only now."""
    approved = row["approved"]
    late = not approved or now_ms - approved[-1]["at_ms"] > UNDO_MS
    return row["state"] == "active" and not late and approved[-1]["by"] == name


def _can(row: Mapping[str, Any], who: Principal, now_ms: int) -> list[str]:
    """What control would allow (`policy.admin`): one's own, or a reviewer's."""
    if not who.may("leases.keep") or row["state"] != "active":
        return []
    theirs = who.name == row["requester"] or who.may("requests.decide")
    found = ["revoke", "renew"] if theirs else []
    return [*found, "undo"] if undoable(row, who.name, now_ms) else found


def visible(text: str, most: int = 500) -> str:
    """Somebody else's text without what is not seen: controls, and marks that turn the direction."""
    return "".join(each for each in text[:most] if each == " " or unicodedata.category(each) not in _HIDDEN)


def ttl_choices(longest_s: int) -> list[int]:
    """What an approver may choose: never longer than was asked for."""
    return sorted({*(choice for choice in TTL_CHOICES_S if choice <= longest_s), longest_s})


def _dest(row: Mapping[str, Any]) -> Dest:
    """The first place asked for, with the first of its ports; or a device or folder of the node."""
    scope, first = row["to"][0], next(iter(row["ports"]), "").partition("-")[0]
    kind = next((word for word in NO_NETWORK if word in row["speech"]), "")
    if kind:
        return Dest(host=scope, port=0, protocol=kind)
    return Dest(host=scope.strip("[]"), port=int(first) if first.isdigit() else 0, protocol=row["proto"][0])


def _scope(row: Mapping[str, Any]) -> str:
    if "device" in row["speech"]:
        return f"device {row['to'][0]}"
    return " ".join(":".join([to, *([",".join(row["ports"])] if row["ports"] else [])]) for to in row["to"])


def _waiting(row: Mapping[str, Any], agent: str, dest: Dest, flows: Iterable[Mapping[str, Any]]) -> int:
    """How many connections are held for it now."""
    if row["state"] != "requested":
        return 0
    places = {f"{dest.host}:{dest.port}", f"[{dest.host}]:{dest.port}"}
    return sum(
        flow.get("state") == "waiting"
        and flow.get("verdict") == "ask"
        and flow.get("project") == row["project"]
        and flow.get("agent") == agent
        and flow.get("dest") in places
        and flow.get("proto") == dest.protocol
        for flow in flows
    )


def _ladder(row: Mapping[str, Any]) -> list[Rung]:
    """From what was asked for down to less."""
    scope, ports = row["to"][0], row["ports"]
    if "device" in row["speech"]:
        return [Rung(scope=scope, label=f"the device {scope}, as asked", widest=True)]
    port = f":{ports[0]}" if len(row["to"]) == 1 and len(ports) == 1 and ports[0] != "any" else ""
    rungs = [Rung(scope=scope + port, label=f"{scope}{port}, as asked", widest=True)]
    if len(row["to"]) == 1 and scope.startswith("."):
        bare = scope[1:]
        rungs.append(Rung(scope=f"*{scope}{port}", label=f"names below {bare} only", widest=False))
        rungs.append(Rung(scope=f"{bare}{port}", label=f"{bare} itself only", widest=False))
    return rungs


def _opens(row: Mapping[str, Any], dest: Dest) -> str:
    who = f"{row['project']}/{next(iter(row['agents']), 'any agent')}"
    if "file" in row["speech"]:
        return f"jobs of {who} may have {row['to'][0]}, until the lease ends"
    if "device" in row["speech"]:
        return f"job {row['job']} of {who} may use the node's device {dest.host}"
    place = f"{row['to'][0]}:{','.join(row['ports'])}"
    return f"{who} may send anything it can read to {place} ({dest.protocol})"


def _flags(row: Mapping[str, Any], dest: Dest, ascii_name: str | None, tries: int) -> list[str]:
    """Why somebody should look twice; a batch leaves these alone."""
    found = {
        "punycode": ascii_name is not None,
        "address": _is_address(dest.host),
        "wide": dest.host.startswith((".", "*")) or len(row["to"]) > 1 or len(row["ports"]) > 1,
        "private": row["private"],
        "hidden_text": visible(row["reason"]) != row["reason"],
        "many_tries": tries >= MANY_TRIES,
        "second_person": row["approvals_needed"] > 1,
    }
    return [*(name for name, holds in found.items() if holds), *row["speech"]]


def _is_address(host: str) -> bool:
    text = f"[{host}]" if ":" in host else host
    try:
        return not isinstance(parse_authority(f"{text}:1".encode())[0], str)
    except MalformedError:
        return False


def _unicode(name: str) -> str:
    try:
        return idna.decode(name.lstrip(".*"))
    except (idna.IDNAError, UnicodeError):
        return name
