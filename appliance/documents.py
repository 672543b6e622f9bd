"""Policies by their digest, kept for good: what a record on the ledger names can be read years later.

A file per document, in canonical form, named by the SHA-256 of its content: whoever reads one need
trust neither the folder nor its owner, only the digest on the ledger.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from exeat.ledger.files import sync_dir
from exeat.ledger.small_files import replace
from exeat.policy.document import Document, PolicyError

if TYPE_CHECKING:
    from pathlib import Path


class DocumentError(Exception):
    """There is no such document, or it is not what its name says; the message is one line."""


class Documents:
    """The documents in `folder` (STATE/control/documents), which is made when the first one is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, document: Document) -> None:
        """Durable when this returns. One that was changed on the disk is put right. Raises OSError."""
        path, text = self._path(document.digest), document.to_canonical_json()
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700)
            sync_dir(os, self._folder.parent)
        if not path.is_file() or path.read_bytes() != text.encode():
            replace(path, text, 0o600)

    def load(self, digest: str) -> Document:
        """Raises DocumentError."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DocumentError(f"{path} is missing") from None
        except OSError as error:
            raise DocumentError(f"{path}: {error.strerror}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise DocumentError(f"{path} was altered: its digest is {found}")
        try:
            return Document.from_canonical_json(data.decode(), file=str(path))
        except (PolicyError, UnicodeDecodeError) as error:  # of a version that this one cannot read
            raise DocumentError(f"{path}: {error}") from None

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"
