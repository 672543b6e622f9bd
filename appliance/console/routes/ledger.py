"""The ledger, to look through and to check: rows, records, proofs, sums, exports."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import Field, field_validator

from exeat.appliance.console import explored
from exeat.appliance.console.explored import KINDS, FilteredPage, Filters
from exeat.appliance.console.models import Out, Query
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routing import Call, Routes
from exeat.appliance.errors import RefusedError
from exeat.appliance.ledger_text import cell
from exeat.ledger.questions import ROW, SUM_KEYS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

routes = Routes("ledger")
READ: Final = "ledger.read"
_SLOWEST_S: Final = 30.0  # that somebody who downloads may take nothing
_CHUNK: Final = 32_768  # characters


class EntryQuery(FilteredPage):
    kind: Annotated[str, Field(max_length=200, description=f"some of {', '.join(KINDS)}, with commas")] = ""

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if wrong := {*value.split(",")} - {*KINDS, ""}:
            raise ValueError(f"{', '.join(sorted(wrong))} is none of {', '.join(KINDS)}")
        return value

    def kinds(self) -> list[str]:
        return [kind for kind in self.kind.split(",") if kind]


class EntryRow(Out):
    """A flow (its last record counts), a lookup, a refusal, or another event. `count`: of how many."""

    seq: int
    at_ms: int
    kind: str
    project: str
    job: str
    agent: str
    episode: str
    lease: str
    host: str
    port: int
    verdict: str
    reason: str
    rule: str
    bytes_out: int
    bytes_in: int
    count: int
    cost_nano_usd: int


class EntryPage(Out):
    """`records`: how many of the ledger's records these are out of, the last of `as_of_ms`."""

    items: list[EntryRow]
    next: str | None
    records: int
    as_of_ms: int


class Entry(Out):
    """A record: its fields by name, and the bytes that the tree holds."""

    seq: int
    kind: str
    fields: dict[str, Any]
    raw: str
    leaf_hash: str


class ProofQuery(Query):
    cosigned: bool = False


class Proof(Out):
    """RFC 6962 section 2.1.1: `leaf_hash` is SHA-256 over 0x00 and `raw`, and leads by `path` to the root
    that `checkpoint` names and `vkey` signed. Have `vkey` from somewhere else."""

    index: int
    size: int
    leaf_hash: str
    raw: str
    path: list[str]
    checkpoint: str
    vkey: str


class Head(Out):
    """`oldest` is the first record that is kept; `cosigned` the newest checkpoint that witnesses signed."""

    origin: str
    size: int
    root: str
    checkpoint: str
    cosigned: str | None
    vkey: str
    chain: str
    oldest: int
    at_ms: int


class GrowthQuery(Query):
    """`from` and `to` are numbers of records; without `to` it is the checkpoint's."""

    old: Annotated[int, Field(ge=0, le=2**60, alias="from")]
    new: Annotated[int | None, Field(ge=0, le=2**60, alias="to")] = None


class Growth(Out):
    """RFC 6962 section 2.1.2."""

    old: Annotated[int, Field(serialization_alias="from")]
    new: Annotated[int, Field(serialization_alias="to")]
    from_root: str
    to_root: str
    path: list[str]
    checkpoint: str


class SumQuery(Filters):
    by: Annotated[str, Field(max_length=200, description=f"some of {', '.join(SUM_KEYS)}, with commas")]
    limit: Annotated[int, Field(ge=1, le=1000)] = 200

    @field_validator("by")
    @classmethod
    def _known(cls, value: str) -> str:
        if wrong := {*value.split(",")} - {*SUM_KEYS}:
            raise ValueError(f"{', '.join(sorted(wrong))} is none of {', '.join(SUM_KEYS)}")
        return value


class SumRow(Out):
    """`other` counts what is no flow: lookups, refusals and so on."""

    keys: dict[str, str | int]
    bytes_out: int
    bytes_in: int
    flows: int
    other: int
    cost_nano_usd: int


class SumPage(Out):
    """Most bytes first; `more` rows are left out."""

    items: list[SumRow]
    more: int
    as_of_ms: int


class ExportQuery(EntryQuery):
    format: Literal["csv", "jsonl"] = "jsonl"


@routes.get("/ledger/entries", READ, query=EntryQuery, out=EntryPage, errors=(404, 503))
async def entries(call: Call) -> EntryPage:
    """What passed and what was refused, newest first."""
    query = call.query
    found = await explored.ask(call, "entries", kinds=query.kinds(), **query.asked(), **query.paged())
    return EntryPage(
        items=[entry_row(row) for row in found["items"]],
        next=None if found["next"] is None else str(found["next"]),
        records=found["as_of"]["records"],
        as_of_ms=found["as_of"]["t"],
    )


def entry_row(row: dict[str, Any]) -> EntryRow:
    """Of a row as the index has it."""
    return EntryRow(at_ms=row["time"], **{name: row[name] for name in ROW if name != "time"})


@routes.get("/ledger/entries/{seq}", READ, out=Entry, errors=(404, 503), etag=True)
async def entry(call: Call) -> Entry:
    """One record."""
    found = await explored.ask(call, "entry", seq=number(call))
    record = found["record"]
    fields = {name: value for name, value in record.items() if name not in ("seq", "kind")}
    return Entry(
        seq=record["seq"], kind=record["kind"], fields=fields, raw=found["raw"], leaf_hash=found["leaf"]
    )


@routes.get("/ledger/entries/{seq}/proof", READ, query=ProofQuery, out=Proof, errors=(404, 409, 503))
async def proof(call: Call) -> Proof:
    """That the record stands in the tree under a signed checkpoint."""
    found = await explored.ask(call, "proof", seq=number(call), cosigned=call.query.cosigned)
    return Proof(leaf_hash=found.pop("leaf"), **found)


def number(call: Call) -> int:
    """Of a record, from the path. Raises Problem."""
    text = call.path("seq")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise Problem(404, "http.404", "records have numbers")
    return int(text)


@routes.get("/ledger/head", READ, out=Head, errors=(503,), etag=True)
async def head(call: Call) -> Head:
    """The newest signed checkpoint: keep it somewhere else, and compare."""
    found = await explored.ask(call, "head")
    return Head(at_ms=found.pop("written_ms"), **found)


@routes.get("/ledger/consistency", READ, query=GrowthQuery, out=Growth, errors=(409, 503))
async def consistency(call: Call) -> Growth:
    """That nothing was taken away or changed since there were `from` records."""
    asked = {"from": call.query.old, "to": call.query.new}
    found = await explored.ask(call, "consistency", **asked)
    return Growth(old=found.pop("from"), new=found.pop("to"), **found)


@routes.get("/ledger/sums", READ, query=SumQuery, out=SumPage, errors=(404, 503))
async def sums(call: Call) -> SumPage:
    """Sums per project, host, day and so on."""
    query, by = call.query, call.query.by.split(",")
    found = await explored.ask(call, "sums", by=by, limit=query.limit, **query.asked())
    items = [SumRow(keys={key: row.pop(key) for key in dict.fromkeys(by)}, **row) for row in found["items"]]
    return SumPage(items=items, more=found["more"], as_of_ms=found["as_of"]["t"])


@routes.get("/ledger/export", READ, query=ExportQuery, errors=(404, 503), media="application/jsonl, text/csv")
async def export(call: Call) -> web.StreamResponse:
    """Every row that answers, newest first, as it is found. An export that breaks off ends without the
    chunk that says it is whole."""
    query = call.query
    response = web.StreamResponse()
    response.content_type = "text/csv" if query.format == "csv" else "application/jsonl"
    name = f"exeat-{call.console.config.node.name}.{query.format}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    asked = json.dumps(query.model_dump(exclude_defaults=True), sort_keys=True)
    call.console.accounts.deeds.note("ledger.export", call.who.name, asked)
    rows = explored.stream(call, "export", kinds=query.kinds(), **query.asked())
    try:
        await _send(call.request, response, _texts(rows, query.format))
    except (RefusedError, TimeoutError):
        if not response.prepared:
            raise
        if call.request.transport is not None:  # half of an answer must not look like a whole one
            call.request.transport.abort()
    return response


async def _send(request: web.Request, response: web.StreamResponse, texts: AsyncGenerator[str, None]) -> None:
    """Begin with the first piece: what is refused before it is a refusal. Raises TimeoutError, too."""
    async with aclosing(texts):
        async for text in texts:
            if not response.prepared:
                await response.prepare(request)
            async with asyncio.timeout(_SLOWEST_S):
                await response.write(text.encode())
    if not response.prepared:
        await response.prepare(request)
    await response.write_eof()


async def _texts(rows: AsyncGenerator[dict[str, Any], None], form: str) -> AsyncGenerator[str, None]:
    """The rows in pieces of text. CSV has a line with the names of the columns, and no formulas."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if form == "csv":
        writer.writerow(ROW)
    async with aclosing(rows):
        async for row in rows:
            if form == "csv":
                writer.writerow([cell(row[name]) for name in ROW])
            else:
                out.write(json.dumps(row, separators=(",", ":")) + "\n")
            if out.tell() > _CHUNK:
                yield out.getvalue()
                out.seek(0)
                out.truncate()
    if out.tell():
        yield out.getvalue()
