"""What `exeat dns top` counts and draws: names, subjects and refusals. Counting is by lookups."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exeat.ledger.records import Record

SECTIONS = ("name", "subject", "refusal")
_FIELDS = {
    "name": ("host", "project", "decision", "reason"),
    "subject": ("project", "agent", "job", "decision"),
    "refusal": ("reason", "project"),
}
_TITLES = {"name": "names", "subject": "subjects", "refusal": "refusals"}
_BAR = 24  # columns of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"


class Top:
    """Counts lookups three ways."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[tuple[str, ...]]] = {section: Counter() for section in SECTIONS}

    def add(self, record: Record) -> None:
        host = record.dest.host if record.dest is not None else ""
        decision, reason, count = record.decision, record.reason_code, record.count
        self._counts["name"][host, record.project, decision, reason] += count
        self._counts["subject"][record.project, record.agent, record.job, decision] += count
        if decision != "allow":
            self._counts["refusal"][reason, record.project] += count

    def rows(self, by: str, lines: int) -> list[dict[str, Any]]:
        """The most frequent of each section, or of the one called `by`."""
        return [
            {"by": section, "count": count, **dict(zip(_FIELDS[section], key, strict=True))}
            for section in ([by] if by else SECTIONS)
            for key, count in self._counts[section].most_common(max(0, lines))
        ]


def picture(top: Top, by: str, lines: int) -> str:
    """Tables with bars, the longest for the most frequent of each."""
    out: list[str] = []
    for section, rows in groupby(top.rows(by, lines), key=lambda row: row["by"]):
        table = [(row["count"], _label(section, row)) for row in rows]
        out += [""] if out else []
        out.append(f"{_TITLES[section]:<{_BAR + 1}}{'lookups':>9}")
        out += [f"{_bar(count, table[0][0])} {count:>9}  {label}" for count, label in table]
    return "\n".join(out) if out else "no lookups"


def _label(section: str, row: dict[str, Any]) -> str:
    if section == "name":
        return f"{row['decision']:<5}  {row['host'] or '-'}  {row['reason']}  ({row['project'] or '-'})"
    if section == "subject":
        return f"{row['decision']:<5}  {row['project'] or '-'}/{row['job'] or row['agent'] or '-'}"
    return f"{row['reason']}  ({row['project'] or '-'})"


def _bar(count: int, most: int) -> str:
    """At least a sliver, so that what is there can be seen."""
    eighths = max(1, count * _BAR * 8 // max(1, most))
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(_BAR)
