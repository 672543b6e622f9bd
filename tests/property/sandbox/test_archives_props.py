"""Archives of any shape: what comes out is what went in, or nothing; damage is refused in order."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.archives import tar_of, zip_of

from exeat.sandbox.archive_folder import NewFolder
from exeat.sandbox.archive_frames import Frames
from exeat.sandbox.archive_inside import ArchiveError, Caps, Teller, check_link, parts_of, tell

CAPS = Caps(size=1 << 20, file=1 << 20, count=100, ratio=200, depth=8)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=8)
PATHS = st.lists(NAMES | st.sampled_from([".", "..", "", "a", "b"]), min_size=1, max_size=4).map("/".join)
MEMBERS = st.dictionaries(PATHS, st.binary(max_size=64), max_size=6)


def told(archive: bytes) -> bytes:
    out = io.BytesIO()
    tell(io.BytesIO(archive), "content", Teller(out, CAPS, len(archive)))
    return out.getvalue()


def unpacked(archive: bytes) -> dict[str, bytes] | None:
    """Relative paths and contents of what came out; None if it was refused."""
    with tempfile.TemporaryDirectory() as place:
        try:
            with NewFolder(Path(place) / "new") as folder:
                for event in Frames(CAPS, len(archive)).feed(told(archive)):
                    folder.put(event)
                folder.finish()
        except ArchiveError:
            assert list(Path(place).iterdir()) == []
            return None
        top = Path(place) / "new"
        assert [path.name for path in Path(place).iterdir()] == ["new"]
        return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def canonical(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def acceptable(names: list[str]) -> bool:
    """By a slow look at each name, and at each pair."""
    for name in names:
        plain = canonical(name)
        odd = name.startswith("/") or name.endswith("/") or name[1:2] == ":" or "\\" in name or not plain
        if odd or ".." in plain.split("/") or not name.isprintable():
            return False
    plain_names = [canonical(name) for name in names]
    below = any(f"{b}/".startswith(f"{a}/") for a in plain_names for b in plain_names if a != b)
    return len(set(plain_names)) == len(names) and not below


@given(MEMBERS)
@settings(max_examples=150)
def test_a_tar_comes_out_as_it_went_in(members: dict[str, bytes]) -> None:
    found = unpacked(tar_of(*members.items()))
    if found is None:
        assert not acceptable(list(members))
    else:
        assert found == {canonical(name): data for name, data in members.items()}


@given(MEMBERS, st.data())
@settings(max_examples=150)
def test_damage_is_refused_in_order(members: dict[str, bytes], data: st.DataObject) -> None:
    pack = data.draw(st.sampled_from([tar_of, zip_of]))
    with contextlib.suppress(UnicodeEncodeError, ValueError):
        whole = bytearray(pack(*members.items()))
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        unpacked(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_no_bytes_of_a_reader_raise_anything_else(said: bytes) -> None:
    with contextlib.suppress(ArchiveError):
        list(Frames(CAPS, 100).feed(said))


@given(PATHS, PATHS)
def test_a_link_that_passes_stays_inside_by_its_text(name: str, target: str) -> None:
    try:
        parts = parts_of(name, CAPS)
        check_link(parts, target, CAPS)
    except ArchiveError:
        return
    here = list(parts[:-1])
    for part in target.split("/"):
        if part == "..":
            here.pop()  # raises where it would leave
        elif part not in ("", "."):
            here.append(part)
