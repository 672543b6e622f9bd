#!/usr/bin/env python3
"""Check what an exeat ledger handed out, anywhere: one file, Python's standard library, no exeat.

    python3 verify_offline.py BUNDLE [--key VKEY] [--checkpoint EARLIER] [--json]
    python3 verify_offline.py RECORD.tlog-proof --key VKEY [--chain FILE]

BUNDLE is a folder made by `exeat ledger export`, or a file by `exeat ledger prove`. VKEY is the ledger's
public key as you got it from its operator; without it the bundle's own is used, and said to be. A key
that has made way for others since is followed by the statements in FILE (a bundle has its own).
EARLIER is a checkpoint you kept: with it a rewritten history shows even if the real key signed it.
With --witness VKEY (again and again) the checkpoint must be cosigned: by all, or by --quorum of them.
Exit code: 0 everything holds, 1 it does not, 2 it cannot be judged.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import lzma
import re
import sys
from hashlib import sha256, sha512
from pathlib import Path
from typing import Any, Final, NamedTuple

KINDS: Final = (
    "",
    *("open", "reserve", "progress", "close", "deny", "dns", "lease", "policy"),
    *("reconcile", "gap", "boot", "key", "witness", "orphan", "resume", "anomaly", "job"),
    *("attest", "admin"),
)
# Types of the fields behind schema and kind: unsigned, bytes, text, destination.
TYPES: Final = "uubuuu" + "tttd" + "ttttub" + "ttttt" + "ubt" + "tuuuuuuuuuuttbtb"
_DEFAULTS: Final[dict[str, Any]] = {"u": 0, "b": b"", "t": "", "d": None}
_PYTHON: Final = {"u": int, "b": bytes, "t": str}
_MAX_RECORDS: Final = 1 << 30  # bytes of a bundle, unpacked
_MEMORY: Final = 1 << 28  # bytes that unpacking may take for itself
FLOW, BYTES_OUT, BYTES_IN, RESERVED, JOB = 2, 3, 4, 5, 6


class UnusableError(Exception):
    """It cannot be judged."""


class FalseError(Exception):
    """It does not hold."""


# --- records


def parse_record(data: bytes) -> tuple[str, list[Any]]:
    """(kind, all fields in order, defaults filled in). Raises ValueError unless canonical."""
    value, end = _item(data, 0, 0)
    if end != len(data) or not isinstance(value, list):
        raise ValueError("not one array")
    if len(value) < 2:
        raise ValueError("schema or kind")
    schema, number, fields = value[0], value[1], value[2:]
    if not _is(schema, 1) or not isinstance(number, int) or not 1 <= number < len(KINDS):
        raise ValueError("schema or kind")
    if len(fields) > len(TYPES) or (fields and _is(fields[-1], _DEFAULTS[TYPES[len(fields) - 1]])):
        raise ValueError("number of fields")
    for position, (kind, field_value) in enumerate(zip(TYPES, fields, strict=False)):
        if not _fits(kind, field_value):
            raise ValueError(f"type of field {position}")
    return KINDS[number], fields + [_DEFAULTS[kind] for kind in TYPES[len(fields) :]]


def _is(value: object, expected: object) -> bool:
    return type(value) is type(expected) and value == expected


def _fits(kind: str, value: Any) -> bool:
    if kind != "d":
        return type(value) is _PYTHON[kind]
    if value is None:
        return True
    return isinstance(value, list) and len(value) == 5 and all(map(_fits, "tutbt", value))


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    first = data[at] if at < len(data) else 0xFF
    if first == 0xF6:
        return None, at + 1
    major, info = first >> 5, first & 31
    at += 1
    if info > 27 or major not in (0, 2, 3, 4) or depth > 2:
        raise ValueError("an item of a type that records do not have")
    argument = info
    if info >= 24:
        width = 1 << (info - 24)
        argument, at = int.from_bytes(data[at : at + width], "big"), at + width
        if argument < (24 if width == 1 else 1 << (4 * width)) or at > len(data):
            raise ValueError("not the shortest form")
    if major == 0:
        return argument, at
    if argument > len(data) - at:
        raise ValueError("breaks off")
    if major == 4:
        items = []
        for _ in range(argument):
            item, at = _item(data, at, depth + 1)
            items.append(item)
        return items, at
    raw = data[at : at + argument]
    return (raw if major == 2 else _text(raw)), at + argument


def _text(raw: bytes) -> str:
    text = raw.decode()
    if any(char < " " or "\x7f" <= char <= "\x9f" for char in text):
        raise ValueError("a control character in a text")
    return text


# --- Ed25519 (RFC 8032 section 5.1), verification only: slow, and with nothing secret in it

_P: Final = 2**255 - 19
_L: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, _P) % _P
_ROOT: Final = pow(2, (_P - 1) // 4, _P)
_Point = tuple[int, int, int, int]  # x, y, z, t of extended coordinates


def _add(a: _Point, b: _Point) -> _Point:
    e = (a[1] - a[0]) * (b[1] - b[0]) % _P
    f = (a[1] + a[0]) * (b[1] + b[0]) % _P
    g, h = 2 * a[3] * b[3] * _D % _P, 2 * a[2] * b[2] % _P
    i, j, k, m = f - e, h - g, h + g, f + e
    return (i * j % _P, k * m % _P, j * k % _P, i * m % _P)


def _times(scalar: int, point: _Point) -> _Point:
    total: _Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    return total


def _point(data: bytes) -> _Point | None:
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return (x, y, 1, x * y % _P)


_BASE_Y: Final = 4 * pow(5, -1, _P) % _P
_BASE: Final = _point(_BASE_Y.to_bytes(32, "little"))


def ed25519_holds(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) over `message` was made with the private key of `public`."""
    if len(public) != 32 or len(signature) != 64 or _BASE is None:
        return False
    key, point = _point(public), _point(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or point is None or scalar >= _L:
        return False
    hashed = int.from_bytes(sha512(signature[:32] + public + message).digest(), "little") % _L
    left, right = _times(scalar, _BASE), _add(point, _times(hashed, key))
    return not (
        (left[0] * right[2] - right[0] * left[2]) % _P or (left[1] * right[2] - right[1] * left[2]) % _P
    )


# --- keys and checkpoints (C2SP signed-note, tlog-checkpoint)


class Key(NamedTuple):
    name: str
    key_id: bytes
    public: bytes
    vkey: str
    kind: int = 1  # 1 signs, 4 cosigns


class Checkpoint(NamedTuple):
    origin: str
    size: int
    root: bytes


def read_key(text: str) -> Key:
    """A `vkey`: NAME+ID+BASE64. Raises UnusableError."""
    name, _, rest = text.strip().partition("+")
    ident, _, body = rest.partition("+")
    raw = _unb64(body)
    if len(raw) != 33 or raw[0] not in (1, 4) or not name:
        raise UnusableError("the key is not an Ed25519 key")
    key_id = sha256(name.encode() + b"\n" + raw).digest()[:4]
    if key_id.hex() != ident:
        raise UnusableError("the key's id does not belong to it")
    return Key(name, key_id, raw[1:], text.strip(), raw[0])


def signers(text: str, keys: list[Key]) -> tuple[str, list[Key]]:
    """The text of a signed note, and which of `keys` signed it. Raises FalseError if one did wrongly."""
    body, gap, lines = text.rpartition("\n\n")
    if not gap:
        raise FalseError("not a signed note")
    body += "\n"
    found = []
    for line in lines.split("\n"):
        mark, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        for key in keys if mark == "\u2014" else []:
            raw = _unb64(encoded) if name == key.name else b""
            if raw[:4] != key.key_id:
                continue
            message, signature = body.encode(), raw[4:]
            if key.kind == 4:  # cosignature/v1: a time before the signature, and before the text
                time_s, signature = int.from_bytes(raw[4:12], "big"), raw[12:]
                message = f"cosignature/v1\ntime {time_s}\n{body}".encode()
            if not ed25519_holds(key.public, message, signature):
                raise FalseError(f"the signature of {key.name} is wrong")
            found.append(key)
    return body, found


def read_checkpoint(text: str, *keys: Key) -> Checkpoint:
    """A checkpoint that one of `keys`, which are those of one ledger, signed. Raises FalseError."""
    body, signed = signers(text, list(keys))
    fields = body.split("\n")
    if len(fields) < 4 or not re.fullmatch(r"0|[1-9][0-9]{0,18}", fields[1]):
        raise FalseError("not a checkpoint")
    root = _unb64(fields[2])
    if len(root) != 32 or fields[0] != keys[0].name:
        raise FalseError(f"a checkpoint of {fields[0]!r}, not of {keys[0].name}")
    if not signed:
        raise FalseError("the checkpoint is not signed with this key, nor with one it vouches for")
    return Checkpoint(fields[0], int(fields[1]), root)


_STATEMENT: Final = re.compile(r"exeat-keys/v1\n(\S+)\nfrom (\S+)\nto (\S+)\nuntil (?:0|[1-9][0-9]{0,11})\n")


def read_statement(text: str) -> tuple[Key, Key, bool]:
    """(former key, new key, whether the former one vouches for the new one). Raises FalseError."""
    body = text.rpartition("\n\n")[0] + "\n"
    match = _STATEMENT.fullmatch(body)
    if match is None:
        raise FalseError("not a statement about keys")
    try:
        former, new = read_key(match[2]), read_key(match[3])
    except UnusableError as error:
        raise FalseError(f"a statement about keys: {error}") from None
    if {former.name, new.name} != {match[1]} or {former.kind, new.kind} != {1}:
        raise FalseError("a statement about other keys than its ledger's")
    _, signed = signers(text, [former, new])
    if new not in signed:
        raise FalseError("a new key did not sign that it follows")
    return former, new, former in signed


def follow(chain: str, key: Key) -> list[Key]:
    """`key` and those it vouches for, one through the other. Raises FalseError."""
    parts = chain.removesuffix("\n").split("\n\n")
    found = [key]
    for text, lines in zip(parts[::2], parts[1::2], strict=False):
        former, new, vouched = read_statement(f"{text}\n\n{lines}\n")
        if vouched and former == found[-1]:
            found.append(new)
    return found


def cosigned(text: str, witnesses: list[Key], quorum: int) -> list[str]:
    """The names of those of `witnesses` that cosigned; at least `quorum` of them. Raises FalseError."""
    _, found = signers(text, witnesses)
    names = sorted({key.name for key in found})
    if len(names) < quorum:
        raise FalseError(f"cosigned by {len(names)} of the {quorum} witnesses that it takes")
    return names


def _unb64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FalseError("not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise FalseError("not the one base64 of these bytes")
    return raw


# --- the tree (RFC 6962 section 2.1)


def _leaf(data: bytes) -> bytes:
    return sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def root_of(leaves: list[tuple[int, bytes]], size: int, proof: list[bytes]) -> bytes:
    """The root of a tree of `size` with these (number, hash) leaves, ascending; `proof` has the rest.

    Parts of the tree without any of the leaves take the next hash of `proof`, from left to right.
    Raises FalseError if hashes are missing or left over.
    """
    rest = iter(proof)

    def root(first: int, end: int, low: int, high: int) -> bytes:
        if low == high:
            return next(rest)
        if end - first == 1:
            return leaves[low][1]
        middle = first + (1 << (end - first - 1).bit_length() - 1)
        cut = low
        while cut < high and leaves[cut][0] < middle:
            cut += 1
        left = root(first, middle, low, cut)
        return _node(left, root(middle, end, cut, high))

    try:
        made = root(0, size, 0, len(leaves)) if size else sha256(b"").digest()
    except StopIteration:
        raise FalseError("the proof is too short") from None
    if next(rest, None) is not None:
        raise FalseError("the proof is too long")
    return made


def check_inclusion(index: int, leaf: bytes, proof: list[bytes], tree: Checkpoint) -> None:
    """RFC 9162 section 2.1.3.2. Raises FalseError."""
    at, last, node = index, tree.size - 1, leaf
    if index > last:
        raise FalseError(f"record {index} is not in a tree of {tree.size}")
    for sibling in proof:
        if last == 0:
            raise FalseError("the proof is too long")
        if at & 1 or at == last:
            node = _node(sibling, node)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = _node(node, sibling)
        at, last = at >> 1, last >> 1
    if last or node != tree.root:
        raise FalseError(f"record {index} is not what the ledger has under this number")


def check_growth(old: Checkpoint, new: Checkpoint, proof: list[bytes]) -> None:
    """RFC 9162 section 2.1.4.2. Raises FalseError unless `new` goes on from `old`."""
    if old.size > new.size:
        raise FalseError(f"the checkpoint of {new.size} records is older than yours of {old.size}")
    if old.size == new.size:
        if old.root != new.root:
            raise FalseError(f"two histories of {old.size} records, both signed: the ledger was rewritten")
        return
    if old.size == 0:
        return
    wrong = f"the first {old.size} records are not those of your checkpoint: the ledger was rewritten"
    hashes = ([old.root] if old.size & (old.size - 1) == 0 else []) + proof
    if not hashes:
        raise FalseError(wrong)
    at, last = old.size - 1, new.size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = now = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise FalseError(wrong)
        if at & 1 or at == last:
            before, now = _node(sibling, before), _node(sibling, now)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            now = _node(now, sibling)
        at, last = at >> 1, last >> 1
    if last or before != old.root or now != new.root:
        raise FalseError(wrong)


# --- bundles


def _hashes(text: str) -> list[bytes]:
    found = [_unb64(line) for line in text.splitlines()]
    if any(len(each) != 32 for each in found):
        raise FalseError("a proof of hashes that are none")
    return found


def read_records(packed: bytes) -> list[tuple[int, bytes]]:
    """(number, bytes) of the records in a bundle's `records.xz`. Raises FalseError."""
    try:
        data = lzma.LZMADecompressor(memlimit=_MEMORY).decompress(packed, max_length=_MAX_RECORDS)
    except lzma.LZMAError:
        raise FalseError("records.xz is damaged") from None
    found, at, before = [], 0, -1
    while at < len(data):
        number, length = (
            int.from_bytes(data[at : at + 8], "big"),
            int.from_bytes(data[at + 8 : at + 10], "big"),
        )
        record, at = data[at + 10 : at + 10 + length], at + 10 + length
        if at > len(data) or number <= before:
            raise FalseError(f"records.xz breaks off or is out of order behind record {before}")
        found.append((number, record))
        before = number
    return found


def check_bundle(folder: Path, key: Key, earlier: str | None) -> dict[str, Any]:
    """Everything there is to check of a bundle; what it holds. Raises FalseError, UnusableError."""
    chain = folder / "log.chain"
    keys = follow(_read(chain).decode(), key) if chain.exists() else [key]
    tree = read_checkpoint(_read(folder / "checkpoint").decode(), *keys)
    found = read_records(_read(folder / "records.xz"))
    if found and found[-1][0] >= tree.size:
        raise FalseError(f"record {found[-1][0]} is not in a tree of {tree.size}")
    leaves = [(number, _leaf(data)) for number, data in found]
    if root_of(leaves, tree.size, _hashes(_read(folder / "proof").decode())) != tree.root:
        raise FalseError("the records are not those of the ledger under these numbers")
    result = {"origin": tree.origin, "size": tree.size, "root": tree.root.hex(), **_contents(found)}
    if earlier is not None:
        old = read_checkpoint(earlier, *keys)
        path = folder / f"consistency-{old.size}"
        if 0 < old.size < tree.size and not path.exists():
            raise UnusableError(f"no proof from {old.size} records on: have it exported with `--since`")
        check_growth(old, tree, _hashes(path.read_text()) if 0 < old.size < tree.size else [])
        result["goes_on_from"] = old.size
    return result


def _contents(found: list[tuple[int, bytes]]) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    accounts: dict[bytes, tuple[int, int]] = {}  # reserved, passed
    out = into = 0
    for number, data in found:
        try:
            kind, fields = parse_record(data)
        except (ValueError, RecursionError) as error:
            raise FalseError(f"record {number}: {error}") from None
        kinds[kind] = kinds.get(kind, 0) + 1
        flow = fields[FLOW]
        if kind == "open":
            accounts[flow] = (fields[RESERVED], fields[BYTES_OUT] + fields[BYTES_IN])
        elif flow in accounts:  # of other flows the bundle may hold a part only
            reserved, passed = accounts[flow]
            reserved, now = max(reserved, fields[RESERVED]), fields[BYTES_OUT] + fields[BYTES_IN]
            if kind in ("progress", "close", "orphan"):
                if not passed <= now <= reserved:
                    raise FalseError(f"record {number}: {now} bytes, reserved {reserved}, before {passed}")
                passed = now
            accounts[flow] = (reserved, passed)
        if kind == "close":
            out, into = out + fields[BYTES_OUT], into + fields[BYTES_IN]
    return {"records": len(found), "kinds": kinds, "bytes_out": out, "bytes_in": into}


def check_proof(text: str, *keys: Key) -> dict[str, Any]:
    """A C2SP tlog-proof whose extra data is the record. Raises FalseError."""
    head, gap, note = text.partition("\n\n")
    lines = head.split("\n")
    if not gap or len(lines) < 3 or lines[0] != "c2sp.org/tlog-proof@v1":
        raise FalseError("not a tlog-proof")
    if not lines[1].startswith("extra ") or not re.fullmatch(r"index (0|[1-9][0-9]{0,18})", lines[2]):
        raise FalseError("a tlog-proof without the record")
    record, index = _unb64(lines[1][6:]), int(lines[2][6:])
    tree = read_checkpoint(note, *keys)
    check_inclusion(index, _leaf(record), _hashes("\n".join(lines[3:])), tree)
    return {"origin": tree.origin, "size": tree.size, "index": index, **_contents([(index, record)])}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableError(f"{path}: {error.strerror}") from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a bundle or a proof from an exeat ledger.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--key", metavar="VKEY", help="the ledger's public key, or a file that holds it")
    parser.add_argument("--chain", metavar="FILE", type=Path, help="how the keys followed each other")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="a checkpoint you kept")
    parser.add_argument("--witness", metavar="VKEY", action="append", default=[], help="must have cosigned")
    parser.add_argument("--quorum", metavar="N", type=int, help="so many of the witnesses are enough")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        result = _check(args)
    except (FalseError, UnicodeDecodeError) as error:
        result = {"ok": False, "problem": str(error)}
    except UnusableError as error:
        print(f"verify_offline: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:<14}{value}" for name, value in result.items() if name != "ok"))
        print("result        " + ("verified" if result["ok"] else "NOT VERIFIED"))
    return 0 if result["ok"] else 1


def _check(args: argparse.Namespace) -> dict[str, Any]:
    bundle: Path = args.bundle
    vkey, notes = args.key, {}
    if vkey is None:
        if not bundle.is_dir():
            raise UnusableError("a proof needs --key")
        vkey = _read(bundle / "log.vkey").decode()
        notes = {"key": "the bundle's own: compare it with the one its operator gave you"}
    try:
        key = read_key(_text_or_file(vkey))
        witnesses = [read_key(_text_or_file(each)) for each in args.witness]
    except FalseError as error:
        raise UnusableError(f"the key: {error}") from None
    if key.kind != 1 or any(each.kind != 4 for each in witnesses):
        raise UnusableError("a ledger's key signs, a witness's cosigns: these are not in their places")
    if witnesses:
        note = _read(bundle / "checkpoint" if bundle.is_dir() else bundle).decode()
        quorum = len(witnesses) if args.quorum is None else args.quorum
        text = note if bundle.is_dir() else note.partition("\n\n")[2]
        notes["cosigned"] = ", ".join(cosigned(text, witnesses, quorum))
    if bundle.is_dir():
        earlier = _read(args.checkpoint).decode() if args.checkpoint else None
        return {"ok": True, **notes, **check_bundle(bundle, key, earlier)}
    keys = follow(_read(args.chain).decode(), key) if args.chain else [key]
    return {"ok": True, **notes, **check_proof(_read(bundle).decode(), *keys)}


def _text_or_file(given: str) -> str:
    return given if "+" in given else _read(Path(given)).decode()


if __name__ == "__main__":
    sys.exit(main())
