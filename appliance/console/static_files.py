"""The console's own files, named one by one when the process starts: no path from outside is ever joined."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from exeat.appliance.console.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER: Final = Path(__file__).with_name("static")
INDEX: Final = "index.html"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}


def known(folder: Path = FOLDER) -> Mapping[str, Path]:
    """The files there are, by their path below the folder. Of `.gz` and `.br` aiohttp finds out itself."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in TYPES
    }


def add_files(app: web.Application, folder: Path = FOLDER) -> None:
    """`/` is the page, `/assets/...` everything else. They are asked for again each time, by ETag."""
    files = known(folder)

    async def index(_request: web.Request) -> web.StreamResponse:
        return _file(files, INDEX)

    async def asset(request: web.Request) -> web.StreamResponse:
        return _file(files, request.match_info["path"])

    app.router.add_get("/", index)
    app.router.add_get("/assets/{path:.+}", asset)


def _file(files: Mapping[str, Path], name: str) -> web.FileResponse:
    path = files.get(name)
    if path is None:
        raise Problem(404, "http.404", "no such file")
    headers = {"Content-Type": TYPES[path.suffix], "Cache-Control": "no-cache"}
    return web.FileResponse(path, headers=headers)
