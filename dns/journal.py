"""Every lookup on the ledger, without a record per query.

The first sight of (subject, name, verdict) is appended at once, and nothing happens for that
lookup until it is durable; further ones are counted and the counts appended each second. A lookup
that cannot be recorded does not take place, so the counts leave nothing out.
"""

from __future__ import annotations

import sys
from collections import OrderedDict  # whose oldest item is found at once, however many were dropped
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from exeat.dns.wire import Rcode
from exeat.ledger.client import LedgerClient, stamps
from exeat.ledger.records import Dest, Kind, Record, RecordError, compose, encode, heading
from exeat.ledger.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exeat.dns.judge import Binding
    from exeat.ledger.reactor import Reactor
    from exeat.policy.model import Decision, Subject

    Done = Callable[["Sight | None"], None]

FLUSH_S = 1.0
SLICE = 4  # counts encoded before the loop is given back
SETTLE_SLICE = 100  # counts acknowledged before the same
MAX_SIGHTS = 8192  # remembered per job; an older one is flushed and would be a first sight again
MAX_ALL = 200_000  # of all jobs together: each may have its share
MAX_SUBJECTS = 1024
MAX_BATCH = 60_000  # octets of records in one datagram of 64 KiB
MAX_FRAMES = 1024
MAX_FRESH = 250  # told in one go
_SAMPLE = 40  # octets of a host that stands for any other
_LONG_TEXT = 256  # octets: from here on its length is written otherwise


class Lookup(NamedTuple):
    """What is recorded of a lookup, and what makes two of them the same one.

    `source` says who asked: "dns" a process in the jail, "proxy" the proxy for a flow. `shadow` is
    what the shadow policy says instead, "" where there is none or it agrees.
    """

    subject: Subject
    host: str
    verdict: str
    reason: str
    rule: str
    lease: str
    source: str
    binding: Binding
    shadow: str = ""

    @classmethod
    def of(
        cls,
        subject: Subject,
        host: str,
        decision: Decision,
        source: str,
        binding: Binding,
        shadow: str = "",
    ) -> Lookup:
        verdict = str(decision.verdict)
        by = (decision.reason, decision.rule, decision.lease)
        return cls(subject, host, verdict, *by, source, binding, shadow)


class Sight:
    """One remembered lookup: `count` lookups are not on the ledger yet."""

    __slots__ = ("count", "durable", "lookup", "rcode", "told", "waiters")

    def __init__(self, lookup: Lookup) -> None:
        self.rcode = 0  # of the answer that is remembered
        self.told = 0  # of `count`, what is in the metrics already
        self.lookup = lookup
        self.count = 0
        self.durable = False
        self.waiters: list[Done] = []


class Journal:
    """The guard's hand on the ledger. `ready` is false while lookups could not be recorded."""

    def __init__(self, reactor: Reactor, client: LedgerClient, tally: Tally | None = None) -> None:
        self._tally = tally or Tally()
        self._reactor = reactor
        self._client = client
        self._sights: dict[Subject, OrderedDict[Lookup, Sight]] = {}
        self.fresh: list[tuple[str, ...]] = []  # first lookups that nobody has been told of
        self._dirty: dict[Sight, None] = {}
        self._in_flight: dict[str, int] = {}  # job -> counts made into records and not yet acknowledged
        self._batch: list[tuple[Sight, int]] = []  # counts whose records are made and not sent yet
        self._records: list[bytes] = []
        self._room = MAX_BATCH
        self._generation = 0
        self._reactor.call_later(FLUSH_S, self._tick)

    @property
    def ready(self) -> bool:
        return self._client.available

    def turn(self, generation: int) -> None:
        """From now on snapshot `generation` decides: what was counted belongs to the one before."""
        if self.ready:
            self._flush(list(self._dirty))
        self._generation = generation

    def known(self, lookup: Lookup) -> bool:
        return lookup in self._sights.get(lookup.subject, ())

    def note(self, lookup: Lookup, done: Done) -> None:
        """Record one lookup; `done(sight)` once evidence of its kind is durable, else `done(None)`.

        `done` may be called from in here, when the same lookup has been seen before.
        """
        table = self._sights.get(lookup.subject)
        if table is None:
            if len(self._sights) >= MAX_SUBJECTS:
                del self._sights[next(iter(self._sights))]
            table = self._sights[lookup.subject] = OrderedDict()
        sight = table.get(lookup)
        if sight is None:
            sight = self._first(table, lookup)
            sight.waiters.append(done)
            return
        self.count(sight)
        sight.told += 1  # by whoever answers
        if sight.durable:
            done(sight)
        else:
            sight.waiters.append(done)

    def count(self, sight: Sight) -> None:
        """One more lookup like this one."""
        sight.count += 1
        if sight.count == 1:
            self._dirty[sight] = None

    def _first(self, table: OrderedDict[Lookup, Sight], lookup: Lookup) -> Sight:
        share = min(MAX_SIGHTS, MAX_ALL // len(self._sights))
        while len(table) >= share:
            table.popitem(last=False)  # its count, if any, stays in `_dirty` until flushed
        sight = table[lookup] = Sight(lookup)
        try:
            record = _record(lookup, 1, self._generation)
        except RecordError as error:  # a subject that no record can hold
            print(f"guard: a lookup cannot be recorded: {error}", file=sys.stderr)
            self._reactor.call_soon(lambda: self._on_first(sight, durable=False))
        else:
            self._client.append([record], lambda durable: self._on_first(sight, durable=durable))
        return sight

    def _on_first(self, sight: Sight, *, durable: bool) -> None:
        sight.durable = durable
        if durable:
            self._show(sight.lookup)
        else:
            # The waiters are told no, so their lookups did not happen: nothing is left to count.
            sight.count = sight.told = 0
            self._dirty.pop(sight, None)
            table = self._sights.get(sight.lookup.subject, OrderedDict())
            if table.get(sight.lookup) is sight:
                del table[sight.lookup]
        waiters, sight.waiters = sight.waiters, []
        for done in waiters:
            done(sight if sight.durable else None)

    def _show(self, lookup: Lookup) -> None:
        """For live views; all of it is on the ledger."""
        if lookup.source == "dns" and len(self.fresh) < MAX_FRESH:
            subject = lookup.subject
            who = (subject.project, subject.agent, subject.job)
            self.fresh.append((*who, lookup.host, lookup.verdict, lookup.reason))

    def _tick(self) -> None:
        self._reactor.call_later(FLUSH_S, self._tick)
        self._sweep(iter(list(self._dirty)))

    def _sweep(self, sights: Iterator[Sight]) -> None:
        """Encode counts a few at a time: in between, those who ask get their turn."""
        some = list(islice(sights, SLICE))
        if not some or not self.ready:
            self._send()
            return
        self._count([sight for sight in some if sight in self._dirty])
        self._reactor.call_soon(lambda: self._sweep(sights))

    def _flush(self, sights: list[Sight]) -> None:
        self._count(sights)
        self._send()

    def _count(self, sights: list[Sight]) -> None:
        """Make the records of what was counted; sent once there are many, or by `_send`."""
        for sight in sights:
            if not sight.durable:
                continue
            record = _record(sight.lookup, sight.count, self._generation)
            if self._room < len(record) + 2:
                self._send()
            self._tell(sight)
            job = sight.lookup.subject.job
            self._in_flight[job] = self._in_flight.get(job, 0) + 1
            self._batch.append((sight, sight.count))
            self._records.append(record)
            self._room -= len(record) + 2
            sight.count = 0
            del self._dirty[sight]

    def _tell(self, sight: Sight) -> None:
        """Count for the metrics what was answered from memory; the rest is counted as it is answered."""
        repeated, sight.told = sight.count - sight.told, 0
        if repeated > 0 and sight.lookup.source == "dns":
            answered(self._tally, sight.lookup, sight.rcode, repeated)

    def _send(self) -> None:
        batch, records = self._batch, self._records
        if not batch:
            return
        self._batch, self._records, self._room = [], [], MAX_BATCH
        self._client.append(records, lambda durable: self._settle(iter(batch), durable=durable))

    def _settle(self, batch: Iterator[tuple[Sight, int]], *, durable: bool) -> None:
        """Take note of the ledger's answer, like `_sweep` a few at a time."""
        some = list(islice(batch, SETTLE_SLICE))
        for sight, count in some:
            self._in_flight[sight.lookup.subject.job] -= 1
            if not durable:  # perhaps stored, perhaps not: rather counted twice than never
                sight.count += count
                sight.told += count
                self._dirty[sight] = None
        if some:
            self._reactor.call_soon(lambda: self._settle(batch, durable=durable))

    def forget(self, job: str, done: Callable[[], None]) -> None:
        """Flush what is known of `job`; `done` once all of it is durable, however long that takes."""
        mine = [sight for sight in self._dirty if sight.lookup.subject.job == job]
        subjects = [subject for subject in self._sights if subject.job == job]
        first = any(not sight.durable for subject in subjects for sight in self._sights[subject].values())
        if not mine and not first and not self._in_flight.get(job):
            self._in_flight.pop(job, None)
            for subject in subjects:
                del self._sights[subject]
            done()
            return
        if self.ready:
            self._flush(mine)
        self._reactor.call_later(0.02, lambda: self.forget(job, done))


def answered(tally: Tally, lookup: Lookup, rcode: int, count: int = 1) -> None:
    """Count answers to clients for the metrics. Of an RCODE over 15 (RFC 6891) `rcode` is the low half."""
    project = lookup.subject.project
    tally.count("dns_queries_total", project, rcode_text(rcode), lookup.verdict, by=count)
    if lookup.reason == "dns.encrypted_resolver":
        tally.count("bypass_attempts_total", project, "doh", by=count)


def rcode_text(rcode: int) -> str:
    try:
        return Rcode(rcode).name
    except ValueError:
        return str(rcode)


# The fields of a record from `job` to `node`, but for the host's text: what is before it and behind it.
_Frame = tuple[bytes, bytes]
_frames: dict[tuple[object, ...], _Frame | None] = {}


def _record(lookup: Lookup, count: int, generation: int) -> bytes:
    """The record's encoding. Raises RecordError where there is none.

    Names differ from record to record and all else hardly ever does: its bytes are kept.
    """
    host = lookup.host
    if not lookup.shadow and len(host) < _LONG_TEXT and host.isascii() and host.isprintable():
        rest = (generation, lookup.source, lookup.binding, *lookup[2:6], lookup.subject)
        if rest not in _frames:
            if len(_frames) >= MAX_FRAMES:
                _frames.clear()
            _frames[rest] = _frame(lookup, generation)
        frame = _frames[rest]
        if frame is not None:
            before, behind = frame
            who = b"".join((before, _text_head(len(host)), host.encode(), behind))
            quick = compose(Kind.DNS, (*stamps(), b"", 0, 0, 0), who, (count,))
            if quick is not None:
                return quick
    return _whole_record(lookup, count, generation)


def _text_head(size: int) -> bytes:
    """Of a text of `size` octets, RFC 8949 section 3.1."""
    return bytes((0x60 | size,)) if size < 24 else bytes((0x78, size))


def _frame(lookup: Lookup, generation: int) -> _Frame | None:
    """The two headings that differ in the host alone show where it is."""
    one, other = (_heading(lookup, letter * _SAMPLE, generation) for letter in "ab")
    if one is None or other is None:
        return None
    start = next(i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y)
    return one[: start - len(_text_head(_SAMPLE))], one[start + _SAMPLE :]


def _heading(lookup: Lookup, host: str, generation: int) -> bytes | None:
    subject, binding = lookup.subject, lookup.binding
    dest = Dest(host=host, port=53, protocol="dns")
    by = (lookup.verdict, lookup.reason, lookup.rule, lookup.lease, generation)
    policy = (bytes.fromhex(binding.digest), binding.posture, lookup.source)
    return heading(
        (subject.job, subject.project, subject.agent, dest, *by, *policy, "", subject.episode, subject.node)
    )


def _whole_record(lookup: Lookup, count: int, generation: int) -> bytes:
    real, boot = stamps()
    subject = lookup.subject
    return encode(
        Record(
            Kind.DNS,
            t_real_ns=real,
            t_boot_ns=boot,
            project=subject.project,
            agent=subject.agent,
            job=subject.job,
            episode=subject.episode,
            node=subject.node,
            dest=Dest(host=lookup.host, port=53, protocol="dns"),
            decision=lookup.verdict,
            reason_code=lookup.reason,
            rule_id=lookup.rule,
            lease_id=lookup.lease,
            generation=generation,
            policy_digest=bytes.fromhex(lookup.binding.digest),
            posture=lookup.binding.posture,
            name_source=lookup.source,
            count=count,
            detail=lookup.shadow,
        )
    )
