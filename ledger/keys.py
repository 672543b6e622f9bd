"""The ledger's signing key: made once, at the ledger's creation, readable by its owner only, and
replaced by a new one without a break.

DIR/keys/log.key     the private key (0400)
DIR/keys/log.vkey    the public one, to be handed to whoever will check checkpoints
DIR/keys/log.chain   how each key made way for the next (`ledger.succession`)
DIR/keys/old.key     the former key, while it signs beside the new one (0400)
DIR/keys/next.key    a new key that waits to be announced (0400), and `next.note`, its statement

Order of a change of keys, and what a crash behind each step leaves:

1. `next.note`, then `next.key`             -> nothing begun; or a change that the ledger goes on with
2. a `key` record with the statement        -> it is announced again, in the same words
3. `log.chain`, `old.key`                   -> both may be written again, with the same content
4. `next.key` renamed to `log.key`          -> the new key signs; `settle` does 5
5. `log.vkey`, `next.note` removed
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from exeat.ledger import succession
from exeat.ledger.files import sync_dir
from exeat.ledger.note import NoteError, Signer, Verifier, check_name, parse_signer, parse_vkey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class KeyMissingError(Exception):
    """There is no key, or what stands in its place is none."""


class RotationError(Exception):
    """The key cannot be changed now; the message says why and what to do."""


def ensure(directory: Path, origin: str) -> None:
    """Make a key if the ledger never had one.

    A ledger with a checkpoint but without a key gets no other: who checks it knows the old one.
    Raises OSError, and NoteError if no key can have this origin for its name.
    """
    folder = directory / "keys"
    if (folder / "log.key").exists() or (directory / "checkpoint").exists():
        return
    new = Signer(check_name(origin), os.urandom(32))
    folder.mkdir(mode=0o750, exist_ok=True)
    _write(folder / "log.vkey", str(new.verifier), 0o444)
    _write(folder / "log.key", str(new), 0o400)  # last: with it the key counts as made
    sync_dir(os, folder)


def signer(directory: Path) -> Signer:
    """The key that signs now. Raises KeyMissingError."""
    return _signer(directory / "keys" / "log.key")


def signers(directory: Path, now_s: float) -> tuple[Signer, ...]:
    """All keys that sign now: the new one, and for a time the one before it. Raises KeyMissingError."""
    current, old = signer(directory), directory / "keys" / "old.key"
    if not old.exists() or now_s >= overlap_until(directory):
        return (current,)
    return (current, _signer(old))


def verifier(directory: Path) -> Verifier:
    """The public half of the key that signs now. Raises KeyMissingError."""
    path = directory / "keys" / "log.vkey"
    try:
        return parse_vkey(_read(path))
    except NoteError as error:
        raise KeyMissingError(f"{path}: {error}") from None


def chain(directory: Path) -> str:
    """How the keys followed each other, as text; empty if there was only one. Raises KeyMissingError."""
    path = directory / "keys" / "log.chain"
    return _read(path) + "\n" if path.exists() else ""


def known(directory: Path) -> tuple[Verifier, ...]:
    """Every key this ledger has had, the first one first. Raises KeyMissingError."""
    found = list[Verifier]()
    for each in _statements(directory):
        found += [key for key in (each.former, each.new) if key not in found]
    current = verifier(directory)
    return (*found, *(() if current in found else (current,)))


def overlap_until(directory: Path) -> int:
    """When the former key stops signing (Unix seconds; 0 if there is none). Raises KeyMissingError."""
    statements = _statements(directory)
    return statements[-1].until_s if statements else 0


def _statements(directory: Path) -> list[succession.Succession]:
    try:
        return succession.parse_chain(chain(directory))
    except NoteError as error:
        raise KeyMissingError(f"{directory}/keys/log.chain: {error}") from None


# --- a change of keys


def prepare(directory: Path, until_s: int, *, lost: bool = False) -> Verifier:
    """Make the next key and its statement; the ledger itself puts it into force.

    `lost`: the present key is gone, and nothing vouches for the new one. Raises RotationError,
    KeyMissingError, OSError.
    """
    folder = directory / "keys"
    with _locked(folder):
        if (folder / "next.key").exists():
            raise RotationError("a new key waits already: it comes into force when the ledger runs")
        if not lost and (folder / "old.key").exists():
            raise RotationError(
                f"the last change of keys is not over: both sign until {overlap_until(directory)}"
            )
        former: Signer | Verifier = verifier(directory) if lost else signer(directory)
        new = Signer(former.name, os.urandom(32))
        _write(folder / "next.note", succession.make(former, new, until_s)[:-1], 0o444)
        _write(folder / "next.key", str(new), 0o400)
        sync_dir(os, folder)
    return new.verifier


def pending(directory: Path) -> str | None:
    """The statement of a key that waits to be announced. Raises KeyMissingError."""
    folder = directory / "keys"
    if not (folder / "next.key").exists():
        return None
    text = _read(folder / "next.note") + "\n"
    try:
        new = succession.parse(text).new
    except NoteError as error:
        raise KeyMissingError(f"{folder}/next.note: {error}") from None
    if new != _signer(folder / "next.key").verifier:
        raise KeyMissingError(f"{folder}/next.note is not about next.key: remove both and begin anew")
    return text


def install(directory: Path) -> None:
    """Put the next key into force, after its statement is durable. Raises OSError, KeyMissingError."""
    folder, statement = directory / "keys", pending(directory)
    if statement is None:
        return
    so_far = succession.split(chain(directory))
    if so_far[-1:] != [statement]:
        _write(folder / "log.chain", succession.join([*so_far, statement])[:-1], 0o444)
    if (folder / "log.key").exists():
        _write(folder / "old.key", _read(folder / "log.key"), 0o400)
    sync_dir(os, folder)
    (folder / "next.key").rename(folder / "log.key")
    sync_dir(os, folder)
    settle(directory)


def settle(directory: Path) -> None:
    """Finish what a crash left of a change of keys. Raises OSError, KeyMissingError."""
    folder = directory / "keys"
    if not (folder / "next.note").exists():
        return
    with _locked(folder):  # else a change that is being prepared would look like one that broke off
        if (folder / "next.key").exists():
            return
        current, statements = signer(directory).verifier, _statements(directory)
        if statements and statements[-1].new == current:
            _write(folder / "log.vkey", str(current), 0o444)
        (folder / "next.note").unlink()
        sync_dir(os, folder)


def overlap_ended(directory: Path, now_s: float) -> bool:
    """Whether there is a former key whose time is over. Raises KeyMissingError."""
    return (directory / "keys" / "old.key").exists() and now_s >= overlap_until(directory)


def retire(directory: Path) -> None:
    """Destroy the former key. Raises OSError."""
    folder = directory / "keys"
    (folder / "old.key").unlink(missing_ok=True)
    sync_dir(os, folder)


# --- files


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(fd)
    temporary.rename(path)


def _signer(path: Path) -> Signer:
    try:
        return parse_signer(_read(path))
    except NoteError as error:
        raise KeyMissingError(f"{path}: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyMissingError(f"{path}: {error}") from None
