"""The proxy process: jails, policy, and every flow, on one loop.

It is the HubHandler (control's messages), and it is what a Flow or Tunnel asks for everything
that is not its own: a decision, an address, a record, a place in the table.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.client import LedgerClient
from exeat.ledger.clock import Clock
from exeat.ledger.hub import HubClient
from exeat.ledger.snapshots import SnapshotLoader
from exeat.ledger.tally import Tally, Teller
from exeat.policy.identity import Identities
from exeat.proxy import jails, live
from exeat.proxy.accepting import SPARE_FDS, Accepting, always
from exeat.proxy.asks import AskBook
from exeat.proxy.associate import UdpPort
from exeat.proxy.desk import Desk
from exeat.proxy.direct import DirectDesk
from exeat.proxy.events import Events
from exeat.proxy.guard_client import GuardClient
from exeat.proxy.jails import Jail
from exeat.proxy.judging import Judging
from exeat.proxy.outside import Outside
from exeat.proxy.refusals import Refusals
from exeat.proxy.relays import AUTO, Relays
from exeat.proxy.spending import Spending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from exeat.ledger.ipc import Message
    from exeat.ledger.reactor import Reactor
    from exeat.policy.model import Subject
    from exeat.policy.snapshot import Snapshot
    from exeat.policy.tariff import Tariff
    from exeat.proxy.chain import Upstream
    from exeat.proxy.credentials import Credentials
    from exeat.proxy.evidence import Evidence
    from exeat.proxy.exchange import Before
    from exeat.proxy.flow import Flow
    from exeat.proxy.refusal import Refusal
    from exeat.proxy.tunnel import Tunnel
    from exeat.proxy.udp import UdpFlow

SWEEP_S: Final = 0.2
SLOW_SWEEPS: Final = 5  # every so many sweeps, the live tunnels too
CLOSE_RETRY_S: Final = 1.0
IDS: Final = 64  # flow ids made at a time
CLAIMS: Final = 256  # resume records without an answer; one append per flow


@dataclass(frozen=True)
class ProxySettings:
    """`control_uid` is who must serve the hub socket. Times in seconds.

    `listeners` are doors for clients outside jails: (ADDRESS:PORT or path, listening socket), and
    `transparent` those for redirected connections;
    `identities` say who they are, `max_connections` how many each of those may have. `relay` is auto,
    python or compiled (`proxy.relays`).
    """

    run_dir: Path
    node: str
    control_uid: int
    hello_timeout_s: float = 10
    head_timeout_s: float = 10
    dial_timeout_s: float = 10
    idle_timeout_s: float = 600
    keep_alive_s: float = 60
    listeners: tuple[tuple[str, socket.socket], ...] = ()
    transparent: tuple[tuple[str, socket.socket], ...] = ()
    identities: Identities = field(default_factory=lambda: Identities(()))
    max_connections: int = 16_384
    credentials: Credentials | None = None
    upstream: Upstream | None = None
    tariff: Tariff | None = None
    relay: str = AUTO


class Gateway(Judging):
    """All state of the process. Nothing in here blocks."""

    def __init__(self, settings: ProxySettings, reactor: Reactor) -> None:
        self.settings = settings
        clock = Clock()
        tally = Tally()
        super().__init__(reactor, clock, Spending(lambda: self.snapshot, clock.now_ms, tally), tally)
        self.relays = Relays(reactor)
        self._spent: Message | None = None  # what an earlier process had spent, until a snapshot comes
        self._jails: dict[str, Jail] = {}
        doors = (*settings.listeners, *settings.transparent)
        self._outside = Outside(doors, settings.identities, settings.max_connections, settings.credentials)
        self._waiting: set[Flow | UdpFlow] = set()  # not (or no longer) a tunnel: they have a deadline
        self._tunnels: dict[Flow | UdpFlow, Tunnel | UdpFlow] = {}
        self._settling: set[Tunnel | UdpFlow] = set()
        self._unclaimed: deque[Tunnel | UdpFlow] = deque()
        self._ids: list[bytes] = []  # for flows to come
        self._sweeps = 0
        self._max_fds = _raise_fd_limit()
        self._accepting = Accepting(self, self._max_fds)
        run = settings.run_dir
        self.ledger = LedgerClient(reactor, run / "ledger" / "ledger.sock")
        self.ledger.on_reconnect = self._resume
        self._refusals = Refusals(self.ledger, reactor.now, self._check_removed)
        self.guard = GuardClient(reactor, run / "guard" / "guard.sock")
        about = {"relay": self.relays.kind}
        self.hub = HubClient(
            reactor, run / "control" / "hub.sock", "proxy", self, settings.control_uid, about
        )
        self._events = Events(self.hub.send, tally)
        Teller(reactor.call_later, tally, self.hub.send, lambda: self.hub.connection, self._about)
        self._loader = SnapshotLoader(reactor, "proxy", self._in_force)
        self.asks = AskBook(self.hub.send)
        self.desk = Desk(self.hub.send)
        self._direct = DirectDesk(self)
        reactor.call_later(SWEEP_S, self._sweep)

    # -- control's messages (HubHandler)

    def on_snapshot(self, message: Message) -> None:
        self._loader.offer(message, self.snapshot)

    def _in_force(self, snapshot: Snapshot, _message: Message | None) -> None:
        changed = self.snapshot is None or snapshot.generation != self.snapshot.generation
        if self.snapshot is None:
            if self._spent is not None:
                snapshot.restore(self.spending.usage, self._spent)
                self._spent = None
            self._open_doors()
        self._put_in_force(snapshot)
        if changed:
            self.guard.forget()
            self._end_killed(snapshot)
            self._end_leases()
            for tunnel in list(self._tunnels.values()):
                self.reactor.guarded(tunnel.recheck)
            for flow in self.asks.parked():
                self.reactor.guarded(flow.reconsider)
        self.asks.repeat()  # control sends a snapshot whenever it has (re)connected

    def on_jail(
        self, jail: str, subject: Subject, sockets: dict[str, socket.socket], message: Message
    ) -> None:
        listeners = {name: sockets.pop(name) for name in jails.DOORS if name in sockets}
        udp = {name: sockets.pop(name) for name in jails.UDP if name in sockets}
        for other in sockets.values():
            other.close()
        known = self._jails.get(jail)
        if known is not None and not known.removed:
            for sock in (*listeners.values(), *udp.values()):
                sock.close()
            return
        added = Jail(jail, subject, jails.hold_seconds(message.get("hold_ms")), listeners)
        added.udp = {name: UdpPort(self, sock) for name, sock in udp.items()}
        self._jails[jail] = added
        for name, sock in listeners.items():
            self._accepting.watch(sock, always(added, f"{jail}/{name}"), redirected=name in jails.TRANSPARENT)

    def on_jail_removed(self, jail: str) -> None:
        removed = self._jails.get(jail)
        if removed is None:
            self.hub.send({"t": "jail.removed", "jail": jail})
            return
        removed.removed = True
        for sock in removed.listeners.values():
            self.reactor.remove(sock.fileno())
            sock.close()
        removed.listeners.clear()
        for port in removed.udp.values():
            port.close()
        removed.udp.clear()
        self._cut(list(removed.flows), "jail.removed")
        self._check_removed(removed)

    def on_cut(self, message: Message) -> None:
        self.guard.forget()
        reason = message.get("reason")
        reason = reason if isinstance(reason, str) and reason else "cut"
        self._cut_where(lambda evidence: live.hits(message, evidence), reason)

    def _cut_where(self, hit: Callable[[Evidence], bool], reason: str) -> None:
        everyone = [*self._jails.values(), *self._outside.jails]
        self._cut([flow for jail in everyone for flow in jail.flows if hit(flow.evidence)], reason)
        for tunnel in [tunnel for tunnel in self._settling if hit(tunnel.flow.evidence)]:
            self.reactor.guarded(partial(tunnel.end, reason))

    def _end_killed(self, snapshot: Snapshot) -> None:
        """The kill switch ends tunnels, what is about to be one, and associations."""
        if snapshot.killed:
            self._cut_where(lambda evidence: snapshot.stops(evidence.subject), "kill")

    def on_other(self, message: Message) -> None:
        if message.get("t") == "spent":
            self._spent = message
            return
        if message.get("t") == "leases.ended":
            self.spending.ended(message["leases"])
            return
        if message.get("t") == "direct":
            answer = self._direct.asked(message)
            if answer is not None:
                self.hub.send(answer)
            return
        if message.get("t") == "desk.said":
            self.desk.said(message)
            return
        if message.get("t") == "flows.list":
            live.Listing(self.reactor, self.hub.send, message, self._tunnels.values(), self._waiting)
            return
        key, request = message.get("key"), message.get("request")
        if message.get("t") == "ask.pending" and isinstance(key, str) and isinstance(request, str):
            self.asks.pending(key, request)

    def _cut(self, flows: Iterable[Flow | UdpFlow], reason: str) -> None:
        for flow in flows:  # one that fails (a bug) must not save the others
            tunnel = self._tunnels.get(flow)
            if tunnel is not None:
                self.reactor.guarded(partial(tunnel.end, reason))
            elif flow in self._waiting:
                self.reactor.guarded(partial(flow.cut, reason))

    # -- accepting

    def _open_doors(self) -> None:
        """The first snapshot is here: clients outside jails may come."""
        for name, sock in self._outside.listeners:
            redirected = (name, sock) in self.settings.transparent
            self._accepting.watch(sock, partial(self._outside.who, name), redirected=redirected)

    def enter(self, flow: Flow | UdpFlow) -> None:
        """A flow begins: until it is live it has a deadline."""
        flow.jail.flows.add(flow)
        self._waiting.add(flow)

    def follow(self, flow: Flow, before: Before) -> None:
        """The client of `flow` stays, or has only to read its answer: another flow hears it now."""
        self.enter(flow.next(before))

    # -- who a client says it is

    def must_say_who(self, jail: Jail) -> bool:
        return self._outside.must_say(jail)

    def identify(self, flow: Flow, said: tuple[bytes, bytes] | None) -> str:
        """Give `flow` the jail of the client that proves its name; else a reason code."""
        jail = self._outside.named(said, flow.evidence.src, self.reactor.now())
        if isinstance(jail, str):
            return jail
        if len(jail.flows) >= jail.limit:
            return "limit.connections"
        flow.jail.flows.discard(flow)
        jail.flows.add(flow)
        flow.belong_to(jail)
        self._outside.remember(flow, said[0] if said else b"")
        return ""

    # -- what flows ask

    def may_speak_udp(self, jail: Jail) -> bool:
        """Whether there is any destination at all that the jail's subject may send datagrams to."""
        snapshot = self.snapshot
        if snapshot is None or self.settings.upstream is not None:  # a CONNECT carries no datagrams
            return False
        return snapshot.may_speak_udp(jail.subject, self.clock.now_ms())

    def datagram_socket(self, family: int) -> socket.socket | None:
        """None when the descriptors that are left are for others: one client may open many of these."""
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            return None
        if sock.fileno() <= self._max_fds - 2 * SPARE_FDS:
            return sock
        sock.close()
        return None

    def same_client(self, flow: Flow) -> Callable[[int, Any], bool]:
        """As `Outside.same_client`, of a flow that came in from outside jails. Raises OSError."""
        return self._outside.same_client(flow.client.sock)

    def flow_id(self) -> bytes:
        """16 random bytes."""
        if not self._ids:
            pool = os.urandom(IDS * 16)
            self._ids = [pool[at : at + 16] for at in range(0, len(pool), 16)]
        return self._ids.pop()

    def promote(self, flow: Flow | UdpFlow) -> None:
        """A flow became a tunnel: its time limits are the tunnel's now."""
        self._waiting.discard(flow)

    def live(self, tunnel: Tunnel | UdpFlow) -> None:
        self._tunnels[tunnel.flow] = tunnel
        self.tally.traffic(tunnel.flow.evidence.subject.project).live += 1
        self._events.announce("open", tunnel.flow, "allow", tunnel.decision.reason, 0, 0)

    def settling(self, tunnel: Tunnel | UdpFlow) -> None:
        if self._tunnels.pop(tunnel.flow, None) is not None:
            self.tally.traffic(tunnel.flow.evidence.subject.project).live -= 1

    def settle_later(self, tunnel: Tunnel | UdpFlow, seconds: float) -> None:
        """Ask the kernel about the tunnel's last bytes again after `seconds`."""
        self._settling.add(tunnel)
        self.reactor.call_later(seconds, lambda: self._settle(tunnel))

    def closed(self, tunnel: Tunnel | UdpFlow) -> None:
        tunnel.flow.closed = True
        self._settling.discard(tunnel)
        self.forget(tunnel.flow)

    def forget(self, flow: Flow | UdpFlow) -> None:
        """The flow's sockets are closed."""
        self._waiting.discard(flow)
        flow.jail.flows.discard(flow)
        self._outside.forget(flow)
        self._check_removed(flow.jail)

    def append_close(self, tunnel: Tunnel | UdpFlow, record: bytes, tries: int) -> None:
        """Keep a close until it is durable; the flow's reservation covers it until then.

        `tries` bounds that: a ledger that was away for so long has settled the flow by itself.
        """
        tunnel.flow.jail.closing += 1
        self._write_close(tunnel, record, tries)

    def _write_close(self, tunnel: Tunnel | UdpFlow, record: bytes, tries: int) -> None:
        self.ledger.append([record], partial(self._close_written, tunnel, record, tries))

    def _close_written(self, tunnel: Tunnel | UdpFlow, record: bytes, tries: int, durable: bool) -> None:
        if not durable and tries > 1:
            self.reactor.call_later(CLOSE_RETRY_S, partial(self._write_close, tunnel, record, tries - 1))
            return
        flow = tunnel.flow
        flow.jail.closing -= 1
        self._events.announce("close", flow, tunnel.decision.verdict.value, tunnel.ended, *tunnel.counts())
        self._check_removed(flow.jail)

    def refused(self, flow: Flow | UdpFlow, why: Refusal) -> None:
        """Write a refusal down, and tell who watches."""
        self._refusals.note(flow.jail, flow.evidence, why.reason)
        verdict = flow.evidence.decision.verdict.value if flow.evidence.decision else "deny"
        self._events.announce("deny", flow, "deny" if verdict == "allow" else verdict, why.reason, 0, 0)

    def denied_in_tunnel(self, flow: Flow | UdpFlow, reason: str) -> None:
        self._refusals.note(flow.jail, flow.evidence, reason)
        self._events.announce("deny", flow, "deny", reason, 0, 0)

    # -- time

    def _sweep(self) -> None:
        self.reactor.call_later(SWEEP_S, self._sweep)
        now = self.reactor.now()
        for flow in [flow for flow in self._waiting if flow.deadline <= now]:
            self.reactor.guarded(flow.expire)
        self._end_leases()
        self._events.tell()
        self._sweeps += 1
        if self._sweeps % SLOW_SWEEPS == 0:
            self._cut(self._outside.not_any_more(), "auth.failed")
            for jail in (*self._jails.values(), *self._outside.jails):
                self._refusals.flush(jail)
            self.spending.forget_ended(
                {tunnel.lease for tunnel in (*self._tunnels.values(), *self._settling)}
            )
            for tunnel in list(self._tunnels.values()):
                self.reactor.guarded(partial(tunnel.sweep, now))

    def _about(self) -> dict[str, Any]:
        """For the metrics: which snapshot is in force here, and how far the budgets are used up."""
        self.tally.gauges |= {
            ("budget_used_ratio", project, budget): used for project, budget, used in self.spending.ratios()
        }
        return {"generation": self.snapshot.generation if self.snapshot is not None else 0}

    def _end_leases(self) -> None:
        for tunnel in [tunnel for tunnel in (*self._tunnels.values(), *self._settling) if tunnel.lease]:
            reason = self.lease_over(tunnel.lease)
            if reason:
                self.reactor.guarded(partial(tunnel.end, reason))

    def _settle(self, tunnel: Tunnel | UdpFlow) -> None:
        if tunnel in self._settling:  # else it was cut meanwhile
            self._settling.discard(tunnel)
            tunnel.settle()

    def _resume(self) -> None:
        """A new connection to the ledger: claim the flows that are still open, before anything else."""
        self._unclaimed = deque([*self._tunnels.values(), *self._settling])
        for _ in range(CLAIMS):
            self._claim()

    def _claim(self) -> None:
        """The next flow that has no owner in the ledger's eyes; so many at a time that it keeps up."""
        if self._unclaimed:
            tunnel = self._unclaimed.popleft()
            self.ledger.append([tunnel.resume()], partial(self._claimed, tunnel), alone=True)

    def _claimed(self, tunnel: Tunnel | UdpFlow, durable: bool) -> None:
        if not durable:  # settled without us: what it would still move could not be recorded
            tunnel.end("ledger.orphaned")
        self._claim()

    def _check_removed(self, jail: Jail) -> None:
        if jail.removed and jail.quiet and self._jails.get(jail.name) is jail:
            del self._jails[jail.name]
            self.hub.send({"t": "jail.removed", "jail": jail.name})

    def shut_down(self) -> None:
        """Stop accepting and cut what runs; the ledger settles what we cannot tell it any more."""
        for jail in list(self._jails.values()):
            self.on_jail_removed(jail.name)
        for _, sock in self._outside.listeners:
            self.reactor.remove(sock.fileno())
            sock.close()
        for jail in self._outside.jails:
            self._cut(list(jail.flows), "gateway.stopped")

    @property
    def drained(self) -> bool:
        return not self._jails and self._outside.quiet


def _raise_fd_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
