"""The list of public encrypted resolvers in force: exeat's own, or that of `[dns] resolvers_file`."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exeat.appliance.errors import RefusedError
from exeat.dns.known import encrypted_resolvers, on_list, read_names

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.appliance.control.evidence import Evidence

MAX_FILE = 4 << 20  # bytes


@dataclass(frozen=True)
class ListChange:
    """The list as it would be. `widens` names one that would no longer be refused, "" if there is none."""

    names: frozenset[str]
    changed: bool
    widens: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the sorted names, a line each."""
        return hashlib.sha256("".join(f"{name}\n" for name in sorted(self.names)).encode()).hexdigest()


class ResolverList:
    """`names` are in force; a file that cannot be used changes nothing."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.names = encrypted_resolvers()
        self.error = ""

    def start(self) -> None:
        """What stands in the file when the process starts; exeat's own list where that cannot be used."""
        try:
            self.apply(self.read())
        except RefusedError as error:
            print(f"control: {error}", file=sys.stderr, flush=True)

    def read(self) -> ListChange:
        """Read the file again, if one is configured. Raises RefusedError with FILE:LINE."""
        names = self._read_file() if self._file is not None else self.names
        gone = sorted(name for name in self.names - names if not on_list(name, names))
        return ListChange(names, names != self.names, gone[0] if gone else "")

    def _read_file(self) -> frozenset[str]:
        try:
            names = _read(self._file) if self._file is not None else frozenset()
        except (OSError, ValueError) as error:
            self.error = str(error)
            raise RefusedError("dns.resolvers_file", str(error)) from None
        self.error = ""
        return names

    def record(self, change: ListChange, actor: str, evidence: Evidence) -> bytes:
        """What the ledger says of a change."""
        return evidence.policy(
            project="",
            digest=change.digest,
            actor=actor,
            verdict="widens" if change.widens else "narrows",
            detail=f"public resolvers: {len(change.names)} names",
        )

    def apply(self, change: ListChange) -> None:
        """Put in force what `read` gave."""
        self.names = change.names


def _read(file: Path) -> frozenset[str]:
    with file.open("rb") as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"{file}: more than {MAX_FILE} bytes")
    if not data.isascii():
        line = next(number for number, text in enumerate(data.splitlines(), 1) if not text.isascii())
        raise ValueError(f"{file}:{line}: a character that is not ASCII")
    return read_names(data.decode("ascii"), str(file))
