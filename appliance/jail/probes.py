"""What is tried from inside a jail (pure), and the bytes it sends.

Every probe has an address of its own, from the documentation ranges (RFC 5737, RFC 3849): a frame that
is seen outside names the probe that got out, and even a broken jail reaches nobody. Link-local and
multicast probes have one of their own too, in the ranges that are theirs.
"""

from __future__ import annotations

import ipaddress
import itertools
import ssl
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB, ROOT = "job", "root"
ZONE: Final = "doctor.example.com"  # questions are for names below it; nobody may ask for them
_NETWORK4: Final = int(ipaddress.IPv4Address("192.0.2.10"))
_NETWORK6: Final = int(ipaddress.IPv6Address("2001:db8:e::10"))


@dataclass(frozen=True, slots=True)
class Probe:
    """One way out. `who` tries it: the job as its own user, or root inside the jail's namespace.

    `how` is what `attempt.py` (job) or `raw.py` (root) knows it by. `payload` is hex.
    """

    key: str
    title: str
    who: str
    how: str
    target: str = ""
    port: int = 0
    payload: str = ""

    @property
    def packed(self) -> bytes:
        """The target's address as it stands in a packet, b"" where there is none."""
        if not self.target:
            return b""
        address = ipaddress.ip_address(self.target)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).packed

    def message(self) -> dict[str, Any]:
        return asdict(self)


def question(name: str) -> bytes:
    """A DNS query for `name`, type A (RFC 1035 section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 0xE1EA, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def request(key: str) -> bytes:
    """An HTTP request with a Host of the probe's own (RFC 9112 section 3.2)."""
    return f"GET / HTTP/1.1\r\nHost: {key}.{ZONE}\r\n\r\n".encode()


def client_hello() -> bytes:
    """What a TLS client says first to an address, without a server name (RFC 8446 section 4.1.2)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake ended without a peer")


def quic_initial() -> bytes:
    """The outside of a QUIC version 1 Initial packet, padded as a client must (RFC 9000 section 14.1)."""
    head = b"\xc3" + struct.pack("!I", 1) + b"\x08exeatdoc" + b"\x00" + b"\x00"
    return (head + struct.pack("!H", 0x4000 | 1180)).ljust(1200, b"\x5a")


def every_probe(unix: dict[str, str]) -> list[Probe]:
    """All of them, in the order in which they are shown. `unix` names sockets of the appliance by path."""
    four, six = _addresses()
    return [*_as_job(four, six, unix), *_as_root(four, six)]


def _addresses() -> tuple[Iterator[str], Iterator[str]]:
    return (
        (str(ipaddress.IPv4Address(number)) for number in itertools.count(_NETWORK4)),
        (str(ipaddress.IPv6Address(number)) for number in itertools.count(_NETWORK6)),
    )


def _as_job(four: Iterator[str], six: Iterator[str], unix: dict[str, str]) -> Iterator[Probe]:
    hello, quic = client_hello(), quic_initial()

    def probe(key: str, title: str, how: str, target: str = "", port: int = 0, data: bytes = b"") -> Probe:
        return Probe(key, title, JOB, how, target, port, data.hex())

    for version, some in (("4", four), ("6", six)):
        name = f"IPv{version}"

        def asks(key: str, how: str, title: str, some: Iterator[str] = some, name: str = name) -> Probe:
            key += name[-1]
            data = question(f"{key}.{ZONE}")
            prefix = struct.pack("!H", len(data)) if how == "tcp" else b""
            return probe(key, f"{title}, {name}", how, next(some), 53, prefix + data)

        yield asks("dns-udp", "udp", "DNS over UDP to another resolver")
        yield asks("dns-tcp", "tcp", "DNS over TCP to another resolver")
        yield probe(f"dot{version}", f"DNS over TLS, {name}", "tcp", next(some), 853, hello)
        yield probe(f"doh{version}", f"DNS over HTTPS to an address, {name}", "tcp", next(some), 443, hello)
        http = request(f"http{version}")
        yield probe(f"http{version}", f"HTTP to an address, {name}", "tcp", next(some), 80, http)
        yield probe(f"ssh{version}", f"TCP to port 22, {name}", "tcp", next(some), 22, b"SSH-2.0-x\r\n")
        yield probe(f"quic{version}", f"QUIC, {name}", "udp", next(some), 443, quic)
        yield probe(f"doq{version}", f"DNS over QUIC, {name}", "udp", next(some), 853, quic)
        yield probe(f"big{version}", f"UDP in fragments, {name}", "udp", next(some), 9, bytes(3000))
        yield probe(f"connect{version}", f"CONNECT to an address, {name}", "connect", next(some), 443)
        yield probe(f"ping{version}", f"ICMP echo socket, {name}", "ping", next(some))
        yield probe(f"raw{version}", f"raw IP socket, {name}", "raw", next(some))
    yield probe("metadata", "cloud metadata", "tcp", "169.254.169.254", 80, request("metadata"))
    yield probe("mapped", "IPv4-mapped IPv6", "tcp", f"::ffff:{next(four)}", 443, hello)
    yield probe("link-local-tcp", "IPv6 link-local, TCP", "tcp", "fe80::e:a1", 443, hello)
    yield probe("link-local-udp", "IPv6 link-local, UDP", "udp", "fe80::e:a2", 9, b"x")
    yield probe("multicast6", "IPv6 multicast", "udp", "ff02::e:a3", 5353, b"x")
    yield probe("multicast4", "IPv4 multicast", "udp", "224.0.0.251", 5353, b"x")
    yield probe("routed", "source-routed UDP (LSRR)", "lsrr", next(four), 9)
    yield probe("packet", "packet socket", "packet")
    yield probe("mark", "SO_MARK on a socket", "mark")
    yield probe("device", "SO_BINDTODEVICE", "device")
    yield probe("vsock", "VSOCK to the host", "vsock")
    yield probe("ports4", "any port of 127.0.0.1 but the doors", "ports", "127.0.0.1")
    yield probe("ports6", "any port of ::1 but the doors", "ports", "::1")
    for name, path in unix.items():
        yield probe(f"unix-{name}", f"the {name} socket", "unix", data=path.encode())


def _as_root(four: Iterator[str], six: Iterator[str]) -> Iterator[Probe]:
    for version, some in (("4", four), ("6", six)):

        def raw(
            how: str,
            title: str,
            port: int = 0,
            data: bytes = b"",
            some: Iterator[str] = some,
            version: str = version,
        ) -> Probe:
            key = f"raw-{how}{version}"
            if port == 53:
                data = question(f"{key}.{ZONE}")
            return Probe(key, f"{title}, IPv{version}", ROOT, how, next(some), port, data.hex())

        yield raw("dns", "raw UDP to port 53", 53)
        yield raw("quic", "raw QUIC", 443, quic_initial())
        yield raw("syn", "raw TCP SYN to port 853", 853)
        yield raw("echo", "raw ICMP echo")
        yield raw("fragments", "raw fragments", 9, bytes(3000))
        yield raw("routed", "raw source-routed packet", 9, b"x")
        yield raw("tunnel", "raw IP in IP")
        yield raw("frame", "frames into every interface", 9, b"x")
        yield raw("marked", "UDP with a mark and a device", 53)
    local = "raw-link-local"
    yield Probe(
        local, "raw IPv6 link-local", ROOT, "dns", "fe80::e:b1", 53, question(f"{local}.{ZONE}").hex()
    )
