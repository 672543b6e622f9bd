"""File scopes: folders of the node that a job may have, `project:///srv/site:rw`. Pure.

Paths are compared as text, so what is granted is what is written: the warden, which knows the file
system, refuses every path that is not canonical or has a link in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from exeat.policy.errors import ScopeError
from exeat.policy.model import Decision, Verdict
from exeat.policy.postures import Default, Posture

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exeat.policy.document import Document
    from exeat.policy.leases import Lease
    from exeat.policy.model import Subject

SCHEME: Final = "project://"
MAX_PATH: Final = 4095  # bytes; PATH_MAX without its NUL
MAX_RULES: Final = 1000


class Access(StrEnum):
    """What a job may do: read, leave changes that wait for a person, or write."""

    RO = "ro"
    EDIT = "edit"
    RW = "rw"


_ORDER: Final = tuple(Access)  # each lets do all that those before it do


@dataclass(frozen=True, slots=True, order=True)
class FileScope:
    """A folder or file, with all below it."""

    path: str
    access: Access

    def __str__(self) -> str:
        return f"{SCHEME}{self.path}:{self.access}"

    def covers(self, other: FileScope) -> bool:
        return self.lets(other.access) and _inside(other.path, self.path)

    def touches(self, other: FileScope) -> bool:
        """Would having it be having any of `other`, too? Folders nest or are apart."""
        return self.lets(other.access) and (_inside(other.path, self.path) or _inside(self.path, other.path))

    def lets(self, access: Access) -> bool:
        return _ORDER.index(access) <= _ORDER.index(self.access)


@dataclass(frozen=True, slots=True)
class FileRules:
    """What a policy says of folders, sorted."""

    allow: tuple[FileScope, ...] = ()
    ask: tuple[FileScope, ...] = ()
    deny: tuple[FileScope, ...] = ()

    def to_json(self) -> dict[str, list[str]]:
        lists = {"allow": self.allow, "ask": self.ask, "deny": self.deny}
        return {name: [str(scope) for scope in scopes] for name, scopes in lists.items() if scopes}

    def under(self, above: FileRules) -> FileRules:
        """With what a baseline denies."""
        return FileRules(self.allow, self.ask, tuple(sorted({*self.deny, *above.deny})))


NO_FILES: Final = FileRules()


def parse_file_scope(text: str) -> FileScope:
    """`project:///PATH[:ro|rw|edit]`, without a word `ro`. Raises ScopeError."""
    if not text.startswith(f"{SCHEME}/"):
        raise ScopeError("file.scope", f"`{text}` is not {SCHEME}/FOLDER[:ro|rw|edit]")
    path, colon, word = text.removeprefix(SCHEME).rpartition(":")
    if not colon or word not in _ORDER:
        path, word = text.removeprefix(SCHEME), Access.RO
    if len(path.encode(errors="replace")) > MAX_PATH or not path.isprintable():
        raise ScopeError("file.scope", "a path of a file scope is too long, or holds what is not seen")
    if path != "/" and {"", ".", ".."} & set(path[1:].split("/")):
        raise ScopeError("file.scope", f"`{path}` is not absolute and normalised")
    return FileScope(path, Access(word))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def decide_file(
    document: Document, leases: Iterable[Lease], subject: Subject, scope: FileScope, now_ms: int
) -> Decision:
    """May the subject's job have it? Deny rules go first, then leases, then `ask`, then `allow`.

    Whoever asks for a folder asks for all that is below it, so a rule for a part of it counts. Where no rule
    speaks of it a person is asked, whatever the posture says of networks, unless its default is deny.
    """
    if document.expires_ms is not None and now_ms >= document.expires_ms:
        return Decision(Verdict.DENY, "policy.expired")
    rules = document.files
    if found := _first(scope, rules.deny):
        return Decision(Verdict.DENY, "rule.deny", rule=found)
    for lease in leases:
        if lease.file and lease.holds(subject, now_ms) and parse_file_scope(lease.file).covers(scope):
            return Decision(Verdict.ALLOW, "lease.active", rule=lease.id, lease=lease.id)
    if found := _first(scope, rules.ask):
        return Decision(Verdict.ASK, "rule.ask", rule=found)
    for allowed in rules.allow:
        if allowed.covers(scope):
            return Decision(Verdict.ALLOW, "rule.allow", rule=str(allowed))
    if document.posture is Posture.CUSTOM and document.default is Default.DENY:
        return Decision(Verdict.DENY, "file.default_deny")
    return Decision(Verdict.ASK, "file.ask")


def _first(scope: FileScope, rules: Iterable[FileScope]) -> str:
    return next((str(rule) for rule in rules if scope.touches(rule)), "")


def files_widened(a: Document, b: Document) -> str:
    """A folder that `b` gives and `a` does not, in words; "" if there is none.

    Exact for what is allowed. Of what was denied, a rule that is gone or narrower counts, for a person could
    be asked then; of what was asked about, only where a rule allows it now.
    """
    for scope in b.files.allow:
        if not any(old.covers(scope) for old in a.files.allow):
            return f"{scope}, which was not allowed"
    for scope in a.files.deny:
        if not _stopped(scope, b.files.deny):
            return f"{scope}, which was denied"
    for scope in a.files.ask:
        if any(new.touches(scope) for new in b.files.allow) and not _stopped(
            scope, (*b.files.ask, *b.files.deny)
        ):
            return f"{scope}, which was asked about"
    return ""


def _stopped(scope: FileScope, rules: Iterable[FileScope]) -> bool:
    """Does one of the rules, on more folders and less access, stop all that one on `scope` does?"""
    return any(_inside(scope.path, rule.path) and scope.lets(rule.access) for rule in rules)
