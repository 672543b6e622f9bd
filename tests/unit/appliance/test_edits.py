"""A job's changes compared and merged: with layers that overlayfs itself made, and with kills in between."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exeat.appliance.edits import merge as merging
from exeat.appliance.edits.changes import STAGE, Action, Change, compare, digest_of
from exeat.appliance.edits.merge import finish, merge
from exeat.appliance.edits.tree import EditError, Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root  # mounts, and reads trusted.* attributes

NAMES = ("a", "b", "d", "e")


class Place:
    """A folder, a layer over it as a job has it, and the moment the job began."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="exeat-edits-"))
        self.lower, self.upper, self.merged = (self.base / n for n in ("lower", "upper", "merged"))
        for path in (self.lower, self.upper, self.merged, self.base / "work"):
            path.mkdir()
        self.since_ns = 0

    @contextlib.contextmanager
    def job(self) -> Iterator[Path]:
        began = self.base / "began"
        _later(self.lower)
        began.touch()
        self.since_ns = began.stat().st_ctime_ns
        _later(began)
        layers = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.base}/work"
        options = f"{layers},redirect_dir=off,metacopy=off,index=off"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.merged)], check=True)
        try:
            yield self.merged
        finally:
            subprocess.run(["umount", str(self.merged)], check=True)

    def trees(self) -> tuple[Tree, Tree]:
        return Tree(self.upper), Tree(self.lower)

    def changes(self) -> list[Change]:
        with _open(self) as (upper, lower):
            return compare(upper, lower, self.since_ns)

    def merge(self) -> None:
        with _open(self) as (upper, lower):
            merge(compare(upper, lower, self.since_ns), upper, lower)


@contextlib.contextmanager
def _open(place: Place) -> Iterator[tuple[Tree, Tree]]:
    upper, lower = place.trees()
    try:
        yield upper, lower
    finally:
        upper.close()
        lower.close()


def _later(path: Path) -> None:
    """Until the clock that ctime has is past that of `path`."""
    probe = path.parent / "probe"
    while True:
        probe.touch()
        if probe.stat().st_ctime_ns > path.stat().st_ctime_ns + 1:
            probe.unlink()
            return
        time.sleep(0.001)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    shutil.rmtree(made.base)


def seen(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name, mode = str(path.relative_to(root)), path.lstat().st_mode
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        else:
            found[name] = (mode, path.read_bytes() if path.is_file() else None)
    return found


def scribble(root: Path, seed: int, steps: int) -> None:
    """Changes like those of a program that works on a folder."""
    dice = random.Random(seed)

    def some() -> Path:
        return root.joinpath(*(dice.choice(NAMES) for _ in range(dice.randint(1, 3))))

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.choice((0, 3, 90))))

    def remove(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def again(path: Path) -> None:
        shutil.rmtree(path)
        path.mkdir()

    work: list[Callable[[Path], object]] = [
        *(write, write, write, remove, remove, again),
        lambda path: path.mkdir(parents=True),
        lambda path: path.symlink_to(dice.choice(NAMES)),
        lambda path: path.chmod(dice.choice((0o700, 0o755, 0o750))) if not path.is_symlink() else None,
        lambda path: path.rename(some()),
    ]
    for _ in range(steps):
        with contextlib.suppress(OSError):
            dice.choice(work)(some())


@example(161589, 1, 4)  # a folder with files becomes a file
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=40)
def test_merged_is_what_the_job_saw(seed: int, before: int, after: int) -> None:
    place = Place()
    try:
        scribble(place.lower, seed, before)
        with place.job() as merged:
            scribble(merged, seed + 1, after)
            wanted = seen(merged)
        changes = place.changes()
        assert not [change for change in changes if change.conflict]
        place.merge()
        assert seen(place.lower) == wanted
        assert place.changes() == []
    finally:
        shutil.rmtree(place.base)


def one_of_each(place: Place) -> tuple[dict[str, object], dict[str, object]]:
    """Every kind of step there is; the folder before and after."""
    for name in ("keep", "change", "gone", "dir/one", "dir/sub/two", "turn", "opaque/old"):
        path = place.lower / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    before = seen(place.lower)
    with place.job() as merged:
        (merged / "change").write_text("changed")
        (merged / "gone").unlink()
        shutil.rmtree(merged / "dir")
        (merged / "turn").unlink()
        (merged / "turn" / "deep").mkdir(parents=True)
        (merged / "turn" / "deep" / "new").write_text("new")
        (merged / "link").symlink_to("keep")
        shutil.rmtree(merged / "opaque")
        (merged / "opaque").mkdir(mode=0o700)
        after = seen(merged)
    return before, after


def test_one_of_each(place: Place) -> None:
    before, after = one_of_each(place)
    found = [(os.fsdecode(change.path), change.action) for change in place.changes()]
    assert found == [
        ("change", Action.MODIFY),
        *((name, Action.DELETE) for name in ("dir", "dir/one", "dir/sub", "dir/sub/two", "gone")),
        ("link", Action.ADD),
        ("opaque", Action.MODE),
        ("opaque/old", Action.DELETE),
        ("turn", Action.DELETE),
        *((name, Action.ADD) for name in ("turn", "turn/deep", "turn/deep/new")),
    ]
    assert seen(place.lower) == before
    digest = digest_of(place.changes())
    place.merge()
    assert seen(place.lower) == after
    assert digest != digest_of(place.changes())


STRIDE = 2  # 1 tries them all
CALLS = ("mkdir", "rename", "link", "unlink", "symlink", "fchmod", "fsync", "rmdir")


def _merge_until(place: Place, most: int, *, again: bool = False, fails: int = -1) -> int:
    """Merge in a process of its own that is killed before its call number `most`; how many it made.

    Number `fails` fails, as on a full disk. `again`: only finish what was begun.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        made = 0

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def work(*words: object, **more: object) -> object:
                nonlocal made
                if made == most:
                    os._exit(9)
                made += 1
                os.write(writer, b".")
                if made - 1 == fails:
                    raise OSError(28, "No space left on device")
                return call(*words, **more)

            return work

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            with _open(place) as (upper, lower):
                finish(lower)
                if not again:
                    merge(compare(upper, lower, place.since_ns), upper, lower)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        count = len(pipe.read())
    os.waitpid(child, 0)
    return count


def test_killed_anywhere_it_is_all_or_nothing() -> None:
    place = Place()
    before, after = one_of_each(place)
    saved = place.base / "saved"
    subprocess.run(["cp", "-a", str(place.lower), str(saved)], check=True)
    place.since_ns = time.time_ns() + 10**12  # what is copied back has a later ctime
    total = _merge_until(place, -1)
    assert seen(place.lower) == after
    ends = set()
    dice = random.Random(1)
    for most in range(0, total, STRIDE):
        shutil.rmtree(place.lower)
        subprocess.run(["cp", "-a", str(saved), str(place.lower)], check=True)
        fails = dice.choice((-1, dice.randrange(most + 1)))
        _merge_until(place, most, fails=fails)
        _merge_until(place, dice.randrange(total), again=True)  # the recovery is killed, too
        with _open(place) as (_, lower):
            finish(lower)
        found = seen(place.lower)
        assert found in (before, after), (most, fails)
        ends.add(found == after)
    assert ends == {True, False}
    shutil.rmtree(place.base)


def test_a_failure_on_the_way_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = one_of_each(place)
    real = merging._do
    calls: list[merging.Step] = []
    allowed = 0

    def failing(lower: Tree, step: merging.Step) -> None:
        calls.append(step)
        if len(calls) > allowed:
            raise OSError(28, "no space")
        real(lower, step)

    monkeypatch.setattr(merging, "_do", failing)
    for allowed in range(14):  # noqa: B007 - `failing` reads it
        calls.clear()
        with pytest.raises(EditError, match="nothing was changed"):
            place.merge()
        assert seen(place.lower) == before
        place.since_ns = time.time_ns() + 10**12
    monkeypatch.undo()
    place.merge()
    assert seen(place.lower) == after


def test_what_somebody_else_changed_is_a_conflict(place: Place) -> None:
    one_of_each(place)
    (place.lower / "change").write_text("mine")
    (place.lower / "dir" / "sub" / "three").write_text("mine")
    (place.lower / "link").write_text("mine")
    conflicts = {os.fsdecode(change.path) for change in place.changes() if change.conflict}
    assert conflicts == {"change", "dir/sub", "dir/sub/three", "link"}


def test_a_file_that_both_removed_or_one_brought_back(place: Place) -> None:
    for name in ("both", "edited"):
        (place.lower / name).write_text(name)
    with place.job() as merged:
        (merged / "both").unlink()
        (merged / "edited").write_text("more")
    (place.lower / "both").unlink()
    (place.lower / "edited").unlink()
    (change,) = place.changes()
    assert (change.path, change.conflict) == (b"edited", "was removed since the job began")


def test_a_link_that_is_swapped_in_leads_nowhere(place: Place) -> None:
    (place.lower / "dir").mkdir()
    (place.lower / "dir" / "file").write_text("old")
    with place.job() as merged:
        (merged / "dir" / "file").write_text("new")
        (merged / "dir" / "more").write_text("more")
    victim = place.base / "victim"
    victim.mkdir()
    (victim / "file").write_text("secret")
    changes = place.changes()
    shutil.rmtree(place.lower / "dir")
    (place.lower / "dir").symlink_to(victim)
    with pytest.raises(EditError):
        merge(changes, *place.trees())
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"file": "secret"}
    assert os.readlink(place.lower / "dir") == str(victim)
    assert not (place.lower / os.fsdecode(STAGE)).exists()


def test_it_is_done_with_the_owners_rights(place: Place) -> None:
    place.base.chmod(0o755)
    os.chown(place.lower, 4321, 4321)
    os.chown(place.upper, 4321, 4321)
    (place.lower / "roots").mkdir(mode=0o755)
    with place.job() as merged:
        (merged / "roots" / "new").write_text("only root can do that")
    upper, lower = Tree(place.upper), Tree(place.lower, 4321)
    with pytest.raises(EditError, match="Permission denied"):
        merge(compare(upper, lower, place.since_ns), upper, lower)
    assert os.geteuid() == 0
    assert seen(place.lower) == {"roots": (0o40755, None)}


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[{"do": "put", "path": "Li4vYQ==", "n": 0, "old": []}]', "[" * 9000]
)
def test_a_journal_of_somebody_elses_does_nothing(place: Place, text: str) -> None:
    stage = place.lower / os.fsdecode(STAGE)
    (stage / "new").mkdir(parents=True)
    (stage / "journal").write_text(text)
    with pytest.raises(EditError) as caught, _open(place) as (_, lower):
        finish(lower)
    assert caught.value.code == "merge.journal"
