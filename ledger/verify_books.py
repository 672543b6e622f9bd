"""What a verification says, and the accounts it keeps of flows. A part of `ledger.verify`. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from exeat.ledger.grammar import brief
from exeat.ledger.verify_offline import FalseError, parse_record, read_statement

FLOW: Final = 16  # bytes
COUNTED: Final = ("flows_open", "flows_closed", "flows_orphaned", "bytes_out", "bytes_in")
_MAX_PROBLEMS: Final = 100
_REASON, _DATA = 11, 39  # of a record's fields: the reason code, the binary evidence
_UNKNOWN: Final = 1 << 64  # more than anything that could have been reserved
_GOING_ON: Final = frozenset({"reserve", "progress", "close", "orphan", "resume"})  # of a flow that is open


@dataclass(frozen=True, slots=True)
class Problem:
    """`record` is the number of the first record concerned."""

    record: int
    what: str


@dataclass(slots=True)
class Report:
    """What was found. `problems` is in the order of the ledger; empty means it verifies."""

    origin: str = ""
    size: int = 0
    root: str = ""
    segments: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    flows_open: int = 0
    flows_closed: int = 0
    flows_orphaned: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    key: str = ""  # the public key that signs at the end, in hex
    key_breaks: list[int] = field(default_factory=list)  # records by which a key followed without the former
    dropped: int = 0  # records before this one are gone, and said to be; what proves them is there
    quick: bool = False  # of tree and order alone: kinds, flows and bytes were not looked at
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class _Flow:
    reserved: int
    total: int


class Accounts:
    """Double entry: what each flow's records must add up to.

    With `later`, the records that only somebody who knows what came before can judge are put there.
    """

    def __init__(
        self, report: Report, later: list[tuple[int, bytes]] | None = None, *, dropped: bool = False
    ) -> None:
        self.later = later
        self.tombstones: list[bytes] = []  # what records say was dropped: u64 size, root
        self._dropped = dropped  # records from before these are gone: of a flow its `open` may be
        self._report = report
        self._open: dict[bytes, _Flow] = {}
        self._settled: dict[bytes, _Flow | None] = {}  # orphaned flows keep their account

    def record(self, number: int, data: bytes) -> None:
        try:
            kind, account = brief(data)
        except ValueError as error:
            self._problem(number, f"not a record of schema 1: {error}")
            return
        if self.later is not None and self._goes_on(kind, account[0]):
            self.later.append((number, data))
            return
        self._report.kinds[kind] = self._report.kinds.get(kind, 0) + 1
        what = ""
        if kind == "open" or kind in _GOING_ON:
            what = self._flow(kind, account)
        elif kind == "key" or (kind == "boot" and not self._report.key):
            what = self._key(number, kind, parse_record(data)[1][_DATA])
        elif kind == "gap" and self._dropped:
            fields = parse_record(data)[1]
            self.tombstones += [fields[_DATA]] if fields[_REASON] == "retention" else []
        if what:
            self._problem(number, f"{kind}: {what}")

    def _goes_on(self, kind: str, flow: bytes) -> bool:
        """Whether what this record says goes on from something that was not seen here."""
        return kind in ("key", "boot") or (kind in _GOING_ON and not self._knows(flow))

    def _key(self, number: int, kind: str, data: bytes) -> str:
        """The first start says which key signs; each change of it must go on from the one before."""
        if kind == "boot":
            self._report.key = data.hex()
            return ""
        if not data:
            return ""
        try:
            former, new, vouched = read_statement(data.decode())
        except (FalseError, UnicodeDecodeError) as error:
            return str(error)
        now = self._report.key
        if now not in ("", former.public.hex(), new.public.hex()):  # the same one again: after a crash
            return "this change of keys does not go on from the key before it"
        self._report.key = new.public.hex()
        if not vouched and now != self._report.key:
            self._report.key_breaks.append(number)
        return ""

    def _flow(self, kind: str, fields: tuple[bytes, int, int, int]) -> str:
        flow, out, into, reserved = fields
        if kind == "open":
            if flow in self._open or flow in self._settled:
                return "this flow was opened before"
            self._open[flow] = _Flow(reserved, out + into)
            return ""
        account = self._open.get(flow) or (self._settled.get(flow) if kind == "close" else None)
        if account is None and self._dropped and flow not in self._settled:
            account = self._open[flow] = _Flow(_UNKNOWN, 0)
        if account is None:
            return "the flow is settled already" if flow in self._settled else "the flow was never opened"
        account.reserved = max(account.reserved, reserved)
        what = ""
        if kind in ("progress", "close", "orphan"):
            if out + into > account.reserved:
                what = f"{out + into} bytes passed, {account.reserved} were reserved"
            elif out + into < account.total:
                what = f"{out + into} bytes, fewer than the {account.total} reported before"
            account.total = out + into
        if kind in ("close", "orphan"):
            self._settle(kind, flow, account, out, into)
        return what

    def _settle(self, kind: str, flow: bytes, account: _Flow, out: int, into: int) -> None:
        report = self._report
        if flow in self._settled:  # exact counts after an orphan's bounds
            report.flows_orphaned -= 1
        self._open.pop(flow, None)
        self._settled[flow] = account if kind == "orphan" else None
        if kind == "close":
            report.flows_closed += 1
            report.bytes_out += out
            report.bytes_in += into
        else:
            report.flows_orphaned += 1

    def _problem(self, number: int, what: str) -> None:
        if len(self._report.problems) < _MAX_PROBLEMS:
            self._report.problems.append(Problem(number, what))

    def _knows(self, flow: bytes) -> bool:
        return flow in self._open or flow in self._settled

    def flows(self) -> bytes:
        """All flows that were opened, one after the other."""
        return b"".join((*self._open, *self._settled))

    def apart_from(self, flows: bytes) -> bool:
        """Whether none of these was opened here."""
        return not any(self._knows(flows[at : at + FLOW]) for at in range(0, len(flows), FLOW))

    def finish(self) -> None:
        self._report.flows_open = len(self._open)
