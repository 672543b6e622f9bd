"""A witness's side of silence: which of the ledgers it watches it has not heard of for too long.

Nodes send their checkpoint at least once a minute, also where it is the same (`witness_client`). One that is
stopped, cut off, or kept from its witness falls silent. DIR/status.json says how things stand:

    time_s  when it was written (Unix seconds)
    logs    of each: origin, size (cosigned last), silent_s (not heard of for so long), alarm, forks (refused)
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.clock import boot_s
from exeat.ledger.small_files import read_small, replace

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.ledger.witness import Witness

SILENT: Final = "witness.silent"
STATUS_S: Final = 15.0  # between two writings of the status, if nothing changes
_MAX_STATUS: Final = 1 << 20  # bytes


@dataclass(slots=True)
class Log:
    """One ledger that is watched."""

    origin: str
    size: int = 0
    silent_s: int = 0
    alarm: bool = False
    forks: int = 0


class Watch:
    """Looks after the logs of `witness`; one that was not heard of for `after_s` is silent."""

    def __init__(self, directory: Path, witness: Witness, after_s: float) -> None:
        self._path, self._witness, self._after_s = directory / "status.json", witness, after_s
        self._logs = {origin: Log(origin) for origin in witness.origins}
        self._written = 0.0

    def look(self) -> list[Log]:
        """Those that fell silent, or are heard of again, since the last look. Raises OSError."""
        changed = []
        now = boot_s()
        for log in self._logs.values():
            before = log.alarm, log.forks
            log.size, log.forks = self._witness.standing(log.origin)
            log.silent_s = int(now - self._witness.heard(log.origin))
            log.alarm = log.silent_s > self._after_s
            if (log.alarm, log.forks) != before:
                self._written = 0.0
            if log.alarm != before[0]:
                changed.append(log)
        if now - self._written >= STATUS_S or not self._written:
            told = {"time_s": int(time.time()), "logs": [asdict(log) for log in self._logs.values()]}
            replace(self._path, json.dumps(told) + "\n")
            self._written = now
        return changed


def read_status(folder: Path) -> tuple[int, list[Log]] | None:
    """(when it was written, the logs); None if there is none that can be read. Raises OSError."""
    try:
        found: dict[str, Any] = json.loads(read_small(folder / "status.json", _MAX_STATUS))
        logs = [Log(**each) for each in found["logs"]]
        written = found["time_s"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (written, logs) if type(written) is int and all(map(_is_whole, logs)) else None


def _is_whole(log: Log) -> bool:
    types = {"origin": str, "size": int, "silent_s": int, "alarm": bool, "forks": int}
    return all(type(value) is types[name] for name, value in asdict(log).items())
