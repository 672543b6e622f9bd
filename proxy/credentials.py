"""Names and passwords of clients that nothing else tells apart (RFC 7617 Basic, RFC 1929 SOCKS5).

The file holds `NAME SALT HASH` lines: BLAKE2b of the password, keyed with the entry's own salt.
`exeat identity add` makes the passwords, 192 random bits each, so that a fast hash is enough. Who
can write the file can be anybody: it must be root's, and nobody else's to read or to write.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE: Final = 1024 * 1024  # bytes
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
FAILURES: Final = 10  # wrong answers of one peer in WINDOW_S, after which none of its answers counts
WINDOW_S: Final = 60.0
MAX_PEERS: Final = 4096  # remembered; the oldest goes first

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LINE: Final = re.compile(rf"({NAME.pattern}) ([0-9a-f]{{{2 * SALT_BYTES}}}) ([0-9a-f]{{{2 * HASH_BYTES}}})")
_PERSON: Final = b"exeat-credential"
_NOBODY: Final = (bytes(SALT_BYTES), bytes(HASH_BYTES))  # an unknown name costs as much as a known one

Entries = dict[str, tuple[bytes, bytes]]  # name: salt and hash


class CredentialError(Exception):
    """The file cannot be used; the message says why, and holds none of its content."""


def hashed(password: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(password, digest_size=HASH_BYTES, key=salt, person=_PERSON).digest()


def line(name: str, password: bytes, salt: bytes) -> str:
    """The entry of `name`, without a line end."""
    return f"{name} {salt.hex()} {hashed(password, salt).hex()}"


def parse(text: str) -> Entries:
    """The entries of a file. Raises CredentialError."""
    found: Entries = {}
    for number, row in enumerate(text.splitlines(), 1):
        if not row or row.startswith("#"):
            continue
        match = _LINE.fullmatch(row)
        if match is None:
            raise CredentialError(f"line {number} is not NAME SALT HASH")
        if match[1] in found:
            raise CredentialError(f"line {number}: {match[1]} stands twice")
        found[match[1]] = (bytes.fromhex(match[2]), bytes.fromhex(match[3]))
    return found


def read(path: Path) -> Entries:
    """Raises CredentialError, for a file that others could change or read as well."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CredentialError(f"{path}: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid or status.st_mode & 0o027:
            raise CredentialError(f"{path}: must be a file of root's, mode 0640 or less")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise CredentialError(f"{path}: over {MAX_FILE} bytes")
    try:
        return parse(data.decode("ascii"))
    except UnicodeDecodeError:
        raise CredentialError(f"{path}: not ASCII") from None
    except CredentialError as error:
        raise CredentialError(f"{path}: {error}") from None


class Credentials:
    """The file as it is now: a change of it counts from the next client on. Unreadable: nobody."""

    def __init__(self, path: Path) -> None:
        """Raises CredentialError: a gateway does not start with a file that it cannot use."""
        self._path = path
        self._seen = self._stamp()
        self._entries = read(path)

    def knows(self, name: bytes, password: bytes) -> bool:
        """Whether this is the password of `name`, in a time that does not say which is wrong."""
        self.refresh()
        try:
            entry = self._entries.get(name.decode("ascii"))
        except UnicodeDecodeError:
            entry = None
        salt, wanted = entry or _NOBODY
        return hmac.compare_digest(hashed(password, salt), wanted) and entry is not None

    def entry(self, name: str) -> tuple[bytes, bytes] | None:
        """What stands for `name` in the file as it was read last; another one after each `identity add`."""
        return self._entries.get(name)

    def _stamp(self) -> tuple[int, ...]:
        try:
            status = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def refresh(self) -> None:
        """Read the file again if it is another one."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._entries = read(self._path)
        except CredentialError as error:
            self._entries = {}
            print(f"exeat proxy: {error}: nobody is known by name", file=sys.stderr)


class Attempts:
    """Wrong answers by peer. `now` is the reactor's time in seconds."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, tuple[float, int]] = OrderedDict()  # peer: since when, how many

    def barred(self, peer: str, now: float) -> bool:
        since, count = self._failed.get(peer, (now, 0))
        return count >= FAILURES and now - since < WINDOW_S

    def failed(self, peer: str, now: float) -> None:
        since, count = self._failed.pop(peer, (now, 0))
        if now - since >= WINDOW_S:
            since, count = now, 0
        self._failed[peer] = (since, count + 1)
        while len(self._failed) > MAX_PEERS:
            self._failed.popitem(last=False)
