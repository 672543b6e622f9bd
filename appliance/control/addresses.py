"""The node's own addresses: no job may reach the host it runs on (built-in rule M5)."""

from __future__ import annotations

import re
from pathlib import Path

from exeat.policy.addresses import format_address, from_packed

_FIB_LOCAL = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")


def host_addresses(proc: Path = Path("/proc/net")) -> list[str]:
    """Every address of this network namespace, as text, sorted. Empty only if there is none."""
    found = set(_FIB_LOCAL.findall(_read(proc / "fib_trie")))
    for line in _read(proc / "if_inet6").splitlines():
        found.add(format_address(from_packed(bytes.fromhex(line.split()[0]))))
    return sorted(found)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""  # a kernel without IPv6
