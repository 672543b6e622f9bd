"""The store of images and what builds them, without a jail: names, removal, what is left over, commands."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from exeat.appliance.errors import UsageError
from exeat.appliance.images.build import Wish, build, commands
from exeat.appliance.images.importing import Layout, has_shell
from exeat.appliance.images.store import Image, Images, row
from exeat.sandbox.image_layout import ImageError

FIRST, SECOND = (f"sha256:{digit * 64}" for digit in "ab")


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "images")


def keep(images: Images, digest: str, made_ms: int = 1) -> Image:
    with images.part() as part:
        (part / "rootfs" / "file").write_text(digest)
        return images.keep(part, Image(digest, "oci:/x", {"A": "b"}, 1, 2, made_ms))


def nobody(_: str) -> list[str]:
    return []


def test_a_tree_is_there_once_and_whole(images: Images) -> None:
    kept = keep(images, FIRST)
    assert images.get(FIRST) == kept
    assert keep(images, FIRST, made_ms=9) == kept  # who comes second finds the first one's
    assert (images.tree(FIRST) / "file").read_text() == FIRST
    assert images.folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in images.folder.iterdir()] == [FIRST.replace(":", "-")]


def test_names_and_digests(images: Images) -> None:
    for number, digest in enumerate((FIRST, SECOND)):
        keep(images, digest, made_ms=number)
    images.name("one", FIRST)
    images.name("also", FIRST)
    assert images.find("one").digest == images.find("a" * 8).digest == images.find(FIRST).digest == FIRST
    assert row(images, images.find("one"))["names"] == ["also", "one"]
    assert [image.digest for image in images.all()] == [SECOND, FIRST]
    images.name("one", SECOND)
    assert images.find("one").digest == SECOND
    for unknown in ("other", "a" * 7, "c" * 8, "sha256:", ""):
        with pytest.raises(ImageError):
            images.find(unknown)
    for unfit in ("", "A", "../x", "x" * 65, "a b", "-x"):
        with pytest.raises(ImageError):
            images.name(unfit, FIRST)


def test_what_somebody_has_is_not_removed(images: Images) -> None:
    keep(images, FIRST)
    images.name("one", FIRST)
    asked = []

    def users(path: str) -> list[str]:
        asked.append(path)
        assert not Path(path).exists()  # nobody new can come while this is asked
        return ["job-1"]

    with pytest.raises(ImageError, match="job-1"):
        images.drop(FIRST, users)
    assert asked == [str(images.tree(FIRST))]
    assert images.find("one").digest == FIRST
    images.drop(FIRST, nobody)
    assert (images.all(), images.names()) == ([], {})


def test_who_cannot_be_asked_changes_nothing(images: Images) -> None:
    keep(images, FIRST)

    def users(_: str) -> list[str]:
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        images.drop(FIRST, users)
    assert images.get(FIRST)


def test_what_was_left_half_made_and_what_is_being_made(images: Images) -> None:
    with images.part() as busy:
        left, gone = images.folder / ".part-left", images.folder / ".gone-left"
        left.mkdir()
        gone.mkdir()
        assert busy.is_dir()
        assert sorted(images.leftovers()) == [gone, left]
    assert not busy.exists()
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert images.leftovers() == [gone]
    os.close(handle)


@pytest.mark.parametrize(("made", "found"), [(("bin/sh",), True), (("usr/bin/sh",), True), (("sh",), False)])
def test_a_tree_with_a_shell(tmp_path: Path, made: tuple[str, ...], found: bool) -> None:
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to("/nowhere/dash")
    assert has_shell(tmp_path) is found


def test_a_layout_is_no_way_to_other_files(tmp_path: Path) -> None:
    """Whoever may write to it: no link, no FIFO that is waited for, no digest that is a path."""
    (tmp_path / "secret").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "oci-layout").symlink_to(tmp_path / "secret")
    with pytest.raises(ImageError):
        Layout(layout, "x86_64")
    (layout / "oci-layout").unlink()
    os.mkfifo(layout / "oci-layout")
    with pytest.raises(ImageError, match="no file"):
        Layout(layout, "x86_64")


WISH = Wish("bookworm", ("git", "g++"), "http://deb.example.org/debian")


def test_how_trees_of_distributions_are_made() -> None:
    folder = Path("/x")
    assert commands(WISH, "mmdebstrap", folder) == [
        ["mmdebstrap", "--variant=minbase", "--include=git,g++", "--", "bookworm", "/x/tree.tar", WISH.mirror]
    ]
    first, second = commands(Wish("noble"), "debootstrap", folder)
    assert first == ["debootstrap", "--variant=minbase", "noble", "/x/debootstrap"]
    assert second[-2:] == ["--directory=/x/debootstrap", "."]


@pytest.mark.parametrize(
    "wish",
    [
        *(Wish(suite) for suite in ("", "--help", "a b", "../x", "Bookworm")),
        *(Wish("noble", (name,)) for name in ("", "-o", "a,b", "a b", "A")),
        *(Wish("noble", mirror=url) for url in ("-x", "deb http://x y", "ftp://x", "http://a b")),
    ],
)
def test_nothing_of_a_wish_is_an_option(tmp_path: Path, wish: Wish) -> None:
    with pytest.raises(UsageError):
        build(wish, tmp_path)


def test_without_a_tool_it_says_which(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="apt-get install mmdebstrap"):
        build(WISH, tmp_path, which=lambda _: None)


def test_a_tool_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "debootstrap").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "debootstrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ImageError, match="debootstrap ended with 9"):
        build(WISH, tmp_path, which=lambda tool: tool if tool == "debootstrap" else None)
