"""An export that breaks off in the middle does not look whole."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
from aiohttp import test_utils, web

from exeat.appliance.console.routes import ledger
from exeat.appliance.errors import RefusedError
from exeat.ledger.questions import ROW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from exeat.appliance.console.routing import Call

COLUMNS = dict.fromkeys(ROW, "x")


def downloaded(rows: int, *, breaks: bool) -> bytes:
    """What a client gets of an export of so many rows."""

    async def stream(_ask: str, **_args: Any) -> AsyncIterator[dict[str, Any]]:
        for number in range(rows):
            yield {**COLUMNS, "seq": number, "host": "=cmd()"}
        if breaks:
            raise RefusedError("query.timeout", "no answer")

    async def handle(request: web.Request) -> web.StreamResponse:
        call = SimpleNamespace(
            request=request,
            console=SimpleNamespace(
                workers=SimpleNamespace(stream=stream),
                accounts=SimpleNamespace(deeds=SimpleNamespace(note=lambda *_: None)),
                config=SimpleNamespace(node=SimpleNamespace(name="n1")),
            ),
            who=SimpleNamespace(name="ann", projects=frozenset()),
            query=ledger.ExportQuery(format="csv"),
        )
        try:
            return await ledger.export(cast("Call", call))
        except RefusedError as error:
            return web.Response(status=503, text=error.code)

    async def run() -> bytes:
        app = web.Application()
        app.router.add_get("/", handle)
        async with (
            test_utils.TestServer(app, host="127.0.0.1") as server,
            aiohttp.ClientSession() as client,
            client.get(server.make_url("/")) as answer,
        ):
            return await answer.read() if answer.status == 200 else str(answer.status).encode()

    return asyncio.run(run())


def test_a_whole_one() -> None:
    lines = downloaded(2000, breaks=False).decode().splitlines()
    assert (len(lines), lines[0]) == (2001, ",".join(ROW))
    assert ",'=cmd()," in lines[1]  # no formula
    assert downloaded(0, breaks=False).decode().splitlines() == [",".join(ROW)]


def test_one_that_breaks_off() -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        downloaded(2000, breaks=True)
    assert downloaded(0, breaks=True) == b"503"  # nothing was sent yet: it is refused
