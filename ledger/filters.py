"""Which records somebody wants to see: the same words for `exeat ledger tail` and for streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import records
from exeat.ledger.records import Kind, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELDS: Final = ("project", "job", "agent", "host", "lease", "verdict", "reason")


def parse_kinds(names: Iterable[str]) -> frozenset[Kind]:
    """Raises ValueError at a name that is none."""
    kinds = {kind.label: kind for kind in Kind}
    for name in names:
        if name not in kinds:
            raise ValueError(f"`{name}` is none of {', '.join(kinds)}")
    return frozenset(kinds[name] for name in names)


class Filter(NamedTuple):
    """Everything that is not empty must fit. A host `*.example.org` is every name under it.

    Records between the `open` and the `close` of a flow do not say whose they are: only `kinds` finds them.
    """

    kinds: frozenset[Kind] = frozenset()
    project: str = ""
    job: str = ""
    agent: str = ""
    host: str = ""
    lease: str = ""
    verdict: str = ""
    reason: str = ""

    def __bool__(self) -> bool:
        return any(self)

    def decoded(self, data: bytes) -> Record | None:
        """The record, if it fits. Raises RecordError."""
        if self.kinds and records.recall(data).kind not in self.kinds:
            return None
        record = records.decode(data)
        return record if self._fits(record) else None

    def _fits(self, record: Record) -> bool:
        wanted = (self.project, self.job, self.agent, self.lease, self.verdict, self.reason)
        found = (
            record.project,
            record.job,
            record.agent,
            record.lease_id,
            record.decision,
            record.reason_code,
        )
        if any(want and want != has for want, has in zip(wanted, found, strict=True)):
            return False
        host = record.dest.host if record.dest is not None else ""
        return host.endswith(self.host[1:]) if self.host.startswith("*.") else self.host in ("", host)
