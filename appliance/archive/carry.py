"""Carries prepared batches into buckets: resumable, checked after arrival, a receipt for each.

The only part of archiving with a network. It needs to read batches and to write in its own folder
of receipts; it holds no key of the ledger's. Killed at any point it goes on from there: a started
upload is remembered in NAME.STORE.upload, and the parts that arrived are not sent again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.appliance.archive.store import PART, Part, StoreError
from exeat.ledger import archive, keys, note
from exeat.ledger.published import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.appliance.archive.store import Held, Store
    from exeat.ledger.manifest import Manifest

_CHUNK: Final = 1 << 20


class Keys(NamedTuple):
    """Where things lie in a bucket; `ledger` is the SHA-256 of the origin, as on the disk."""

    ledger: str

    def batch(self, manifest: Manifest) -> str:
        return f"{self.ledger}/batches/{manifest.object}"

    def manifest(self, name: str) -> str:
        return f"{self.ledger}/manifests/{name}"

    def checkpoint(self, size: int) -> str:
        return f"{self.ledger}/checkpoints/{size:020d}"

    def chain(self, text: bytes) -> str:
        """Of public keys: in a bucket where nothing is overwritten each has a name of its own."""
        return f"{self.ledger}/keys/{hashlib.sha256(text).hexdigest() if text else ''}"


class Carrier:
    """Brings what `directory` has ready into one store. Raises StoreError, ArchiveError, OSError."""

    def __init__(self, directory: Path, receipts: Path, store: Store, *, part: int = PART) -> None:
        self._directory, self._receipts, self._store, self._part = directory, receipts, store, part
        self._keys = Keys(directory.name)

    def run(self) -> list[Manifest]:
        """All batches that have no receipt yet, in order; those that were carried."""
        self._store.greet()
        done: list[Manifest] = []
        for manifest in archive.manifests(self._directory):
            if not archive.has_receipt(self._receipts, manifest, self._store.name):
                self._carry(manifest)
                done.append(manifest)
        self._send_checkpoint()
        return done

    def _carry(self, manifest: Manifest) -> None:
        path = self._directory / "archive" / manifest.object
        key = self._keys.batch(manifest)
        if archive.digest_of(path) != (manifest.size, manifest.digest):
            raise archive.ArchiveError(f"{path} is not what its manifest says: remove it and its manifest")
        if self._store.look(key) is None:
            self._upload(manifest, path, key)
        self._check(manifest, path, key)
        text = (self._directory / "archive" / f"{manifest.name}.manifest").read_bytes()
        self._send_small(self._keys.manifest(manifest.name), text)
        receipt = {"manifest": manifest.chain().hex(), "object": key, "size": manifest.size}
        archive.put(
            archive.receipt_path(self._receipts, manifest, self._store.name), json.dumps(receipt).encode()
        )
        self._note(manifest).unlink(missing_ok=True)

    # --- the upload

    def _note(self, manifest: Manifest) -> Path:
        return self._receipts / f"{manifest.name}.{self._store.name}.upload"

    def _upload(self, manifest: Manifest, path: Path, key: str) -> None:
        upload, arrived = self._take_up(manifest, key)
        parts: list[Part] = []
        with path.open("rb") as file:
            for number, content in enumerate(iter(lambda: file.read(self._part), b""), 1):
                known = arrived.get(number)
                if known is not None and _same(known, content):
                    parts.append(known._replace(sha256=_b64(content)))
                else:
                    parts.append(self._store.send_part(key, upload, number, content))
        self._store.finish(key, upload, parts)

    def _take_up(self, manifest: Manifest, key: str) -> tuple[str, dict[int, Part]]:
        """The upload that was begun before, with what arrived of it; or a new one."""
        try:
            said = json.loads(self._note(manifest).read_bytes())
            upload = str(said["upload"]) if said["digest"] == manifest.digest.hex() else ""
        except (OSError, ValueError, KeyError, TypeError):
            upload = ""
        parts = self._store.parts(key, upload) if upload else None
        if parts is not None:
            return upload, {part.number: part for part in parts}
        upload = self._store.begin(key)
        said = {"upload": upload, "digest": manifest.digest.hex()}
        archive.put(self._note(manifest), json.dumps(said).encode())
        return upload, {}

    # --- and what came of it

    def _check(self, manifest: Manifest, path: Path, key: str) -> None:
        held = self._store.look(key)
        if held is None or not holds(self._store, key, held, manifest, self._expected(path)):
            raise StoreError("archive.mismatch", f"{self._store.name}: {key} is not the batch that was sent")

    def _expected(self, path: Path) -> str:
        """The checksum that S3 computes of an object in parts: of the parts' checksums."""
        whole, count = hashlib.sha256(), 0
        with path.open("rb") as file:
            while content := file.read(self._part):
                whole.update(hashlib.sha256(content).digest())
                count += 1
        return f"{base64.b64encode(whole.digest()).decode()}-{count}"

    def _send_small(self, key: str, content: bytes) -> None:
        if self._store.look(key) is None:
            self._store.put(key, content)
        with self._store.read(key) as body:
            if body.read(len(content) + 1) != content:
                raise StoreError("archive.mismatch", f"{self._store.name}: {key} is another ledger's")

    def _send_checkpoint(self) -> None:
        """The newest signed checkpoint: whoever reads the bucket sees a history that is rewritten here.

        And how the keys followed each other, for who knows only one of them.
        """
        text = read_checkpoint(self._directory)
        if text is not None:
            size = note.open_checkpoint(text, *keys.known(self._directory)).size
            self._send_small(self._keys.checkpoint(size), text.encode())
        if chain := keys.chain(self._directory).encode():
            self._send_small(self._keys.chain(chain), chain)


def holds(store: Store, key: str, held: Held, manifest: Manifest, expected: str = "") -> bool:
    """Whether the object is the batch of `manifest`: by the server's checksum, else by reading it all."""
    if held.size != manifest.size:
        return False
    if expected and held.checksum == expected:
        return True
    if held.checksum == base64.b64encode(manifest.digest).decode():
        return True
    whole, size = hashlib.sha256(), 0
    with store.read(key) as body:
        while size <= manifest.size and (chunk := body.read(_CHUNK)):
            whole.update(chunk)
            size += len(chunk)
    return whole.digest() == manifest.digest


def _same(part: Part, content: bytes) -> bool:
    """Whether a part that arrived is this one. Servers that list no SHA-256 have MD5 for an ETag, which is
    enough here: the whole object is checked when it is complete."""
    if part.sha256:
        return part.sha256 == _b64(content)
    return part.etag.strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()


def _b64(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()
