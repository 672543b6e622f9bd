"""Jobs in a tree of their own: what they see, and what a hostile tree cannot do. With a real warden."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest
from tests.support.trees import small_tree
from tests.support.warden_rig import WardenRig, mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def rig() -> Iterator[WardenRig]:
    with WardenRig() as made:
        yield made


@pytest.fixture
def tree(rig: WardenRig) -> Iterator[Path]:
    made = small_tree(rig.base / "share" / "tree")
    yield made
    shutil.rmtree(made)


def listing(folder: Path) -> dict[str, tuple[int, float]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime) for path in sorted(folder.rglob("*"))}


def run(rig: WardenRig, name: str, script: str, tree: Path) -> str:
    ended = rig.run_job(name, ["sh", "-c", script], root=str(tree), env={"PATH": "/bin"})
    assert ended.code == 0, ended
    return ended.out


def test_it_sees_its_tree_and_ours_where_it_matters(rig: WardenRig, tree: Path) -> None:
    before = listing(tree)
    out = run(
        rig, "sees", "cat /etc/mine /etc/resolv.conf; ls /usr/bin; ls -d /run/exeat/proxy.sock; pwd", tree
    )
    assert out.splitlines() == [
        "of the tree",
        "nameserver 127.0.0.1",
        "options timeout:5 attempts:2",
        *("cat", "dash", "head", "id", "ls", "stat"),
        "/run/exeat/proxy.sock",
        "/work",
    ]
    assert listing(tree) == before
    assert mounts_below(rig.base / "run" / "warden" / "mounts") == []
    assert list((rig.run / "mounts").iterdir()) == []


def test_nothing_but_its_own_places_can_be_written(rig: WardenRig, tree: Path) -> None:
    for folder in (tree, tree / "etc", tree / "usr"):
        folder.chmod(0o777)
    (tree / "open").write_text("as it was")
    (tree / "open").chmod(0o666)
    places = "/new /etc/new /usr/new /open /run/new"
    script = (
        f"for f in {places}; do (echo x >$f) 2>/dev/null && echo $f; done; echo x >/work/x; echo x >/tmp/x"
    )
    assert run(rig, "writes", script, tree) == ""
    assert (tree / "open").read_text() == "as it was"


def test_no_file_gives_privileges_and_no_device_opens(rig: WardenRig, tree: Path) -> None:
    shutil.copy("/usr/bin/id", tree / "suid")
    (tree / "suid").chmod(0o4755)
    for name, kind, device in (("mem", stat.S_IFCHR, (1, 1)), ("disk", stat.S_IFBLK, (7, 0))):
        os.mknod(tree / name, kind | 0o666, os.makedev(*device))
        (tree / name).chmod(0o666)  # whatever the umask
    out = run(rig, "powers", "/suid -u; id -u; cat /mem 2>&1; cat /disk 2>&1; true", tree)
    effective, real, *denied = out.splitlines()
    assert effective == real != "0"
    assert denied == ["cat: /mem: Operation not permitted", "cat: /disk: Operation not permitted"]


@pytest.mark.parametrize("name", ["proc", "dev", "run", "run/exeat", "etc"])
def test_links_in_a_tree_lead_nowhere_on_the_host(rig: WardenRig, tree: Path, name: str) -> None:
    """A place that the runtime mounts at, as a link out of the tree."""
    outside = rig.base / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text("of the host\n")
    link = tree / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(f"../../../../../../../..{outside}")
    script = "cat /etc/resolv.conf /*/secret /secret 2>/dev/null; ls /proc/self/status /dev/null"
    ended = rig.run_job("links", ["sh", "-c", script], root=str(tree), env={"PATH": "/bin"})
    assert "of the host" not in ended.out
    assert "nameserver 127.0.0.1" in ended.out
    assert "/dev/null" in ended.out
    assert [path.name for path in outside.iterdir()] == ["secret"]


@pytest.mark.parametrize("name", ["tmp", "work"])
def test_links_where_the_job_may_write_are_refused(rig: WardenRig, tree: Path, name: str) -> None:
    (tree / name).symlink_to("../../../../../../etc/nowhere")
    rig.call("jail.create", jail="linked").close()
    with open(os.devnull, "r+b") as null:
        refused = rig.start_job("linked", ["true"], (null.fileno(),) * 3, root=str(tree))
    assert (refused.error, name in refused["message"]) == ("start", True)
    rig.call("jail.destroy", jail="linked")
    assert list((rig.run / "mounts").iterdir()) == []


def test_folders_and_files_appear_in_it(rig: WardenRig, tree: Path) -> None:
    given = rig.base / "share" / "given"
    given.mkdir(exist_ok=True)
    (given / "one").write_text("1\n")
    mounts = [{"path": str(path), "mode": "ro"} for path in (given, given / "one")]
    script = f"cat {given}/one; ls {rig.base}/share; stat -c %a /tmp; echo x >/tmp/x"
    ended = rig.run_job("mounts", ["sh", "-c", script], root=str(tree), env={"PATH": "/bin"}, mounts=mounts)
    assert ended.out == "1\ngiven\n1777\n", ended
    words = ["cat", f"{given}/one"]
    only = rig.run_job("file", words, root=str(tree), env={"PATH": "/bin"}, mounts=mounts[1:])
    assert only.out == "1\n", only


@pytest.mark.parametrize(
    "where", ["/etc", "/nowhere", "share/../etc", "relative", 7, "share/link", "share/file"]
)
def test_other_trees_are_refused(rig: WardenRig, where: object) -> None:
    if not os.path.lexists(rig.base / "share" / "link"):
        (rig.base / "share" / "link").symlink_to("/")
        (rig.base / "share" / "file").write_text("no folder")
    asked = f"{rig.base}/{where}" if str(where).startswith("share") else where
    rig.call("jail.create", jail="other").close()
    with open(os.devnull, "r+b") as null:
        refused = rig.start_job("other", ["true"], (null.fileno(),) * 3, root=asked)
    assert refused.error in ("argument", "start")
    rig.call("jail.destroy", jail="other")
    assert rig.call("job.list")["jobs"] == []
    assert list((rig.run / "mounts").iterdir()) == []


def test_a_warden_that_is_killed_leaves_no_mount(tree: Path, rig: WardenRig) -> None:
    rig.call("jail.create", jail="stays").close()
    read, write = os.pipe()
    with open(os.devnull, "r+b") as null:
        started = rig.start_job(
            "stays", ["sh", "-c", "read x; cat /etc/mine"], (read, null.fileno(), null.fileno()),
            root=str(tree), env={"PATH": "/bin"},
        )  # fmt: skip
    os.close(read)
    assert started["ok"], started.message
    rig.stop(9)
    rig.start()
    os.write(write, b"on\n")
    assert rig.call("job.wait", job="stays")["code"] == 0
    assert rig.call("job.remove", job="stays")["ok"]
    rig.call("jail.destroy", jail="stays")
    os.close(write)
    assert list((rig.run / "mounts").iterdir()) == []
    assert mounts_below(rig.run / "mounts") == []
