"""ClientHellos, good and bad: one made by OpenSSL, taken apart and put together differently."""

from __future__ import annotations

import contextlib
import ssl
import struct
from functools import cache
from typing import Any

SNI, PADDING, ECH = 0, 21, 0xFE0D
GREASE = 0x7A7A
_RECORD_LIMIT = 16_384


@cache
def _template() -> tuple[bytes, tuple[tuple[int, bytes], ...]]:
    """(everything up to the extensions, the extensions) of a hello that real servers accept."""
    context = ssl.create_default_context()
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="template.example")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    body = out.read()[9:]
    at = 34
    at += 1 + body[at]
    (ciphers,) = struct.unpack_from(">H", body, at)
    at += 2 + ciphers
    at += 1 + body[at]
    head, rest = body[:at], body[at + 2 :]
    found = []
    while rest:
        number, length = struct.unpack_from(">HH", rest)
        found.append((number, rest[4 : 4 + length]))
        rest = rest[4 + length :]
    return head, tuple(found)


def server_names(names: list[tuple[int, bytes]]) -> bytes:
    """The body of one server_name extension (RFC 6066 section 3)."""
    entries = b"".join(struct.pack(">BH", kind, len(name)) + name for kind, name in names)
    return struct.pack(">H", len(entries)) + entries


def build(spec: dict[str, Any]) -> bytes:
    """The records of one hello.

    `sni`: a name, a list of names in one extension, or absent for none. `kind`: name type (0).
    `second_sni`: a name in a second extension. `ech`: add an encrypted_client_hello. `pad`: bytes
    of padding. `grease`: bytes of an unknown extension, as large keys make a hello large.
    `records`: sizes of the first records. `legacy`: version of the record layer.
    """
    head, template = _template()
    extensions = [(number, data) for number, data in template if number not in (SNI, PADDING)]
    if "sni" in spec:
        names = spec["sni"] if isinstance(spec["sni"], list) else [spec["sni"]]
        kinds = spec.get("kinds", [spec.get("kind", 0)] * len(names))
        pairs = [(kind, name.encode("latin-1")) for kind, name in zip(kinds, names, strict=True)]
        extensions.insert(0, (SNI, server_names(pairs)))
    if "second_sni" in spec:
        extensions.append((SNI, server_names([(0, spec["second_sni"].encode("latin-1"))])))
    if spec.get("ech"):
        # Outer form (RFC 9849 section 5): type 0, HKDF-SHA256 with AES-128-GCM, id, enc, payload.
        outer = b"\x00\x00\x01\x00\x01\x2a" + b"\x00\x20" + b"k" * 32 + b"\x00\x90" + b"p" * 144
        extensions.append((ECH, outer))
    if spec.get("grease"):
        extensions.append((GREASE, bytes(spec["grease"])))
    if spec.get("pad"):
        extensions.append((PADDING, bytes(spec["pad"])))
    listed = b"".join(struct.pack(">HH", number, len(data)) + data for number, data in extensions)
    body = head + struct.pack(">H", len(listed)) + listed
    return records(b"\x01" + len(body).to_bytes(3, "big") + body, spec.get("records", []))


def records(message: bytes, sizes: list[int]) -> bytes:
    """`message` over handshake records: the first ones of `sizes`, the rest as large as allowed."""
    out = b""
    sizes = list(sizes)
    while message:
        part = message[: sizes.pop(0) if sizes else _RECORD_LIMIT]
        out += b"\x16\x03\x01" + struct.pack(">H", len(part)) + part
        message = message[len(part) :]
    return out
