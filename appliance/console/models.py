"""What the bodies and queries of all resources share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from exeat.appliance.sections import LABEL


class Body(BaseModel):
    """What comes in: unknown keys are errors, and no text is taken for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Query(BaseModel):
    """The query of an address: text that is read as what the field says."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Out(BaseModel):
    """What goes out."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Project = Annotated[str, Field(pattern=LABEL)]
# Text of people: no control characters, and not without bound.
Text = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
Words = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Paging(Query):
    limit: Annotated[int, Field(ge=1, le=1000, description="rows at most")] = 200
    cursor: Annotated[str | None, Field(max_length=200, description="`next` of the page before")] = None


class ProblemBody(BaseModel):
    """RFC 9457, and a stable `reason_code`."""

    model_config = ConfigDict(extra="allow")
    title: str
    status: int
    detail: str
    reason_code: str


class Empty(Out):
    """It is done."""


def page(rows: list[Any], paging: Paging, key: str = "id") -> tuple[list[Any], str | None]:
    """The rows after the cursor, and the next one. `rows` are in a stable order; a row that the cursor
    names and that is gone begins again from the start."""
    start = 0
    if paging.cursor is not None:
        start = next((n + 1 for n, row in enumerate(rows) if row[key] == paging.cursor), 0)
    shown = rows[start : start + paging.limit]
    more = start + len(shown) < len(rows)
    return shown, str(shown[-1][key]) if more and shown else None
