"""The corpus: YAML files with what is sent and what must come of it, made into plain steps.

A file names its `class`, its `source`, `defaults` for its cases, and `cases`. The bytes of a
string are its code points (latin-1), so "\\x00" and "\\xff" are one byte each; text beyond that is
UTF-8. docs/redteam.md lists every field.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from tests.redteam import hello
from tests.support import quic_client

CORPUS: Final = Path(__file__).parent / "corpus"
EXPECTED: Final = frozenset({"refused", "allowed", "contained"})
_FIELDS: Final = frozenset({
    "id", "title", "source", "expect", "dial", "unseen", "dns", "want", "unwanted", "target", "port",
    "forms", "hello", "head", "steps", "quiet", "spelling",
})  # fmt: skip
_GREETING: Final = "served by the red-team origin"
_ATYPS: Final = {"ipv4": 1, "domain": 3, "ipv6": 4}


class CorpusError(Exception):
    """A corpus file cannot be used; the message says which case and why."""


@dataclass(frozen=True)
class Case:
    """One attempt and what is expected of it.

    expect     refused: no byte of it reaches anything; allowed: it works, to the last step;
               contained: part of it may be served, but nothing that must stay unseen is seen.
    dial       refused, yet the allowed origin may have been connected to (with no byte sent).
    unseen     texts that no origin may receive.
    unwanted   texts that the client may not hear.
    dns        names that may be asked of the resolver although no policy allows them.
    quiet      nothing may be asked of the resolver.
    spelling   names that may not be asked in exactly this spelling.
    """

    id: str
    group: str
    title: str
    source: str
    expect: str
    dial: bool
    unseen: tuple[str, ...]
    unwanted: tuple[str, ...]
    dns: tuple[str, ...]
    quiet: bool
    spelling: tuple[str, ...]
    steps: tuple[dict[str, Any], ...]

    @property
    def doors(self) -> frozenset[str]:
        """What the proxy must offer for this case: of proxy, socks, udp, dns, direct."""
        return frozenset(step["to"] for step in self.steps if step["op"] == "open")


def load(folder: Path = CORPUS) -> list[Case]:
    """Every case of every file, in order. Raises CorpusError."""
    found: list[Case] = []
    for path in sorted(folder.glob("*.yaml")):
        data = yaml.safe_load(path.read_text())
        if "cases" in data:
            for entry in data["cases"]:
                found += _expand(path.name, data, {**data.get("defaults", {}), **entry})
    ids = [case.id for case in found]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise CorpusError(f"ids that stand twice: {', '.join(twice)}")
    return found


def _expand(file: str, data: dict[str, Any], entry: dict[str, Any]) -> list[Case]:
    """One entry is one case, or one for each of its `forms`."""
    name = f"{file}: {entry.get('id')}"
    if unknown := set(entry) - _FIELDS:
        raise CorpusError(f"{name}: unknown fields {sorted(unknown)}")
    if entry.get("expect") not in EXPECTED or not entry.get("title"):
        raise CorpusError(f"{name}: `expect` and `title` are needed")
    forms = entry.get("forms", ["connect"]) if "target" in entry else [""]
    return [_case(data, entry, form) for form in forms]


def _case(data: dict[str, Any], entry: dict[str, Any], form: str) -> Case:
    steps = _steps(entry, form)
    if entry["expect"] == "allowed" and not any(step["op"] == "need" for step in steps[-1:]):
        want = entry.get("want", _GREETING)
        steps.append({"op": "need", "holds": [_hex(want)], "starts": []})
    return Case(
        id="/".join(part for part in (data["class"], str(entry["id"]), form) if part),
        group=data["class"],
        title=entry["title"],
        source=entry.get("source", data["source"]),
        expect=entry["expect"],
        dial=entry.get("dial", False),
        unseen=tuple(entry.get("unseen", ())),
        unwanted=tuple(entry.get("unwanted", ())),
        dns=tuple(entry.get("dns", ())),
        quiet=entry.get("quiet", False),
        spelling=tuple(entry.get("spelling", ())),
        steps=tuple(steps),
    )


def to_bytes(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _hex(text: str) -> str:
    return to_bytes(text).hex()


# -- entries into steps


def _steps(entry: dict[str, Any], form: str) -> list[dict[str, Any]]:
    if form:
        return _to_target(entry, form)
    if "head" in entry:
        return [_open("proxy"), _send(entry["head"]), {"op": "read", "until": "eof", "wait": 1.0}]
    return [done for step in entry["steps"] for done in _step(step)]


def _to_target(entry: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """A host that stands in the request itself, in one of three spellings of "go there"."""
    target, port = entry["target"], entry.get("port", 443)
    if form == "http":
        place = target if entry.get("port", 80) == 80 else f"{target}:{port}"
        head = f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n"
        return [_open("proxy"), _send(head), {"op": "read", "until": "some", "wait": 1.5}]
    opening = _connect(f"{target}:{port}") if form == "connect" else _socks({"host": target, "port": port})
    spec = entry.get("hello", {"sni": target} if _plain(target) else {"sni": "www.wild.example.org"})
    then = hello.build(spec).hex()
    return [*opening, {"op": "send", "hex": then}, {"op": "read", "until": "some", "wait": 1.0}]


def _plain(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9.-]+", name) is not None and not re.fullmatch(r"[0-9.]+", name)


def _step(step: dict[str, Any]) -> list[dict[str, Any]]:
    if "connect" in step:
        return _connect(step["connect"], step)
    if "socks" in step:
        return _socks(step["socks"])
    if "associate" in step:
        return [*_socks({"host": "0.0.0.0", "atyp": "ipv4", "port": 0, "cmd": 3}, "udp"), {"op": "associate"}]
    if "datagram" in step:
        return [{"op": "send", "hex": _datagram(step["datagram"]).hex()}]
    if "direct_udp" in step:
        host, _, port = step["direct_udp"].rpartition(":")
        return [{"op": "open", "to": "direct", "at": [host.strip("[]"), int(port)], "datagrams": True}]
    if "direct" in step:
        host, _, port = step["direct"].rpartition(":")
        return [{"op": "open", "to": "direct", "at": [host.strip("[]"), int(port)]}]
    if "open" in step:
        return [_open(step["open"])]
    if "hello" in step or "send" in step:
        return [_sending(step)]
    if "read" in step:
        until = step["read"]
        known = {"until": until} if isinstance(until, str) else {"until": "count", "count": until}
        return [{"op": "read", **known, **{key: step[key] for key in ("wait", "text") if key in step}}]
    if "need" in step:
        return [{"op": "need", "starts": [_hex(text) for text in step["need"]]}]
    if "has" in step:
        return [{"op": "need", "holds": [_hex(text) for text in step["has"]]}]
    if "tls" in step:
        return [{"op": "tls", "name": step["tls"]}]
    if "pause" in step:
        return [{"op": "pause", "seconds": step["pause"]}]
    if "dns" in step:
        return _question(**step["dns"])
    if "payload" in step:
        return [{"op": "send", "hex": _payload(step["payload"]).hex()}]
    if "shut" in step:
        return [{"op": "shut"}]
    raise CorpusError(f"no such step: {step}")


def _open(where: str) -> dict[str, Any]:
    return {"op": "open", "to": where}


def _send(text: str) -> dict[str, Any]:
    return {"op": "send", "hex": _hex(text)}


def _sending(step: dict[str, Any]) -> dict[str, Any]:
    """`before` + (hello or text) + `then`; `cut` keeps only that many bytes of a hello."""
    middle = hello.build(step["hello"])[: step.get("cut")] if "hello" in step else to_bytes(step["send"])
    data = to_bytes(step.get("before", "")) + middle + to_bytes(step.get("then", ""))
    data *= step.get("times", 1)
    return {"op": "send", "hex": data.hex(), "segments": step.get("segments", 0)}


def _connect(authority: str, step: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """A tunnel, with what the client pipelines behind its CONNECT."""
    early = bytes.fromhex(_sending(step["early"])["hex"]) if step and "early" in step else b""
    head = to_bytes(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
    return [
        _open("proxy"),
        {"op": "send", "hex": (head + early).hex()},
        {"op": "read", "until": "head", "wait": 5.0},
        {"op": "need", "starts": [_hex("HTTP/1.1 2"), _hex("HTTP/1.0 2")]},
    ]


def _socks(spec: dict[str, Any], door: str = "socks") -> list[dict[str, Any]]:
    """A SOCKS5 request after the greeting without authentication (RFC 1928)."""
    place = _place(spec)
    return [
        _open(door),
        _send("\x05\x01\x00"),
        {"op": "read", "until": "count", "count": 2, "wait": 5.0},
        {"op": "need", "starts": ["0500"]},
        {"op": "send", "hex": (bytes((5, spec.get("cmd", 1), 0)) + place).hex()},
        {"op": "read", "until": "some", "wait": 5.0},
        {"op": "need", "starts": ["0500"]},
    ]


def _place(spec: dict[str, Any]) -> bytes:
    """Type, address and port of RFC 1928 section 5."""
    kind = spec.get("atyp", "domain")
    host = to_bytes(spec["host"])
    if kind not in ("ipv4", "ipv6"):
        place = bytes((spec.get("length", min(len(host), 255)),)) + host
    else:
        place = socket.inet_pton(socket.AF_INET if kind == "ipv4" else socket.AF_INET6, spec["host"])
    return bytes((_ATYPS.get(kind, kind),)) + place + struct.pack(">H", spec.get("port", 443))


def _datagram(spec: dict[str, Any]) -> bytes:
    """A datagram of an association (RFC 1928 section 7); `cut` keeps only that many bytes of it."""
    head = struct.pack(">HB", spec.get("rsv", 0), spec.get("frag", 0)) + _place(spec)
    return (head + _payload(spec))[: spec.get("cut")]


def _payload(spec: dict[str, Any]) -> bytes:
    """`send`, or `quic`: a client's Initial with this hello; `before` and `then` stand around it."""
    if "quic" not in spec:
        return to_bytes(spec["send"])
    of = spec["quic"]
    message = hello.build(of)[5:]  # without the header of its one record
    frames = quic_client.crypto(0, message)
    if of.get("twice"):
        frames += quic_client.crypto(0, hello.build({**of, "sni": of["twice"]})[5:])
    packet = quic_client.initial(frames, version=of.get("version", 1))
    if "claims" in of:  # a version that it is not sealed for
        packet = packet[:1] + int(of["claims"]).to_bytes(4, "big") + packet[5:]
    if of.get("broken"):
        packet = packet[:-1] + bytes((packet[-1] ^ 1,))
    return to_bytes(spec.get("before", "")) + packet + to_bytes(spec.get("then", ""))


def _question(name: str, qtype: int, flags: int = 0x0100, qclass: int = 1) -> list[dict[str, Any]]:
    labels = [to_bytes(label) for label in name.split(".")] if name else []
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    query = b"\x2a\x2a" + struct.pack(">HHHHH", flags, 1, 0, 0, 0) + wire + struct.pack(">HH", qtype, qclass)
    read = {"op": "read", "until": "some", "wait": 1.5}
    return [_open("dns"), {"op": "send", "hex": query.hex()}, read]
