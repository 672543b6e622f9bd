"""What enforces, on the ledger: digests of the rules that are loaded, the policies in force, the program.

At the start, whenever one of them is another, and once an hour. A record of the node is about the host's
table and all policies; one of a job about the rules in its jail and the policy it is judged by. What the
numbers are over, so that a stranger can make them again, is in docs/formats/ledger.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.appliance.errors import RefusedError
from exeat.appliance.program import program_digest
from exeat.sandbox.spec import MAX_JAILS

if TYPE_CHECKING:
    from exeat.appliance.control.aio import Requester
    from exeat.appliance.control.evidence import Evidence
    from exeat.appliance.control.jobs import Job, Jobs
    from exeat.appliance.control.policies import Policies
    from exeat.appliance.control.routing import Routing

LOOK_S: Final = 1.0
JAIL_S: Final = 60.0  # between two looks at the rules of one jail; it costs the warden some 10 ms
AGAIN_S: Final = 3600.0  # what has not changed is said again
FIRST, CHANGE, STILL = "first", "change", "still"


class _Seen(NamedTuple):
    """What was found, when it was looked at, and when that was recorded (seconds)."""

    found: tuple[str, str]  # rules, policy
    looked: float
    said: float


class Attestation:
    """`watch` runs as long as control does."""

    def __init__(
        self, warden: Requester, routing: Routing, policies: Policies, jobs: Jobs, evidence: Evidence
    ) -> None:
        self._warden, self._routing, self._policies = warden, routing, policies
        self._jobs, self._evidence = jobs, evidence
        self._program = ""
        self._node: _Seen | None = None
        self._jails: dict[str, _Seen] = {}

    async def watch(self) -> None:
        self._program = await asyncio.to_thread(program_digest)
        clock = asyncio.get_running_loop().time
        while True:
            await self.look_at_node(clock())
            await self.look_at_jails(clock())
            await asyncio.sleep(LOOK_S)

    async def look_at_node(self, now: float) -> None:
        """Record the node, if that is due. `now` is in seconds, of any clock that only grows."""
        rules = self._routing.attested()
        if rules is None:
            return  # not known yet, or not as it should be: that is an anomaly of its own
        found = rules, bound_digest(self._policies.bindings())
        what = _due(self._node, found, now)
        if what:
            self._node = _Seen(found, now, now)
            said = self._said("host", rules)
            await self._evidence.owe(self._evidence.attest(what=what, digest=found[1], **said))

    async def look_at_jails(self, now: float) -> None:
        """Look at those whose turn it is, a few at a time."""
        live = {job.name: job for job in self._jobs.all.values() if job.started_s and job.code is None}
        self._jails = {name: seen for name, seen in self._jails.items() if name in live}
        looked = {name: seen.looked for name, seen in self._jails.items()}
        due = [name for name in live if looked.get(name, -JAIL_S) + JAIL_S <= now]
        for start in range(0, len(due), MAX_JAILS):
            names = due[start : start + MAX_JAILS]
            try:
                reply, _ = await self._warden.call("routing.status", jails=names)
            except RefusedError:
                return  # the warden is away
            for name, rules in reply["rules"].items():
                await self._jail(live[name], str(rules), now)

    async def _jail(self, job: Job, rules: str, now: float) -> None:
        document = self._policies.document_of(job.project, job.name)
        found = rules, document.digest if document is not None else ""
        before = self._jails.get(job.name)
        what = _due(before, found, now)
        if before is not None and not what:
            self._jails[job.name] = before._replace(looked=now)
            return
        self._jails[job.name] = _Seen(found, now, now)
        if before is not None and before.found[0] != rules:
            await self._evidence.owe(
                self._evidence.anomaly(
                    project=job.project,
                    agent=job.agent,
                    what="rules",
                    detail=f"the rules in the jail of {job.name} are others than a minute ago",
                    count=1,
                )
            )
        said = self._said("jail", rules)
        await self._evidence.owe(self._evidence.attest(what=what, digest=found[1], job=job, **said))

    def _said(self, where: str, rules: str) -> dict[str, Any]:
        """`data` for programs, `detail` for people."""
        data = {
            "where": where,
            "rules": rules,
            "program": self._program,
            "version": version("exeat"),
            "python": platform.python_version(),
            "kernel": platform.release(),
        }
        detail = f"{where}: rules {rules[:12] or 'none'}, program {self._program[:12]} ({data['version']})"
        return {"data": json.dumps(data, sort_keys=True, separators=(",", ":")).encode(), "detail": detail}


def _due(before: _Seen | None, found: tuple[str, str], now: float) -> str:
    """What to say of `found`; "" for nothing."""
    if before is None:
        return FIRST
    if before.found != found:
        return CHANGE
    return STILL if now >= before.said + AGAIN_S else ""


def bound_digest(bindings: dict[str, Any]) -> str:
    """SHA-256, in hex, of which documents bind whom on the node; jobs with one of their own are not in it."""
    lines = [f"project {name} {digest}\n" for name, digest in sorted(bindings["projects"].items())]
    lines += [f"shadow {name} {digest}\n" for name, digest in sorted(bindings["shadows"].items())]
    lines += [f"{what} {bindings[what]}\n" for what in ("baseline", "shadow_baseline")]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
