"""What is installed is what is in the tree: wheel from the sdist, in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

REPO = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "build", "dist", "*.egg-info", "*.so"
)

pytestmark = [pytest.mark.slow, pytest.mark.network]  # pip fetches the build backend


class Built(NamedTuple):
    tree: Path
    sdist: Path
    wheel: Path
    python: Path  # of a fresh environment in which the wheel is installed


def run(command: Iterable[object], cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, backend: Path, out: Path) -> Path:
    """Call the build backend's own hook (PEP 517) in `source`."""
    script = f"from setuptools import build_meta as b; b.build_{kind}({str(out)!r})"
    run([sys.executable, "-c", script], source, PYTHONPATH=str(backend))
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    work = tmp_path_factory.mktemp("packaging")
    tree = work / "tree"
    shutil.copytree(REPO, tree, symlinks=True, ignore=NOT_SOURCE)
    backend = work / "backend"
    run([sys.executable, "-m", "pip", "install", "--quiet", "--target", backend, "setuptools>=77"], work)
    for name in ("sdist", "wheel", "unpacked"):
        (work / name).mkdir()
    sdist = build("sdist", tree, backend, work / "sdist")
    run(["tar", "-xf", sdist, "-C", work / "unpacked"], work)
    (unpacked,) = (work / "unpacked").iterdir()
    wheel = build("wheel", unpacked, backend, work / "wheel")
    return Built(tree, sdist, wheel, install(wheel, work / "venv"))


def install(wheel: Path, venv: Path) -> Path:
    """A fresh environment with the wheel; its dependencies are lent by the one that runs the tests."""
    run([sys.executable, "-m", "venv", "--without-pip", venv], venv.parent)
    python = venv / "bin/python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, wheel], venv.parent)
    # A .pth file inside a lent folder is not read: an editable exeat there stays out of sight.
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def modules(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.endswith((".py", "py.typed"))}


def in_tree(tree: Path) -> set[str]:
    source = tree / "src"
    found = (Path(folder) / name for folder, _, names in os.walk(source, followlinks=True) for name in names)
    return modules(path.relative_to(source).as_posix() for path in found)


def test_the_wheel_from_the_sdist_has_every_module(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        packed = modules(archive.namelist())
    assert packed == in_tree(built.tree)
    assert {name.split("/")[1] for name in packed} >= {
        "policy",
        "ledger",
        "dns",
        "proxy",
        "sandbox",
        "appliance",
    }


def test_the_wheel_has_a_whole_console(built: Built) -> None:
    """With what is fetched at set-up, and the licences of that; nothing of it is in the repository."""
    static = "appliance/console/static"
    with zipfile.ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if f"/{static}/" in name}
    tree = built.tree / static
    there = {f"exeat/{static}/{path.relative_to(tree)}" for path in tree.rglob("*") if path.is_file()}
    assert packed == there
    assert f"exeat/{static}/vendor/LICENSES.txt" in packed


def test_the_wheel_has_the_compiled_relay(built: Built) -> None:
    code = "from exeat.proxy import relays; print(relays.in_use('compiled'))"
    assert run([built.python, "-c", code], built.python.parent).strip() == "compiled"


def test_the_wheel_owns_nothing_but_exeat(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        info = next(name for name in tops if name.endswith(".dist-info"))
        metadata = archive.read(f"{info}/METADATA").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert tops == {"exeat", info}
    assert "License-Expression: Apache-2.0" in metadata


def test_data_files_travel_too(built: Built) -> None:
    wanted = {
        path.relative_to(built.tree).as_posix()
        for area in ("policy", "ledger", "dns", "proxy", "sandbox", "appliance")
        for ending in ("sql", "html", "js", "css", "yaml", "toml", "json")
        for path in (built.tree / area).rglob(f"*.{ending}")
    }
    with zipfile.ZipFile(built.wheel) as archive:
        assert {f"exeat/{name}" for name in wanted} <= set(archive.namelist())


def test_the_units_travel_too(built: Built) -> None:
    units = built.tree / "systemd"
    with zipfile.ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("exeat/appliance/units/")}
    there = {path.relative_to(units).as_posix() for path in units.rglob("*") if path.is_file()}
    assert packed == {f"exeat/appliance/units/{name}" for name in there}


def test_the_program_runs_from_the_wheel(built: Built) -> None:
    where = run([built.python, "-c", "import exeat.policy.model as m; print(m.__file__)"], REPO)
    assert Path(where.strip()).is_relative_to(built.python.parents[1])
    assert "usage: exeat" in run([built.python.with_name("exeat"), "--help"], REPO)
    assert "usage: exeat" in run([built.python, "-I", "-m", "exeat", "--help"], REPO)


def test_our_dns_folder_shadows_nobody(built: Built) -> None:
    """`import dns` in the checkout is dnspython or nothing, also without PYTHONSAFEPATH."""
    script = "import dns; print(dns.__file__)"
    where = run([built.python, "-c", script], REPO, PYTHONSAFEPATH="")
    assert Path(where.strip()) == Path(sysconfig.get_path("purelib")) / "dns/__init__.py"
