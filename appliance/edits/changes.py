"""What a job changed: its layer compared with the folder below it.

A conflict is found by ctime: whoever writes, replaces, moves or chmods something in the folder sets it to
the kernel's clock (inode(7)), and no program can set it back. So nothing has to be recorded about a
folder when a job begins but the moment; a false alarm (`touch`) is possible, a miss needs a clock that was
set back.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from exeat.appliance.edits.flags import flags_of
from exeat.appliance.edits.tree import EditError, Kind, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.appliance.edits.tree import Tree

MAX_CHANGES: Final = 20_000
MAX_BYTES: Final = 256 * 1024**2  # of all new content
STAGE: Final = b".exeat-merge"  # in the folder, while something is merged into it
_CHUNK: Final = 1 << 20
_CHANGED, _REMOVED = "changed since the job began", "was removed since the job began"


class Action(StrEnum):
    ADD = "add"
    MODIFY = "modify"
    DELETE = "delete"
    MODE = "mode"  # of a folder


@dataclass(frozen=True, slots=True)
class Change:
    """One path. What becomes of another kind is a DELETE and an ADD."""

    path: bytes
    action: Action
    old: Node | None
    new: Node | None
    digest: str = ""  # SHA-256 of the new file, hex
    conflict: str = ""  # why it cannot be merged any more
    flags: frozenset[str] = field(default_factory=frozenset)


def compare(upper: Tree, lower: Tree, since_ns: int) -> list[Change]:
    """The changes, by path, deletions first. Raises EditError and OSError.

    `since_ns`: when the job began, by the clock that ctime has (Unix nanoseconds).
    """
    found = list(_Walk(upper, lower, since_ns).folder(b"", hidden=False))
    return sorted(found, key=lambda change: (change.path, change.action is not Action.DELETE))


def alike(one: list[Change], other: list[Change]) -> bool:
    """The same changes to the same things? Neither ctime counts, nor when a folder was written to."""
    return [_timeless(change) for change in one] == [_timeless(change) for change in other]


def _timeless(change: Change) -> Change:
    old = change.old
    if old is None:
        return change
    if old.kind is Kind.FOLDER:
        old = replace(old, mtime_ns=0, size=0)
    return replace(change, old=replace(old, ctime_ns=0))


def digest_of(changes: list[Change]) -> str:
    """SHA-256 over all that will be merged, hex."""
    rows = [
        [os.fsdecode(change.path), change.action, *_seen(change.old), *_seen(change.new), change.digest]
        for change in changes
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _seen(node: Node | None) -> list[object]:
    return [] if node is None else [node.kind, node.mode, os.fsdecode(node.target)]


def hashed(fd: int) -> str:
    """SHA-256 of a file from here to its end, hex."""
    state = hashlib.sha256()
    while data := os.read(fd, _CHUNK):
        state.update(data)
    return state.hexdigest()


class _Walk:
    def __init__(self, upper: Tree, lower: Tree, since_ns: int) -> None:
        self._upper, self._lower, self._since_ns = upper, lower, since_ns
        self._count = self._bytes = 0

    def folder(self, path: bytes, *, hidden: bool) -> Iterator[Change]:
        """`hidden`: of the folder below, nothing shows through."""
        names = self._upper.names(path)
        for name in names:
            yield from self._one(_join(path, name), hidden=hidden)
        if hidden and (below := self._lower.node(path)) is not None and below.kind is Kind.FOLDER:
            for name in sorted(set(self._lower.names(path)) - set(names)):
                yield from self._delete(_join(path, name))

    def _one(self, path: bytes, *, hidden: bool) -> Iterator[Change]:
        if path.split(b"/")[0] == STAGE:
            raise EditError("edit.name", f"the job made {os.fsdecode(STAGE)}, which is exeat's own name")
        new, old = self._upper.node(path), self._lower.node(path)
        if new is None or new.kind is Kind.GONE:
            yield from self._delete(path)
        elif new.kind is Kind.FOLDER:
            yield from self._folder(path, old, new, hidden=hidden)
        elif old is not None and old.kind is not new.kind:
            yield from self._delete(path)
            yield self._add(path, new)
        elif old is None:
            yield self._add(path, new)
        else:
            yield from self._modify(path, old, new)

    def _folder(self, path: bytes, old: Node | None, new: Node, *, hidden: bool) -> Iterator[Change]:
        for mark in ("redirect", "metacopy"):
            if self._upper.marked(path, mark) is not None:
                raise EditError(
                    "edit.layer", "the layer refers to what it does not hold: it was not made here"
                )
        if old is not None and old.kind is not Kind.FOLDER:
            yield from self._delete(path)
            old = None
        if old is None:
            yield self._add(path, new)
        elif old.mode != new.mode:
            yield self._made(path, Action.MODE, old, new, conflict=self._since(old))
        opaque = self._upper.marked(path, "opaque") == b"y"
        yield from self.folder(path, hidden=hidden or opaque)

    def _delete(self, path: bytes) -> Iterator[Change]:
        old = self._lower.node(path)
        if old is None:
            return
        if old.kind is Kind.FOLDER:
            for name in self._lower.names(path):
                yield from self._delete(_join(path, name))
        yield self._made(path, Action.DELETE, old, None, conflict=self._since(old))

    def _add(self, path: bytes, new: Node) -> Change:
        lost = self._upper.marked(path, "origin") is not None and self._lower.node(path) is None
        conflict = _REMOVED if lost and self._holder_changed(path) else ""
        return self._made(path, Action.ADD, None, new, conflict=conflict)

    def _modify(self, path: bytes, old: Node, new: Node) -> Iterator[Change]:
        if new.kind is Kind.FILE:
            change = self._made(path, Action.MODIFY, old, new, conflict=self._since(old))
            if old.mode != new.mode or old.size != new.size or change.digest != self._hash(self._lower, path):
                yield change
        elif new.kind is Kind.SPECIAL or old.target != new.target:
            yield self._made(path, Action.MODIFY, old, new, conflict=self._since(old))

    def _made(
        self, path: bytes, action: Action, old: Node | None, new: Node | None, *, conflict: str
    ) -> Change:
        self._count += 1
        is_file = new is not None and new.kind is Kind.FILE
        self._bytes += new.size if new is not None and is_file else 0
        if self._count > MAX_CHANGES or self._bytes > MAX_BYTES:
            raise EditError("edit.size", f"more than {MAX_CHANGES} changes, or {MAX_BYTES >> 20} MiB")
        digest = self._hash(self._upper, path) if is_file else ""
        return Change(path, action, old, new, digest, conflict, flags_of(path, old, new))

    def _hash(self, tree: Tree, path: bytes) -> str:
        fd = tree.open(path)
        try:
            return hashed(fd)
        finally:
            os.close(fd)

    def _since(self, old: Node) -> str:
        return _CHANGED if old.ctime_ns >= self._since_ns else ""

    def _holder_changed(self, path: bytes) -> bool:
        """Was something added to, or taken from, the nearest folder around it that there is?"""
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            if (node := self._lower.node(path)) is not None:
                return node.ctime_ns >= self._since_ns
        return self._lower.changed_ns() >= self._since_ns


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name
