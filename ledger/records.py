"""The ledger's records: one frozen shape, one encoding, final.

A record is a deterministic CBOR array (`ledger.cbor`), positional, schema number first, in the
order of `_LAYOUT` below; docs/formats/ledger.md is the same table for people. Fields at the end
that hold their default are left out (and must be left out: one record has one encoding). The
bytes are the Merkle leaf: they are stored as the client sent them and never encoded again.

Integers are unsigned 64 bit. Times are nanoseconds, durations milliseconds, money nano-USD.
Text is capped in UTF-8 bytes and holds no control, line-separator, bidirectional or invisible
characters, so that a hostile name cannot forge a line in anything that prints a record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

from exeat.ledger import cbor
from exeat.ledger.quick import Outline, Quick

SCHEMA: Final = 1
MAX_RECORD: Final = 16384  # bytes; far above what the caps below allow, far below the u16 of a bundle
FLOW_ID: Final = 16  # bytes


class RecordError(ValueError):
    """The bytes are not a record, or a field of a record is outside its bounds."""


class Kind(IntEnum):
    """What a record says. The numbers are on the wire and never change."""

    OPEN = 1  # a flow is about to pass its first byte
    RESERVE = 2  # up to `reserved` bytes of both directions may pass from now on
    PROGRESS = 3  # a long flow's counts so far
    CLOSE = 4  # a flow's exact counts
    DENY = 5  # a flow or request was refused
    DNS = 6  # a lookup and its verdict; `count` of them
    LEASE = 7  # a lease changed state
    POLICY = 8  # a policy was loaded, or a switch thrown
    RECONCILE = 9  # the ledger's counts beside the kernel's
    GAP = 10  # evidence is known to be missing (torn tail, lost kernel events)
    BOOT = 11  # a process of exeat started
    KEY = 12  # a signing key came or went
    WITNESS = 13  # a witness countersigned a checkpoint
    ORPHAN = 14  # a flow nobody closed: counts are the lower bound, `reserved` the upper
    RESUME = 15  # the owner of an open flow is back after a restart
    ANOMALY = 16  # somebody went around what confines, or changed it
    JOB = 17  # a job started or ended
    ATTEST = 18  # what enforces: digests of live rules, of the policies in force, of the program
    ADMIN = 19  # who may use the console, and who did: accounts, tokens, sign-ins, exports

    @property
    def label(self) -> str:
        return self.name.lower()


class Dest(NamedTuple):
    """Where a flow goes.

    `host` is the canonical name (or address literal) that was asked for, `ip` the packed address
    that was dialled (4 or 16 bytes, empty if none was), `sni` the server name seen ("" if none).
    """

    host: str = ""
    port: int = 0
    protocol: str = ""
    ip: bytes = b""
    sni: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of evidence; each kind fills what it has.

    Byte counts are payload, cumulative per flow: `bytes_out` from the job towards the network,
    `bytes_in` back to it; `reserved` is the durable ceiling of their sum. `kernel_*` are
    TCP_INFO's counts of the upstream socket, `client_kernel_*` those of the job's socket, both in
    the same sense of out and in. `flow` is 16 random bytes, the same in all records of a flow.
    """

    kind: Kind
    t_real_ns: int = 0  # CLOCK_REALTIME
    t_boot_ns: int = 0  # CLOCK_BOOTTIME
    flow: bytes = b""
    bytes_out: int = 0
    bytes_in: int = 0
    reserved: int = 0
    job: str = ""
    project: str = ""
    agent: str = ""
    dest: Dest | None = None
    decision: str = ""  # allow, deny, ask
    reason_code: str = ""
    rule_id: str = ""
    lease_id: str = ""
    generation: int = 0  # of the snapshot that decided
    policy_digest: bytes = b""
    posture: str = ""
    name_source: str = ""  # where `dest.host` came from: connect, http, socks5, sni, dns, ...
    src: str = ""  # the socket or address the client came in by
    episode: str = ""
    node: str = ""
    count: int = 0
    answer: bytes = b""  # hash of a DNS answer
    corr_id: str = ""
    close_reason: str = ""
    duration_ms: int = 0
    kernel_out: int = 0
    kernel_in: int = 0
    client_kernel_out: int = 0
    client_kernel_in: int = 0
    segs_out: int = 0
    segs_in: int = 0
    retrans: int = 0
    cookie: int = 0  # SO_COOKIE of the upstream socket
    cost_nano_usd: int = 0
    tariff: str = ""
    actor: str = ""  # who acted, if not the flow's subject: a person, a uid, a cgroup
    boot_id: bytes = b""  # of this boot of the kernel; empty: as in the last `boot` record
    detail: str = ""
    data: bytes = b""  # binary evidence: a public key, a cosignature


class _Field(NamedTuple):
    name: str
    default: Any
    cap: int = 0  # bytes, for text and byte strings


# INVARIANT: order, meaning and caps of schema 1 are final; a change is a new schema number.
_LAYOUT: Final = (
    _Field("t_real_ns", 0),
    _Field("t_boot_ns", 0),
    _Field("flow", b"", FLOW_ID),
    _Field("bytes_out", 0),
    _Field("bytes_in", 0),
    _Field("reserved", 0),
    _Field("job", "", 64),
    _Field("project", "", 128),
    _Field("agent", "", 128),
    _Field("dest", None),
    _Field("decision", "", 16),
    _Field("reason_code", "", 64),
    _Field("rule_id", "", 128),
    _Field("lease_id", "", 128),
    _Field("generation", 0),
    _Field("policy_digest", b"", 32),
    _Field("posture", "", 32),
    _Field("name_source", "", 32),
    _Field("src", "", 128),
    _Field("episode", "", 128),
    _Field("node", "", 128),
    _Field("count", 0),
    _Field("answer", b"", 32),
    _Field("corr_id", "", 128),
    _Field("close_reason", "", 64),
    _Field("duration_ms", 0),
    _Field("kernel_out", 0),
    _Field("kernel_in", 0),
    _Field("client_kernel_out", 0),
    _Field("client_kernel_in", 0),
    _Field("segs_out", 0),
    _Field("segs_in", 0),
    _Field("retrans", 0),
    _Field("cookie", 0),
    _Field("cost_nano_usd", 0),
    _Field("tariff", "", 64),
    _Field("actor", "", 128),
    _Field("boot_id", b"", 16),
    _Field("detail", "", 1024),
    _Field("data", b"", 4096),
)
_HOST_CAP: Final = 255
_PROTOCOL_CAP: Final = 16
_KINDS: Final = (Kind.OPEN, *Kind)  # by number; there is no kind 0
_HEAD: Final = 2  # schema and kind stand before the fields of _LAYOUT
_values = attrgetter(*(field.name for field in _LAYOUT))
_FLOW_KINDS: Final = frozenset({Kind.OPEN, Kind.RESERVE, Kind.PROGRESS, Kind.CLOSE, Kind.ORPHAN, Kind.RESUME})
_U64: Final = 1 << 64
_quick: Final = Quick(_LAYOUT, Dest, _FLOW_KINDS, len(Kind))
# Written out, not taken from the Unicode database: what is a valid record must not depend on the
# interpreter's version. C0, DEL, C1, Arabic letter mark, zero-width and directional marks, line
# and paragraph separators, embeddings, invisible operators, BOM, annotations, tags.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def printable(text: str, cap: int = 1024) -> str:
    """`text` made fit for a text field of `cap` bytes: forbidden characters escaped, then cut.

    For what a hostile peer sent; the fields that the core made are already fit.
    """
    safe = _FORBIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return safe.encode("utf-8", "backslashreplace")[:cap].decode("utf-8", "ignore")


def encode(record: Record) -> bytes:
    """The record's one encoding. Raises RecordError if a field is outside its bounds."""
    fields = _values(record)
    quick = _quick.encode(record.kind, fields)
    if quick is not None:
        return quick
    values = list(fields)
    while values and values[-1] == _LAYOUT[len(values) - 1].default:
        values.pop()
    _check(record.kind, values)
    try:
        return cbor.encode([SCHEMA, int(record.kind), *values])
    except cbor.CborError as error:
        raise RecordError(str(error)) from None


# t_real_ns, t_boot_ns, flow, bytes_out, bytes_in, reserved
Front = tuple[int, int, bytes, int, int, int]


def heading(who: tuple[Any, ...]) -> bytes | None:
    """The bytes of the fields from `job` to `node`, which all records of a flow may share.

    None for the few that only `encode` can make.
    """
    return _quick.heading(who)


def compose(kind: Kind, front: Front, heading: bytes, tail: tuple[Any, ...]) -> bytes | None:
    """What `encode` gives for a record of these parts; `tail` are fields from `count` on.

    None for the few that only `encode` can make, or refuse.
    """
    return _quick.compose(kind, front, heading, tail)


class Brief(NamedTuple):
    """What the ledger needs of a record to keep a flow's account: six fields of `Record`."""

    kind: Kind
    flow: bytes
    bytes_out: int
    bytes_in: int
    reserved: int
    job: str


def decode(data: bytes) -> Record:
    """The record whose encoding is exactly `data`. Raises RecordError, and nothing else."""
    kind, values = _parse(data)
    return Record(kind, *values)  # its fields are in the order of _LAYOUT


def inspect(data: bytes) -> Brief:
    """As `decode`, and as strict, but building only what is needed to follow a flow."""
    quick = _quick.inspect(data)
    if quick is not None:
        kind, flow, out, into, reserved, job = quick
        return Brief(_KINDS[kind], flow, out, into, reserved, job)
    return _brief(*_parse(data))


def outline(data: bytes) -> Outline | None:
    """What an index needs of a stored record; None for the few that must be decoded."""
    return _quick.outline(data)


def recall(data: bytes) -> Brief:
    """As `inspect`, for a record that was judged before it was stored: reads only as far as it must."""
    _schema, kind, *values = cbor.first_items(data, _HEAD + 7)
    return _brief(_kind(kind), values)


def _brief(kind: Kind, values: list[Any]) -> Brief:
    if len(values) < 7:
        values += [field.default for field in _LAYOUT[len(values) : 7]]
    return Brief(kind, values[2], values[3], values[4], values[5], values[6])


def _parse(data: bytes) -> tuple[Kind, list[Any]]:
    """Kind and fields (as many as were sent) of a record, all checked."""
    if len(data) > MAX_RECORD:
        raise RecordError(f"record of {len(data)} bytes is over the limit of {MAX_RECORD}")
    try:
        items = cbor.decode(data)
    except cbor.CborError as error:
        raise RecordError(str(error)) from None
    if not isinstance(items, list) or len(items) < _HEAD or items[0] != SCHEMA or items[0] is True:
        raise RecordError("not a record of schema 1")
    values = items[_HEAD:]
    if len(values) > len(_LAYOUT):
        raise RecordError("too many fields")
    if values and values[-1] == _LAYOUT[len(values) - 1].default:
        raise RecordError("a default at the end must be left out")
    if isinstance(dest := values[9] if len(values) > 9 else None, list):
        values[9] = _dest(dest)
    kind = _kind(items[1])
    _check(kind, values)
    return kind, values


def _kind(number: object) -> Kind:
    if type(number) is not int or not 1 <= number <= len(Kind):
        raise RecordError("unknown kind")
    return Kind(number)


def _dest(items: list[Any]) -> Dest:
    if len(items) != len(Dest._fields):
        raise RecordError("dest has five parts")
    return Dest(*items)


def _check(kind: Kind, values: list[Any]) -> None:
    for (name, default, cap), value in zip(_LAYOUT, values, strict=False):
        if type(value) is str and value.isascii() and value.isprintable() and len(value) <= cap:
            if type(default) is str:
                continue  # nearly all texts; the slow way says what is wrong with the others
        elif value is None and default is None:
            continue
        if default is None:
            _check_dest(value)
        else:
            _check_value(name, value, type(default), cap)
    flow = values[2] if len(values) > 2 else b""
    if len(flow) not in (0, FLOW_ID) or (not flow and kind in _FLOW_KINDS):
        raise RecordError(f"flow: {kind.label} needs {FLOW_ID} bytes")


def _check_value(name: str, value: object, kind: type, cap: int) -> None:
    if type(value) is not kind:
        raise RecordError(f"{name}: not {kind.__name__}")
    if isinstance(value, int):
        if not 0 <= value < _U64:
            raise RecordError(f"{name}: outside 64 bits")
    elif isinstance(value, bytes):
        if len(value) > cap:
            raise RecordError(f"{name}: longer than {cap} bytes")
    elif isinstance(value, str):
        _check_text(name, value, cap)


def _check_text(name: str, value: str, cap: int) -> None:
    if len(value.encode("utf-8", "surrogatepass")) > cap:
        raise RecordError(f"{name}: longer than {cap} bytes")
    if not (value.isascii() and value.isprintable()) and _FORBIDDEN.search(value):
        raise RecordError(f"{name}: forbidden character")


def _check_dest(dest: object) -> None:
    if not isinstance(dest, Dest):
        raise RecordError("dest: not a Dest")
    _check_value("dest.host", dest.host, str, _HOST_CAP)
    _check_value("dest.port", dest.port, int, 0)
    _check_value("dest.protocol", dest.protocol, str, _PROTOCOL_CAP)
    _check_value("dest.ip", dest.ip, bytes, 16)
    _check_value("dest.sni", dest.sni, str, _HOST_CAP)
    if dest.port > 65535 or len(dest.ip) not in (0, 4, 16):
        raise RecordError("dest: port or address out of bounds")
