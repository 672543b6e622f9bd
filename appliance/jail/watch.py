"""What the kernel saw of the probes: frames outside the jail, and packets before and after its rules."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from exeat.appliance.doctor import SEARCH_PATH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from exeat.appliance.jail.probes import Probe

_CLONE_NEWNET: Final = 0x40000000
_ETH_P_ALL: Final = 0x0003
_TABLE: Final = "exeat_doctor"
# Before everything an output hook may do, connection tracking included, and after it.
_BEFORE, _AFTER = -450, 450
_libc = ctypes.CDLL(None, use_errno=True)


class Capture:
    """Every frame on every interface but `lo` of the namespaces at some paths. Raises OSError."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._sockets: list[tuple[str, socket.socket]] = []
        self.interfaces: list[list[str]] = []  # of each path, without `lo`
        for path in paths:
            with ThreadPoolExecutor(1) as thread:  # of its own, so that its namespace ends with it
                opened = thread.submit(_listen, path).result()
            self.interfaces.append([name for name, _ in opened])
            self._sockets += opened

    def frames(self) -> list[tuple[str, bytes]]:
        """What was seen since the last call: interface and bytes."""
        seen = []
        for name, sock in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    seen.append((name, sock.recv(65536)))
        return seen

    def close(self) -> None:
        for _, sock in self._sockets:
            sock.close()


def _listen(path: Path) -> list[tuple[str, socket.socket]]:
    with path.open() as handle:
        if _libc.setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {path}")
    opened = []
    for _, name in socket.if_nameindex():
        if name != "lo":
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            sock.bind((name, _ETH_P_ALL))
            opened.append((name, sock))
    return opened


class Counters:
    """Packets to each probe's address, counted in the jail before its rules and after them.

    Nothing is decided by this table. What the rules redirect has another address behind them.
    """

    def __init__(self, jail: Path, probes: Sequence[Probe]) -> None:
        self._jail = jail
        self._keys = [(probe.key, probe.packed) for probe in probes if probe.packed]
        _nft(jail, ["-f", "-"], self._text())

    def _text(self) -> str:
        chains = []
        for side, priority in (("before", _BEFORE), ("after", _AFTER)):
            rules = [f'{_match(packed)} counter comment "{key}"' for key, packed in self._keys]
            head = f"type filter hook output priority {priority}; policy accept;"
            chains.append(f"chain {side} {{ {head}\n" + "\n".join(rules) + "\n}")
        return f"table inet {_TABLE} {{\n" + "\n".join(chains) + "\n}\n"

    def read(self) -> dict[str, tuple[int, int]]:
        """Packets (before, after) by probe."""
        listed = json.loads(_nft(self._jail, ["-j", "list", "table", "inet", _TABLE]))["nftables"]
        counts: dict[tuple[str, str], int] = {}
        for rule in (each["rule"] for each in listed if "rule" in each):
            (packets,) = (part["counter"]["packets"] for part in rule["expr"] if "counter" in part)
            counts[rule["chain"], rule["comment"]] = packets
        return {key: (counts["before", key], counts["after", key]) for key, _ in self._keys}


def _match(packed: bytes) -> str:
    return f"ip{'6' if len(packed) == 16 else ''} daddr {ipaddress.ip_address(packed)}"


def _nft(jail: Path, words: list[str], text: str = "") -> str:
    done = subprocess.run(
        ["nsenter", f"--net={jail}", "--", "nft", *words],
        input=text,
        env={"PATH": SEARCH_PATH, "LANG": "C.UTF-8"},
        cwd=os.sep,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        raise OSError(0, f"nft: {done.stderr.strip()}")
    return done.stdout


def outside(frames: Iterable[tuple[str, bytes]], probes: Iterable[Probe]) -> dict[str, list[str]]:
    """The interfaces on which each probe's address was seen, a name for each frame."""
    listed = list(frames)
    found: dict[str, list[str]] = {}
    for probe in probes:
        names = [name for name, data in listed if probe.packed and probe.packed in data]
        if names:
            found[probe.key] = names
    return found


def asked_outside(frames: Iterable[tuple[str, bytes]], address: bytes) -> bool:
    """Did the appliance itself send anything to `address`?"""
    return any(address in data for _, data in frames)
