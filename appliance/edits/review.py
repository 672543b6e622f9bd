"""All there is to say about an edit: its patch, what stands against merging it, what a person must see."""

from __future__ import annotations

import base64
import difflib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.edits import leaks
from exeat.appliance.edits.changes import Action, compare, digest_of
from exeat.appliance.edits.tree import Kind
from exeat.appliance.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.appliance.edits.changes import Change
    from exeat.appliance.edits.leaks import Leak
    from exeat.appliance.edits.tree import Node, Tree

MAX_TEXT: Final = 1 << 20  # bytes of a file that is shown line by line
MAX_SCANNED: Final = 4 << 20  # bytes of all text that is looked at for secrets
MAX_COMPARED: Final = 4000  # lines, old and new; beyond, the whole file is replaced (difflib is quadratic)
AUTO_BYTES: Final = 1 << 20  # of new content that may be merged without a person
AUTO_CHANGES: Final = 200
_REDACTED: Final = "[redacted]"


@dataclass(frozen=True, slots=True)
class Item:
    """A change with its text, where it has one."""

    change: Change
    old: list[str] | None  # lines with their ends
    new: list[str] | None
    found: tuple[Leak, ...] = ()
    read: bool = True  # was all of it looked at for secrets?
    content: bytes = b""  # what is new and no text, where it is short enough
    hidden: frozenset[str] = frozenset()  # lines that are not shown, without their ends
    path: str = ""  # as it may be shown

    @property
    def flags(self) -> list[str]:
        return sorted(self.change.flags | ({"secret"} if self.found else set()))

    @property
    def name(self) -> str:
        """The path, fit for a terminal."""
        return plain(self.path)


@dataclass(frozen=True, slots=True)
class Review:
    items: tuple[Item, ...]

    @property
    def changes(self) -> list[Change]:
        return [item.change for item in self.items]

    @property
    def digest(self) -> str:
        return digest_of(self.changes)

    def conflicts(self) -> list[str]:
        return [f"{item.name}: {item.change.conflict}" for item in self.items if item.change.conflict]

    def flagged(self, allowed: frozenset[str]) -> list[str]:
        """What nobody has allowed yet."""
        return [f"{item.name}: {flag}" for item in self.items for flag in item.flags if flag not in allowed]

    def unclean(self) -> list[str]:
        """Why a person has to look at it; nothing: it may be merged without one."""
        why = [*self.conflicts(), *self.flagged(frozenset())]
        if not leaks.available():
            why.append(leaks.MISSING)
        why += [
            f"{item.name}: not text that could be looked at for secrets"
            for item in self.items
            if not item.read
        ]
        size = sum(item.change.new.size for item in self.items if item.change.new)
        if size > AUTO_BYTES or len(self.items) > AUTO_CHANGES:
            why.append(f"more than {AUTO_BYTES} bytes or {AUTO_CHANGES} changes")
        return why


def review(upper: Tree, lower: Tree, since_ns: int) -> Review:
    """Raises EditError and OSError."""
    left = MAX_SCANNED
    items = []
    for change in compare(upper, lower, since_ns):
        item = _item(change, upper, lower, scan=left > 0)
        left -= change.new.size if change.new and item.new else 0
        items.append(item)
    return Review(tuple(items))


def _item(change: Change, upper: Tree, lower: Tree, *, scan: bool) -> Item:
    old_data, new_data = _data(lower, change.path, change.old), _data(upper, change.path, change.new)
    old, new = _lines(old_data), _lines(new_data)
    name = os.fsdecode(change.path).encode("utf-8", "backslashreplace").decode()
    before, after = _bare(old), _bare(new)
    found, whole = leaks.leaks(name, after if scan else [], frozenset(before))
    hidden = leaks.hidden(name, [*before, *after])
    path = _REDACTED if name in hidden else os.fsdecode(change.path)
    if change.new is None:
        return Item(change, old, None, hidden=hidden, path=path)
    is_file = change.new.kind is Kind.FILE
    read = whole and (not is_file or (new is not None and scan))
    content = new_data if is_file and new is None and new_data is not None else b""
    return Item(change, old, new, tuple(found), read, content, hidden, path)


def _bare(lines: list[str] | None) -> list[str]:
    return [line.rstrip("\r\n") for line in lines or ()]


def _data(tree: Tree, path: bytes, node: Node | None) -> bytes | None:
    if node is not None and node.kind is Kind.LINK:
        return node.target
    if node is None or node.kind is not Kind.FILE or node.size > MAX_TEXT:
        return None
    with open(tree.open(path), "rb") as file:
        return file.read(MAX_TEXT)


def _lines(data: bytes | None) -> list[str] | None:
    if data is None or b"\0" in data:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    *whole, last = text.split("\n")
    return [f"{line}\n" for line in whole] + ([last] if last else [])


# -- as text


def as_text(found: Review) -> Iterator[str]:
    """The patch for a person, line by line."""
    for item in found.items:
        yield from _header(item)
        yield from (plain(line, "\t") for line in hunks(item))
    for item in found.items:
        notes = [*item.flags, *([f"CONFLICT: {item.change.conflict}"] if item.change.conflict else [])]
        notes += [
            f"line {leak.line} {leak.kind}" if leak.line else f"name: {leak.kind}" for leak in item.found
        ]
        if notes:
            yield f"! {item.name}: {'; '.join(notes)}"
    if not leaks.available():
        yield f"! {leaks.MISSING}"


def _header(item: Item) -> Iterator[str]:
    change = item.change
    yield f"{change.action} {_kind(change.new or change.old)} {item.name}"
    if change.old and change.new and change.old.mode != change.new.mode:
        yield f"mode {change.old.mode:04o} -> {change.new.mode:04o}"
    node = change.new or change.old
    if node and node.kind is Kind.FILE and item.new is None and item.old is None:
        yield f"{node.size} bytes, no text{f', sha256 {change.digest}' if change.digest else ''}"


def _kind(node: Node | None) -> str:
    return str(node.kind) if node else ""


def hunks(item: Item) -> list[str]:
    """A unified diff (diffutils manual, "Unified Format") without line ends and the secrets found."""
    old, new = item.old or [], item.new or []
    if item.change.action is Action.MODE or (item.old is None and item.new is None):
        return []
    same_size = len(old) + len(new) <= MAX_COMPARED
    lines = difflib.unified_diff(old, new, "old", "new", n=3) if same_size else _whole(old, new)
    out: list[str] = []
    for line in lines:
        text = line.rstrip("\n")
        out.append(text[:1] + _REDACTED if text[1:].rstrip("\r") in item.hidden else text)
        if not line.endswith("\n"):
            out.append("\\ No newline at end of file")
    return out


def _whole(old: list[str], new: list[str]) -> Iterator[str]:
    yield "--- old\n"
    yield "+++ new\n"
    yield f"@@ -{min(1, len(old))},{len(old)} +{min(1, len(new))},{len(new)} @@\n"
    yield from (f"-{line}" for line in old)
    yield from (f"+{line}" for line in new)


# -- as JSON


def as_row(item: Item) -> dict[str, Any]:
    """One change for a program; text is exact but for secrets, what is no text is base64 if short."""
    change = item.change
    return {
        "path": item.path,
        "action": change.action,
        "old": _node(change.old),
        "new": _node(change.new),
        "sha256": change.digest,
        "flags": item.flags,
        "conflict": change.conflict,
        "secrets": [{"line": leak.line, "kind": leak.kind} for leak in item.found],
        "patch": hunks(item),
        "content": base64.b64encode(item.content).decode(),
    }


def _node(node: Node | None) -> dict[str, Any] | None:
    if node is None:
        return None
    return {"kind": node.kind, "mode": f"{node.mode:04o}", "size": node.size}
