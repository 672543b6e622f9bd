"""The console's files: what the browser is given, how it may keep it, and that nothing else is loaded."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from exeat.appliance.console.assets import PAGE, PREFIX, STATIC, Assets, MissingAssets

if TYPE_CHECKING:
    from types import ModuleType

REPO = Path(__file__).resolve().parents[3]
AXE = "tests/vendor/axe.min.js"  # for the tests; never installed


@pytest.fixture(scope="module")
def assets() -> Assets:
    return Assets.load()


@pytest.fixture(scope="module")
def vendor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vendor", REPO / "tools/vendor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours() -> list[Path]:
    return [path for path in STATIC.rglob("*.js") if path.parent.name != "vendor"]


def test_what_was_fetched_is_what_was_agreed_on(vendor: ModuleType) -> None:
    assert vendor.is_there("dev")
    agreed = json.loads(vendor.MANIFEST.read_text())
    there = {path.relative_to(REPO).as_posix() for path in (STATIC / "vendor").iterdir()}
    assert there | {AXE} == set(agreed)


def test_another_content_is_refused(vendor: ModuleType) -> None:
    with pytest.raises(vendor.VendorError, match=r"preact\.js has SHA-256"):
        vendor.check({"preact.js": b"alert(1)"}, {"preact.js": "0" * 64})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('import{a}from"preact";', 'import{a}from"./preact.js";'),
        ('export*from "preact/hooks";', 'export*from"./hooks.js";'),
        ('import{a}from"./b.js";', 'import{a}from"./b.js";'),
        ("x()\n//# sourceMappingURL=x.map\n", "x()\n"),
    ],
)
def test_bare_names_become_paths(vendor: ModuleType, text: str, expected: str) -> None:
    assert vendor.adapted(text) == expected


def test_a_name_nobody_planned_for_stops_it(vendor: ModuleType) -> None:
    with pytest.raises(KeyError, match="left-pad"):
        vendor.adapted('import x from"left-pad"')


def test_every_package_has_a_digest_and_no_place() -> None:
    lock: dict[str, Any] = json.loads((REPO / "tools/package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert [name for name, entry in packages.items() if "resolved" in entry] == []


def test_every_module_that_is_imported_is_there() -> None:
    wanted = [
        (path, match[1])
        for path in STATIC.rglob("*.js")
        for match in re.finditer(r'(?:\bfrom|\bimport\(|^import)\s*"([^"]+)"', path.read_text(), re.MULTILINE)
    ]
    assert len(wanted) > 20
    assert [(path.name, name) for path, name in wanted if not (path.parent / name).is_file()] == []


def test_nothing_comes_from_elsewhere_and_no_string_becomes_code() -> None:
    code = r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function|document\.write"
    pattern = rf"https?://(?!www\.w3\.org/)|{code}"
    found = [(path.name, match[0]) for path in ours() for match in re.finditer(pattern, path.read_text())]
    assert found == []
    page = (STATIC / PAGE).read_text()
    assert not re.search(r"https?://|<style|\son\w+=|\sstyle=|<script(?![^>]*\ssrc=)", page)


def test_the_page_names_files_of_its_own_version(assets: Assets) -> None:
    page = assets.files["/"].body.decode()
    named = re.findall(rf'"({PREFIX}[^"]+)"', page)
    assert named
    assert [name for name in named if name not in assets.files] == []
    assert all(name.startswith(f"{PREFIX}{assets.digest}/") for name in named)


def test_files_are_kept_for_good_and_the_page_is_asked_for(assets: Assets) -> None:
    page = assets.files["/"]
    assert page.headers["Cache-Control"] == "no-cache"
    kept = {asset.headers["Cache-Control"] for path, asset in assets.files.items() if path != "/"}
    assert kept == {"public, max-age=31536000, immutable"}
    status, body, _ = page.answer("", page.headers["ETag"])
    assert (status, body) == (304, b"")
    assert page.answer("", '"other"')[0] == 200


@pytest.mark.parametrize(
    ("accepts", "packed"),
    [
        ("gzip, deflate, br", True),
        ("GZIP", True),
        ("*", True),
        ("br", False),
        ("gzip;q=0", False),
        ("", False),
    ],
)
def test_it_is_packed_for_who_takes_it(assets: Assets, accepts: str, packed: bool) -> None:
    (script,) = (asset for path, asset in assets.files.items() if path.endswith("/vendor/preact.js"))
    status, body, headers = script.answer(accepts, "")
    assert status == 200
    assert (headers.get("Content-Encoding") == "gzip") == packed
    assert (gzip.decompress(body) if packed else body) == script.body


def test_another_content_is_another_version(tmp_path: Path, assets: Assets) -> None:
    copy = shutil.copytree(STATIC, tmp_path / "static")
    assert Assets.load(copy).digest == assets.digest
    (copy / "style.css").write_text("body { color: red }")
    assert Assets.load(copy).digest != assets.digest


def test_without_what_is_fetched_it_says_what_to_do(tmp_path: Path) -> None:
    copy = shutil.copytree(STATIC, tmp_path / "static")
    (copy / "vendor/htm.js").unlink()
    with pytest.raises(MissingAssets, match=r"htm\.js: run `\./dev setup`"):
        Assets.load(copy)
