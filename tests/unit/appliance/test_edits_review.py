"""What of a job's changes a person must see, and what nobody may."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance.edits import leaks
from exeat.appliance.edits.flags import flags_of, leads_out
from exeat.appliance.edits.review import Review, as_row, as_text, review
from exeat.appliance.edits.tree import Kind, Node, Tree

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "ghp_" + "a1B2c3D4e5" * 3 + "Zz9Yy8"  # the form of one, and of none that was ever given out
KEY = [
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "MIIBOwIBAAJBAKj34Gkx",
    "FDl1aaaaaa",
    "-----END RSA PRIVATE KEY-----",
]


def file(mode: int = 0o644) -> Node:
    return Node(Kind.FILE, mode)


@pytest.mark.parametrize(
    ("path", "old", "new", "flags"),
    [
        (b"a/b", None, file(), set()),
        (b"a/.GIT/config", None, file(), {"git"}),
        (b".gitmodules", file(), None, {"git"}),
        (b".github/workflows/x.yml", None, file(), {"ci"}),
        (b"sub/Jenkinsfile", file(), file(), {"ci"}),
        (b"run", None, file(0o755), {"executable"}),
        (b"run", file(0o755), file(0o755), set()),
        (b"key", file(0o600), file(0o644), {"wider"}),
        (b"key", None, file(0o666), {"wider"}),
        (b"key", file(0o666), file(0o640), set()),
        (b"su", None, file(0o4755), {"executable", "setid"}),
        (b"d", None, Node(Kind.FOLDER, 0o2755), {"setid"}),
        (b"d", Node(Kind.FOLDER, 0o2755), Node(Kind.FOLDER, 0o2700), set()),
        (b"pipe", None, Node(Kind.SPECIAL, 0o644), {"special"}),
        (b"a\nb", None, file(), {"name"}),
        (b"\xff", None, file(), {"name"}),
        ("a\u202eb".encode(), None, file(), {"name"}),
        (b"l", None, Node(Kind.LINK, 0o777, target=b"/etc/passwd"), {"link"}),
    ],
)
def test_flags(path: bytes, old: Node | None, new: Node | None, flags: set[str]) -> None:
    assert flags_of(path, old, new) == flags


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        (b"l", b"x", False),
        (b"l", b"..", True),
        (b"d/l", b"..", False),
        (b"d/l", b"../..", True),
        (b"d/l", b"./../x", False),
        (b"d/l", b"x/../y", True),  # x may be a link to the folder itself
        (b"l", b"/x", True),
    ],
)
def test_links(path: bytes, target: bytes, out: bool) -> None:
    assert leads_out(path, target) is out


PARTS = st.lists(st.sampled_from([b"..", b".", b"a", b"b", b""]), max_size=5)


@given(st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=3), PARTS)
def test_no_link_that_is_let_through_leaves_going_by_its_text(path: list[bytes], target: list[bytes]) -> None:
    depth = len(path) - 1
    if not leads_out(b"/".join(path), b"/".join(target)):
        for part in target:
            depth += {b"..": -1, b".": 0, b"": 0}.get(part, 1)
            assert depth >= 0


def look(base: Path, old: dict[str, bytes], new: dict[str, bytes]) -> Review:
    for name, files in (("lower", old), ("upper", new)):
        (base / name).mkdir()
        for path, data in files.items():
            (base / name / path).write_bytes(data)
    upper, lower = Tree(base / "upper"), Tree(base / "lower")
    try:
        return review(upper, lower, 2**63)
    finally:
        upper.close()
        lower.close()


@pytest.mark.root
def test_a_patch_can_be_read_and_steers_no_terminal(tmp_path: Path) -> None:
    found = look(tmp_path, {"f": b"one\ntwo\nthree"}, {"f": b"one\n\x1b[2J\nthree\n", "b\r": b"\0\1"})
    assert list(as_text(found)) == [
        *("add file b\\r", f"2 bytes, no text, sha256 {found.changes[0].digest}"),
        *("modify file f", "--- old", "+++ new", "@@ -1,3 +1,3 @@", " one", "-two", "-three"),
        *("\\ No newline at end of file", "+\\x1b[2J", "+three", "! b\\r: name"),
    ]
    row = as_row(found.items[0])
    assert (row["content"], row["patch"], row["new"]["size"]) == ("AAE=", [], 2)
    assert found.unclean() == ["b\\r: name", "b\\r: not text that could be looked at for secrets"]


@pytest.mark.root
def test_secrets_are_found_in_what_is_new_and_shown_nowhere(tmp_path: Path) -> None:
    line = f"token = '{TOKEN}'  # pragma: allowlist secret"
    key = "\n".join(KEY)
    old = {"was": f"{line}\nmore\n".encode(), "keys": f"a\n{key}\nb\n".encode()}
    new = {"was": f"{line}\nless\n".encode(), "keys": b"a\nb\n", "new": line.encode(), TOKEN: b"x\n"}
    found = look(tmp_path, old, new)
    flagged = {item.name: item.flags for item in found.items}
    assert flagged == {"[redacted]": ["secret"], "keys": [], "new": ["secret"], "was": []}
    shown = "\n".join(as_text(found)) + repr([as_row(item) for item in found.items]) + repr(found.unclean())
    assert TOKEN not in shown
    assert not any(part in shown for part in KEY)
    assert found.flagged(frozenset({"secret"})) == []


@pytest.mark.root
def test_without_the_scanner_nothing_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_plugins", tuple)
    found = look(tmp_path, {}, {"f": b"fine\n"})
    assert leaks.MISSING in found.unclean()
    assert list(as_text(found))[-1] == f"! {leaks.MISSING}"


@pytest.mark.root
def test_what_is_too_much_waits_for_a_person(tmp_path: Path) -> None:
    many = look(tmp_path, {}, {f"f{number}": b"x\n" for number in range(201)})
    assert many.unclean() == ["more than 1048576 bytes or 200 changes"]
    for path in (tmp_path / "upper").iterdir():
        path.unlink()
    os.rename(tmp_path / "upper", tmp_path / "gone")
    os.rmdir(tmp_path / "lower")
    wide = look(tmp_path, {}, {"f": b"x" * 5000})
    assert wide.unclean() == ["f: not text that could be looked at for secrets"]
