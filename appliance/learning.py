"""A policy proposed from what jobs tried: the smallest allowlist, each host with its reasons (pure).

Only what was seen, by its full name; never a wildcard, because who shares a suffix is not known from
traffic. What nobody should allow without a thought is written down as a comment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from exeat.policy.errors import MalformedError
from exeat.policy.model import Address
from exeat.policy.names import parse_host

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exeat.appliance.summary import Line

USUAL_PORTS = frozenset({80, 443})


class Suffixes(Protocol):
    """The public suffix list, private section included."""

    def is_broad(self, name: str) -> bool: ...
    def registrable(self, host: str) -> str: ...


class Human(Protocol):
    """Bytes as people read them."""

    def __call__(self, count: int) -> str: ...


@dataclass
class Seen:
    """One host over all runs: what passed (or would have), by port, and what makes it worth a second look."""

    host: str
    ports: set[int] = field(default_factory=set)
    flows: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    bytes_out: int = 0
    bytes_in: int = 0
    runs: set[str] = field(default_factory=set)
    doubts: list[str] = field(default_factory=list)

    @property
    def literal(self) -> bool:
        return isinstance(parse_host(self.host), Address)


@dataclass(frozen=True)
class Proposal:
    """`rules` can be allowed as they stand; `doubtful` need a person's eye and stand in comments."""

    project: str
    runs: tuple[str, ...]
    rules: tuple[Seen, ...]
    doubtful: tuple[Seen, ...]


def propose(project: str, runs: Iterable[tuple[str, Iterable[Line]]], suffixes: Suffixes) -> Proposal:
    """`runs`: the name of each job, and the lines of its summary."""
    seen: dict[str, Seen] = {}
    names = []
    for job, lines in runs:
        names.append(job)
        for line in lines:
            if _is_host(line.host):
                _add(seen.setdefault(line.host, Seen(line.host)), job, line)
    hosts = [seen[name] for name in sorted(seen, key=lambda name: (_owner(name, suffixes), name))]
    for host in hosts:
        host.doubts = _doubts(host, suffixes)
    return Proposal(
        project,
        tuple(names),
        tuple(host for host in hosts if host.flows and not host.doubts),
        tuple(host for host in hosts if not host.flows or host.doubts),
    )


def _owner(name: str, suffixes: Suffixes) -> str:
    """Hosts of one owner stand together."""
    return name if isinstance(parse_host(name), Address) else suffixes.registrable(name)


def _is_host(text: str) -> bool:
    try:
        parse_host(text)
    except MalformedError:
        return False
    return True


def _add(host: Seen, job: str, line: Line) -> None:
    host.runs.add(job)
    host.flows += line.allowed
    host.bytes_out += line.bytes_out
    host.bytes_in += line.bytes_in
    if line.port:
        host.ports.add(line.port)
    for reason, count in line.refused.items():
        host.refused[reason] = host.refused.get(reason, 0) + count


def _doubts(host: Seen, suffixes: Suffixes) -> list[str]:
    doubts = []
    if host.literal:
        doubts.append("an address, not a name: nobody can say whose it is tomorrow")
    elif suffixes.is_broad(host.host):
        doubts.append("a public suffix: anybody can have a name below it")
    if host.ports - USUAL_PORTS:
        doubts.append(f"port {', '.join(map(str, sorted(host.ports - USUAL_PORTS)))}: not the web's")
    if host.ports == {80}:
        doubts.append("port 80 only: anybody on the path can read and change it")
    if host.bytes_out > 1_000_000 and host.bytes_out > host.bytes_in:
        doubts.append("more was sent than received: what was it?")
    if not host.flows:
        reasons = ", ".join(f"{reason} ({count}x)" for reason, count in sorted(host.refused.items()))
        doubts.append(f"never let out while watching: {reasons}")
    return doubts


def as_yaml(proposal: Proposal, human: Human) -> str:
    """A policy that loads; what is doubtful is a comment in it."""
    runs = len(proposal.runs)
    out = [
        f"# Proposed by `exeat learn` from {runs} run{'s' if runs != 1 else ''}: {', '.join(proposal.runs)}",
        "# Read each host before you use this: a host that is allowed may be sent all that the job can read.",
        "egress: v1",
        f"project: {proposal.project}",
        "posture: allowlist",
    ]
    out.append("allow:" if proposal.rules else "allow: []")
    for host in proposal.rules:
        out += [f"  # {_facts(host, human, runs)}", f"  - {_rule(host)}"]
    if proposal.doubtful:
        out.append("# Not allowed by this; look at each before you take away the `#`:")
    for host in proposal.doubtful:
        out += [f"#   {doubt}" for doubt in host.doubts]
        out += [f"#   {_facts(host, human, runs)}", f"#  - {_rule(host)}"]
    return "\n".join(out) + "\n"


def as_json(proposal: Proposal) -> str:
    return json.dumps(
        {
            "project": proposal.project,
            "runs": proposal.runs,
            "allow": [_row(host) for host in proposal.rules],
            "doubtful": [_row(host) for host in proposal.doubtful],
        }
    )


def _row(host: Seen) -> dict[str, object]:
    return {
        "host": host.host,
        "ports": sorted(host.ports or {443}),
        "flows": host.flows,
        "refused": host.refused,
        "bytes_out": host.bytes_out,
        "bytes_in": host.bytes_in,
        "runs": sorted(host.runs),
        "doubts": host.doubts,
    }


def _facts(host: Seen, human: Human, runs: int) -> str:
    times = f"{host.flows} flow{'s' if host.flows != 1 else ''}"
    often = f", in {len(host.runs)} of {runs} runs" if runs > 1 else ""
    return f"{times}{often}: {human(host.bytes_out)} out, {human(host.bytes_in)} in"


def _rule(host: Seen) -> str:
    ports = sorted(host.ports or {443})
    said = "" if ports == [443] else f", ports: {ports[0] if len(ports) == 1 else ports}"
    place = f'"{host.host}"' if host.literal else host.host
    return f"{{to: {place}{said}}}"
