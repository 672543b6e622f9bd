"""What becomes of the changes a job made to a folder it edits: who decided it is on the ledger first.

The changes themselves are root's to read and the folder is its owner's, so `exeat job merge` applies them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.verbs import Verbs, person
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from exeat.appliance.control.evidence import Evidence
    from exeat.appliance.control.jobs import Jobs
    from exeat.appliance.control.scheduler import Scheduler
    from exeat.ledger.ipc import Message

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}", re.ASCII)
_WHAT: Final = ("merge", "merge.failed", "drop")


class Edits:
    def __init__(self, jobs: Jobs, scheduler: Scheduler, evidence: Evidence) -> None:
        self._jobs, self._scheduler, self._evidence = jobs, scheduler, evidence

    def verbs(self) -> Verbs:
        return {"job.edit": self._edit}

    async def _edit(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """Which job `job` (its name, or a task's id) is; with `what`, the record of that, durable."""
        name = str(message.get("job"))
        task = self._scheduler.find(name)
        name = (task.job or task.id) if task is not None else name  # one that waits has changed nothing
        job = self._jobs.all.get(name)
        if job is not None and not job.ended.is_set():
            raise RefusedError("job.running", f"job {name} still runs")
        if (what := message.get("what")) is not None:
            if what not in _WHAT or not _NAME.fullmatch(name):
                raise RefusedError("job.edit", f"what is one of {', '.join(_WHAT)}, and job the name of one")
            project = job.project if job is not None else task.project if task is not None else ""
            record = self._evidence.job(
                job=name,
                project=project,
                agent=job.agent if job is not None else "",
                digest="",
                what=str(what),
                reason="",
                detail=str(message.get("detail") or ""),
                code=0,
                ran_ms=0,
                actor=person(message),
            )
            await self._evidence.write(record)
        return {"job": name}
