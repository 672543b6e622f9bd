"""Runs inside the job's container: tries the job's probes and prints what came of each.

Standard library only; its text is handed to the container's /usr/bin/python3. It says `waiting`, waits
for a line, prints a line of JSON for each probe of its first argument and `end`, and waits for its
input to end.

A result is {"key", "stage", "errno"} for a refusal at that call, or {"key", "stage", "data"} with the
hex of what was answered: "" for an orderly end, null when nothing came.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Probe = dict[str, Any]
    Try = Callable[[list[str], Probe], str | None]

WAIT_S = 3.0
SO_MARK, SO_BINDTODEVICE, IP_OPTIONS = 36, 25, 4
# An attempt is a list of calls; the name of the one under way stands in `stage`.


def family_of(target: str) -> int:
    return socket.AF_INET6 if ":" in target else socket.AF_INET


def place_of(probe: Probe) -> tuple[Any, ...]:
    scope = (0, 1) if probe["target"].startswith(("fe80", "ff02")) else ()
    return (probe["target"], probe["port"], *scope)


def talk(stage: list[str], sock: socket.socket, place: Any, data: bytes) -> str | None:
    sock.settimeout(WAIT_S)
    stage[0] = "connect"
    sock.connect(place)
    stage[0] = "send"
    sock.send(data)
    stage[0] = "receive"
    try:
        return sock.recv(512).hex()
    except TimeoutError:
        return None


def exchange(kind: int) -> Try:
    def run(stage: list[str], probe: Probe) -> str | None:
        with socket.socket(family_of(probe["target"]), kind) as sock:
            return talk(stage, sock, place_of(probe), bytes.fromhex(probe["payload"]))

    return run


def connect(stage: list[str], probe: Probe) -> str | None:
    host = f"[{probe['target']}]" if ":" in probe["target"] else probe["target"]
    with socket.socket() as sock:
        return talk(
            stage, sock, ("127.0.0.1", 3128), f"CONNECT {host}:{probe['port']} HTTP/1.1\r\n\r\n".encode()
        )


def making(kind: int, protocol4: int, protocol6: int) -> Try:
    def run(stage: list[str], probe: Probe) -> str | None:
        family = family_of(probe["target"])
        with socket.socket(family, kind, protocol6 if family == socket.AF_INET6 else protocol4) as sock:
            stage[0] = "send"
            sock.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", (probe["target"], 0))
        return None

    return run


def packet(_stage: list[str], _probe: Probe) -> str | None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3):
        return None


def vsock(stage: list[str], _probe: Probe) -> str | None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        return talk(stage, sock, (2, 1024), b"x")


def option(level: int, number: int, value: int | bytes) -> Try:
    def run(stage: list[str], _probe: Probe) -> str | None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            stage[0] = "setsockopt"
            sock.setsockopt(level, number, value)
        return None

    return run


def lsrr(stage: list[str], probe: Probe) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        stage[0] = "setsockopt"
        hop = socket.inet_aton(probe["target"])
        # RFC 791 section 3.1: type 131, length, pointer, one hop, and the end of the list.
        sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, b"\x83\x07\x04" + hop + b"\x00")
        return talk(stage, sock, place_of(probe), b"x")


def unix(stage: list[str], probe: Probe) -> str | None:
    path = bytes.fromhex(probe["payload"])
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET if b"ledger" in path else socket.SOCK_STREAM
    ) as sock:
        return talk(stage, sock, path, b"x")


def ports(stage: list[str], probe: Probe) -> str | None:
    """Which TCP ports of our own loopback are open, in hex of JSON: the low ones, and all that listen."""
    found = []
    stage[0] = "connect"
    for port in sorted({*range(1, 1024), *listening()}):
        with socket.socket(family_of(probe["target"])) as sock:
            if sock.connect_ex((probe["target"], port)) == 0:
                found.append(port)
    return json.dumps(found).encode().hex()


def listening() -> list[int]:
    """The ports of all TCP sockets of this network namespace that listen (proc(5), state 0A)."""
    found = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as table:
            rows = [line.split() for line in table][1:]
        found += [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"]
    return found


HOW: dict[str, Try] = {
    "udp": exchange(socket.SOCK_DGRAM),
    "tcp": exchange(socket.SOCK_STREAM),
    "connect": connect,
    "ping": making(socket.SOCK_DGRAM, 1, 58),
    "raw": making(socket.SOCK_RAW, 1, 58),
    "packet": packet,
    "vsock": vsock,
    "mark": option(socket.SOL_SOCKET, SO_MARK, 1),
    # The interface it is bound to already may be asked for by anyone; only another one is a way out.
    "device": option(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0\0"),
    "lsrr": lsrr,
    "unix": unix,
    "ports": ports,
}


def attempt(probe: Probe) -> dict[str, Any]:
    stage = ["socket"]
    try:
        return {"key": probe["key"], "data": HOW[probe["how"]](stage, probe), "stage": stage[0]}
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
        return {"key": probe["key"], "errno": name, "stage": stage[0]}


def main() -> None:
    print("waiting", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(16) as pool:
        for result in pool.map(attempt, json.loads(sys.argv[1])):
            print(json.dumps(result), flush=True)
    print("end", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
