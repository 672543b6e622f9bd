"""The hostile host: answers under any name and address it is reached by, and notes all of it.

It also plays the cloud metadata service, and everything else nobody should reach: the
gateway's default route ends here. A packet log below the sockets sees what no listener would.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from exeat.appliance.lab import plan, service
from exeat.appliance.lab.stream import Counted, Plain, Secure

# Every address is local here for what is routed to us; ARP must still answer for our own only.
_ARP_IGNORE = Path("/proc/sys/net/ipv4/conf/eth0/arp_ignore")
_ETH_P_ALL = 0x0003
_ETH_P_IP = 0x0800
_ETH_P_IPV6 = 0x86DD
_TO_US = 0  # PACKET_HOST
_ICMPV6_HOUSEKEEPING = range(130, 138)  # multicast listener, router and neighbour discovery
_SECONDS = 10.0
_CREDENTIALS = b'{"AccessKeyId": "LAB-STOLEN", "SecretAccessKey": "from-the-metadata-address"}\n'


class Hostile:
    def __init__(self, run_dir: Path, log: service.EventLog) -> None:
        self._log = log
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(run_dir / "pki" / "evil.pem", run_dir / "pki" / "evil.key")

    def plain(self, sock: socket.socket) -> None:
        counted = Counted(sock)
        self._take("tcp", counted, Plain(counted))

    def secure(self, sock: socket.socket) -> None:
        counted = Counted(sock)
        stream = Secure(counted, self._context)
        try:
            stream.handshake()
        except (OSError, ssl.SSLError):
            return self._note("tls", counted, b"")
        self._take("tls", counted, stream)

    def _take(self, kind: str, counted: Counted, stream: Plain) -> None:
        counted.sock.settimeout(_SECONDS)
        taken = bytearray(4096)
        count = 0
        try:
            count = stream.readinto(taken)
            body = _CREDENTIALS if counted.sock.getsockname()[0] == plan.METADATA4 else b"thank you\n"
            stream.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            stream.end()
        except (OSError, ssl.SSLError):
            counted.ended = "reset"
        self._note(kind, counted, bytes(taken[:count]))

    def _note(self, kind: str, counted: Counted, taken: bytes) -> None:
        local = service.endpoint(counted.sock.getsockname())
        counted.finish()
        self._log.write(
            "taken", kind=kind, local=local, received=counted.received, data=taken[:512].decode("latin-1")
        )

    def datagrams(self, port: int) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if family is socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("", port))
            service.start(self._datagram_loop, sock, port)

    def _datagram_loop(self, sock: socket.socket, port: int) -> None:
        while True:
            data, peer = sock.recvfrom(65_535)
            self._log.write("datagram", port=port, peer=service.endpoint(peer), data=data[:64].hex())

    def packets(self) -> None:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        sock.bind(("eth0", _ETH_P_ALL))
        service.start(self._packet_loop, sock)

    def _packet_loop(self, sock: socket.socket) -> None:
        while True:
            packet, (_device, protocol, direction, *_rest) = sock.recvfrom(128)
            seen = describe(packet, protocol) if direction == _TO_US else None
            if seen is not None:
                self._log.write("packet", **seen)


def describe(packet: bytes, protocol: int) -> dict[str, str | int] | None:
    """Who sent what where, or None for what keeps the link going (ARP, neighbour discovery)."""
    if protocol == _ETH_P_IP and len(packet) >= 20:
        start, upper = (packet[0] & 15) * 4, packet[9]
        source, target = (socket.inet_ntop(socket.AF_INET, packet[a : a + 4]) for a in (12, 16))
    elif protocol == _ETH_P_IPV6 and len(packet) >= 40:
        start, upper = 40, packet[6]
        source, target = (socket.inet_ntop(socket.AF_INET6, packet[a : a + 16]) for a in (8, 24))
        if upper == 0 or (upper == 58 and packet[start] in _ICMPV6_HOUSEKEEPING):
            return None
    else:
        return None
    port = int.from_bytes(packet[start + 2 : start + 4], "big") if upper in (6, 17) else 0
    return {"source": source, "target": target, "protocol": upper, "port": port}


def main() -> None:
    args = service.arguments("the lab's hostile host")
    service.block_signals()
    host = Hostile(args.run_dir, service.EventLog(args.events))
    _ARP_IGNORE.write_text("1")
    host.packets()
    for port in (22, 53, 80, 8080):
        service.serve_tcp(port, host.plain, any_address=True)
    for port in (443, 853, 8443):
        service.serve_tcp(port, host.secure, any_address=True)
    for port in (53, 443, 853):
        host.datagrams(port)
    service.run_until_told(args.ready_fd)


if __name__ == "__main__":
    main()
