"""Where each way out ended, judged from what was tried and what was seen (pure)."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.jail.probes import ROOT, ZONE
from exeat.ledger.records import Kind
from exeat.sandbox.spec import INET_SOCKETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exeat.appliance.jail.probes import Probe
    from exeat.ledger.records import Record

DOORS: Final = frozenset(port for _, _, _, port in INET_SOCKETS.values())
_REFUSING_RCODES: Final = {3, 5}  # NXDOMAIN and REFUSED, RFC 1035 section 4.1.1


class Wall(StrEnum):
    """What stopped a probe, from the inside out."""

    SECCOMP = "seccomp"  # the call does not exist for a job
    KERNEL = "kernel"  # no right to it, nobody there, no way there
    RULES = "rules"  # the jail's nftables table
    GATEWAY = "gateway"  # refused by policy, on the ledger
    OUT = "outside"  # nothing did


@dataclass(frozen=True, slots=True)
class Result:
    """One probe's end, and what shows it."""

    probe: Probe
    wall: Wall
    evidence: str

    @property
    def blocked(self) -> bool:
        return self.wall is not Wall.OUT

    def document(self) -> dict[str, Any]:
        """For --json."""
        probe = self.probe
        return {
            "key": probe.key,
            "title": probe.title,
            "as": probe.who,
            "target": probe.target,
            "port": probe.port,
            "blocked": self.blocked,
            "wall": str(self.wall),
            "evidence": self.evidence,
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """What others saw of one probe: frames outside, packets before and after the rules, the refusal."""

    frames: tuple[str, ...] = ()
    before: int = 0
    after: int = 0
    refusal: str = ""

    def tail(self) -> str:
        counted = f"; rules {self.before} in, {self.after} out" if self.before else ""
        return f"{counted}; outside 0"


def refusals(records: Iterable[Record]) -> dict[str, str]:
    """Reason codes of what the ledger says was refused, by packed address (hex) and by name."""
    found: dict[str, str] = {}
    for record in records:
        if record.dest is None or record.kind not in (Kind.DENY, Kind.DNS) or record.decision == "allow":
            continue
        found[record.dest.host] = record.reason_code
        if record.dest.ip:
            found[record.dest.ip.hex()] = record.reason_code
    return found


def refusal_of(probe: Probe, refused: Mapping[str, str]) -> str:
    """The reason code of the refusal of this very probe, "" where the ledger has none."""
    # As the packets had it: an IPv4-mapped address is an IPv4 address there.
    address = str(ipaddress.ip_address(probe.packed)) if probe.packed else ""
    names = (probe.packed.hex(), address, f"{probe.key}.{ZONE}")
    return next((refused[name] for name in names if name and name in refused), "")


def judge(probe: Probe, tried: Mapping[str, Any], seen: Seen) -> Result:
    """`tried` is what the probe's program printed, empty when it printed nothing."""
    if seen.frames:
        names = ", ".join(sorted(set(seen.frames)))
        return Result(probe, Wall.OUT, f"{len(seen.frames)} frames seen on {names}")
    if not tried:
        return Result(probe, Wall.OUT, "its program said nothing of it: not proven")
    if probe.how == "ports":
        return _ports(probe, tried)
    if "errno" in tried:
        return _refused_at_once(probe, tried, seen)
    if probe.who == ROOT:
        wall = Wall.RULES if seen.before > seen.after else Wall.KERNEL
        return Result(probe, wall, f"{tried['sent']} sent{seen.tail()}")
    return _taken(probe, tried, seen)


def _refused_at_once(probe: Probe, tried: Mapping[str, Any], seen: Seen) -> Result:
    name, stage = tried["errno"], tried.get("stage", "send")
    text = f"{name} at {stage}{seen.tail()}"
    if seen.refusal:
        return Result(probe, Wall.GATEWAY, f"{name}; ledger: {seen.refusal}; outside 0")
    if name == "ENOSYS":
        return Result(probe, Wall.SECCOMP, text)
    return Result(probe, Wall.RULES if seen.before > seen.after else Wall.KERNEL, text)


def _taken(probe: Probe, tried: Mapping[str, Any], seen: Seen) -> Result:
    """Someone took it. Only the gateway may, and then the ledger has the refusal."""
    answer = tried["data"]
    said = _answer(probe, answer)
    if _is_dns_answer(probe, answer):
        return Result(probe, Wall.OUT, "the question was answered")
    if seen.refusal:
        return Result(probe, Wall.GATEWAY, f"{said}; ledger: {seen.refusal}; outside 0")
    if answer is None and seen.before > seen.after:
        return Result(probe, Wall.RULES, f"{said}{seen.tail()}")
    return Result(probe, Wall.OUT, f"{said}, and the ledger has no refusal of it")


def _answer(probe: Probe, answer: str | None) -> str:
    if answer is None:
        return "no answer"
    data = bytes.fromhex(answer)
    if data.startswith(b"HTTP/"):
        return data.split(b"\r\n")[0].decode("latin-1")[9:].partition(";")[0]
    if data[:1] == b"\x15":
        return "TLS alert"
    if probe.port == 53 and data:
        return "DNS refusal"
    return "answered" if data else "closed"


def _is_dns_answer(probe: Probe, answer: str | None) -> bool:
    """Is it anything but a refusal, to a question?"""
    if probe.port != 53 or not answer:
        return False
    data = bytes.fromhex(answer)[2 if probe.how == "tcp" else 0 :]
    return len(data) < 12 or data[3] & 15 not in _REFUSING_RCODES or data[6:8] != b"\0\0"


def _ports(probe: Probe, tried: Mapping[str, Any]) -> Result:
    if "errno" in tried:
        return Result(probe, Wall.OUT, f"{tried['errno']}: not proven")
    found = open_ports(tried)
    if foreign := sorted(found - DOORS):
        return Result(probe, Wall.OUT, f"open: {', '.join(map(str, foreign))}")
    return Result(probe, Wall.KERNEL, f"open are {', '.join(map(str, sorted(found)))}")


def open_ports(tried: Mapping[str, Any]) -> set[int]:
    """What a `ports` probe found."""
    return set(json.loads(bytes.fromhex(tried["data"]))) if tried.get("data") else set()
