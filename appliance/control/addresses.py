"""The node's own places: no client may reach the host it runs on, nor our doors (rules M5, M8)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from exeat.appliance.sections import endpoints
from exeat.policy.addresses import Cidr, format_address, from_packed, parse_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exeat.appliance.config import Config

_FIB_LOCAL = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")


def host_addresses(proc: Path = Path("/proc/net")) -> list[str]:
    """Every address of this network namespace, as text, sorted. Empty only if there is none."""
    found = set(_FIB_LOCAL.findall(_read(proc / "fib_trie")))
    for line in _read(proc / "if_inet6").splitlines():
        found.add(format_address(from_packed(bytes.fromhex(line.split()[0]))))
    return sorted(found)


def not_public(addresses: Sequence[str], treat_as_public: Sequence[Cidr]) -> list[str]:
    """Without those that a test network says are the Internet: its origins may be on this host."""
    return [
        text for text in addresses if not any(cidr.holds(parse_address(text)) for cidr in treat_as_public)
    ]


def doors(listening: Sequence[tuple[str, int]], addresses: Sequence[str]) -> list[str]:
    """HOST:PORT of every listener; one on all addresses is at each of this host's."""
    found = set()
    for host, port in listening:
        for place in addresses if host in ("0.0.0.0", "::") else (host,):  # noqa: S104
            found.add(f"[{place}]:{port}" if ":" in place else f"{place}:{port}")
    return sorted(found)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""  # a kernel without IPv6


def listening(config: Config) -> tuple[tuple[str, int], ...]:
    """The doors for clients outside jails, the console's, and the upstream proxy: no client's business."""
    proxy = config.proxy
    places = (*proxy.listen, *proxy.listen_socks, *proxy.transparent, *config.dns.listen)
    others = (proxy.upstream_proxy(), config.console.place())
    return (*endpoints(places), *(place for place in others if place is not None))
