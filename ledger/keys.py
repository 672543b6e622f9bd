"""The ledger's signing key: made once, at the ledger's creation, and readable by its owner only.

DIR/keys/log.key    the private key (0400)
DIR/keys/log.vkey   the public one, to be handed to whoever will check checkpoints
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from exeat.ledger.note import NoteError, Signer, Verifier, check_name, parse_signer, parse_vkey

if TYPE_CHECKING:
    from pathlib import Path


class KeyMissingError(Exception):
    """There is no key, or what stands in its place is none."""


def ensure(directory: Path, origin: str) -> None:
    """Make a key if the ledger never had one.

    A ledger with a checkpoint but without a key gets no other: who checks it knows the old one.
    Raises OSError, and NoteError if no key can have this origin for its name.
    """
    folder = directory / "keys"
    if (folder / "log.key").exists() or (directory / "checkpoint").exists():
        return
    signer = Signer(check_name(origin), os.urandom(32))
    folder.mkdir(mode=0o750, exist_ok=True)
    _write(folder / "log.vkey", str(signer.verifier), 0o444)
    _write(folder / "log.key", str(signer), 0o400)  # last: with it the key counts as made
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: Path, text: str, mode: int) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(fd)
    temporary.rename(path)


def signer(directory: Path) -> Signer:
    """Raises KeyMissingError."""
    try:
        return parse_signer(_read(directory / "keys" / "log.key"))
    except NoteError as error:
        raise KeyMissingError(f"{directory}/keys/log.key: {error}") from None


def verifier(directory: Path) -> Verifier:
    """Raises KeyMissingError."""
    try:
        return parse_vkey(_read(directory / "keys" / "log.vkey"))
    except NoteError as error:
        raise KeyMissingError(f"{directory}/keys/log.vkey: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyMissingError(f"{path}: {error}") from None
