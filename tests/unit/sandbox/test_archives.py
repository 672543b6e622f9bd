"""Archives, from their bytes to a folder: what is let out of the jail, and what never is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.archives import HOSTILE, tar_of, zip_of
from tests.support.layouts import zstd

from exeat.sandbox import archive_inside
from exeat.sandbox.archive_folder import NewFolder, TargetError
from exeat.sandbox.archive_frames import Event, File, Folder, Frames
from exeat.sandbox.archive_inside import HEAD, ArchiveError, Caps, Teller, tell

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = Caps(size=32 << 20, file=1 << 20, count=100, depth=32)


def frames_of(archive: bytes, caps: Caps = SMALL, name: str = "content") -> bytes:
    out = io.BytesIO()
    tell(io.BytesIO(archive), name, Teller(out, caps, len(archive)))
    return out.getvalue()


def unpack(archive: bytes, into: Path, caps: Caps = SMALL) -> None:
    """Through both halves, without the jail between them."""
    frames = Frames(caps, len(archive))
    with NewFolder(into) as folder:
        for event in frames.feed(frames_of(archive, caps)):
            folder.put(event)
        assert frames.ended
        folder.finish()


def tree(folder: Path) -> dict[str, str]:
    """Relative paths; the content of files, the target of links after an arrow, / for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_bytes().decode()
    return found


ORDINARY = (("d", (tarfile.DIRTYPE, "")), ("d/a", b"one"), ("./b", b"two"), ("e/f/c", b""))
EXPECTED = {"d": "/", "d/a": "one", "b": "two", "e": "/", "e/f": "/", "e/f/c": ""}


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd], ids=["", "gz", "bz2", "xz", "zst"]
)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar(tmp_path: Path, pack: Callable[[bytes], bytes], form: int) -> None:
    unpack(pack(tar_of(*ORDINARY, form=form)), tmp_path / "new")
    assert tree(tmp_path / "new") == EXPECTED


def test_a_zip(tmp_path: Path) -> None:
    unpack(zip_of(("d/", b""), ("d/a", b"one"), ("b", b"two"), ("e/f/c", b"")), tmp_path / "new")
    assert tree(tmp_path / "new") == EXPECTED


def test_links_that_stay_inside(tmp_path: Path) -> None:
    archive = tar_of(
        ("d/a", b"one"),
        ("d/up", (tarfile.SYMTYPE, "../b")),
        ("here", (tarfile.SYMTYPE, "d/./a")),
        ("b", (tarfile.LNKTYPE, "d/a")),
    )
    unpack(archive, tmp_path / "new")
    found = tree(tmp_path / "new")
    assert found == {"d": "/", "d/a": "one", "d/up": "-> ../b", "here": "-> d/a", "b": "one"}
    assert (tmp_path / "new/b").samefile(tmp_path / "new/d/a")


@pytest.mark.parametrize("content", ["one", "", "\0" * 20_000])
def test_a_file_that_was_only_compressed(tmp_path: Path, content: str) -> None:
    unpack(gzip.compress(content.encode()), tmp_path / "new")
    assert tree(tmp_path / "new") == {"content": content}


def test_a_tar_of_nothing(tmp_path: Path) -> None:
    unpack(gzip.compress(tar_of()), tmp_path / "new")
    assert tree(tmp_path / "new") == {}


def test_modes_are_ours_but_for_who_may_execute(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, mode in (("run", 0o4755), ("read", 0o2666)):
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = mode, 0, 0
            tar.addfile(info)
    mask = os.umask(0o022)
    try:
        unpack(out.getvalue(), tmp_path / "new")
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert modes == {"run": 0o755, "read": 0o644}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o755


@pytest.mark.parametrize(("make", "code"), [each[1:] for each in HOSTILE], ids=[each[0] for each in HOSTILE])
def test_a_hostile_archive_leaves_nothing(make: Callable[[], bytes], code: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError) as refused:
        unpack(make(), tmp_path / "new")
    assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []
    assert str(refused.value).isprintable()


def test_the_program_as_it_runs_inside() -> None:
    """By its text alone, with the refusal of what it cannot read as a frame."""
    source = Path(archive_inside.__file__).read_text()
    for archive, last in ((tar_of(("a", b"one")), b"E"), (gzip.compress(b"x" * 999)[:-9], b"X")):
        stdin = os.memfd_create("archive")
        os.write(stdin, archive)
        words = archive_inside.words_for(SMALL, "content")
        done = subprocess.run(
            [sys.executable, "-I", "-c", source, *words],
            stdin=stdin,
            capture_output=True,
            check=True,
            cwd="/",
        )
        os.close(stdin)
        kinds, rest = [], done.stdout
        while rest:
            kind, length = HEAD.unpack_from(rest)
            kinds.append(kind)
            rest = rest[HEAD.size + length :]
        assert kinds[-1] == last


def test_frames_by_bytes_and_at_once() -> None:
    told = frames_of(tar_of(*ORDINARY, ("big", bytes(200_000)), ("l", (tarfile.SYMTYPE, "b"))))
    frames = Frames(SMALL, len(told))
    slowly: list[Event] = [event for n in range(len(told)) for event in frames.feed(told[n : n + 1])]
    assert slowly == list(Frames(SMALL, len(told)).feed(told))
    assert frames.ended


def frame(kind: bytes, body: bytes = b"") -> bytes:
    return HEAD.pack(kind, len(body)) + body


LIES = {
    "an unknown letter": frame(b"Q"),
    "content of no file": frame(b"C", b"x"),
    "content after a folder": frame(b"F", b"-a") + frame(b"D", b"d") + frame(b"C", b"x"),
    "a climbing path": frame(b"F", b"-../a"),
    "a path in another form": frame(b"F", b"-./a"),
    "no mode": frame(b"F", b"a"),
    "not UTF-8": frame(b"F", b"-\xff"),
    "a link out": frame(b"S", b"a\0/etc"),
    "a link without a target": frame(b"S", b"a"),
    "a hard link to nothing": frame(b"H", b"a\0b"),
    "too long": HEAD.pack(b"D", 4097),
    "far too long": HEAD.pack(b"C", 2**32 - 1),
    "something after the end": frame(b"E") + frame(b"D", b"d"),
    "half a frame after the end": frame(b"E") + b"D",
    "the same twice": frame(b"F", b"-a") * 2,
    "more than may be": frame(b"F", b"-a") + frame(b"C", bytes(65536)) * 17,
}


@pytest.mark.parametrize("told", LIES.values(), ids=LIES)
def test_a_reader_that_lies_is_not_believed(told: bytes) -> None:
    with pytest.raises(ArchiveError):
        list(Frames(SMALL, 1000).feed(told))


def test_a_refusal_is_shown_without_what_it_could_do_to_a_terminal() -> None:
    with pytest.raises(ArchiveError) as refused:
        list(Frames(SMALL, 1000).feed(frame(b"X", b"archive.\x1b[2J\0text\x1b]0;x\x07")))
    assert (refused.value.code + str(refused.value)).isprintable()


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_what_is_there_is_never_touched(tmp_path: Path, there: str) -> None:
    target = tmp_path / "new"
    if there == "file":
        target.write_text("mine")
    elif there == "folder":
        target.mkdir()
        (target / "mine").touch()
    else:
        target.symlink_to(tmp_path)
    with pytest.raises(TargetError, match="is there already"):
        NewFolder(target)
    with pytest.raises(TargetError, match="No such file"):
        NewFolder(tmp_path / "none" / "new")


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    unpack(tar_of(("a", b"one")), tmp_path / "new")
    assert tree(tmp_path / "new") == {"a": "one"}


def test_nothing_is_left_of_what_was_not_finished(tmp_path: Path) -> None:
    with NewFolder(tmp_path / "new") as folder:
        folder.put(Folder(("d",)))
        folder.put(File(("d", "a"), executable=False))
        folder.put(b"half of")
    assert list(tmp_path.iterdir()) == []


def test_zstd_in_frames_and_pieces(tmp_path: Path) -> None:
    """More than one frame, one of which is skipped (RFC 8878, 3.1.2), and content beyond one read."""
    content = os.urandom(300_000) + b"x" * 700_000
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"aside"
    archive = tar_of(("big", content))
    unpack(zstd(archive[:5000]) + skipped + zstd(archive[5000:]), tmp_path / "new")
    assert (tmp_path / "new/big").read_bytes() == content


def test_zstd_that_is_cut_off_or_changed() -> None:
    packed = zstd(tar_of(("a", os.urandom(200_000))))
    for broken in [packed[:cut] for cut in (4, 5, 100, len(packed) - 1)] + [packed[:-9] + b"\xff" * 9]:
        last = frames_of(broken).rpartition(b"X\x00\x00")[2]
        assert b"archive.broken" in last
