"""Images of containers as trees of jobs: `exeat image`, and `--image` of run and submit."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.archives import tar_of
from tests.support.layouts import Layout, tar_tree, zstd
from tests.support.running import Running, own_tag, wait_for
from tests.support.trees import small_tree

from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SECOND = tar_of(
    ("etc/mine", b"of the second layer\n"),
    ("etc/.wh.resolv.conf", b""),
    ("usr/bin/.wh.stat", b""),
    ("opt/new", b"new\n"),
    ("opt/absolute", (tarfile.SYMTYPE, "/etc/mine")),
)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("imgs")
    yield made
    made.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A first layer: a shell and a few programs."""
    return tar_tree(small_tree(tmp_path_factory.mktemp("base") / "tree"))


def store(running: Running) -> Path:
    return running.lab.state_dir / "images"


def job(running: Running, image: str, script: str) -> subprocess.CompletedProcess[str]:
    words = ("run", "--quiet", f"--project={plan.PROJECT}", f"--image={image}", "--", "sh", "-c", script)
    return running.exeat(*words, check=False)


def test_a_job_in_an_image(running: Running, tmp_path: Path, base: bytes) -> None:
    layout = Layout(tmp_path / "layout")
    digest = layout.image(
        base, SECOND, tag="v1", env=("GREETING=hello", "PATH=/bin", "HTTPS_PROXY=http://evil")
    )
    made = running.json("image", "import", f"oci:{layout.folder}:v1", "--name", "small")
    assert (made["digest"], made["names"]) == (digest, ["small"])
    done = job(
        running, "small", "cat /etc/mine /opt/absolute; ls /usr/bin; echo $GREETING $HTTPS_PROXY; id -u"
    )
    *out, uid = done.stdout.splitlines()
    assert out == [
        *("of the second layer",) * 2,
        *("cat", "dash", "head", "id", "ls"),
        "hello http://127.0.0.1:3128",
    ], done.stderr
    assert uid != "0"
    assert stat_of(store(running)) == (0, 0o700)
    assert [path.name for path in store(running).glob(".part-*")] == []


def stat_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_mode & 0o777


def test_a_layout_is_read_once(running: Running, tmp_path: Path, base: bytes) -> None:
    layout = Layout(tmp_path / "layout")
    digest = layout.packed(zstd(base), zstd(SECOND), kind="+zstd")
    assert job(running, f"oci:{layout.folder}", "cat /opt/new").stdout == "new\n"
    for blob in (layout.folder / "blobs" / "sha256").iterdir():
        if blob.stat().st_size > 4096:  # the layers are not asked for again
            blob.unlink()
    assert job(running, f"oci:{layout.folder}", "cat /opt/new").stdout == "new\n"
    assert job(running, digest[7:19], "cat /opt/new").stdout == "new\n"
    assert digest in running.json("image", "gc")["removed"]
    assert job(running, digest, "true").returncode == 2


def test_bytes_that_are_not_what_the_image_says(running: Running, tmp_path: Path, base: bytes) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(base)
    (layer,) = [path for path in (layout.folder / "blobs/sha256").iterdir() if path.stat().st_size > 4096]
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    refused = running.exeat("image", "import", f"oci:{layout.folder}", check=False)
    assert (refused.returncode, "[image.digest]" in refused.stderr) == (1, True)
    assert not list(store(running).glob(".part-*"))


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (tar_of(("../../evil", b"x")), "archive.path"),
        (tar_of(("x/.wh...", b"")), "archive.path"),
        (tar_of((".wh.etc", b"not empty")), "archive.broken"),
        (tar_of(("a", (tarfile.SYMTYPE, "/")), ("a/evil", b"x")), "archive.conflict"),
        (b"no tar at all" * 100, "archive.format"),
    ],
)
def test_a_hostile_layer_makes_no_tree(
    running: Running, tmp_path: Path, base: bytes, second: bytes, code: str
) -> None:
    layout = Layout(tmp_path / "layout")
    digest = layout.image(base, second)
    refused = running.exeat("image", "import", f"oci:{layout.folder}", check=False)
    assert (refused.returncode, f"[{code}]" in refused.stderr) == (1, True), refused.stderr
    assert digest not in {row["digest"] for row in running.json("image", "ls")}
    assert not list(store(running).glob(".part-*"))


def test_links_of_a_lower_layer_do_not_lead_out(running: Running, tmp_path: Path, base: bytes) -> None:
    """What a second layer writes through a link goes where the job would find it, and never to the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    first = tar_of(("out", (tarfile.SYMTYPE, str(outside))), ("up", (tarfile.SYMTYPE, "../../../..")))
    second = tar_of(("out/.wh.kept", b""), ("out/evil", b"x"), ("up/more", b"x"))
    layout = Layout(tmp_path / "layout")
    digest = layout.image(base, first, second)
    running.exeat("image", "import", f"oci:{layout.folder}", "--name", "links")
    assert [path.name for path in outside.iterdir()] == ["kept"]
    tree = store(running) / digest.replace(":", "-") / "rootfs"
    assert ((tree / "more").read_text(), (tree / "out/evil").read_text()) == ("x", "x")
    running.exeat("image", "rm", "links")


def test_one_that_a_job_has_is_not_removed(running: Running, tmp_path: Path, base: bytes) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(base, tar_of(("kept", b"there\n")))
    running.exeat("image", "import", f"oci:{layout.folder}", "--name", "held")
    words = ("run", "--quiet", f"--project={plan.PROJECT}", "--image=held", "--", "sh", "-c")
    process = subprocess.Popen(
        running.command(*words, "read x; cat /kept"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: running.json("status")["jobs"])
    refused = running.exeat("image", "rm", "held", check=False)
    assert (refused.returncode, "[image.used]" in refused.stderr) == (1, True), refused.stderr
    out, _ = process.communicate("on\n", timeout=30)
    assert out == "there\n"
    task = running.exeat("job", "submit", f"--project={plan.PROJECT}", "--image=held", "--", "cat", "/kept")
    running.exeat("job", "wait", task.stdout.strip())
    assert running.exeat("job", "logs", task.stdout.strip()).stdout == "there\n"
    assert running.exeat("image", "rm", "held").stdout.startswith("removed ")


def test_a_whole_tree_in_an_archive(running: Running, tmp_path: Path, base: bytes) -> None:
    archive = tmp_path / "tree.tar.gz"
    archive.write_bytes(gzip.compress(base))
    running.exeat("image", "import", f"tar:{archive}", "--name", "whole")
    assert job(running, "whole", "cat /etc/mine").stdout == "of the tree\n"
    rows = {name: row for row in running.json("image", "ls") for name in row["names"]}
    assert rows["whole"]["source"] == f"tar:{archive}"
    running.exeat("image", "rm", "whole")


def test_without_a_shell_and_by_no_name(running: Running, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(tar_of(("only", b"data")))
    refused = job(running, f"oci:{layout.folder}", "true")
    assert (refused.returncode, "no /bin/sh" in refused.stderr) == (2, True)
    refused = job(running, "nosuch", "true")
    assert (refused.returncode, "[image.unknown]" in refused.stderr) == (2, True)
    running.exeat("image", "gc")


# Images that others made: where podman is, one of its own making is tried.
if shutil.which("podman"):

    def test_an_image_of_podman(running: Running, tmp_path: Path, base: bytes) -> None:
        """Its storage is this test's own."""
        state = Path(f"/run/exeat-podman-{own_tag('podman')}")  # it takes no longer path
        podman = ["podman", f"--root={tmp_path}/root", f"--runroot={state}", "--storage-driver=vfs"]
        (tmp_path / "base.tar").write_bytes(base)
        (tmp_path / "added").write_text("added by podman\n")
        (tmp_path / "Containerfile").write_text(
            "FROM localhost/base\nCOPY added /opt/added\nENV WHO=podman\n"
        )
        try:
            for words in (
                ("import", "-q", f"{tmp_path}/base.tar", "localhost/base"),
                ("--cgroup-manager=cgroupfs", "build", "-q", "-t", "localhost/built:v2", str(tmp_path)),
                ("save", "-q", "--format=oci-dir", "-o", f"{tmp_path}/saved", "localhost/built:v2"),
            ):
                subprocess.run([*podman, *words], check=True, capture_output=True, timeout=60)
        finally:
            shutil.rmtree(state, ignore_errors=True)
        source = f"oci:{tmp_path}/saved"
        done = job(running, source, "cat /opt/added /etc/mine; echo $WHO")
        assert done.stdout == "added by podman\nof the tree\npodman\n", done.stderr
        assert json.loads(running.exeat("image", "gc", "--json").stdout)["removed"]
