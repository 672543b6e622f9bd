"""`/` is the page, `/assets/...` what it loads."""

from __future__ import annotations

import sys
from typing import Final

from aiohttp import web

from exeat.appliance.console.assets import PREFIX, Assets, MissingAssets
from exeat.appliance.console.problems import Problem

_OUTDATED: Final = "no such file in this version of the console: reload the page"


def add_files(app: web.Application) -> None:
    """Without the page's files the API serves all the same, and the page says what is missing."""
    missing = ""
    try:
        files = Assets.load().files
    except MissingAssets as error:
        files, missing = {}, str(error)
        print(f"console: no page: {missing}", file=sys.stderr, flush=True)

    async def serve(request: web.Request) -> web.Response:
        asset = files.get(request.path)
        if asset is None:
            raise Problem(503, "console.no_page", missing) if missing else Problem(404, "http.404", _OUTDATED)
        asked = request.headers
        status, body, headers = asset.answer(asked.get("Accept-Encoding", ""), asked.get("If-None-Match", ""))
        return web.Response(status=status, body=body, headers=headers)

    app.router.add_get("/", serve)
    app.router.add_get(PREFIX + "{path:.+}", serve)
