"""The console's files, as the browser gets them: read once at the start, and never again.

Nothing a request says becomes a path: it is looked up among the files that were there at the start.
All files of one version share a prefix that is their digest, so that they may be cached for good, refer to
each other by relative paths, and are never of two versions. Only the page itself is asked for each time.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

STATIC: Final = Path(__file__).resolve().parent / "static"
PAGE: Final = "index.html"
PREFIX: Final = "/assets/"
PLACEHOLDER: Final = b"{{assets}}"  # in index.html: where the files of this version are
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# What the page cannot begin without; it is not in the repository.
VENDORED: Final = (
    "preact.js",
    "hooks.js",
    "signals-core.js",
    "signals.js",
    "htm.js",
    "uplot.js",
    "uplot.css",
)
FOR_GOOD: Final = "public, max-age=31536000, immutable"
ASK_EACH_TIME: Final = "no-cache"


class MissingAssets(Exception):
    """The installation has no complete console; the text names what is missing and the remedy."""


class Asset(NamedTuple):
    body: bytes
    packed: bytes  # gzip, where that is smaller; else empty
    headers: Mapping[str, str]

    def answer(self, accept_encoding: str, if_none_match: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers for these two request headers (RFC 9110 sections 12.5.3, 13.1.2)."""
        headers = dict(self.headers)
        known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        if headers["ETag"] in known or "*" in known:
            return 304, b"", headers
        if self.packed and _takes_gzip(accept_encoding):
            return 200, self.packed, headers | {"Content-Encoding": "gzip"}
        return 200, self.body, headers


class Assets(NamedTuple):
    """Every file below `static/` by the path of its URL; `/` is the page."""

    files: Mapping[str, Asset]
    digest: str

    @classmethod
    def load(cls, folder: Path = STATIC) -> Self:
        """Raises MissingAssets where a file that the page needs is not there."""
        needed = [folder / PAGE, *(folder / "vendor" / name for name in VENDORED)]
        missing = [path.name for path in needed if not path.is_file()]
        if missing:
            text = ", ".join(missing)
            raise MissingAssets(f"{folder} lacks {text}: run `./dev setup`, or install the wheel again")
        names = sorted(path for path in folder.rglob("*") if path.suffix in TYPES and path.is_file())
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}
        digest = _digest(contents)
        page = contents.pop(PAGE).replace(PLACEHOLDER, f"{PREFIX}{digest}".encode())
        files = {f"{PREFIX}{digest}/{name}": _asset(name, body, FOR_GOOD) for name, body in contents.items()}
        return cls({"/": _asset(PAGE, page, ASK_EACH_TIME), **files}, digest)


def _digest(contents: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, body in sorted(contents.items()):
        total.update(f"{name}\0{len(body)}\0".encode() + body)
    return total.hexdigest()[:20]


def _asset(name: str, body: bytes, caching: str) -> Asset:
    packed = gzip.compress(body, compresslevel=9, mtime=0)
    headers = {
        "Content-Type": TYPES[Path(name).suffix],
        "Cache-Control": caching,
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Vary": "Accept-Encoding",
    }
    return Asset(body, packed if len(packed) < len(body) else b"", headers)


def _takes_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in {"gzip", "*"}:
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
