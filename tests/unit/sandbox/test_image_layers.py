"""Layers laid over each other, without the jail between the two halves: whiteouts, links, orders."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from tests.support.archives import tar_of

from exeat.sandbox.archive_frames import Frames
from exeat.sandbox.archive_inside import ArchiveError, Caps, Teller, tell
from exeat.sandbox.image_layers import Layer

if TYPE_CHECKING:
    from pathlib import Path

CAPS = Caps(size=1 << 20, file=1 << 20, count=100, depth=64, tree=True)
LINK, FOLDER = tarfile.SYMTYPE, (tarfile.DIRTYPE, "")
LOWER = tar_of(
    ("d/a", b"lower"), ("d/b", b"lower"), ("d/sub/c", b"lower"), ("f", b"lower"), ("l", (LINK, "d"))
)


def lay(tmp_path: Path, *layers: bytes) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for archive in layers:
        out = io.BytesIO()
        tell(io.BytesIO(archive), "layer", Teller(out, CAPS, len(archive)))
        frames = Frames(CAPS, len(archive))
        with Layer(tmp_path / "layer") as layer:
            for event in frames.feed(out.getvalue()):
                layer.put(event)
            layer.lay(tree)
        assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    return tree


def listing(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): f"-> {path.readlink()}"
        if path.is_symlink()
        else ("/" if path.is_dir() else path.read_text())
        for path in sorted(tree.rglob("*"))
    }


BELOW = {
    "d": "/",
    "d/a": "lower",
    "d/b": "lower",
    "d/sub": "/",
    "d/sub/c": "lower",
    "f": "lower",
    "l": "-> d",
}


def without(*names: str) -> dict[str, str]:
    return {name: what for name, what in BELOW.items() if name not in names}


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ((("d/a", b"upper"), ("n/m", b"new")), BELOW | {"d/a": "upper", "n": "/", "n/m": "new"}),
        ((("d/.wh.a", b""),), without("d/a")),
        ((("d/.wh.sub", b""), ("d/sub/x", b"new")), without("d/sub/c") | {"d/sub/x": "new"}),
        ((("d/sub/x", b"new"), ("d/.wh.sub", b"")), without("d/sub/c") | {"d/sub/x": "new"}),
        ((("d/.wh..wh..opq", b""),), without("d/a", "d/b", "d/sub", "d/sub/c")),
        ((("d/a", b"new"), ("d/.wh..wh..opq", b"")), without("d/b", "d/sub", "d/sub/c") | {"d/a": "new"}),
        (((".wh..wh..opq", b""), ("only", b"this")), {"only": "this"}),
        ((("f", FOLDER), ("f/g", b"new")), BELOW | {"f": "/", "f/g": "new"}),
        ((("d", b"a file now"),), {"d": "a file now", "f": "lower", "l": "-> d"}),
        ((("l/x", b"by the link"), ("l/.wh.a", b"")), without("d/a") | {"d/x": "by the link"}),
        ((("l", (LINK, "/f")),), BELOW | {"l": "-> /f"}),
        ((("d/.wh.nothing", b""), (".wh..wh.plnk", b""), ("gone/.wh.x", b"")), BELOW),
        ((("n/.wh..wh..opq", b""), ("n/o", b"new")), BELOW | {"n": "/", "n/o": "new"}),
        ((("dev/null", (tarfile.CHRTYPE, "")), ("pipe", (tarfile.FIFOTYPE, ""))), BELOW),
    ],
)
def test_a_layer_over_another(
    tmp_path: Path, upper: tuple[tuple[str, object], ...], expected: dict[str, str]
) -> None:
    assert listing(lay(tmp_path, LOWER, tar_of(*upper))) == expected


def test_links_lead_inside_only(tmp_path: Path) -> None:
    first = tar_of(
        ("up", (LINK, "../../../..")), ("loop", (LINK, "loop")), ("etc/real", b"1"), ("e", (LINK, "/etc"))
    )
    tree = lay(tmp_path, first, tar_of(("up/x", b"x"), ("loop/y", b"y"), ("e/z", b"z"), ("e/.wh.real", b"")))
    expected = {
        "up": "-> ../../../..",
        "x": "x",
        "loop": "/",
        "loop/y": "y",
        "e": "-> /etc",
        "etc": "/",
        "etc/z": "z",
    }
    assert listing(tree) == expected


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh..."])
def test_whiteouts_of_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="whiteout of nothing"):
        lay(tmp_path, tar_of((name, b"")))
    assert listing(tmp_path / "tree") == {}


def test_two_names_of_one_file_stay_that(tmp_path: Path) -> None:
    tree = lay(tmp_path, LOWER, tar_of(("d/one", b"x"), ("two", (tarfile.LNKTYPE, "d/one"))))
    assert (tree / "d/one").stat().st_ino == (tree / "two").stat().st_ino


def test_depth_by_links_ends_as_a_refusal(tmp_path: Path) -> None:
    """Each layer goes on where a link of the last one leads: no path in an archive is that long."""
    deep = "/".join("d" * 60)
    first, *others = [tar_of((f"s/{deep}/f", b""), ("s/n", (LINK, deep)))] + [
        tar_of(("/".join(["s", *["n"] * number, deep, "f"])[:4000], b"")) for number in (1, 2, 3)
    ]
    with pytest.raises(ArchiveError):
        lay(tmp_path, first, *others)
