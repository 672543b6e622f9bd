"""What the origins serve: a page, a package index with one wheel, a git repository."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "lab-greeting"
VERSION = "1.0"
GREETING = "hello from the lab's own index"
REPOSITORY = "field-notes"
_WHEEL = "Wheel-Version: 1.0\nGenerator: exeat-lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_EPOCH = (2026, 1, 1, 0, 0, 0)


def create(root: Path) -> None:
    """Fill `root`. Raises FileNotFoundError when git is missing, CalledProcessError when it fails."""
    (root / "index.html").write_text("<!doctype html><title>lab</title><p>An origin of the exeat lab.\n")
    _index(root)
    _repository(root)


def _index(root: Path) -> None:
    files, simple = root / "files", root / "simple" / PACKAGE
    files.mkdir()
    simple.mkdir(parents=True)
    wheel = write_wheel(files)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (simple.parent / "index.html").write_text(f'<!doctype html><a href="{PACKAGE}/">{PACKAGE}</a>\n')
    link = f'<a href="../../files/{wheel.name}#sha256={digest}">{wheel.name}</a>'
    (simple / "index.html").write_text(f"<!doctype html>{link}\n")


def write_wheel(folder: Path) -> Path:
    """A small pure wheel, the same bytes each time (PEP 427)."""
    module = PACKAGE.replace("-", "_")
    info = f"{module}-{VERSION}.dist-info"
    members = {
        f"{module}/__init__.py": f'GREETING = "{GREETING}"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": _WHEEL,
    }
    members[f"{info}/RECORD"] = "".join(map(_record_line, members.items())) + f"{info}/RECORD,,\n"
    path = folder / f"{module}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text)
    return path


def _record_line(member: tuple[str, str]) -> str:
    name, text = member
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(text)}\n"


def _repository(root: Path) -> None:
    """A bare repository that plain file serving is enough for (git-update-server-info)."""
    work, bare = root / "work", root / "git" / f"{REPOSITORY}.git"
    work.mkdir()
    bare.parent.mkdir()
    (work / "README.md").write_text("# Field notes\n\nCloned through the gateway, byte by byte counted.\n")
    (work / "data.csv").write_text("".join(f"{n},{n * n}\n" for n in range(2000)))
    _git(work, "init", "--quiet", "--initial-branch=main")
    _git(work, "add", ".")
    _git(work, "commit", "--quiet", "--message=Take notes")
    _git(root, "clone", "--quiet", "--bare", str(work), str(bare))
    _git(bare, "update-server-info")
    shutil.rmtree(work)


def _git(folder: Path, *arguments: str) -> None:
    who = {"NAME": "Lab", "EMAIL": "lab@example.org", "DATE": "2026-01-01T00:00:00Z"}
    environment = {
        f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()
    }
    # The machine's own git settings (hooks, signing, templates) have no say here.
    environment |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "PATH": os.environ["PATH"]}
    subprocess.run(["git", *arguments], cwd=folder, check=True, env=environment, capture_output=True)
