"""The ledger against a second book: what the kernel told an outsider when each connection ended.

`ledger.reconcile` compares counts that stand in the records, and the gateway read those itself. Here
nobody's word is taken: each flow's `open` names its upstream socket (SO_COOKIE), the kernel tells of
that socket's end (`ledger.sock_ends`), and the two must agree. A connection of the gateway's that no
flow names is *dark*. Pure: records and ends in, findings out.

TCP_INFO counts sequence numbers, so the SYN that was sent, and each FIN, is one more than the payload:

    sent      acked    = bytes_out + 1 + (0 or 1)      less, by what nobody acknowledged, after a reset
    received  received = bytes_in + (0 or 1)           more, by what nobody read, after a cut

Of a connection that the gateway itself resets the kernel has forgotten all counts by then (tcp_disconnect
in net/ipv4/tcp.c): its end is *blank*, and what remains is the reading of TCP_INFO in the record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger.reconcile import differences
from exeat.ledger.records import Kind, Record

if TYPE_CHECKING:
    from exeat.ledger.sock_ends import End

_UNACKED: Final = "unacked "  # in the detail of a `close`: so many bytes were on their way
_MOST: Final = 1000  # findings kept


class Finding(NamedTuple):
    """A flow whose two books differ: by so many bytes more in the ledger (negative: in the kernel)."""

    seq: int
    record: Record
    out: int
    into: int


@dataclass(slots=True)
class Tally:
    """`exact` flows agree to the byte; `cut` ones ended with bytes on their way, in the bounds above; `blank`
    ones have no counts of the kernel's but those in their record, and these agree.

    `out_on_the_way` and `in_unread` are those bytes; `unexplained` those of `findings`; `dark_bytes` went
    through connections that no flow names.
    """

    exact: int = 0
    cut: int = 0
    blank: int = 0
    out_on_the_way: int = 0
    in_unread: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    segments: int = 0
    findings: list[Finding] = field(default_factory=list)
    unexplained: int = 0
    dark: int = 0
    dark_bytes: int = 0


class Books:
    """Joins records and ends as they come, in any order; of ends, only those that a flow must own."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._cookies: dict[bytes, int] = {}  # flow -> socket
        self._closed: dict[int, tuple[int, Record]] = {}
        self._ended: dict[int, End] = {}

    @property
    def waiting(self) -> tuple[int, int]:
        """Flows whose socket's end is not told, ends whose flow's end is not recorded."""
        return len(self._closed), len(self._ended)

    def record(self, seq: int, record: Record) -> None:
        if record.kind is Kind.OPEN and record.cookie:
            self._cookies[record.flow] = record.cookie
        elif record.kind is Kind.CLOSE and (cookie := self._cookies.pop(record.flow, 0)):
            end = self._ended.pop(cookie, None)
            if end is None:
                self._closed[cookie] = (seq, record)
            else:
                self._judge(seq, record, end)

    def ended(self, end: End) -> None:
        found = self._closed.pop(end.cookie, None)
        if found is None:
            self._ended[end.cookie] = end
        else:
            self._judge(*found, end)

    def settle(self) -> Tally:
        """No more will come: ends that belong to no flow are dark."""
        alive = set(self._cookies.values())
        for cookie, end in self._ended.items():
            if cookie not in alive:
                self.tally.dark += 1
                self.tally.dark_bytes += max(0, end.acked - 2) + max(0, end.received - 1)
        return self.tally

    def _judge(self, seq: int, record: Record, end: End) -> None:
        tally = self.tally
        tally.bytes_out += record.bytes_out
        tally.bytes_in += record.bytes_in
        tally.segments += end.segs_out + end.segs_in
        out, into = record.bytes_out - (end.acked - 1), record.bytes_in - end.received
        if (end.acked, end.received) == (0, 0) and not differences(record):
            tally.blank += 1
        elif out in (-1, 0) and into in (-1, 0):
            tally.exact += 1
        elif -1 <= out <= _unacked(record) + 1 and into <= 0:
            tally.cut += 1
            tally.out_on_the_way += max(0, out)
            tally.in_unread += max(0, -into - 1)
        else:
            tally.unexplained += abs(out) + abs(into)
            if len(tally.findings) < _MOST:
                tally.findings.append(Finding(seq, record, out, into))


def _unacked(record: Record) -> int:
    said = record.detail.removeprefix(_UNACKED)
    return int(said) if said != record.detail and said.isdecimal() else 0
