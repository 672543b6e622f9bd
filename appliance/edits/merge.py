"""Bringing a job's changes into the folder: all of them or none, also when this process is killed.

Everything new is first written to STAGE, in the folder itself and with its owner's rights; then the
journal is made, which is the decision. From there on each step is one link, rename or mkdir, can be
repeated, and can be taken back: whoever finds a journal finishes it, or undoes all of it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.edits.changes import STAGE, Action
from exeat.appliance.edits.tree import EditError, Kind, Tree, rights_of
from exeat.ledger.files import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exeat.appliance.edits.changes import Change
    from exeat.appliance.edits.tree import Node

_JOURNAL: Final = STAGE + b"/journal"
_BACK: Final = STAGE + b"/back"  # is there from when the steps are being undone
_CHUNK: Final = 1 << 20
_MODE: Final = 0o7777
_NO_TRAP: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STEPS: Final = {"take": 4, "swap": 4, "put": 0, "folder": 0, "mode": 2}  # and how many numbers `old` has
_MAX_JOURNAL: Final = 64 << 20

Step = dict[str, Any]


def merge(changes: Sequence[Change], upper: Tree, lower: Tree) -> None:
    """Apply `changes`, of which none is a conflict. Raises EditError; then the folder is as it was."""
    with _alone(lower):
        _recover(lower)
        try:
            steps = _stage(changes, upper, lower)
            _write(lower, _JOURNAL, json.dumps(steps).encode())
        except OSError as error:
            _clear(lower)
            raise EditError("merge.failed", f"nothing was changed: {error}") from error
        except EditError:
            _clear(lower)
            raise
        _settle(lower, steps)


def finish(lower: Tree) -> None:
    """Finish or undo what an earlier merge began, unless one goes on just now. Raises EditError."""
    with _alone(lower):
        _recover(lower)


def _recover(lower: Tree) -> None:
    """Finish or undo what an earlier merge began. Raises EditError."""
    if lower.node(STAGE) is None:
        return
    if lower.node(_JOURNAL) is not None:
        if lower.node(_BACK) is not None:
            _undo(lower, _read(lower))
        else:
            _settle(lower, _read(lower))
    _clear(lower)


@contextlib.contextmanager
def _alone(lower: Tree) -> Iterator[None]:
    try:
        fcntl.flock(lower.root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise EditError("merge.busy", "somebody else holds a lock on the folder: another merge?") from None
    try:
        yield
    finally:
        fcntl.flock(lower.root, fcntl.LOCK_UN)


def _settle(lower: Tree, steps: list[Step]) -> None:
    """Do all the steps that have not been done, or none."""
    try:
        for step in steps:
            _do(lower, step)
        _sync(lower, steps)
    except (OSError, EditError) as error:
        _write(lower, _BACK, b"")
        _undo(lower, steps)
        _clear(lower)
        raise EditError("merge.failed", f"nothing was changed: {error}") from error
    _clear(lower)


# -- before the decision


def _stage(changes: Sequence[Change], upper: Tree, lower: Tree) -> list[Step]:
    with lower.at(STAGE) as (folder, name):
        os.mkdir(name, 0o700, dir_fd=folder)
        for part in (b"new", b"old"):
            os.mkdir(name + b"/" + part, 0o700, dir_fd=folder)
    wanted = [change for change in changes if change.new is None or change.new.kind is not Kind.SPECIAL]
    gone = [change for change in wanted if change.action is Action.DELETE]
    made = [change for change in wanted if change.action is not Action.DELETE]
    # Folders can be written to while this goes on, and get their modes when they are full.
    early, late = [], []
    for change in made:
        if change.new is not None and change.new.kind is Kind.FOLDER:
            was = change.old.mode if change.old else 0o700
            early += [_step("mode", change.path, [was | 0o700, was])] if change.old else []
            late.append(_step("mode", change.path, [change.new.mode & _MODE, was | 0o700]))
    steps = [
        _step("take", change.path, _known(change.old)) for change in reversed(gone)
    ]  # a folder when empty
    for change in made:
        if change.action is not Action.MODE and change.new is not None:
            what = "swap" if change.old else "folder" if change.new.kind is Kind.FOLDER else "put"
            _stage_one(change.path, change.new, change.digest, len(steps), upper, lower)
            steps.append(_step(what, change.path, _known(change.old)))
    for number, step in enumerate(steps):
        step["n"] = number
    with lower.folder(STAGE + b"/new") as fd:
        os.fsync(fd)
    os.fsync(lower.root)
    return [*early, *steps, *reversed(late)]


def _known(old: Node | None) -> list[int]:
    return [old.ino, old.size, old.mode, old.mtime_ns] if old else []


def _step(what: str, path: bytes, old: list[int]) -> Step:
    return {"do": what, "path": base64.b64encode(path).decode(), "n": 0, "old": old}


def _stage_one(path: bytes, new: Node, digest: str, number: int, upper: Tree, lower: Tree) -> None:
    staged = _new(number)
    if new.kind is not Kind.FILE:
        with lower.at(staged) as (folder, name):
            if new.kind is Kind.FOLDER:
                os.mkdir(name, 0o700, dir_fd=folder)
            else:
                os.symlink(new.target, name, dir_fd=folder)
        return
    source = upper.open(path)
    try:
        with lower.at(staged) as (folder, name):
            made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            if _copy(source, made) != digest:
                raise EditError("merge.failed", "nothing was changed: the layer changed while it was read")
            with rights_of(lower.uid):
                os.fchmod(made, new.mode & _MODE)
            os.fsync(made)
        finally:
            os.close(made)
    finally:
        os.close(source)


def _copy(source: int, target: int) -> str:
    state = hashlib.sha256()
    while data := os.read(source, _CHUNK):
        state.update(data)
        write_all(target, data)
    return state.hexdigest()


# -- the steps


def _do(lower: Tree, step: Step) -> None:
    path, number = _path(step), step["n"]
    match step["do"]:
        case "take":
            _take(lower, path, number, step["old"])
        case "folder":
            _make_folder(lower, path, number)
        case "put":
            _put(lower, path, number)
        case "swap":
            _swap(lower, path, number, step["old"])
        case "mode":
            _chmod(lower, path, step["old"][0])


def _take(lower: Tree, path: bytes, number: int, known: list[int]) -> None:
    old = _old(number)
    if lower.node(old) is None:
        _rename(lower, path, old)
    node = lower.node(old)
    if node is None or node.ino != known[0] or (node.kind is not Kind.FOLDER and _known(node) != known):
        raise EditError("merge.conflict", f"{_shown(path)} changed meanwhile")
    if node.kind is Kind.FOLDER and lower.names(old):
        raise EditError("merge.conflict", f"something was put into {_shown(path)} meanwhile")


def _make_folder(lower: Tree, path: bytes, number: int) -> None:
    if lower.node(_new(number)) is None:
        return
    if lower.node(path) is not None:
        raise EditError("merge.conflict", f"{_shown(path)} was made meanwhile")
    _rename(lower, _new(number), path)


def _put(lower: Tree, path: bytes, number: int) -> None:
    """By a hard link, which never replaces what somebody else has put there."""
    new = lower.node(_new(number))
    if new is None:
        return
    there = lower.node(path)
    if there is None or there.ino != new.ino:
        _link(lower, _new(number), path)
    _unlink(lower, _new(number))


def _swap(lower: Tree, path: bytes, number: int, known: list[int]) -> None:
    if lower.node(_new(number)) is None:
        return
    if lower.node(_old(number)) is None:
        _link(lower, path, _old(number))
    node = lower.node(_old(number))
    if _known(node) != known:
        raise EditError("merge.conflict", f"{_shown(path)} changed meanwhile")
    _rename(lower, _new(number), path)


def _chmod(lower: Tree, path: bytes, mode: int) -> None:
    with lower.folder(path) as fd:
        os.fchmod(fd, mode & _MODE)


# -- the way back


def _undo(lower: Tree, steps: list[Step]) -> None:
    """Take the steps back, last first. Where somebody stands in the way: EditError, and the journal stays."""
    try:
        for step in reversed(steps):
            _undo_one(lower, _path(step), step)
    except OSError as error:
        raise EditError(
            "merge.stuck",
            f"half merged: {error}; mend that, then the next merge into this folder undoes the rest",
        ) from error


def _undo_one(lower: Tree, path: bytes, step: Step) -> None:
    number = step["n"]
    staged, old, there = lower.node(_new(number)), lower.node(_old(number)), lower.node(path)
    match step["do"]:
        case "mode" if there is not None and there.kind is Kind.FOLDER:
            _chmod(lower, path, step["old"][1])
        case "take" if old is not None:
            if there is not None:
                raise FileExistsError(f"{_shown(path)} was made meanwhile")
            _rename(lower, _old(number), path)
        case "swap" if old is not None:
            _rename(lower, _old(number), path)
        case "put" if staged is not None and there is not None and staged.ino == there.ino:
            _unlink(lower, path)
        case "put" | "folder" if staged is None and there is not None:
            if there.kind is Kind.FOLDER and lower.names(path):
                raise FileExistsError(f"something was put into {_shown(path)} meanwhile")
            _rename(lower, path, _new(number))


# -- small things


def _sync(lower: Tree, steps: list[Step]) -> None:
    """What the steps did is on disk before the journal goes."""
    for path in {_path(step).rpartition(b"/")[0] for step in steps if step["do"] != "mode"}:
        # It may have been taken away itself, or be a file now.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), lower.folder(path) as fd:
            os.fsync(fd)


def _write(lower: Tree, path: bytes, data: bytes) -> None:
    """A whole file, durable, or none."""
    with lower.at(path) as (folder, name):
        fd = os.open(name + b".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_TRAP, 0o600, dir_fd=folder)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(name + b".part", name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def _read(lower: Tree) -> list[Step]:
    with open(lower.open(_JOURNAL), "rb") as file:
        text = file.read(_MAX_JOURNAL)
    try:
        steps = json.loads(text)
        if not isinstance(steps, list):
            raise TypeError
        for step in steps:  # it lies in a folder of somebody else's
            _path(step)
            if not all(type(number) is int for number in (step["n"], *step["old"])):
                raise TypeError
            if len(step["old"]) != _STEPS[step["do"]]:
                raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EditError("merge.journal", f"{_shown(_JOURNAL)} is damaged: {type(error).__name__}") from None
    return list(steps)


def _clear(lower: Tree) -> None:
    """The journal goes first: from then on there is nothing to finish."""
    for path in (_JOURNAL, _BACK):
        with contextlib.suppress(FileNotFoundError):
            _unlink(lower, path)
    with contextlib.suppress(OSError):
        for each in lower.names(STAGE + b"/old"):  # a folder that its owner may not read, too
            with contextlib.suppress(OSError), lower.at(STAGE + b"/old/" + each) as (folder, last):
                os.rmdir(last, dir_fd=folder)
    with lower.at(STAGE) as (folder, name):
        os.fsync(folder)
        shutil.rmtree(name, dir_fd=folder, ignore_errors=True)


def _path(step: Step) -> bytes:
    path = base64.b64decode(step["path"], validate=True)
    if any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise ValueError("not a path below the folder")
    return path


def _new(number: int) -> bytes:
    return STAGE + b"/new/%d" % number


def _old(number: int) -> bytes:
    return STAGE + b"/old/%d" % number


def _shown(path: bytes) -> str:
    return ascii(os.fsdecode(path))


def _rename(lower: Tree, path: bytes, to: bytes) -> None:
    with lower.at(path) as (folder, name), lower.at(to) as (into, new):
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=into)


def _link(lower: Tree, path: bytes, to: bytes) -> None:
    with lower.at(path) as (folder, name), lower.at(to) as (into, new):
        os.link(name, new, src_dir_fd=folder, dst_dir_fd=into, follow_symlinks=False)


def _unlink(lower: Tree, path: bytes) -> None:
    with lower.at(path) as (folder, name):
        os.unlink(name, dir_fd=folder)
