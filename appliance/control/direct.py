"""Leases `via: direct`: pinholes past the proxy, each of them a flow like any other on the ledger.

The warden opens and counts, the guard names the addresses, the proxy judges (its policy, its counters, its
kill switch). Order of one flow: addresses from the guard, the proxy's yes, which charges the flow and
reserves its bytes, `open` durable with that reservation, and then the pinhole. Its end: the pinhole shut,
its last counts read, `close` durable. What nobody can count any more is settled by the ledger with all
that was reserved.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control import direct_places
from exeat.appliance.control.aio import Requester
from exeat.appliance.control.direct_flow import PROGRESS_S, DirectFlow, Terms
from exeat.appliance.control.direct_judge import DirectJudge
from exeat.appliance.control.direct_pins import DirectPins
from exeat.appliance.control.ledger_line import LedgerLine
from exeat.appliance.errors import RefusedError
from exeat.appliance.prices import tariff
from exeat.ledger.wire import Status
from exeat.policy.leases import State

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from exeat.appliance.config import Config
    from exeat.appliance.control.direct_places import Place
    from exeat.appliance.control.leases import Leases
    from exeat.appliance.control.store import Store
    from exeat.appliance.control.time import TrustedClock
    from exeat.ledger.ipc import Message
    from exeat.policy.leases import Lease

TURN_S: Final = 1.0
AGAIN_S: Final = 2.0  # until a place that could not be opened is tried again
MAX_FLOWS: Final = 128  # the warden takes 256 pinholes, the ledger 256 connections
NUMBERS: Final = 0xFFFF
STOPPED: Final = "gateway.stopped"
_UNKNOWN: Final[list[dict[str, Any]]] = [{}]  # what the warden has loaded is not what was said last


class Direct:
    """`tell` says something to a gateway process, `announce` to those who watch flows; `stops` is the kill
    switch, of a project."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: TrustedClock,
        leases: Leases,
        warden: Requester,
        *,
        tell: Callable[[str, Message], bool],
        stops: Callable[[str], bool],
        announce: Callable[[dict[str, Any]], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        applied: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`applied` hears how long each change of the host's table took, in seconds."""
        self._applied_in = applied
        self._node, self._tariff = config.node.name, tariff(config.prices)
        self._labels = tuple(member.label for member in config.routing.members)
        self._ledger = config.run_dir / "ledger" / "ledger.sock"
        self._store, self._clock, self._leases, self._warden = store, clock, leases, warden
        self._stops, self._announce, self._spawn = stops, announce, spawn
        guard = Requester(config.run_dir / "guard" / "guard.sock", "guard")
        self._judge = DirectJudge(partial(tell, "proxy"))
        self._pins = DirectPins(guard, partial(tell, "guard"), spawn)
        self.flows: dict[int, DirectFlow] = {}
        self._opening: set[Place] = set()
        self._refused: dict[Place, tuple[float, str]] = {}  # tried again from then on; why it is not open
        self._applied: list[dict[str, Any]] = []
        self._applying, self._finishing = asyncio.Lock(), asyncio.Lock()
        self._wake = asyncio.Event()
        self._number = 0

    def changed(self) -> None:
        """Leases, policies or the kill switch may have changed: look at once."""
        self._wake.set()

    async def run(self) -> None:
        """For as long as control runs. Returns at once where nobody has a way past the proxy."""
        if not self._labels:
            return
        await self._take_over()
        while True:
            try:
                async with asyncio.timeout(TURN_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.turn()
            except (RefusedError, sqlite3.Error) as error:
                print(f"control: direct leases: {error}", file=sys.stderr, flush=True)
            except Exception:  # a bug must not leave pinholes open that a revocation or the kill switch ends
                traceback.print_exc()

    async def turn(self) -> None:
        """Bring the pinholes to what leases and policies say now. Raises RefusedError, sqlite3.Error."""
        wanted = self._wanted()
        for flow in self.flows.values():
            if flow.place not in wanted:
                self._end(flow, self._why_over(flow))
        await self.apply()  # an end waits for nobody's answer
        known = [flow for flow in self.flows.values() if flow.place in wanted]
        await asyncio.gather(*(self._keep(flow, wanted[flow.place]) for flow in known))
        await self.apply()
        await self._finish()
        for place in wanted.keys() - self._opening - {flow.place for flow in self.flows.values()}:
            if self._refused.get(place, (0.0, ""))[0] <= time.monotonic():
                self._opening.add(place)
                self._spawn(self._open(place, wanted))
        self._refused = {place: why for place, why in self._refused.items() if place in wanted}

    def _wanted(self) -> dict[Place, Lease]:
        found: dict[Place, Lease] = {}
        for lease in self._leases.for_gateway():
            if lease.direct and not self._stops(lease.project):
                try:
                    found |= dict.fromkeys(direct_places.places(lease, self._labels), lease)
                except RefusedError:
                    continue  # its member is configured no more
        return found

    def _why_over(self, flow: DirectFlow) -> str:
        lease = self._leases.get(flow.terms.lease)
        if self._stops(flow.subject["project"]):
            return "kill"
        if lease is None or lease.state in (State.REVOKED, State.REVOKING):
            return "lease.revoked"
        over = lease.state is State.EXPIRED or self._clock.now_ms() >= lease.exp_ms
        return "lease.expired" if over else "policy.changed"

    def _end(self, flow: DirectFlow, reason: str) -> None:
        """The first reason counts; the pinhole is shut by the next `apply`."""
        flow.ended = flow.ended or reason

    # -- while it lives

    async def _keep(self, flow: DirectFlow, lease: Lease) -> None:
        if flow.ended:
            return
        flow.end = self._boot_end(lease)
        said = await self._judge.ask(flow)
        if said.reason:
            self._end(flow, said.reason)
            return
        flow.addresses = self._pins.following(flow)
        if not flow.addresses:
            self._end(flow, "dns.no_address")
            return
        if flow.line.lost:
            # A new connection must claim the flow; one that was settled meanwhile is over.
            if await flow.line.append(flow.resume()) is Status.REFUSED:
                self._end(flow, "ledger.orphaned")
        elif time.monotonic() - flow.progressed >= PROGRESS_S:
            flow.progressed = time.monotonic()
            await flow.line.append(flow.progress())

    def _boot_end(self, lease: Lease) -> int:
        """The lease's end in seconds of CLOCK_BOOTTIME; the same number while the clocks agree."""
        left_s = (lease.exp_ms - self._clock.now_ms()) / 1000
        return max(0, round(time.clock_gettime(time.CLOCK_BOOTTIME) + left_s))

    async def apply(self) -> None:
        """Have the warden open what lives and shut what has ended. Raises RefusedError."""
        async with self._applying:
            flows = list(self.flows.values())
            holes = [flow.pinhole() for flow in flows]
            if _same(holes, self._applied):
                return
            began = time.monotonic()
            reply, _ = await self._warden.call("routing.set", pinholes=holes)
            self._applied_in(time.monotonic() - began)
            self._applied = holes
            for flow, hole in zip(flows, holes, strict=True):
                flow.applied = True
                flow.final = not hole["end"]
            self._count(reply["pinholes"])

    def counted(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """What the warden says of its pinholes, once a second."""
        if self.flows and not self._applying.locked():
            self._count(rows)

    def _count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        known = {int(row["number"]): row for row in rows}
        for flow in list(self.flows.values()):
            row = known.get(flow.terms.number)
            if row is not None:
                flow.out, flow.into = int(row["out"]), int(row["in"])
                if row["over"]:
                    self._end(flow, "lease.expired" if row["over"] == "time" else flow.terms.spent)
                    self._wake.set()
            elif flow.applied:
                self._lose(flow)
                self._applied = _UNKNOWN

    def _lose(self, flow: DirectFlow) -> None:
        """The host's table was made anew and its counters are gone: it may have moved all it had."""
        self._end(flow, "ledger.orphaned")
        flow.out = max(flow.out, flow.terms.quota - flow.into)
        flow.line.close()  # on which the ledger settles it with what was reserved
        self._forget(flow)

    async def _finish(self) -> None:
        """Write down what is over, then have its pinhole removed."""
        async with self._finishing:
            for flow in [flow for flow in self.flows.values() if flow.ended and flow.final]:
                # Until the ledger records again its reservation stands for it.
                if await flow.line.append(flow.close()) is not Status.UNAVAILABLE:
                    self._forget(flow)
        if len(self._applied) > len(self.flows):
            await self.apply()

    def _forget(self, flow: DirectFlow) -> None:
        flow.line.close()
        self.flows.pop(flow.terms.number, None)
        self._judge.over(flow)
        self._announce(flow.event("close"))
        self._store.delete_direct(flow.terms.number)

    # -- opening

    async def _open(self, place: Place, wanted: Mapping[Place, Lease]) -> None:
        try:
            reason = await self._try(place, wanted)
        except RefusedError as error:
            reason = error.code
        finally:
            self._opening.discard(place)
        if reason:
            self._refused[place] = (time.monotonic() + AGAIN_S, reason)

    async def _try(self, place: Place, wanted: Mapping[Place, Lease]) -> str:
        """The reason code why it is not open, "" if it is. Raises RefusedError."""
        if len(self.flows) + len(self._opening) > MAX_FLOWS:
            return "limit.connections"
        lease, live = wanted[place], {flow.place for flow in self.flows.values()}
        share = sum(1 for each in wanted if each.lease == place.lease and each not in live)
        terms = Terms(0, os.urandom(16).hex(), *place.words, 0, "", _boot_ns())
        line = LedgerLine(self._ledger)
        flow = DirectFlow(terms, self._node, line, self._boot_end(lease), tariff=self._tariff)
        flow.addresses = await self._pins.first(flow)
        if not flow.addresses:
            return "dns.no_address"
        said = await self._judge.begin(flow, share)
        if said.reason:
            self._judge.over(flow)  # an answer that came too late may have begun it
            return said.reason
        flow.terms = said.applied_to(terms, self._next_number(), next(iter(flow.addresses)))
        return await self._record(flow)

    async def _record(self, flow: DirectFlow) -> str:
        """On the ledger first, then open; kept before both, so that a crash finds it again."""
        number = flow.terms.number
        self._store.save_direct(number, flow.terms.dump())
        if await flow.line.append(flow.opening()) is not Status.DURABLE:
            self._judge.over(flow)
            self._store.delete_direct(number)
            flow.line.close()
            return "ledger.unavailable"
        flow.progressed = time.monotonic()
        self.flows[number] = flow
        self._announce(flow.event("open"))
        if flow.place in self._wanted():  # else the next turn ends it before it began
            await self.apply()
        self._wake.set()
        return ""

    def _next_number(self) -> int:
        """Not used by any that the warden may still know."""
        while True:
            self._number = self._number % NUMBERS + 1
            if self._number not in self.flows:
                return self._number

    async def heard(self, message: Message) -> None:
        """The proxy's `direct.said`, and the guard's `pins`."""
        if message["t"] == "direct.said":
            self._judge.heard(message)
            return
        key = self._pins.told(message)
        for flow in self.flows.values():
            if not flow.ended and self._pins.key_of(flow) == key:
                flow.addresses = self._pins.following(flow)
        try:
            await self.apply()
        finally:
            self._pins.done(message)

    # -- after a crash, and for others

    async def _take_over(self) -> None:
        """Settle what an earlier control left: exactly where the warden still counts; what it does not
        know any more was settled by the ledger when that control died."""
        self._number = self._store.last_direct
        for terms in map(Terms.load, self._store.load_direct()):
            line = LedgerLine(self._ledger)
            flow = DirectFlow(terms, self._node, line, ended=STOPPED, applied=True, tariff=self._tariff)
            self.flows[terms.number] = flow
        while True:
            try:
                reply, _ = await self._warden.call("routing.status")
                self._applied = _UNKNOWN if reply["pinholes"] else []
                self._count(reply["pinholes"])
                await self.apply()
                await self._finish()
            except RefusedError as error:
                print(f"control: direct leases: {error}", file=sys.stderr, flush=True)
            if not self.flows and not self._applied:
                return
            await asyncio.sleep(TURN_S)

    async def settle(self) -> None:
        """End all of them now, exactly: the counters of the one who judges them start anew."""
        for flow in self.flows.values():
            self._end(flow, STOPPED)
        try:
            await self.apply()
            await self._finish()
        except RefusedError as error:
            print(f"control: direct leases: {error}", file=sys.stderr, flush=True)

    def cut(self, reason: str, hit: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
        """End those whose row `hit` takes. The lease stays, and may open it anew."""
        found = [flow for flow in self.flows.values() if not flow.ended and hit(flow.row())]
        for flow in found:
            self._end(flow, reason)
        self._wake.set()
        return [flow.row() for flow in found]

    def rows(self) -> list[dict[str, Any]]:
        """As `flow.ls` shows them."""
        return [flow.row() for flow in self.flows.values() if not flow.ended]

    def of_lease(self, lease: str) -> dict[str, Any]:
        """What a direct lease has open, and why not; nothing of others."""
        live = [
            {
                "flow": flow.terms.flow,
                "member": flow.terms.member,
                "to": flow.place.text,
                "bytes_out": flow.out,
                "bytes_in": flow.into,
                "reserved": flow.terms.quota,
            }
            for flow in self.flows.values()
            if flow.terms.lease == lease and flow.applied and not flow.ended
        ]
        shut = [
            {"member": place.member, "to": place.text, "reason": reason}
            for place, (_, reason) in self._refused.items()
            if place.lease == lease
        ]
        return {"direct": [*live, *shut]} if live or shut else {}


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _same(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> bool:
    """Whether the pinholes are the same; an end may be a second off, because clocks are read twice."""
    if len(one) != len(two) or two is _UNKNOWN:
        return False
    for a, b in zip(one, two, strict=True):
        if {**a, "end": 0} != {**b, "end": 0} or bool(a["end"]) != bool(b["end"]):
            return False
        if abs(a["end"] - b["end"]) > 1:
            return False
    return True
