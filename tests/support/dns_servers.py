"""Real name servers on loopback for tests: one that answers from a zone, and its hostile cousins.

Built on dnspython so that what the guard reads was not written by the guard's own code.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import dns.tsig

Record = tuple[str, int, str, str]  # owner, ttl, type, data
# A handler gets the query, the transport and its bytes; it gives the datagrams to send back.
Handler = Callable[[dns.message.Message, bool], list[bytes]]


def zone_handler(records: list[Record]) -> Handler:
    """An honest resolver over `records`: follows CNAMEs, NODATA and NXDOMAIN with an SOA."""

    def handle(query: dns.message.Message, udp: bool) -> list[bytes]:
        reply = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        name, kind = question.name.to_text().lower().rstrip("."), dns.rdatatype.to_text(question.rdtype)
        seen = False
        for _ in range(10):
            mine = [record for record in records if record[0] == name]
            seen = seen or bool(mine)
            chosen = [record for record in mine if record[2] in (kind, "CNAME")]
            for owner, ttl, rtype, data in chosen:
                reply.answer.append(dns.rrset.from_text(owner + ".", ttl, "IN", rtype, data))
            alias = [record for record in chosen if record[2] == "CNAME"]
            if not alias:
                break
            name = alias[0][3].rstrip(".")
        if not any(rrset.rdtype == question.rdtype for rrset in reply.answer):
            soa = dns.rrset.from_text("test.", 9, "IN", "SOA", "ns.test. host.test. 1 2 3 4 9")
            reply.authority.append(soa)
            if not seen:
                reply.set_rcode(dns.rcode.NXDOMAIN)
        wire = reply.to_wire(max_size=65535)
        if udp and len(wire) > 1232:
            short = dns.message.make_response(query)
            short.flags |= dns.flags.TC
            wire = short.to_wire()
        return [wire]

    return handle


@dataclass
class NameServer:
    """A running server; `seen` counts (name in lower case, type) of every query that arrived."""

    handler: Handler
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    tcp: int = 0
    raw: list[bytes] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    address: tuple[str, int] = ("127.0.0.1", 0)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.seen}

    def answer(self, data: bytes, peer_port: int, udp: bool) -> list[bytes]:
        query = dns.message.from_wire(data)
        question = query.question[0]
        key = (question.name.to_text().lower().rstrip("."), dns.rdatatype.to_text(question.rdtype))
        self.seen[key] += 1
        self.raw.append(data)
        self.ports.append(peer_port)
        self.tcp += not udp
        return self.handler(query, udp)


@contextmanager
def name_server(handler: Handler, host: str = "127.0.0.1") -> Iterator[NameServer]:
    """Serve UDP and TCP on one loopback port until the block ends."""
    server = NameServer(handler)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tcp = socket.create_server((host, 0), family=family)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname())
    server.address = tcp.getsockname()[:2]
    threads = [
        threading.Thread(target=_serve_udp, args=(server, udp), daemon=True),
        threading.Thread(target=_serve_tcp, args=(server, tcp), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        with socket.socket(family, socket.SOCK_DGRAM) as end:
            end.sendto(b"", server.address)
        tcp.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(30)
        udp.close()
        tcp.close()


def _serve_udp(server: NameServer, sock: socket.socket) -> None:
    while True:
        data, peer = sock.recvfrom(65535)
        if not data:
            return
        for reply in server.answer(data, peer[1], True):
            sock.sendto(reply, peer)


def _serve_tcp(server: NameServer, sock: socket.socket) -> None:
    while True:
        try:
            client, peer = sock.accept()
        except OSError:
            return
        with client, client.makefile("rb") as stream:
            client.settimeout(30)
            size = int.from_bytes(stream.read(2), "big")
            for reply in server.answer(stream.read(size), peer[1], False):
                client.sendall(len(reply).to_bytes(2, "big") + reply)
