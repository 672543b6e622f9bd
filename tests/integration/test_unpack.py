"""`exeat unpack` as people use it: real jails around the parsers."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from tests.support.archives import tar_of, zip_of
from tests.support.running import Running, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("unpack")
    yield made
    made.close()


def unpack(running: Running, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        running.command("unpack", *words), input=stdin, capture_output=True, check=False, timeout=60
    )


def test_an_archive_becomes_a_folder_named_like_it(running: Running, tmp_path: Path) -> None:
    archive = tmp_path / "release-1.0.tar.gz"
    large = bytes(range(256)) * 8192  # more than a pipe holds
    link = (tarfile.SYMTYPE, "../README")
    archive.write_bytes(gzip.compress(tar_of(("README", b"read"), ("src/big", large), ("src/link", link))))
    done = unpack(running, str(archive))
    made = tmp_path / "release-1.0"
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"unpacked 2 files, {4 + len(large)} bytes into {made}\n"
    assert (made / "src/big").read_bytes() == large
    assert (made / "src/link").read_text() == "read"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release-1.0", "release-1.0.tar.gz"]


def test_from_standard_input_as_json(running: Running, tmp_path: Path) -> None:
    done = unpack(running, "-", "--into", str(tmp_path / "new"), "--json", stdin=zip_of(("a", b"one")))
    assert json.loads(done.stdout) == {"ok": True, "into": str(tmp_path / "new"), "files": 1, "bytes": 3}
    assert (tmp_path / "new/a").read_text() == "one"
    nameless = unpack(running, "-")
    assert nameless.returncode == 2
    assert b"say --into DIR" in nameless.stderr


def test_a_hostile_one_is_refused_and_leaves_nothing(running: Running, tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    archive.write_bytes(tar_of(("good", b"x"), ("../../evil", b"x")))
    done = unpack(running, str(archive))
    assert done.returncode == 1
    why = "../../evil: leads out of its folder [archive.path]; nothing was unpacked"
    assert done.stderr.decode() == f"exeat: {archive}: {why}\n"
    told = json.loads(unpack(running, str(archive), "--json").stdout)
    assert (told["ok"], told["error"]) == (False, "archive.path")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar"]


def test_caps_are_the_callers_and_hold_inside(running: Running, tmp_path: Path) -> None:
    archive = tmp_path / "big.gz"
    archive.write_bytes(gzip.compress(b"x" * (3 << 20)))
    refused = unpack(running, str(archive), "--max-file", "1MiB")
    assert refused.returncode == 1
    assert b"a file of more than 1048576 bytes [archive.size]" in refused.stderr
    assert unpack(running, str(archive)).returncode == 0
    assert (tmp_path / "big/big").stat().st_size == 3 << 20


def test_a_bomb_of_the_parsers_memory_ends_in_the_jail(running: Running, tmp_path: Path) -> None:
    """A PAX header of two gigabytes, which the parser wants to have in one piece."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2 << 30
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(2 << 10):
            file.write(bytes(1 << 20))
    done = unpack(running, "-", "--into", str(tmp_path / "new"), stdin=packed.getvalue())
    assert done.returncode == 1
    assert b"[archive.memory]" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_touched(running: Running, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = unpack(running, "-", "--into", str(tmp_path), stdin=tar_of(("mine", b"theirs")))
    assert done.returncode == 2
    assert b"is there already, and not an empty folder" in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_is_interrupted_leaves_nothing(running: Running, tmp_path: Path) -> None:
    archive = tmp_path / "long.gz"
    archive.write_bytes(gzip.compress(b"x" * (512 << 20), compresslevel=1))
    words = running.command("unpack", str(archive), "--max-ratio", "100000")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: list(tmp_path.glob(".long.*.part/long")))
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["long.gz"]
    wait_for(lambda: not running.json("status")["jobs"])
