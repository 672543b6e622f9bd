"""What tasks wrote, a piece at a time: the files are control's, whoever reads along is not."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.verbs import Verbs, may
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.appliance.control.scheduler import Scheduler
    from exeat.ledger.ipc import Message

MAX_PIECE: Final = 262_144  # bytes


class TaskLogs:
    """Those below `folder`, where the scheduler keeps them."""

    def __init__(self, folder: Path, scheduler: Scheduler) -> None:
        self._folder, self._scheduler = folder, scheduler

    def verbs(self) -> Verbs:
        return {"task.output": self._output}

    async def _output(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """From `offset` on, negative: from the end; in base64, beside the size of all."""
        may(message, "job.read")
        task, stream, offset = str(message.get("task")), message.get("stream"), message.get("offset")
        found = self._scheduler.find(task)
        if found is None:
            raise RefusedError("task.unknown", f"no task `{task}`")
        if stream not in ("out", "err") or type(offset) is not int:
            raise RefusedError("task.output", "stream is out or err, offset a whole number")
        try:
            data, size = _read(self._folder / found.id / stream, offset)
        except OSError as error:
            raise RefusedError("task.output", f"{found.id}: {error.strerror}") from None
        return {"data": base64.b64encode(data).decode(), "size": size, "project": found.project}


def _read(path: Path, offset: int) -> tuple[bytes, int]:
    """Nothing of a task that never began. Raises OSError."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size + offset) if offset < 0 else min(offset, size))
            return file.read(MAX_PIECE), size
    except FileNotFoundError:
        return b"", 0
