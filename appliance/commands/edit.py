"""`exeat job diff|merge|drop|edits`: what a job changed in the folder it edited, and what becomes of that."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.edits import kept
from exeat.appliance.edits.changes import alike, compare
from exeat.appliance.edits.flags import FLAGS
from exeat.appliance.edits.merge import finish, merge
from exeat.appliance.edits.review import as_row, as_text, review
from exeat.appliance.edits.tree import EditError, Kind, Tree
from exeat.appliance.errors import RefusedError, UsageError
from exeat.appliance.parsers import add_verb
from exeat.appliance.plain import plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from exeat.appliance.config import Config
    from exeat.appliance.edits.changes import Change
    from exeat.appliance.edits.kept import Edit
    from exeat.appliance.edits.review import Review

_NAMED = 20  # reasons that are said


def register(verbs: Any) -> None:
    """Below `exeat job`."""
    diff = add_verb(verbs, "diff", "what it changed in the folder it edited", _diff)
    diff.add_argument("job", metavar="ID", help="of a task or a job")
    into = add_verb(verbs, "merge", "bring that into the folder: all of it or nothing", _merge)
    into.add_argument("job", metavar="ID", help="of a task or a job")
    into.add_argument(
        "--allow", action="append", default=[], choices=sorted(FLAGS), help="merge what is flagged so, too"
    )
    into.add_argument("--if-clean", action="store_true", help="only if no person has to look at it")
    drop = add_verb(verbs, "drop", "forget what it changed", _drop)
    drop.add_argument("job", metavar="ID", help="of a task or a job")
    for parser in (into, drop):
        parser.add_argument("--as", dest="person", metavar="NAME", help="the person who decides")
    add_verb(verbs, "edits", "what waits to be merged or dropped", _edits)


def _diff(args: argparse.Namespace) -> int:
    with _opened(load_config(args), args.job) as (edit, upper, lower):
        found = review(upper, lower, edit.since_ns)
    if args.json:
        rows = [as_row(item) for item in found.items]
        about = {
            "job": edit.job,
            "folder": str(edit.folder),
            "sha256": found.digest,
            "unclean": found.unclean(),
        }
        print(json.dumps({**about, "changes": rows}))
        return 0
    for line in as_text(found):
        print(line)
    return 0


def _merge(args: argparse.Namespace) -> int:
    done = merge_edit(
        load_config(args),
        args.job,
        allowed=frozenset(args.allow),
        if_clean=args.if_clean,
        person=args.person or "",
    )
    print(json.dumps(done) if args.json else f"{done['changes']} changes are in {plain(done['folder'])}")
    return 0


def merge_edit(
    config: Config,
    name: str,
    *,
    allowed: frozenset[str] = frozenset(),
    if_clean: bool = False,
    person: str = "",
) -> dict[str, Any]:
    """All of it or nothing: raises RefusedError. `if_clean`: only by the criteria of docs/jobs.md."""
    with _opened(config, name) as (edit, upper, lower):
        finish(lower)
        found = review(upper, lower, edit.since_ns)
        _judge(found, allowed, if_clean=if_clean)
        if found.items:
            how = (
                "because it was clean" if if_clean else f"allowed: {', '.join(sorted(allowed)) or 'nothing'}"
            )
            _record(
                config, edit, "merge", f"{len(found.items)} changes, sha256 {found.digest}, {how}", person
            )
            try:
                merge(found.changes, upper, lower)
            except EditError as error:
                _begin_again(edit, found.changes, upper, lower)
                _record(config, edit, "merge.failed", f"sha256 {found.digest}: {error}", person)
                raise
        left = [item.name for item in found.items if item.change.new and item.change.new.kind is Kind.SPECIAL]
    with _refused():
        edit.drop()
    merged = len(found.items) - len(left)
    return {
        "job": edit.job,
        "folder": str(edit.folder),
        "changes": merged,
        "sha256": found.digest,
        "left_out": left,
    }


def _begin_again(edit: Edit, changes: list[Change], upper: Tree, lower: Tree) -> None:
    """What was done and taken back has a new ctime, which is not to look like somebody else's change."""
    with contextlib.suppress(EditError, OSError):
        now_ns = edit.now_ns()
        if alike(changes, compare(upper, lower, now_ns)):
            edit.began(now_ns)


def _judge(found: Review, allowed: frozenset[str], *, if_clean: bool) -> None:
    if conflicts := found.conflicts():
        raise RefusedError("merge.conflict", f"nothing was changed: {_some(conflicts)}")
    if if_clean and (why := found.unclean()):
        raise RefusedError("merge.unclean", f"a person has to look at it: {_some(why)}")
    if flagged := found.flagged(allowed):
        text = f"{_some(flagged)}; look at it (exeat job diff), then --allow what may be merged"
        raise RefusedError("merge.flagged", text)


def _some(reasons: list[str]) -> str:
    more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    return "; ".join(reasons[:_NAMED]) + more


def _drop(args: argparse.Namespace) -> int:
    config = load_config(args)
    with _refused():
        edit = _edit(config, args.job)
        _record(config, edit, "drop", str(edit.folder), args.person or "")
        edit.drop()
    print(json.dumps({"job": edit.job}) if args.json else f"dropped what {edit.job} changed")
    return 0


def _edits(args: argparse.Namespace) -> int:
    _need_root()
    rows = [
        {"job": edit.job, "folder": str(edit.folder), "began_ms": edit.since_ns // 1_000_000}
        for edit in kept.kept(load_config(args).state_dir)
    ]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        age = max(0, time.time_ns() // 1_000_000 - int(str(row["began_ms"]))) // 60_000
        print(f"{row['job']:<31} {age:>6} min  {plain(str(row['folder']))}")
    return 0


@contextlib.contextmanager
def _opened(config: Config, name: str) -> Iterator[tuple[Edit, Tree, Tree]]:
    with _refused():
        edit = _edit(config, name)
        upper, lower = edit.trees()
        try:
            owner = os.fstat(lower.root)
            if owner.st_uid != edit.uid:
                raise EditError("edit.owner", f"{edit.folder} does not belong to uid {edit.uid} any more")
            # Together with Tree's seteuid: nothing of root's is left to what is done in the folder.
            os.setgroups([owner.st_gid])
            os.setegid(owner.st_gid)
            yield edit, upper, lower
        finally:
            upper.close()
            lower.close()


def _edit(config: Config, name: str) -> Edit:
    """Of a job that has ended."""
    _need_root()
    with contextlib.closing(Client(config)) as client:
        return kept.load(config.state_dir, str(client.call("job.edit", job=name)["job"]))


def _record(config: Config, edit: Edit, what: str, detail: str, person: str) -> None:
    said: dict[str, Any] = {"as": person} if person else {}
    with contextlib.closing(Client(config)) as client:
        client.call("job.edit", job=edit.job, what=what, detail=detail, **said)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except EditError as error:
        raise RefusedError(error.code, str(error)) from None
    except OSError as error:
        raise RefusedError("edit.failed", str(error)) from None


def _need_root() -> None:
    if os.geteuid() != 0:
        raise UsageError("what jobs changed is root's to read: run this with sudo")
