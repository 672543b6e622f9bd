"""CycloneDX documents: what an environment holds, and what the console loads in the browser.

The packages of Python come from `cyclonedx-py`; what npm brought is in tools/package-lock.json, and those who
do not stand there as needed for tests are copied into the console (tools/vendor.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]


def of_environment(python: Path, out: Path) -> dict[str, Any]:
    """The document of everything that `python` could import, with exeat as its root."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of=JSON"]
    command += ["--sv=1.6", f"--pyproject={ROOT / 'pyproject.toml'}", f"--output-file={out}", str(python)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONSAFEPATH": "1"})
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    document["components"] = [*document["components"], *bundled()]
    return document


def bundled() -> list[dict[str, Any]]:
    """What of npm is in the wheel, with the digest that its registry gave for the archive."""
    lock = json.loads((ROOT / "tools/package-lock.json").read_text(encoding="utf-8"))
    made = []
    for path, package in sorted(lock["packages"].items()):
        if not path or package.get("dev"):
            continue
        name, version = path.removeprefix("node_modules/"), package["version"]
        group, _, short = name.rpartition("/")
        purl = f"pkg:npm/{quote(name, safe='/')}@{version}"
        digest = base64.b64decode(package["integrity"].removeprefix("sha512-")).hex()
        component = {"type": "library", "bom-ref": purl, "name": short, "version": version, "purl": purl}
        component |= {"group": group} if group else {}
        made.append(
            {
                **component,
                "licenses": [{"license": {"id": package["license"]}}],
                "hashes": [{"alg": "SHA-512", "content": digest}],
            }
        )
    return made


def about(document: dict[str, Any], file: Path) -> bytes:
    """The same document as one about `file`: name and SHA-256 of it in the root component."""
    said = json.loads(json.dumps(document))
    root = said["metadata"]["component"]
    root["hashes"] = [{"alg": "SHA-256", "content": hashlib.sha256(file.read_bytes()).hexdigest()}]
    root["properties"] = [*root.get("properties", []), {"name": "exeat:file", "value": file.name}]
    return (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()
