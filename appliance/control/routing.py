"""What control knows of the host's table, and what of it belongs on the ledger.

The warden keeps the table; it may not write to the ledger. So control asks it every second and
records repairs, failures, and what members tried to go around the gateway.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.appliance.config import Config
    from exeat.appliance.control.aio import Requester
    from exeat.appliance.control.evidence import Evidence

ASK_S: Final = 1.0
TRIES_S: Final = 60.0  # a member's attempts are summed up for so long, then recorded
TRIES: Final = ("dns", "bypass", "quic", "rejected", "spoofed")


class Routing:
    """The members' table as the warden last described it: `state`, {} where there is none."""

    def __init__(
        self,
        config: Config,
        warden: Requester,
        evidence: Evidence,
        counted: Callable[[list[dict[str, Any]]], None] = lambda _: None,
    ) -> None:
        self._counted = counted  # hears of the pinholes
        self._members = config.routing.members
        self._warden, self._evidence = warden, evidence
        self.state: dict[str, Any] = {}
        self._repairs = 0
        self._failed = ""
        self._tries: dict[str, dict[str, int]] = {}
        self._summed_up = 0.0

    def attested(self) -> str | None:
        """Digest of the table as it was found to be loaded a second ago: "" where nobody is confined, None
        where it is not known or not as it should be.
        """
        if not self._members:
            return ""
        return None if self.state.get("failed") else self.state.get("digest")

    async def watch(self) -> None:
        """Ask, and record, for as long as control runs. Returns at once where nobody is confined."""
        while self._members:
            try:
                reply, _ = await self._warden.call("routing.status")
                self._counted(reply["pinholes"])
                await self.judge(reply, asyncio.get_running_loop().time())
            except RefusedError as error:
                self.state["failed"] = str(error)
            await asyncio.sleep(ASK_S)

    async def judge(self, reply: dict[str, Any], now: float) -> None:
        """Record what is new in a `routing.status`. `now` is in seconds, of any clock that only grows."""
        self.state = {key: reply[key] for key in ("digest", "repairs", "note", "failed", "members")}
        repairs, failed = int(reply["repairs"]), str(reply["failed"])
        if repairs > self._repairs:
            await self._record("repaired", f"{repairs - self._repairs} times: {reply['note']}")
        if failed and failed != self._failed:
            await self._record("failed", failed)
        self._repairs, self._failed = repairs, failed  # a warden that was started again counts from 0
        if now >= self._summed_up + TRIES_S:
            self._summed_up = now
            for member in reply["members"]:
                await self._sum_up(str(member["label"]), member)

    async def _sum_up(self, label: str, member: dict[str, Any]) -> None:
        counts = {name: int(member.get(name, 0)) for name in TRIES}
        before = self._tries.get(label, {})
        self._tries[label] = counts
        if any(counts[name] < before.get(name, 0) for name in TRIES):
            before = {}  # the table was made anew
        new = {name: counts[name] - before.get(name, 0) for name in TRIES}
        said = " ".join(f"{name} {count}" for name, count in new.items() if count)
        if said:
            await self._record("attempts", f"packets: {said}", label, sum(new.values()))

    async def _record(self, what: str, detail: str, label: str = "", count: int = 1) -> None:
        project, _, agent = label.partition("/")
        await self._evidence.owe(
            self._evidence.anomaly(project=project, agent=agent, what=what, detail=detail, count=count)
        )
