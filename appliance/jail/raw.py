"""Runs as root inside the jail's network namespace: `python -I -m exeat.appliance.jail.raw PROBES`.

Packets that no socket of a job could make, built with scapy and handed to raw and packet sockets.
Prints a line of JSON for each probe: {"key", "errno"} for a refusal, {"key", "sent"} for how many went
into the kernel. Whether they came out anywhere is for others to see. A program, never imported: scapy
has no place in the daemon.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = {4: "192.0.2.2", 6: "2001:db8:e::2"}  # an address of no jail: what comes back goes nowhere
SO_MARK, SO_BINDTODEVICE = 36, 25


def version(probe: dict[str, Any]) -> int:
    return 6 if ":" in probe["target"] else 4


def header(probe: dict[str, Any]) -> Packet:
    make = IPv6 if version(probe) == 6 else IP
    return make(src=HERE[version(probe)], dst=probe["target"])


def datagram(probe: dict[str, Any]) -> Packet:
    return header(probe) / UDP(sport=40000, dport=probe["port"]) / Raw(bytes.fromhex(probe["payload"]))


def echo(probe: dict[str, Any]) -> Packet:
    return header(probe) / (ICMPv6EchoRequest() if version(probe) == 6 else ICMP()) / Raw(b"exeat")


def fragments(probe: dict[str, Any]) -> list[Packet]:
    if version(probe) == 4:
        return list(fragment(datagram(probe), 1000))  # type: ignore[no-untyped-call]
    whole = datagram(probe)
    cut = header(probe) / IPv6ExtHdrFragment() / whole[UDP]
    return list(fragment6(cut, 1000))  # type: ignore[no-untyped-call]


def routed(probe: dict[str, Any]) -> Packet:
    body = UDP(sport=40000, dport=probe["port"]) / Raw(b"x")
    if version(probe) == 4:
        through = IPOption_LSRR(routers=[probe["target"]])
        return IP(src=HERE[4], dst=probe["target"], options=[through]) / body
    extension = IPv6ExtHdrRouting(addresses=[probe["target"]])
    return IPv6(src=HERE[6], dst=probe["target"]) / extension / body


def in_ip(probe: dict[str, Any]) -> Packet:
    return header(probe) / header(probe) / UDP(sport=40000, dport=9) / Raw(b"x")


def send(probe: dict[str, Any], packets: list[Packet]) -> int:
    """Through IP's own output, with our header (raw(7), ipv6(7))."""
    family = socket.AF_INET6 if version(probe) == 6 else socket.AF_INET
    scope = (0, 1) if probe["target"].startswith("fe80") else ()
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for packet in packets:
            sock.sendto(bytes(packet), (probe["target"], 0, *scope))
    return len(packets)


def frames(probe: dict[str, Any]) -> int:
    """Past IP altogether, into every interface there is."""
    sent = 0
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((name, 0))
            sock.send(bytes(Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / datagram(probe)))
            sent += 1
    return sent


def marked(probe: dict[str, Any]) -> int:
    """An ordinary socket that says by what mark, and by what interface, it wants to be routed."""
    sent = 0
    for _, name in socket.if_nameindex():
        family = socket.AF_INET6 if version(probe) == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, name.encode() + b"\0")
            sock.sendto(bytes.fromhex(probe["payload"]), (probe["target"], probe["port"]))
            sent += 1
    return sent


HOW: dict[str, Callable[[dict[str, Any]], int]] = {
    "dns": lambda probe: send(probe, [datagram(probe)]),
    "quic": lambda probe: send(probe, [datagram(probe)]),
    "syn": lambda probe: send(probe, [header(probe) / TCP(sport=40000, dport=probe["port"], flags="S")]),
    "echo": lambda probe: send(probe, [echo(probe)]),
    "fragments": lambda probe: send(probe, fragments(probe)),
    "routed": lambda probe: send(probe, [routed(probe)]),
    "tunnel": lambda probe: send(probe, [in_ip(probe)]),
    "frame": frames,
    "marked": marked,
}


def main() -> None:
    for probe in json.loads(sys.argv[1]):
        try:
            found: dict[str, Any] = {"sent": HOW[probe["how"]](probe)}
        except OSError as error:
            found = {"errno": errno.errorcode.get(error.errno or 0, str(error))}
        print(json.dumps({"key": probe["key"], **found}), flush=True)


if __name__ == "__main__":
    main()
