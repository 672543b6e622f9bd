"""Hosts and ports as they may appear on the wire, canonicalised once.

The C library maps `2130706433`, `0x7f.1`, full-width digits and the Kelvin sign to other hosts,
cuts at NUL, and wraps port 65979 to 443. So bytes are matched against this grammar first: ASCII
letters, digits, hyphen and underscore; U-labels are rejected, never guessed.
"""

from __future__ import annotations

import re

from exeat.policy.addresses import collapse, parse_address, parse_v4, parse_v6
from exeat.policy.errors import MalformedError
from exeat.policy.model import Address

__all__ = ["MalformedError", "canonical_host", "parse_authority", "parse_host", "parse_port"]

MAX_NAME = 253
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# WHATWG URL, "ends in a number": such a host is an IPv4 address to some parser or other.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_PORT = re.compile(rb"[1-9][0-9]{0,4}")


def parse_host(raw: bytes | str) -> str | Address:
    """The canonical host of a wire form: a lower-case name without trailing dot, or an Address.

    IPv6 must be in brackets, without a zone; IPv4 must be a strict dotted quad. Raises
    MalformedError with `malformed.{host,host_length,non_ascii_host,ip,ip_zone,legacy_ip}`.
    """
    if isinstance(raw, bytes):
        raw = raw.decode("latin-1")
    if not isinstance(raw, str):
        raise MalformedError("malformed.host")
    if not raw.isascii():
        raise MalformedError("malformed.non_ascii_host")
    if raw.startswith("["):
        return _bracketed(raw)
    if ":" in raw:
        raise MalformedError(_colon_code(raw))
    return _name_or_quad(raw.lower())


def _bracketed(raw: str) -> Address:
    inner = raw[1:-1]
    if not raw.endswith("]") or ":" not in inner:
        raise MalformedError("malformed.ip")
    return parse_address(inner)


def _colon_code(raw: str) -> str:
    """IPv6 without brackets is ambiguous with `host:port`; say which mistake it was."""
    base, percent, _ = raw.partition("%")
    if parse_v6(base) is None:
        return "malformed.host"
    return "malformed.ip_zone" if percent else "malformed.ip"


def _name_or_quad(text: str) -> str | Address:
    name = text.removesuffix(".")
    if len(name) > MAX_NAME:
        raise MalformedError("malformed.host_length")
    if not _NAME.fullmatch(name):
        raise MalformedError("malformed.host")
    if not _NUMBER.fullmatch(name):
        return name
    value = parse_v4(name)
    if value is None:
        raise MalformedError("malformed.legacy_ip")
    return Address(4, value)


def recorded_host(text: str) -> str | Address:
    """`parse_host` of what a record calls a host: addresses of IPv6 stand there without brackets."""
    return parse_host(f"[{text}]" if ":" in text else text)


def canonical_host(host: str | Address) -> str | Address:
    """`host` again, canonical: what decides must not trust that its caller canonicalised."""
    if isinstance(host, Address):
        width = 32 if host.family == 4 else 128
        if host.family not in (4, 6) or not 0 <= host.value < 1 << width:
            raise MalformedError("malformed.ip")
        return collapse(host)
    return parse_host(host)


def parse_port(raw: bytes) -> int:
    """A port 1..65535 in plain ASCII digits without sign, space or leading zero; `malformed.port`."""
    if not _PORT.fullmatch(raw) or (port := int(raw)) > 65535:
        raise MalformedError("malformed.port")
    return port


def parse_authority(raw: bytes) -> tuple[str | Address, int]:
    """`host:port` or `[v6]:port` (RFC 9110 7.2, RFC 3986 3.2.2); the port is not optional."""
    if raw.startswith(b"[") and b"]" not in raw:
        raise MalformedError("malformed.ip")  # where the port begins is anybody's guess
    host, colon, port = raw.rpartition(b":")
    if not colon or (raw.startswith(b"[") and not host.endswith(b"]")):
        raise MalformedError("malformed.port")
    if not host:
        raise MalformedError("malformed.host")
    return parse_host(host), parse_port(port)
