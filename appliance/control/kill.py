"""The kill switch: projects, or everything, that may run and reach nothing until a person says otherwise."""

from __future__ import annotations

import json
import sqlite3
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from exeat.appliance.control.verbs import may
from exeat.appliance.errors import RefusedError
from exeat.ledger.records import printable
from exeat.policy.snapshot import EVERYONE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from exeat.appliance.control.evidence import Evidence
    from exeat.appliance.control.store import Store
    from exeat.appliance.control.verbs import Verbs
    from exeat.ledger.ipc import Message


@dataclass(frozen=True)
class Stop:
    """Who turned it on, why, and when (ms since 1970, as the clock had it: for people only)."""

    by: str
    reason: str
    at_ms: int
    jobs: bool = True  # end the jobs, too, and let none start


class KillSwitch:
    """What is stopped. `changed` publishes it: the proxy cuts what lives when it hears of it.

    `projects` are those there are: a misspelt one would stop nothing. `end_jobs` sends SIGKILL to the jobs
    of one, or of all (None), and says how many they were.
    """

    def __init__(
        self,
        store: Store,
        evidence: Evidence,
        now_ms: Callable[[], int],
        projects: Callable[[], Collection[str]],
        changed: Callable[[], None],
        end_jobs: Callable[[str | None], Awaitable[int]],
    ) -> None:
        self._store = store
        self._evidence = evidence
        self._now_ms = now_ms
        self._projects = projects
        self._changed = changed
        self._end_jobs = end_jobs
        self._stops = {scope: Stop(**json.loads(body)) for scope, body in store.load_kills()}

    @property
    def scopes(self) -> list[str]:
        """Projects and EVERYONE, as a snapshot takes them."""
        return sorted(self._stops)

    def stops(self, project: str) -> bool:
        return not self._stops.keys().isdisjoint((EVERYONE, project))

    def stops_jobs(self, project: str) -> bool:
        """May no job of this project run?"""
        return any(stop.jobs for scope, stop in self._stops.items() if scope in (EVERYONE, project))

    def rows(self) -> list[dict[str, Any]]:
        """What is stopped, for the command line; project None is everything."""
        return [
            {"project": None if scope == EVERYONE else scope, **asdict(stop)}
            for scope, stop in sorted(self._stops.items())
        ]

    def verbs(self) -> Verbs:
        return {"kill.ls": self._ls, "kill.on": self._on, "kill.off": self._off}

    async def _ls(self, _message: Message, _fds: list[int]) -> dict[str, Any]:
        return {"stopped": self.rows()}

    async def _on(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """In force first, kept second, on the ledger third: nothing that fails delays it."""
        who, scope = may(message, "kill.on"), _scope(message)
        known = self._projects()
        if scope != EVERYONE and scope not in known:
            there = ", ".join(sorted(known)) or "none"
            raise RefusedError("project.unknown", f"no project `{scope}` to stop (there are: {there})")
        before = self._stops.get(scope)  # who may only stop must not let jobs go on that an admin stopped
        jobs = message.get("network_only") is not True or (before is not None and before.jobs)
        stop = Stop(who, printable(str(message.get("reason") or ""), 256), self._now_ms(), jobs)
        self._stops[scope] = stop
        record = self._record("kill.on", scope, who, stop.reason)
        self._changed()
        ended = await self._end_jobs(None if scope == EVERYONE else scope) if jobs else 0
        kept = self._keep(scope, stop)
        await self._evidence.owe(record)
        if not kept:
            raise RefusedError(
                "kill.not_kept", "stopped, but only until control restarts: its database cannot be written"
            )
        return {"stopped": self.rows(), "ended": ended}

    def _keep(self, scope: str, stop: Stop) -> bool:
        try:
            self._store.save_kill(scope, json.dumps(asdict(stop)))
        except sqlite3.Error as error:
            print(f"control: the kill switch cannot be kept: {error}", file=sys.stderr, flush=True)
            return False
        return True

    async def _off(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """On the ledger first: nothing opens unrecorded."""
        who, scope = may(message, "kill.off"), _scope(message)
        stop = self._stops.get(scope)
        if stop is None:
            there = ", ".join("everything" if name == EVERYONE else name for name in self.scopes) or "nothing"
            what = "everything" if scope == EVERYONE else f"project {scope}"
            raise RefusedError("kill.not_on", f"the kill switch is not on for {what} (it stops: {there})")
        await self._evidence.write(self._record("kill.off", scope, who, str(message.get("reason") or "")))
        if self._stops.get(scope) is not stop:
            raise RefusedError("kill.changed", "somebody turned the kill switch meanwhile: see `exeat kill`")
        try:
            self._store.delete_kill(scope)
        except sqlite3.Error as error:
            raise RefusedError("kill.not_kept", f"still stopped: the database says {error}") from None
        del self._stops[scope]
        self._changed()
        return {"stopped": self.rows()}

    def _record(self, what: str, scope: str, who: str, reason: str) -> bytes:
        project = "" if scope == EVERYONE else scope
        return self._evidence.policy(project=project, digest="", actor=who, verdict=what, detail=reason)


def _scope(message: Message) -> str:
    """EVERYONE or a project; a request that names neither, or both, is refused."""
    project, everything = message.get("project"), message.get("all")
    if everything is True and project is None:
        return EVERYONE
    if everything is None and isinstance(project, str) and project not in ("", EVERYONE):
        return project
    raise RefusedError("kill.scope", "say what: everything, or one project")
