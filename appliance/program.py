"""Which program this is: a digest over every file of the package, that anybody can make again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import exeat


def program_digest(package: Path | None = None) -> str:
    """SHA-256, in hex, over what sha256sum(1) prints for the files of the package in order of names.

    The same for a checkout and for what was installed from it, if the same parts were compiled. What Python
    compiles for itself (`__pycache__`) is left out. Raises OSError.
    """
    root = package or Path(exeat.__file__).parent
    files: dict[str, Path] = {}
    for top in root.iterdir():
        if top.is_file():
            files[top.name] = top
        for folder, _, names in os.walk(
            top, followlinks=True
        ):  # areas, and some folders, are links in a checkout
            place = Path(folder).relative_to(root)
            if "__pycache__" not in place.parts:
                files |= {str(place / name): Path(folder, name) for name in names}
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{hashlib.sha256(files[name].read_bytes()).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()
