"""What `exeat` says to input and machines it cannot use: one clear line, and nothing half-made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.running import own_tag

if TYPE_CHECKING:
    from collections.abc import Iterator

EXEAT = [sys.executable, "-I", "-m", "exeat"]
POLICY = "egress: v1\nproject: p\n"


def exeat(*words: str, user: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EXEAT, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=user,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
        cwd="/",
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "WARNING" not in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


# -- policies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        (POLICY + "alow: []\n", "doc.unknown_key", ":3:1:"),
        (POLICY + "allow: []\nallow: []\n", "doc.duplicate_key", ":4:1:"),
        (POLICY + "allow: &a [{to: x.example.org}]\ndeny: *a\n", "doc.alias", ":3:"),
        (POLICY + "allow: [{to: 'x.example.org:0'}]\n", "scope.port", ":3:"),
        (POLICY + "allow: [{to: x.example.org, ports: 65979}]\n", "scope.port", ":3:"),
        (POLICY + 'allow: [{to: "x\\0.example.org"}]\n', "scope.", ":3:"),
        (POLICY + "allow: [{to: 'me@x.example.org'}]\n", "scope.", ":3:"),
        (POLICY + "allow: [{to: '[x.example.org]'}]\n", "scope.", ":3:"),
    ],
)
def test_a_policy_that_cannot_be_used_is_named_with_its_place(
    tmp_path: Path, text: str, code: str, place: str
) -> None:
    file = written(tmp_path, "p.yaml", text)
    done = exeat("policy", "check", str(file))
    assert done.returncode in (1, 2)
    line = one_line(done) if done.stderr else done.stdout.strip()
    assert f"{file}{place}" in line
    assert f"[{code}" in line


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[dnss]\n", ":1: unknown key `dnss`"),
        ("[node]\nnam = 'x'\n", ":2: unknown key `node.nam`"),
        ("[node]\nname = 'Not A Name'\n", ":2: `node.name`:"),
        ("[dns]\nupstream = ['resolver.example.org:53']\n", ":2: `dns.upstream`:"),
        ("[dns]\nupstream = ['192.0.2.1:0']\n", ":2: `dns.upstream`:"),
        ("[lab]\ntreat_as_public = ['203.0.113.1/24']\n", ":2: `lab.treat_as_public`:"),
        ("[sandbox]\nroots = ['/']\n", ":2: `sandbox.roots`:"),
        ("[node\n", ":1:"),
        ("[node]\nname = 'a'\nname = 'b'\n", ":3:"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    file = written(tmp_path, "exeat.toml", text)
    done = exeat("--config", str(file), "config", "check")
    assert done.returncode == 2
    assert f"{file}{said}" in one_line(done)


def test_the_environment_overrides_and_is_named_when_it_is_wrong(tmp_path: Path) -> None:
    file = written(tmp_path, "exeat.toml", "[node]\nname = 'a'\n")
    shown = exeat("--config", str(file), "config", "show", EXEAT_NODE__NAME="b")
    assert '"name": "b"' in shown.stdout
    wrong = exeat("--config", str(file), "config", "check", EXEAT_NODE__NAME="B!")
    assert "environment EXEAT_NODE__NAME" in one_line(wrong)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    done = exeat("--config", str(tmp_path / "none.toml"), "status")
    assert done.returncode == 2
    assert "none.toml: cannot be read: No such file or directory" in one_line(done)


# -- starting ----------------------------------------------------------------------------------


def start(folder: Path, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    config = written(folder, "exeat.toml", text)
    where = ("--state-dir", str(folder / "state"), "--run-dir", str(folder / "run"))
    return exeat("--config", str(config), *where, "up", **environment)


@pytest.mark.root
def test_not_root() -> None:
    for command in (("up",), ("run", "--", "true"), ("lab", "up")):
        done = exeat(*command, user=65534)
        assert done.returncode == 2
        assert "root" in one_line(done)


def test_not_running(tmp_path: Path) -> None:
    done = exeat("--run-dir", str(tmp_path), "status")
    assert done.returncode == 3
    assert "exeat up" in one_line(done)


@pytest.mark.root
def test_a_missing_runtime_names_its_package(tmp_path: Path) -> None:
    done = start(tmp_path, "[sandbox]\nruntime = 'no-such-runtime'\n")
    assert done.returncode == 3
    assert "apt-get install no-such-runtime" in one_line(done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exeat.toml"]


@pytest.mark.root
def test_a_missing_user_is_named(tmp_path: Path) -> None:
    done = start(tmp_path, "[users]\nledger = 'no-such-user'\n")
    assert done.returncode == 3
    assert "`no-such-user` does not exist" in one_line(done)
    assert not (tmp_path / "run").exists()


@pytest.mark.root
def test_a_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file is in the way")
    done = start(tmp_path)
    assert done.returncode == 3
    assert f"{tmp_path}/state: " in one_line(done)
    assert not (tmp_path / "run").exists()


@pytest.mark.root
def test_folders_that_are_not_ours_are_left_as_they_are(tmp_path: Path) -> None:
    for name in ("state", "run"):
        (tmp_path / name).mkdir(mode=0o700)
        (tmp_path / name / "theirs").write_text("keep")
    done = start(tmp_path)
    assert done.returncode == 3
    assert "the service users cannot enter it" in one_line(done)
    for name in ("state", "run"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
        assert [path.name for path in (tmp_path / name).iterdir()] == ["theirs"]


@pytest.mark.root
def test_a_run_folder_of_somebody_elses_survives_the_appliance() -> None:
    folder = Path(f"/run/exeat-test-{own_tag('shared')}")
    folder.mkdir(mode=0o755)
    (folder / "theirs").write_text("keep")
    text = f"[paths]\nstate_dir = '{folder}/state'\n[dns]\nupstream = ['192.0.2.53:53']\n"
    text += "[console]\nlisten = ''\n"
    config = written(folder, "exeat.toml", text)
    command = [*EXEAT, "--config", str(config), "--run-dir", str(folder), "up"]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert "exeat: up" in process.stdout.readline()
            process.terminate()
        assert sorted(path.name for path in folder.iterdir()) == ["exeat.toml", "state", "theirs"]
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk(small_disk: Path) -> None:
    done = start(small_disk)
    assert done.returncode == 3
    assert "the ledger cannot record" in one_line(done)
    assert sorted(path.name for path in small_disk.iterdir()) == ["exeat.toml"]


@pytest.mark.root
def test_a_second_appliance_on_the_same_folders() -> None:
    from tests.support.running import Running  # only here: it starts one

    running = Running("twice")
    try:
        done = exeat("--config", str(running.lab.config), "up")
        assert done.returncode == 3
        assert "another exeat is running" in one_line(done)
        assert running.healed()
    finally:
        running.close()
    assert not running.lab.config.parent.exists()
