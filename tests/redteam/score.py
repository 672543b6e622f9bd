"""Play the corpus through a proxy, one case after the other, and judge each."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.redteam.arena import ARENA, Arena, ArenaError
from tests.redteam.judge import Verdict, World, intrusions, judge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.redteam.cases import Case

_LATE_S = 0.5  # how long after the last case a proxy may still do something


@dataclass(frozen=True)
class Endpoints:
    """Where the client finds the proxy's doors; only cases for these doors are played."""

    doors: dict[str, tuple[str, int]]

    @classmethod
    def of(cls, **doors: str) -> Endpoints:
        """From HOST:PORT texts; an empty one is a door that is not there."""
        split = {name: text.rpartition(":") for name, text in doors.items() if text}
        return cls({name: (host.strip("[]"), int(port)) for name, (host, _, port) in split.items()})


@dataclass(frozen=True)
class Score:
    """`skipped` needed a door that the proxy does not have. `late`: what came after the last case."""

    verdicts: tuple[tuple[Case, Verdict], ...]
    skipped: tuple[Case, ...]
    late: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return bool(self.verdicts) and not self.late and all(verdict.passed for _, verdict in self.verdicts)

    @property
    def failures(self) -> list[str]:
        found = [f"{case.id}: {'; '.join(v.problems)}" for case, v in self.verdicts if not v.passed]
        return found + [f"late: {problem}" for problem in self.late]


def score(
    arena: Arena, corpus: Sequence[Case], endpoints: Endpoints, via: Sequence[str], client: Path
) -> Score:
    """`via`: command words in front of the client, which say where it runs. Raises ArenaError."""
    world, begun = World.of(ARENA), time.monotonic()
    skipped = tuple(case for case in corpus if not case.doors <= endpoints.doors.keys())
    arena.news(reset=True)  # whatever happened before is not of these cases
    verdicts = []
    with Client([*via, "python3", "-I", str(client)], endpoints, arena.ca) as player:
        for case in corpus:
            if case not in skipped:
                result = player.play(case)
                verdicts.append((case, judge(world, case, result, arena.news(reset=True))))
    time.sleep(_LATE_S)
    late = tuple(intrusions(world, arena.news()))
    return Score(tuple(verdicts), skipped, late, time.monotonic() - begun)


class Client:
    """client.py as a process, somewhere."""

    def __init__(self, command: Sequence[str], endpoints: Endpoints, ca: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._say({"endpoints": endpoints.doors, "ca": ca})

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _say(self, message: dict[str, Any]) -> None:
        if self._process.stdin is None:
            raise ArenaError("the client has no input")
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def play(self, case: Case) -> dict[str, Any]:
        """What the client saw: `stopped` ("" when it played to the end) and `heard`."""
        self._say({"id": case.id, "steps": case.steps})
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise ArenaError(f"the client ended during {case.id}")
        result: dict[str, Any] = json.loads(line)
        return result


def await_port(arena: Arena, endpoints: Endpoints, seconds: float) -> None:
    """Wait until something listens at every TCP door. Raises ArenaError."""
    deadline = time.monotonic() + seconds
    for name, (host, port) in endpoints.doors.items():
        probe = ["python3", "-I", "-c", f"import socket; socket.create_connection(({host!r}, {port}), 1)"]
        while (
            name != "dns"
            and subprocess.run([*arena.enter, *probe], capture_output=True, check=False).returncode
        ):
            if time.monotonic() > deadline:
                raise ArenaError(f"nothing listens on {host}:{port}")
            time.sleep(0.1)
