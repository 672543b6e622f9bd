"""Questions to the index (`ledger.index`): rows, and sums over them.

Sums per place and hour answer most questions about sums: the whole hours of a span are taken from
them, and only the broken ones at its ends from the rows. What names a job, an episode or a lease
changes with every run and is not summed beforehand: such a question goes through the rows of its
whole span. Both ways give the same figures; `why_by_rows` says which one is taken.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.ledger.index import HOUR_MS, OF_FLOWS, PLACE, SETTLED, WHO
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exeat.ledger.index import Index

_TIMES: Final = {
    "hour": "strftime('%Y-%m-%dT%H:00Z', part.hour * 3600, 'unixepoch')",
    "day": "strftime('%Y-%m-%d', part.hour * 3600, 'unixepoch')",
}
SUM_KEYS: Final = (*WHO, "kind", *_TIMES)
ROW: Final = ("seq", "time", "kind", *WHO[:-1], "bytes_out", "bytes_in", "count", "cost_nano_usd")
SUMS: Final = ("bytes_out", "bytes_in", "flows", "other", "cost_nano_usd")
_IS_FLOW: Final = f"(kind in ({', '.join(str(int(kind)) for kind in sorted(SETTLED))}))"
_OF_FLOW: Final = f"kind in ({', '.join(str(int(kind)) for kind in sorted(OF_FLOWS))})"
_OTHERS: Final = f"case when {_OF_FLOW} then 0 else max(count, 1) end"


class Question(NamedTuple):
    """What to look for. Times are milliseconds, `since` included, `until` not; "" is any.

    `where` maps names of `WHO` to the value wanted, or to several of which any will do; a host
    `*.example.org` is any name under it.
    """

    where: Mapping[str, str | tuple[str, ...]] = MappingProxyType({})
    since: int | None = None
    until: int | None = None


def why_by_rows(question: Question, keys: Sequence[str]) -> str:
    """What the sums per hour do not know and the question names; empty if they can be used."""
    unknown = {*question.where, *keys} - {*PLACE, "kind", *_TIMES}
    return ", ".join(sorted(unknown))


def entries(
    index: Index, question: Question, limit: int, *, kinds: Sequence[Kind] = (), before: int | None = None
) -> list[tuple[Any, ...]]:
    """The newest `limit` rows that answer, oldest first, in the columns of `ROW`; time in milliseconds.

    Only of these `kinds` (none: of all), and only records numbered less than `before`.
    """
    who, values = _names(question)
    when, moments = _span(question.since, question.until)
    if kinds:
        when += f" and kind in ({', '.join(str(int(kind)) for kind in kinds)})"
    if before is not None:
        when, moments = f"{when} and entry.seq < ?", [*moments, before]
    columns = ", ".join(f"about.{name}" for name in WHO[:-1])
    found = index.db.execute(
        f"select entry.seq, t, kind, {columns}, bytes_out, bytes_in, count, cost"  # noqa: S608 - names are ours
        f" from entry join who about on about.id = entry.who where {who} and {when}"
        " order by entry.seq desc limit ?",
        [*values, *moments, limit],
    ).fetchall()
    return [(row[0], row[1], Kind(row[2]).label, *row[3:]) for row in reversed(found)]


def sums(
    index: Index, question: Question, keys: Sequence[str], *, by_rows: bool = False
) -> list[tuple[Any, ...]]:
    """Per combination of `keys` (of `SUM_KEYS`): the keys, then those of `SUMS`.

    Most bytes first. Flows are those that are settled; their bytes are what `close` or `orphan` says. `other`
    are entries that are no flows.
    `by_rows` looks at every row even if the sums per hour could answer.
    """
    by_rows = by_rows or bool(why_by_rows(question, keys))
    per = [
        name
        for name, asked in (("kind", "kind" in keys), ("hour", not _TIMES.keys().isdisjoint(keys)))
        if asked
    ]
    parts, moments = (_by_rows if by_rows else _by_hours)(question, per)
    condition, values = _names(question)
    chosen = ", ".join(_TIMES.get(key) or ("part.kind" if key == "kind" else f"about.{key}") for key in keys)
    found = index.db.execute(
        f"select {chosen}, sum(o), sum(i), sum(flows), sum(others), sum(c) from ({parts}) as part"  # noqa: S608 - names are ours
        f" join {'who' if by_rows else 'place'} as about on about.id = part.at where {condition}"
        f" group by {_first(len(keys))} order by sum(o) + sum(i) desc, 1",
        [*moments, *values],
    ).fetchall()
    if "kind" in keys:
        at = list(keys).index("kind")
        found = [(*row[:at], Kind(row[at]).label, *row[at + 1 :]) for row in found]
    return found


def flows_by_step(index: Index, question: Question, step_ms: int, key: str) -> list[tuple[Any, ...]]:
    """(number of the step since 1970, `key` of `WHO`, bytes_out, bytes_in, flows): of flows that settled."""
    if key not in WHO:
        raise ValueError(f"{key} is none of {', '.join(WHO)}")
    who, values = _names(question)
    when, moments = _span(question.since, question.until)
    return index.db.execute(
        f"select t / ?, about.{key}, sum(bytes_out), sum(bytes_in), count(*) from entry"  # noqa: S608 - names are ours
        f" join who as about on about.id = entry.who where {when} and {who} and {_IS_FLOW} group by 1, 2",
        [step_ms, *moments, *values],
    ).fetchall()


def _names(question: Question) -> tuple[str, list[Any]]:
    """The condition on who and where, and its values."""
    parts, values = list[str](), list[Any]()
    for name, wanted in question.where.items():
        if isinstance(wanted, tuple):
            parts.append(f"about.{name} in ({', '.join('?' * len(wanted))})")
            values += wanted
        elif name == "host" and wanted.startswith("*."):
            parts.append("substr(about.host, ?) = ?")
            values += [1 - len(wanted), wanted[1:]]
        else:
            parts.append(f"about.{name} = ?")
            values.append(int(wanted) if name == "port" else wanted)
    return (" and ".join(parts) or "1"), values


def _span(since: int | None, until: int | None) -> tuple[str, list[int]]:
    """The condition on the time of a row, and its values."""
    ends = [(sign, at) for sign, at in ((">=", since), ("<", until)) if at is not None]
    return " and ".join(f"t {sign} ?" for sign, _ in ends) or "1", [at for _, at in ends]


def _first(count: int) -> str:
    return ", ".join(str(number + 1) for number in range(count))


def _part(at: str, hour: str, flows: str, others: str, source: str, per: Sequence[str]) -> str:
    """Sums by the number of who or place: few numbers are compared, not many texts. `per` adds columns."""
    more = "".join(f"{hour} as hour, " if name == "hour" else f"{name}, " for name in per)
    return (
        f"select {at} as at, {more}sum(bytes_out) as o, sum(bytes_in) as i, sum({flows}) as flows,"  # noqa: S608
        f" sum({others}) as others, sum(cost) as c from {source} group by {_first(1 + len(per))}"
    )


def _of_rows(at: str, source: str, span: tuple[str, list[int]], per: Sequence[str]) -> str:
    return _part(at, f"t / {HOUR_MS}", _IS_FLOW, _OTHERS, f"{source} where {span[0]}", per)


def _by_rows(question: Question, per: Sequence[str]) -> tuple[str, list[int]]:
    span = _span(question.since, question.until)
    return _of_rows("entry.who", "entry", span, per), span[1]


def _by_hours(question: Question, per: Sequence[str]) -> tuple[str, list[int]]:
    """Whole hours from their sums, what is left at both ends of the span from the rows."""
    since, until = question.since, question.until
    first = None if since is None else -(-since // HOUR_MS)
    end = None if until is None else until // HOUR_MS
    if first is not None and end is not None and first >= end:  # no whole hour
        edges = [(since, until)]
        whole, values = "0", list[int]()
    else:
        edges = [] if since is None or first is None else [(since, first * HOUR_MS)]
        edges += [] if until is None or end is None else [(end * HOUR_MS, until)]
        ends = [(sign, at) for sign, at in ((">=", first), ("<", end)) if at is not None]
        whole, values = " and ".join(f"hour {sign} ?" for sign, _ in ends) or "1", [at for _, at in ends]
    parts = [_part("place", "hour", f"{_IS_FLOW} * entries", "others", f"hour where {whole}", per)]
    for edge in (edge for edge in edges if edge[0] != edge[1]):
        span = _span(*edge)
        parts.append(_of_rows("who.place", "entry join who on who.id = entry.who", span, per))
        values += span[1]
    return " union all ".join(parts), values
