"""The lab's authoritative name server. Every query that reaches it is on its log, answered or not."""

from __future__ import annotations

import itertools
import socket
import struct
from typing import Any

from dnslib import AAAA, CNAME, NS, QTYPE, RCODE, RR, SOA, TXT, A, DNSError, DNSHeader, DNSRecord

from exeat.appliance.lab import service, zones

_UDP_LIMIT = 512
_TCP_SECONDS = 10.0
_MAX_CHAIN = 8


class NameServer:
    def __init__(self, log: service.EventLog) -> None:
        self._log = log
        self._numbers = itertools.count(1)
        self._turns: dict[str, itertools.cycle[tuple[str, ...]]] = {
            name: itertools.cycle(entry.turns) for name, entry in zones.ENTRIES.items() if entry.turns
        }

    def answer(self, data: bytes, proto: str, peer: str) -> bytes | None:
        """The answer's bytes, or None for what is not a query."""
        try:
            query = DNSRecord.parse(data)
            name, kind = str(query.q.qname), int(query.q.qtype)
        except (DNSError, UnicodeError, ValueError):
            self._log.write("garbage", proto=proto, peer=peer, bytes=len(data))
            return None
        if query.header.qr:
            return None
        reply = self._reply(query, name.rstrip(".").lower(), kind)
        packed = bytes(reply.pack())
        if proto == "udp" and len(packed) > _udp_limit(query):
            # The library's own `truncate` drops the question, and clients would drop the answer.
            reply = DNSRecord(DNSHeader(id=reply.header.id, bitmap=reply.header.bitmap, tc=1), q=query.q)
            packed = bytes(reply.pack())
        self._log.write(
            "query", n=next(self._numbers), proto=proto, peer=peer, name=name.rstrip("."),
            qtype=QTYPE.get(kind), rcode=RCODE.get(reply.header.rcode), answers=len(reply.rr),
            tc=bool(reply.header.tc),
        )  # fmt: skip
        return packed

    def _reply(self, query: DNSRecord, name: str, kind: int) -> DNSRecord:
        reply = query.reply(ra=0, aa=1)
        if zones.apex_of(name) is None or int(query.q.qclass) != 1:
            reply.header.rcode = RCODE.REFUSED
            return reply
        owner = query.q.qname
        for _ in range(_MAX_CHAIN):
            entry = zones.find(name)
            if entry is None or not entry.cname:
                break
            reply.add_answer(RR(owner, QTYPE.CNAME, ttl=entry.ttl, rdata=CNAME(entry.cname)))
            name, owner = entry.cname, entry.cname
        entry = zones.find(name)
        if entry is None:
            reply.header.rcode = RCODE.NXDOMAIN
        else:
            for rdata in self._records(name, entry, kind):
                reply.add_answer(RR(owner, kind, ttl=entry.ttl, rdata=rdata))
        apex = zones.apex_of(name)
        if len(reply.rr) == 0 or entry is None:
            reply.add_auth(RR(apex, QTYPE.SOA, ttl=30, rdata=_soa(apex)))
        return reply

    def _records(self, name: str, entry: zones.Entry, kind: int) -> list[Any]:
        if kind == QTYPE.A:
            addresses = next(self._turns[name]) if entry.turns else entry.a
            return [A(address) for address in addresses]
        if kind == QTYPE.AAAA:
            # dnslib cannot build a mapped address from text; the sixteen bytes it takes as they are.
            return [AAAA(tuple(socket.inet_pton(socket.AF_INET6, text))) for text in entry.aaaa]
        if kind == QTYPE.TXT and entry.txt:
            return [TXT(entry.txt)]
        if kind == QTYPE.NS and name in zones.APEXES:
            return [NS("ns.example.net")]
        if kind == QTYPE.SOA and name in zones.APEXES:
            return [_soa(name)]
        return []

    def serve_udp(self, family: socket.AddressFamily) -> None:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", 53))
        service.start(self._udp_loop, sock)

    def _udp_loop(self, sock: socket.socket) -> None:
        while True:
            data, peer = sock.recvfrom(65_535)
            reply = self.answer(data, "udp", service.endpoint(peer))
            if reply is not None:
                sock.sendto(reply, peer)

    def serve_connection(self, sock: socket.socket) -> None:
        """RFC 7766: any number of length-prefixed queries on one connection."""
        peer = service.endpoint(sock.getpeername())
        sock.settimeout(_TCP_SECONDS)
        try:
            with sock, sock.makefile("rb") as stream:
                while len(head := stream.read(2)) == 2:
                    reply = self.answer(stream.read(struct.unpack(">H", head)[0]), "tcp", peer)
                    if reply is None:
                        return
                    sock.sendall(struct.pack(">H", len(reply)) + reply)
        except OSError:
            return


def _udp_limit(query: DNSRecord) -> int:
    """What the client says it can take: the class field of its OPT record (RFC 6891 6.1.2)."""
    sizes = [int(rr.rclass) for rr in query.ar if int(rr.rtype) == QTYPE.OPT]
    return max(_UDP_LIMIT, *sizes) if sizes else _UDP_LIMIT


def _soa(apex: str | None) -> SOA:
    return SOA("ns.example.net", f"hostmaster.{apex}", (1, 3600, 600, 86_400, 30))


def main() -> None:
    args = service.arguments("the lab's name server")
    service.block_signals()
    server = NameServer(service.EventLog(args.events))
    for family in (socket.AF_INET, socket.AF_INET6):
        server.serve_udp(family)
    service.serve_tcp(53, server.serve_connection)
    service.run_until_told(args.ready_fd)


if __name__ == "__main__":
    main()
