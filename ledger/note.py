"""Signed notes and checkpoints: C2SP signed-note, tlog-checkpoint, tlog-cosignature. No I/O.

    note        text (ends in a newline), an empty line, one or more signature lines
    signature   "— " name " " base64(4 bytes of key id, signature)
    key id      the first 4 bytes of SHA-256(name, newline, type, public key)
    checkpoint  origin, size, base64 of the root, each on a line

Parsing is strict: one note has one spelling, so that two readers cannot see different things.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from exeat.ledger.merkle import HASH

ED25519: Final = 1
COSIGNATURE: Final = 4  # Ed25519 over a time and the checkpoint
MAX_NOTE: Final = 65536  # bytes
_MAX_SIGNATURES: Final = 64
_SEED: Final = 32
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_LINE: Final = re.compile(r"\u2014 (\S+) (\S+)")
_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class NoteError(ValueError):
    """Not a note, not a key, or not signed by the key that must have signed it."""


class Signature(NamedTuple):
    name: str
    key_id: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Note:
    text: str
    signatures: tuple[Signature, ...]


class Checkpoint(NamedTuple):
    """What a log says of itself: its tree of `size` records has this root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{b64(self.root)}\n"


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with a name."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + bytes((self.kind,)) + self.public).digest()[:4]

    def __str__(self) -> str:
        """The key as a `vkey`, the form in which it is handed on."""
        return f"{self.name}+{self.key_id.hex()}+{b64(bytes((self.kind,)) + self.public)}"

    def check(self, text: str, signature: Signature) -> None:
        """Raises NoteError unless this key made `signature` over `text`."""
        message, body = text.encode(), signature.body
        if self.kind == COSIGNATURE:
            time_s, body = int.from_bytes(body[:8], "big"), body[8:]
            message = f"cosignature/v1\ntime {time_s}\n{text}".encode()
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(body, message)
        except InvalidSignature:
            raise NoteError(f"the signature of {self.name} is wrong") from None


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key with a name; `kind` says what it signs."""

    name: str
    seed: bytes
    kind: int = ED25519

    @property
    def verifier(self) -> Verifier:
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        return Verifier(self.name, self.kind, private.public_key().public_bytes_raw())

    def __str__(self) -> str:
        """The key as it is kept: whoever has it can sign."""
        body = b64(bytes((self.kind,)) + self.seed)
        return f"PRIVATE+KEY+{self.name}+{self.verifier.key_id.hex()}+{body}"

    def line(self, text: str, time_s: int = 0) -> str:
        """The signature line for `text`; `time_s` counts for cosignatures only."""
        prefix, message = b"", text
        if self.kind == COSIGNATURE:
            prefix, message = time_s.to_bytes(8, "big"), f"cosignature/v1\ntime {time_s}\n{text}"
        body = Ed25519PrivateKey.from_private_bytes(self.seed).sign(message.encode())
        return f"\u2014 {self.name} {b64(self.verifier.key_id + prefix + body)}\n"

    def sign(self, text: str) -> str:
        """The whole note."""
        return sign(text, self)


def sign(text: str, *signers: Signer) -> str:
    """The whole note, signed by each of `signers`."""
    return f"{text}\n" + "".join(signer.line(text) for signer in signers)


def check_name(name: str) -> str:
    """`name` if a key may have it. Raises NoteError."""
    if not name or "+" in name or any(char.isspace() for char in name) or _CONTROL.search(name):
        raise NoteError(f"{name!r} cannot be the name of a key")
    return name


def parse_vkey(text: str) -> Verifier:
    """Raises NoteError unless `text` is an Ed25519 public key in its one spelling."""
    name, kind, public = _parse_key(text)
    verifier = Verifier(name, kind, public)
    if str(verifier) != text:
        raise NoteError("the key id does not belong to the key")
    return verifier


def parse_signer(text: str) -> Signer:
    """Raises NoteError unless `text` is a private key as `str(Signer)` gives it."""
    if not text.startswith("PRIVATE+KEY+"):
        raise NoteError("not a private key")
    name, kind, seed = _parse_key(text.removeprefix("PRIVATE+KEY+"))
    signer = Signer(name, seed, kind)
    if str(signer) != text:
        raise NoteError("the key id does not belong to the key")
    return signer


def _parse_key(text: str) -> tuple[str, int, bytes]:
    parts = text.split("+", 2)  # base64 may hold a plus too
    if len(parts) != 3:
        raise NoteError("a key is NAME+ID+KEY")
    body = unb64(parts[2])
    if len(body) != 1 + _SEED or body[0] not in (ED25519, COSIGNATURE):
        raise NoteError("not an Ed25519 key")
    return check_name(parts[0]), body[0], body[1:]


def parse(text: str) -> Note:
    """The note in `text`, nothing of it verified. Raises NoteError."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_NOTE or _CONTROL.search(text):
        raise NoteError("not a note: too long, or with control characters")
    signed, gap, lines = text.rpartition("\n\n")
    if not gap or not signed or not lines.endswith("\n"):
        raise NoteError("not a note: no empty line before the signatures")
    found = [_signature(line) for line in lines[:-1].split("\n")]
    if len(found) > _MAX_SIGNATURES:
        raise NoteError("too many signatures")
    return Note(signed + "\n", tuple(found))


def _signature(line: str) -> Signature:
    match = _LINE.fullmatch(line)
    if match is None:
        raise NoteError("not a signature line")
    body = unb64(match[2])
    if len(body) < 5:
        raise NoteError("a signature that is too short")
    return Signature(check_name(match[1]), body[:4], body[4:])


def verify(note: Note, *known: Verifier) -> list[Verifier]:
    """Those of `known` who signed: at least one. Raises NoteError; also if one signature of theirs is wrong.

    Signatures of others are ignored, as the format asks.
    """
    keys = {(key.name, key.key_id): key for key in known}
    signed: list[Verifier] = []
    for signature in note.signatures:
        key = keys.get((signature.name, signature.key_id))
        if key is not None and key not in signed:
            key.check(note.text, signature)
            signed.append(key)
    if not signed:
        raise NoteError("not signed by a key that is known")
    return signed


def parse_checkpoint(text: str) -> Checkpoint:
    """The checkpoint in a note's text. Raises NoteError. Extension lines are allowed and ignored."""
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]) or not _SIZE.fullmatch(lines[1]):
        raise NoteError("not a checkpoint")
    root = unb64(lines[2])
    if len(root) != HASH:
        raise NoteError("a checkpoint's root has 32 bytes")
    return Checkpoint(lines[0], int(lines[1]), root)


def open_checkpoint(text: str, *known: Verifier) -> Checkpoint:
    """The checkpoint in a note that one of `known` signed, for its own origin. Raises NoteError."""
    note = parse(text)
    checkpoint = parse_checkpoint(note.text)
    for key in verify(note, *known):
        if key.kind == ED25519 and key.name == checkpoint.origin:
            return checkpoint
    raise NoteError(f"not signed by {checkpoint.origin} itself")


def b64(data: bytes) -> str:
    """The base64 of `data`, as notes and proofs have it."""
    return base64.b64encode(data).decode()


def unb64(text: str) -> bytes:
    """The bytes of the one base64 that `b64` makes of them. Raises NoteError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError("not base64") from None
    if b64(data) != text:
        raise NoteError("not the one base64 of these bytes")
    return data
