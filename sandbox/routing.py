"""What is to be done so that the host's table is as it should be (pure).

A step is a command to run; the warden runs it (`netns.run`) and hands back how it ended. So all
that decides is here, and all that acts is there.

No packet is let through because its connection exists: each one is looked up in its pinhole's set,
in both directions. So a pinhole's end ends what went through it without touching conntrack; the
sockets of host processes are closed on top (ss -K), so that the programs hear of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.policy.addresses import format_address, from_packed
from exeat.policy.errors import MalformedError
from exeat.sandbox.names import SpecError
from exeat.sandbox.rules import TABLE, Host, Pinhole, Table, Target, change, replacement
from exeat.sandbox.steps import Command, Done, Printed, Steps, done

if TYPE_CHECKING:
    from exeat.policy.model import Address
    from exeat.sandbox.spec import Request

CGROUPS: Final = "/sys/fs/cgroup"
WATCH_S: Final = 1.0  # seconds between two looks at what is loaded
MAX_NOTE: Final = 200  # characters of a drift's first line

_LIST: Final = f"nft -s -n list table {TABLE}"  # stateless and numeric
_LIST_ALL: Final = ("nft", "-s", "-n", "list", "ruleset")
_SOCKETS: Final = ("ss", "-H", "-n", "-t", "-u")
_TIMED: Final = re.compile(r"flags timeout\s+elements = \{([^}]*)\}")
_SOCKET: Final = re.compile(r"(?:tcp|udp) +\S+ +\d+ +\d+ +(\S+) +(\S+) (.*)")


class Listing(NamedTuple):
    """A table as nft prints it: what must be equal, and the elements that may end by themselves."""

    blocks: tuple[str, ...]  # sorted: the kernel lists what was added later at the end
    timed: frozenset[str]  # set: element

    @property
    def digest(self) -> str:
        """SHA-256 of the blocks, in hex."""
        return hashlib.sha256("\n".join(self.blocks).encode()).hexdigest()

    def drift(self, live: Listing) -> str:
        """What `live` has that it should not, or lacks; "" when it is as it should be."""
        if not live.blocks:
            return "the table is gone"
        lacking = [block for block in self.blocks if block not in live.blocks]
        strange = [block for block in live.blocks if block not in self.blocks]
        strange += sorted(live.timed - self.timed)
        said = [f"not wanted: {block}" for block in strange] + [f"gone: {block}" for block in lacking]
        return said[0][:MAX_NOTE] if said else ""


def parse_listing(text: str) -> Listing:
    """What `nft -s -n list table` printed; "" is a table that is not there."""
    blocks: list[str] = []
    timed: set[str] = set()
    for block in text.partition("{")[2].split("\n\t}"):
        name = " ".join(block.partition("{")[0].split())
        match = _TIMED.search(block)
        if match:
            timed.update(f"{name}: {' '.join(element.split())}" for element in match[1].split(","))
        blocks.append(" ".join(_TIMED.sub("flags timeout", block).split()))
    return Listing(tuple(sorted(block for block in blocks if block not in ("", "}"))), frozenset(timed))


def parse_pinholes(raw: object) -> tuple[Pinhole, ...]:
    """The `pinholes` of `routing.set` (docs/architecture.md). Raises SpecError."""
    if not isinstance(raw, list) or not all(isinstance(item, Mapping) for item in raw):
        raise SpecError("argument", "pinholes is a list of objects")
    return tuple(_parse_pinhole(item) for item in raw)


def _parse_pinhole(raw: Mapping[str, Any]) -> Pinhole:
    if set(raw) != {"number", "member", "targets", "quota", "end"} or not isinstance(raw["targets"], list):
        raise SpecError("argument", "a pinhole is {number, member, targets, quota, end}")
    targets = tuple(_parse_target(item) for item in raw["targets"])
    return Pinhole(raw["number"], raw["member"], targets, raw["quota"], raw["end"])


def _parse_target(raw: object) -> Target:
    """`[hex of the packed address, protocol, port]`."""
    if not isinstance(raw, list) or len(raw) != 3:
        raise SpecError("argument", "a target is [address, protocol, port]")
    try:
        address: Address = from_packed(bytes.fromhex(raw[0]))
    except (MalformedError, ValueError, TypeError):
        raise SpecError("argument", "a target's address is 4 or 16 bytes in hex") from None
    return Target(address, raw[1], raw[2])


def pinhole_message(pinhole: Pinhole) -> dict[str, Any]:
    """A pinhole as `parse_pinholes` takes it."""
    targets = [[target.address.packed().hex(), target.proto, target.port] for target in pinhole.targets]
    return {
        "number": pinhole.number,
        "member": pinhole.member,
        "targets": targets,
        "quota": pinhole.quota,
        "end": pinhole.end,
    }


class Routing:
    """The table that should be loaded, and what has been seen of it.

    `base` has no pinholes; without members nothing is ever done. `run` is the warden's
    folder: a file there keeps the pinholes, so that a warden that was killed goes on with them.
    """

    def __init__(self, base: Table, run: str) -> None:
        self.table = base
        self.repairs = 0
        self.note = ""  # what the last repair found
        self.failed = ""  # why the table could not be looked at or loaded
        self._base, self._run, self._memory = base, run, f"{run}/pinholes"
        self._expected = Listing((), frozenset())
        self._counts: dict[str, list[int]] = {}
        self._rules: dict[str, str] = {}  # by jail, as it was asked last
        self._ended: set[int] = set()  # pinholes whose connections have been ended

    def serve(self, request: Request, now: float) -> Steps:
        """Do what `routing.set` or `routing.status` asks; `report` is the reply."""
        if request.verb == "routing.set":
            yield from self.set(request.pinholes, now)
            return
        if self._base.members:
            yield from self._count()
        yield from self._list_rules(request.jails)

    def _list_rules(self, jails: Iterable[str]) -> Steps:
        """All rules that are loaded in these jails; one that is going is left out."""
        self._rules = {}
        for jail in jails:
            ended = yield Command(("nsenter", f"--net={self._run}/netns/{jail}", "--", *_LIST_ALL))
            if not ended.returncode:
                self._rules[jail] = hashlib.sha256(ended.stdout.encode()).hexdigest()

    def _start(self, now: float) -> Steps:
        """Take over what an earlier warden left, or load the table anew."""
        try:
            kept = replace(self._base, pinholes=parse_pinholes(json.loads((yield from self._recall()))))
            yield from self._load(kept, change(kept, kept, now), now)
            if not self._expected.drift((yield from _look())):
                return
        except ValueError:
            pass  # nothing loaded, or something else: not a table to go on from
        yield from self._load(self._base, replacement(self._base, now), now)

    def set(self, pinholes: Iterable[Pinhole], now: float) -> Steps:
        """Have these pinholes and no others. One whose time is over loses its connections at once."""
        if not self._base.members:
            raise SpecError("routing.none", "no [[routing.host]] and no [[routing.veth]] is configured")
        old, wanted = self.table, replace(self._base, pinholes=tuple(pinholes))
        yield from self._load(wanted, change(old, wanted, now), now)
        numbers = {pinhole.number for pinhole in wanted.pinholes}
        yield from self._cut([hole for hole in old.pinholes if hole.number not in numbers])
        yield from self._count()
        # One that has been renewed may end again.
        self._ended &= {hole.number for hole in wanted.pinholes if self._over(hole, now)}
        yield from self._end_those_over(now)

    def stop(self, now: float) -> Steps:
        """No pinhole outlives the warden, which would have to end it. The members stay confined."""
        with suppress(SpecError):
            if self.table.pinholes:
                yield from self.set((), now)

    def watch(self, now: float) -> Steps:
        """Look at what is loaded and repair it; end what is over. A repair drops all pinholes.

        The first time it loads the table, and raises SpecError if it cannot. After that, what
        cannot be done is reported, and tried again the next time.
        """
        if not self._base.members:
            return
        if not self._expected.blocks:
            yield from self._start(now)
            return
        try:
            yield from self._watch(now)
            self.failed = ""
        except SpecError as error:
            self.failed = str(error)[:MAX_NOTE]

    def _watch(self, now: float) -> Steps:
        drift = self._expected.drift((yield from _look()))
        if drift:
            lost = self.table.pinholes
            yield from self._load(self._base, replacement(self._base, now), now)
            self.repairs, self.note = self.repairs + 1, drift
            yield from self._cut(lost)
        elif self.table.pinholes:
            yield from self._count()
            yield from self._end_those_over(now)

    def _count(self) -> Steps:
        """Read the counters and quotas."""
        listed = json.loads((yield from done("nft", "-j", "list", "table", *TABLE.split())))
        self._counts = {}
        for item in listed["nftables"]:
            for kind, field in (("counter", "bytes"), ("quota", "used")):
                if kind in item:
                    value = item[kind]
                    self._counts[f"{kind} {value['name']}"] = [value.get("packets", 0), value[field]]

    def _recall(self) -> Printed:
        found = yield Command(("cat", "--", self._memory))
        return "[]" if found.returncode else found.stdout

    def report(self, now: float) -> dict[str, Any]:
        """The reply to `routing.status` (docs/architecture.md); counters as of the last `count`."""
        return {
            "digest": self._expected.digest,
            "repairs": self.repairs,
            "note": self.note,
            "failed": self.failed,
            "rules": self._rules,
            "members": [
                {"label": member.label, **self._member_counts(number)}
                for number, member in enumerate(self.table.members)
            ],
            "pinholes": [self._pinhole_row(pinhole, now) for pinhole in self.table.pinholes],
        }

    def _member_counts(self, number: int) -> dict[str, int]:
        start = f"counter m{number}_"
        return {
            name.removeprefix(start): packets
            for name, (packets, _) in self._counts.items()
            if name.startswith(start)
        }

    def _pinhole_row(self, pinhole: Pinhole, now: float) -> dict[str, Any]:
        name = f"counter p{pinhole.number}"
        return {
            "number": pinhole.number,
            "out": self._counts.get(f"{name}_out", [0, 0])[1],
            "in": self._counts.get(f"{name}_in", [0, 0])[1],
            "over": self._over(pinhole, now),
        }

    def _over(self, pinhole: Pinhole, now: float) -> str:
        if self._counts.get(f"quota p{pinhole.number}", [0, 0])[1] >= pinhole.quota:
            return "bytes"
        return "time" if now >= pinhole.end else ""

    def _load(self, table: Table, text: str, now: float) -> Steps:
        """Load `text`, after which `table` is there; what nft will then print is learnt beside the host."""
        for member in table.members:
            if isinstance(member, Host) and member.cgroup is not None:
                yield from done("mkdir", "-p", "--", f"{CGROUPS}/{table.prefix}{member.cgroup.path}")
        beside = ("unshare", "--net", "--", "sh", "-c", f"nft -f - && exec {_LIST}")
        expected = yield from done(*beside, stdin=replacement(table, now))
        holes = json.dumps([pinhole_message(pinhole) for pinhole in table.pinholes])
        yield from done("tee", "--", self._memory, stdin=holes)
        yield from done("nft", "-f", "-", stdin=text)
        self.table, self._expected = table, parse_listing(expected)

    def _end_those_over(self, now: float) -> Steps:
        over = [
            hole for hole in self.table.pinholes if hole.number not in self._ended and self._over(hole, now)
        ]
        self._ended.update(hole.number for hole in over)
        yield from self._cut(over)

    def _cut(self, pinholes: Iterable[Pinhole]) -> Steps:
        """Close the sockets of host processes that spoke through these."""
        for pinhole in pinholes:
            member = next(member for member in self.table.members if member.label == pinhole.member)
            if isinstance(member, Host):
                listed = yield from done(*_SOCKETS, "-e", "-O", "--cgroup", *_to(pinhole))
                found = sockets_of(member, listed)
                if found:
                    yield from done(*_SOCKETS, "-K", *found)


def _look() -> Generator[Command, Done, Listing]:
    """What is loaded now; an empty listing when nothing is."""
    done = yield Command(tuple(_LIST.split()))
    return parse_listing("" if done.returncode else done.stdout)


def _place(target: Target) -> str:
    address = format_address(target.address)
    return f"[{address}]:{target.port}" if target.address.family == 6 else f"{address}:{target.port}"


def _to(pinhole: Pinhole) -> list[str]:
    """An ss(8) filter for connections to its targets."""
    words: list[str] = []
    for target in pinhole.targets:
        words += ["or"] if words else []
        words += ["dst", _place(target)]
    return words


def sockets_of(host: Host, listed: str) -> list[str]:
    """An ss(8) filter for those sockets in `listed` (ss -H -n -t -u -e -O --cgroup) that are the member's."""
    words: list[str] = []
    for line in listed.splitlines():
        match = _SOCKET.match(line)
        if match and _is_of(host, match[3]):
            words += ["or"] if words else []
            words += ["(", "src", match[1], "and", "dst", match[2], ")"]
    return words


def _is_of(host: Host, details: str) -> bool:
    facts = dict(word.partition(":")[::2] for word in details.split())
    uid, cgroup = int(facts.get("uid", "0")), facts.get("cgroup", "")
    inside = host.cgroup is not None and f"{cgroup}/".startswith(f"/{host.cgroup.path}/")
    return inside or any(low <= uid <= high for low, high in host.uids)
