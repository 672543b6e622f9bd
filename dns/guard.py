"""The guard process: DNS for the jails, addresses for the proxy.

One thread on one event loop. It reads no file and opens no listening port of its own: the jails'
sockets come from control, those for clients outside jails from whoever started it, policy comes
from control, evidence goes to the ledger, and questions go to the configured upstreams.
"""

from __future__ import annotations

import gc
import resource
import socket
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from exeat.dns.desk import Desk
from exeat.dns.direct import Ahead
from exeat.dns.doors import TcpDoor, UdpDoor
from exeat.dns.journal import Journal, Lookup
from exeat.dns.judge import Judge
from exeat.dns.other_records import OtherRecords
from exeat.dns.outside import Outside
from exeat.dns.resolver import Resolver
from exeat.dns.responder import Jail, Responder
from exeat.dns.screen import Screen, Warned, two_labels
from exeat.dns.upstream import Upstream
from exeat.ledger.client import LedgerClient
from exeat.ledger.hub import HubClient
from exeat.ledger.reactor import Reactor
from exeat.ledger.snapshots import SnapshotLoader
from exeat.ledger.supervised import beat
from exeat.ledger.tally import Tally, Teller
from exeat.policy.identity import Identities

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exeat.dns.upstream import Server
    from exeat.ledger.ipc import Message
    from exeat.policy.model import Subject
    from exeat.policy.snapshot import Snapshot

UDP_NAMES = ("dnsu4", "dnsu6")
TCP_NAMES = ("dnst4", "dnst6")
COLLECT_AFTER = 10_000  # more objects than when the collector last looked


@dataclass(frozen=True)
class GuardSettings:
    """The uids say who may use guard.sock, beside root. `upstream_ca`: see `Upstream`.

    `registrable` gives the domain of a host by the public suffix list.

    `listeners` are UDP and listening TCP sockets for clients outside jails, `identities` say who
    those are.
    """

    run_dir: Path
    upstreams: Sequence[Server | tuple[str, int]]
    node: str
    control_uid: int
    proxy_uid: int
    upstream_ca: Path | None = None
    registrable: Callable[[str], str] = two_labels
    listeners: tuple[socket.socket, ...] = ()
    identities: Identities = field(default_factory=lambda: Identities(()))


class Guard:
    """Everything the guard is, on a given loop; the handler of what control says on the hub."""

    def __init__(self, settings: GuardSettings, reactor: Reactor) -> None:
        self._reactor = reactor
        self._last: Message | None = None
        self._spent: Message | None = None  # what an earlier process had spent, until a snapshot comes
        self._jails: dict[str, tuple[Jail, list[UdpDoor | TcpDoor]]] = {}
        self._outside = Outside(settings.identities, reactor.now)
        self._closed_doors = list(settings.listeners)  # until there is a policy
        self._open_doors: list[UdpDoor | TcpDoor] = []
        self._judge = Judge(reactor.now, Screen(reactor.now, settings.registrable, self._on_warned))
        self._ledger = LedgerClient(reactor, settings.run_dir / "ledger" / "ledger.sock")
        self._tally = Tally()
        self._journal = Journal(reactor, self._ledger, self._tally)
        self._upstream = Upstream(reactor, settings.upstreams, settings.upstream_ca)
        self._resolver = Resolver(reactor, self._upstream, self._judge)
        self._ahead = Ahead(reactor, lambda: self._judge.snapshot, lambda said: self._hub.send(said))
        self._others = OtherRecords(reactor, self._upstream, self._judge)
        core = (self._judge, self._resolver, self._others, self._journal)
        self._responder = Responder(reactor.now, *core, self._ahead.answer, self._tally)
        uids = frozenset({0, settings.control_uid, settings.proxy_uid})
        services = (self._judge, self._resolver, self._journal, self._responder.pins)
        self._desk = Desk(reactor, settings.run_dir / "guard" / "guard.sock", uids, services)
        self._loader = SnapshotLoader(reactor, "guard", self._in_force)
        self._hub = HubClient(
            reactor, settings.run_dir / "control" / "hub.sock", "guard", self, settings.control_uid
        )
        Teller(reactor.call_later, self._tally, self._hub.send, lambda: self._hub.connection, self._about)

    @property
    def connected(self) -> bool:
        """Whether control can be heard now."""
        return self._hub.connected

    def on_snapshot(self, message: Message) -> None:
        """Control says the whole truth again, most often the same one."""
        if message == self._last:
            self._judge.refresh()
            return
        self._loader.offer(message, self._judge.snapshot)

    def _in_force(self, snapshot: Snapshot, message: Message | None) -> None:
        self._journal.turn(snapshot.generation)
        if self._judge.snapshot is None and self._spent is not None:
            self._judge.restore(snapshot, self._spent)
        self._judge.replace(snapshot)
        self._last = message
        self._forget_answers()
        self._desk.unpark()
        self._let_in()

    def _forget_answers(self) -> None:
        self._resolver.clear()
        self._others.clear()
        self._responder.forget((*(jail for jail, _ in self._jails.values()), *self._outside.jails))

    def _let_in(self) -> None:
        """There is a policy: clients outside jails may ask."""
        doors, self._closed_doors = self._closed_doors, []
        for sock in doors:
            if sock.type == socket.SOCK_DGRAM:
                who = partial(self._outside.who, sock.family)
                door = UdpDoor(self._reactor, self._responder, who, sock, peers=self._outside.tables)
                self._open_doors.append(door)
            else:
                self._open_doors.append(TcpDoor(self._reactor, self._responder, self._outside.accepted, sock))

    def on_jail(
        self, jail: str, subject: Subject, sockets: dict[str, socket.socket], message: Message
    ) -> None:
        """Start answering on the DNS sockets of a jail; the others are the proxy's."""
        state = Jail.new(jail, subject, self._reactor.now())
        doors: list[UdpDoor | TcpDoor] = []
        for name, sock in sockets.items():
            if name in UDP_NAMES:
                doors.append(UdpDoor(self._reactor, self._responder, lambda _: state, sock, state))
            elif name in TCP_NAMES:
                doors.append(TcpDoor(self._reactor, self._responder, lambda _sock, _peer: state, sock))
            else:
                sock.close()
        self._close_jail(jail)
        self._jails[jail] = (state, doors)

    def on_jail_removed(self, jail: str) -> None:
        """Stop answering; tell control when all that was looked up is durable."""
        subject = self._close_jail(jail)
        job = subject.job if subject is not None else jail
        self._journal.forget(job, lambda: self._removed(jail))

    def _removed(self, jail: str) -> None:
        self._hub.send({"t": "jail.removed", "jail": jail})

    def _close_jail(self, jail: str) -> Subject | None:
        state, doors = self._jails.pop(jail, (None, []))
        for door in doors:
            door.close()
        if state is not None:
            self._responder.pins.forget(state.subject)
        return state.subject if state is not None else None

    def on_cut(self, message: Message) -> None:
        """Nothing flows through the guard, but what it remembers may be what was cut."""
        self._forget_answers()

    def _about(self) -> dict[str, Any]:
        """For metrics and live views: which snapshot is in force here, and what was looked up first."""
        snapshot, lookups = self._judge.snapshot, self._journal.fresh
        self._journal.fresh = []
        return {"generation": snapshot.generation if snapshot is not None else 0, "lookups": lookups}

    def _on_warned(self, warned: Warned) -> None:
        """Something is wrong with lookups: on the ledger as one of the domain, and told to control."""
        subject, decision = warned.subject, warned.decision
        self._tally.count("dns_anomalies_total", subject.project, decision.reason)
        detail = f"score {warned.score}: {' '.join(warned.signals)}"
        lookup = Lookup.of(subject, warned.domain, decision, "dns", self._judge.binding(subject), detail)
        if self._journal.ready:
            self._journal.note(lookup, lambda _sight: None)
        self._hub.send(
            {
                "t": "alert",
                "subject": subject._asdict(),
                "domain": warned.domain,
                "verdict": str(decision.verdict),
                "reason": decision.reason,
                "score": warned.score,
                "signals": list(warned.signals),
                "octets": warned.octets,
                "names": warned.names,
            }
        )

    def on_other(self, message: Message) -> None:
        """`ask.pending` is not for the guard; `spent` comes before the first snapshot."""
        if message.get("t") == "spent":
            self._spent = message
        elif message.get("t") == "resolvers":
            self._on_resolvers(message)
        elif message.get("t") == "pins.set":
            self._ahead.heard(message)

    def _on_resolvers(self, message: Message) -> None:
        names = frozenset(message["names"])
        if names != self._judge.resolvers:
            self._judge.resolvers = names
            self._forget_answers()

    def close(self) -> None:
        for jail in list(self._jails):
            self._close_jail(jail)
        for door in self._open_doors:
            door.close()
        for sock in self._closed_doors:
            sock.close()
        self._desk.close()
        self._hub.close()
        self._upstream.close()
        self._ledger.close()


def serve(settings: GuardSettings, ready: Callable[[], None]) -> int:
    """Run the guard until SIGTERM; `ready` is called once guard.sock can be reached.

    Returns an exit status: 0 after a clean end, 3 when it cannot start.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a socket per upstream question and client
    reactor = Reactor()
    reactor.stop_on_signals()
    try:
        guard = Guard(settings, reactor)
    except (OSError, ValueError) as error:
        print(f"guard: cannot start: {error}", file=sys.stderr)
        return 3
    # What exists now lives as long as the process: keep the collector from walking it each time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)
    beat(reactor)
    ready()
    reactor.run()
    guard.close()
    reactor.close()
    return 0
