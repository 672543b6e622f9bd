"""Policies that were set through the console: each text that was ever in force, and what waits for a second
person. A file per version below STATE/control/policies, in control's own folder: nobody else writes there.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from exeat.appliance.sections import LABEL
from exeat.ledger.files import sync_dir
from exeat.ledger.small_files import replace

if TYPE_CHECKING:
    from pathlib import Path

_NUMBER: Final = re.compile(r"([0-9]{6})\.json", re.ASCII)
_PROPOSAL: Final = "proposal.json"


class VersionError(Exception):
    """What was kept cannot be read; the message says which file."""


@dataclass(frozen=True)
class Version:
    """`text` as it was written ("": the project has no policy from then on), by whom, agreed to by whom
    ("": nobody had to); `widens` is a flow it newly let out. `base` is the digest it was made from."""

    project: str
    number: int
    text: str
    digest: str
    base: str
    by: str
    agreed_by: str = ""
    at_ms: int = 0
    note: str = ""
    widens: str = ""


class Versions:
    """The folder, which is made with the first version. All methods may raise OSError; reading ones
    VersionError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def current(self) -> dict[str, Version]:
        """What is in force of each project that has a policy here."""
        found = {project: self.all(project)[-1] for project in self._projects() if self._numbers(project)}
        return {project: version for project, version in found.items() if version.text}

    def all(self, project: str) -> list[Version]:
        """Oldest first."""
        return [self._read(self._of(project) / f"{number:06}.json") for number in self._numbers(project)]

    def next_number(self, project: str) -> int:
        return max(self._numbers(project), default=0) + 1

    def add(self, version: Version) -> None:
        """Durable when this returns; a proposal for the project is over."""
        self._write(version, f"{version.number:06}.json")
        self.withdraw(version.project)

    def propose(self, version: Version) -> None:
        """In place of another proposal for the project."""
        self._write(version, _PROPOSAL)

    def proposal(self, project: str) -> Version | None:
        path = self._of(project) / _PROPOSAL
        return self._read(path) if path.exists() else None

    def withdraw(self, project: str) -> None:
        (self._of(project) / _PROPOSAL).unlink(missing_ok=True)

    def proposals(self) -> dict[str, Version]:
        found = {project: self.proposal(project) for project in self._projects()}
        return {project: version for project, version in found.items() if version is not None}

    def _projects(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if re.fullmatch(LABEL, path.name))

    def _numbers(self, project: str) -> list[int]:
        folder = self._of(project)
        names = (_NUMBER.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
        return sorted(int(found[1]) for found in names if found)

    def _of(self, project: str) -> Path:
        if not re.fullmatch(LABEL, project):  # it becomes a path
            raise VersionError(f"`{project}` is no name of a project")
        return self._folder / project

    def _write(self, version: Version, name: str) -> None:
        folder = self._of(version.project)
        for each in (self._folder, folder):
            if not each.is_dir():
                each.mkdir(mode=0o700)
                sync_dir(os, each.parent)
        replace(folder / name, json.dumps(asdict(version)), 0o600)

    def _read(self, path: Path) -> Version:
        try:
            return Version(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise VersionError(f"{path}: {error}") from None
