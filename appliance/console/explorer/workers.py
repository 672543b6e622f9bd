"""The workers, as the console sees them: few, niced, one question of each person at a time.

A long question keeps a worker; whoever stops waiting for it (the browser is closed, the time is up) has
the worker killed, and the next question starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

MOST_WORKERS: Final = 3
MOST_STREAMS: Final = 1  # exports at once: one worker must be left for short questions
MOST_WAITING: Final = 16  # questions of one person
LIMIT_S: Final = 30.0  # of silence
_LINE: Final = 32 << 20  # bytes of one line of an answer
_MODULE: Final = "exeat.appliance.console.explorer.worker"


@dataclass
class Workers:
    """Asks about the ledger in `directory`; `limit_s` is how long a worker may say nothing."""

    state_dir: Path
    directory: Path
    index_path: Path
    limit_s: float = LIMIT_S
    _idle: list[Process] = field(default_factory=list)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_WORKERS))
    _streams: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_STREAMS))
    _turns: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    _waiting: Counter[str] = field(default_factory=Counter)
    _over: set[int] = field(default_factory=set)  # that answered something long and may not be quick again
    _closed: bool = False

    async def ask(self, person: str, ask: str, **args: object) -> dict[str, Any]:
        """The answer. Raises RefusedError: the worker's, `query.timeout`, `query.busy`."""
        async with self._turn(person), self._worker() as worker:
            done: dict[str, Any] = {}
            async for said in self._lines(worker, ask, args):
                done = said.get("done", done)
            return done

    async def stream(self, ask: str, **args: object) -> AsyncGenerator[dict[str, Any], None]:
        """The rows of a long answer, beside other questions. Raises as `ask`, `query.busy` while there is
        another one; ending it early (aclose) ends the worker."""
        if self._streams.locked():
            raise RefusedError("query.busy", "another export is under way: begin when it has ended")
        async with self._streams, self._worker() as worker:
            async for said in self._lines(worker, ask, args):
                if "row" in said:
                    yield said["row"]

    @contextlib.asynccontextmanager
    async def _turn(self, person: str) -> AsyncIterator[None]:
        if self._waiting[person] >= MOST_WAITING:
            raise RefusedError("query.busy", f"{MOST_WAITING} questions of yours wait already: let them end")
        self._waiting[person] += 1
        try:
            async with self._turns[person]:
                yield
        finally:
            self._waiting[person] -= 1
            if not self._waiting[person]:
                del self._waiting[person]
                self._turns.pop(person, None)

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[Process]:
        """A worker that is free again only if its answer was taken to the end."""
        async with self._places:
            worker = self._idle.pop() if self._idle else await self._start()
            try:
                yield worker
            except BaseException as error:
                if not isinstance(error, RefusedError) or error.code in _BROKEN:
                    await _end(worker)
                    raise
                await self._keep(worker)
                raise
            await self._keep(worker)

    async def _keep(self, worker: Process) -> None:
        if self._closed or worker.pid in self._over:
            self._over.discard(worker.pid)
            await _end(worker)
        elif worker.returncode is None:
            self._idle.append(worker)

    async def _start(self) -> Process:
        words = (self.state_dir, self.directory, self.index_path)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", _MODULE, *map(str, words)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE,
        )

    async def _lines(
        self, worker: Process, ask: str, args: dict[str, object]
    ) -> AsyncIterator[dict[str, Any]]:
        assert worker.stdin is not None  # noqa: S101 - they were asked for
        assert worker.stdout is not None  # noqa: S101
        worker.stdin.write(json.dumps({"ask": ask, "args": args}).encode() + b"\n")
        while True:
            try:
                line = await asyncio.wait_for(worker.stdout.readline(), self.limit_s)
            except TimeoutError:
                raise RefusedError(
                    "query.timeout",
                    f"no answer in {self.limit_s:.0f} s: ask for less, or again while the index is made",
                ) from None
            except ValueError:
                raise RefusedError("query.too_large", "the answer is too large: ask for less") from None
            if not line:
                raise RefusedError("query.failed", "the question could not be answered: ask for less")
            said: dict[str, Any] = json.loads(line)
            if said.get("over"):
                self._over.add(worker.pid)
            if "error" in said:
                raise RefusedError(said["error"], said["message"])
            yield said
            if "done" in said:
                return

    async def close(self) -> None:
        """End those that wait for questions; the others end with theirs, or with this process."""
        self._closed = True
        while self._idle:
            await _end(self._idle.pop())


# After these the worker is not where the next question could begin.
_BROKEN: Final = frozenset({"query.timeout", "query.too_large", "query.failed"})


def _kill(worker: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.kill()


async def _end(worker: Process) -> None:
    _kill(worker)
    await asyncio.shield(worker.wait())
