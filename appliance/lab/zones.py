"""The names of the lab's Internet, and what is wrong with some of them.

`*.cdn.example.org` is a name space that a policy may well allow with a wildcard; below it live
the answers a resolver must not trust. Nothing here is ever looked up outside the lab.
"""

from __future__ import annotations

from dataclasses import dataclass

from exeat.appliance.lab.plan import (
    DNS4,
    EVIL4,
    EVIL6,
    METADATA4,
    NORTH4,
    NORTH6,
    SOUTH4,
    SOUTH6,
)

APEXES = ("example.org", "example.com", "example.net")
MANY = tuple(f"203.0.113.{n}" for n in range(128, 190))
# So long that its records and sixty addresses cannot share one datagram of 1232 bytes.
_LONG = ".".join(letter * 63 for letter in "abc") + ".edge.example.net"


@dataclass(frozen=True)
class Entry:
    """The records of one name. `turns`: address lists given out in rotation, TTL 0."""

    a: tuple[str, ...] = ()
    aaaa: tuple[str, ...] = ()
    cname: str = ""
    txt: str = ""
    ttl: int = 60
    turns: tuple[tuple[str, ...], ...] = ()


_NORTH = Entry(a=(NORTH4,), aaaa=(NORTH6,))
_SOUTH = Entry(a=(SOUTH4,), aaaa=(SOUTH6,))
_EVIL = Entry(a=(EVIL4,), aaaa=(EVIL6,))

ENTRIES: dict[str, Entry] = {
    "example.org": _NORTH,
    "index.example.org": _NORTH,
    "git.example.org": _NORTH,
    "plain.example.org": _NORTH,
    # A chain over two zones, as content networks make them.
    "api.example.org": Entry(cname="api.edge.example.net"),
    "api.edge.example.net": Entry(cname="pop1.edge.example.net"),
    "pop1.edge.example.net": _NORTH,
    "downloads.example.com": _SOUTH,
    "mirror.downloads.example.com": _SOUTH,
    "files.downloads.example.com": _SOUTH,
    "telemetry.downloads.example.com": _EVIL,
    # Innocent ones below the wildcard.
    "*.cdn.example.org": _NORTH,
    "six.cdn.example.org": Entry(aaaa=(NORTH6,)),
    "many.cdn.example.org": Entry(cname=_LONG),
    _LONG: Entry(a=MANY),
    # Traps below the wildcard.
    "private.cdn.example.org": Entry(a=("10.20.0.5",)),
    "metadata.cdn.example.org": Entry(a=(METADATA4,)),
    "loopback.cdn.example.org": Entry(a=("127.0.0.1",), aaaa=("::1",)),
    "mixed.cdn.example.org": Entry(a=(NORTH4, "10.20.0.5")),
    "nat64.cdn.example.org": Entry(aaaa=("64:ff9b::a9fe:a9fe",)),
    "mapped.cdn.example.org": Entry(aaaa=("::ffff:10.20.0.5",)),
    "ula.cdn.example.org": Entry(aaaa=("fd00:ec2::254",)),
    "flip.cdn.example.org": Entry(ttl=0, turns=((NORTH4,), (METADATA4,))),
    "alias.cdn.example.org": Entry(cname="paste.example.net"),
    "inward.cdn.example.org": Entry(cname="private.cdn.example.org"),
    "text.cdn.example.org": Entry(txt="v=lab1 " + "x" * 200),
    # Where data is taken to.
    "paste.example.net": _EVIL,
    "*.exfil.example.net": _EVIL,
    "evil.example.net": _EVIL,
    "ns.example.net": Entry(a=(DNS4,)),
}


def find(name: str) -> Entry | None:
    """The entry of a canonical name: its own, else the closest wildcard (RFC 4592). None: NXDOMAIN.

    A name that only has names below it exists and is empty (RFC 8020), so it gets no wildcard.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    if any(known.endswith("." + name) for known in ENTRIES):
        return Entry()
    parent = name
    while "." in parent:
        parent = parent.split(".", 1)[1]
        if parent in ENTRIES or any(known.endswith("." + parent) for known in ENTRIES):
            return ENTRIES.get("*." + parent)  # the closest encloser decides, no ancestor of it
    return None


def apex_of(name: str) -> str | None:
    return next((apex for apex in APEXES if name == apex or name.endswith("." + apex)), None)
