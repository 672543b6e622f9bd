"""The manifest of one batch of an archive: a signed note that names it. No I/O.

docs/formats/ledger.md has the format. Its first line keeps it from passing for a checkpoint, whose first
line is an origin, and an origin holds no such name.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import note

if TYPE_CHECKING:
    from exeat.ledger.note import Verifier

FORMAT: Final = "exeat-archive/v1"
_MANIFEST: Final = re.compile(
    r"exeat-archive/v1\norigin (\S{1,255})\nsegments ([0-9]{12}) ([0-9]{12})\n"
    r"records (0|[1-9][0-9]{0,18}) ([1-9][0-9]{0,18})\nroot ([A-Za-z0-9+/]{43}=)\n"
    r"previous (-|[0-9a-f]{64})\n"
    r"object ([0-9]{12}-[0-9]{12}\.tar\.(?:zst|gz)) ([1-9][0-9]{0,15}) ([0-9a-f]{64})\n",
    re.ASCII,
)


class Manifest(NamedTuple):
    """What one batch holds: segments `first` to `last`, the records from `begin` up to `end`.

    `root` is of the tree of all records up to `end`; `previous` the SHA-256 of the text of the
    manifest before (b"" at the first); `size` and `digest` are the object's bytes and SHA-256.
    """

    origin: str
    first: int
    last: int
    begin: int
    end: int
    root: bytes
    previous: bytes
    object: str
    size: int
    digest: bytes

    @property
    def name(self) -> str:
        return f"{self.first:012d}-{self.last:012d}"

    def text(self) -> str:
        return (
            f"{FORMAT}\norigin {self.origin}\nsegments {self.first:012d} {self.last:012d}\n"
            f"records {self.begin} {self.end}\nroot {base64.b64encode(self.root).decode()}\n"
            f"previous {self.previous.hex() or '-'}\nobject {self.object} {self.size} {self.digest.hex()}\n"
        )

    def chain(self) -> bytes:
        """What the next manifest says of this one."""
        return hashlib.sha256(self.text().encode()).digest()

    def follows(self, before: Manifest | None) -> bool:
        """Whether this is the very next batch of the same ledger."""
        if before is None:
            return self.first == 0 and self.begin == 0 and not self.previous
        same = self.origin == before.origin and self.previous == before.chain()
        return same and self.first == before.last + 1 and self.begin == before.end


def open_manifest(text: str, *known: Verifier) -> Manifest:
    """The manifest in a note that the ledger's key (one of `known`) signed. Raises note.NoteError."""
    found = note.parse(text)
    match = _MANIFEST.fullmatch(found.text)
    if match is None:
        raise note.NoteError("not the manifest of an archive")
    origin, first, last, begin, end, root, previous, name, size, digest = match.groups()
    manifest = Manifest(
        origin,
        int(first),
        int(last),
        int(begin),
        int(end),
        base64.b64decode(root),
        b"" if previous == "-" else bytes.fromhex(previous),
        name,
        int(size),
        bytes.fromhex(digest),
    )
    if manifest.text() != found.text or not name.startswith(f"{manifest.name}."):
        raise note.NoteError("not the one spelling of this manifest")
    if manifest.last < manifest.first or manifest.end <= manifest.begin:
        raise note.NoteError("a manifest of nothing")
    if not any(key.name == origin and key.kind == note.ED25519 for key in note.verify(found, *known)):
        raise note.NoteError(f"not signed by {origin} itself")
    return manifest
