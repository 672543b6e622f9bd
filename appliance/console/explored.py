"""Questions of the API to the workers of the explorer, asked for the person who calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from exeat.appliance.console.models import Paging, Project, Query
from exeat.appliance.console.problems import Problem
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from exeat.appliance.console.routing import Call

Moment = Annotated[int, Field(ge=0, le=2**52, description="ms since 1970")]
Name = Annotated[str, Field(min_length=1, max_length=255)]
Seq = Annotated[str, Field(pattern=r"^[0-9]{1,18}$", description="the number of a record")]
KINDS = tuple(kind.label for kind in Kind)


class Filters(Query):
    """`until` is left out; a host `*.example.org` is any name below it."""

    since: Moment | None = None
    until: Moment | None = None
    project: Project | None = None
    job: Name | None = None
    agent: Name | None = None
    episode: Name | None = None
    lease: Name | None = None
    host: Name | None = None
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    verdict: Literal["allow", "deny", "ask"] | None = None
    reason: Name | None = None
    rule: Name | None = None

    def asked(self) -> dict[str, Any]:
        """As the workers take it."""
        return self.model_dump(exclude_none=True, include=set(Filters.model_fields))


class Page(Paging):
    """`cursor` is the number of the record to go on before."""

    cursor: Annotated[str, Field(pattern=r"^[0-9]{1,18}$")] | None = None

    def paged(self) -> dict[str, Any]:
        before = {} if self.cursor is None else {"before": int(self.cursor)}
        return {"limit": self.limit, **before}


class FilteredPage(Filters, Page):
    """Rows that answer, a page at a time."""


async def ask(call: Call, question: str, **args: Any) -> dict[str, Any]:
    """The answer, of what the person may see. Raises RefusedError, Problem."""
    return await call.console.workers.ask(call.who.name, question, **_seen(call, args))


def stream(call: Call, question: str, **args: Any) -> AsyncGenerator[dict[str, Any], None]:
    """As `ask`, row by row."""
    return call.console.workers.stream(question, **_seen(call, args))


def _seen(call: Call, args: dict[str, Any]) -> dict[str, Any]:
    if args.get("project") is not None:
        call.who.need(args["project"])
    return {**args, "projects": sorted(call.who.projects)}


def need_all(call: Call) -> None:
    """For what is of the whole node. Raises Problem for who may see some projects only."""
    if call.who.projects:
        raise Problem(403, "auth.projects", "this is about all projects, and you may see some of them only")
