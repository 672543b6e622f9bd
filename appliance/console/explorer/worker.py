"""One worker: questions as lines of JSON on standard input, answers as lines on standard output.

It runs behind what matters more, and a question that takes long gives way to everything else on the
machine; as no process may raise itself again, the worker is `over` after that one. It ends with the process
that started it, and is killed when nobody wants the answer any more. An answer is any number of
lines with `row`, then one with `done`, or with `error` and `message`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.console.explorer import ledger, payloads, policies, views
from exeat.appliance.console.explorer.asked import AskError, Place
from exeat.ledger.bundle import BundleError
from exeat.ledger.keys import KeyMissingError
from exeat.ledger.note import NoteError
from exeat.ledger.reader import ReaderError
from exeat.ledger.records import RecordError
from exeat.ledger.tiles import TileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PR_SET_PDEATHSIG: Final = 1
NICE: Final = 10  # about a tenth of what is not nice; a short question must be answered on a busy node, too
SHORT_S: Final = 1.0  # of computing
_LOOK_S: Final = 0.1
MEMORY: Final = 2 << 30  # bytes of addresses: what goes over it fails alone
_ANSWERS: Final[dict[str, Callable[[Place, dict[str, Any]], dict[str, Any]]]] = {
    "entries": ledger.entries,
    "entry": ledger.entry,
    "proof": ledger.proof,
    "head": ledger.head,
    "consistency": ledger.consistency,
    "sums": ledger.sums,
    "audit": ledger.audit,
    "egress": views.egress,
    "dns.anomalies": views.dns_anomalies,
    "days": views.days,
    "review": views.review,
    "policy.check": policies.check,
    "policy.diff": policies.diff,
    "policy.trial": policies.trial,
    "preview": policies.preview,
    "payload": payloads.classify,
}
_STREAMS: Final[dict[str, Callable[[Place, dict[str, Any]], Iterator[dict[str, Any]]]]] = {
    "export": ledger.export
}
_UNREADABLE: Final = (ReaderError, OSError, sqlite3.Error, MemoryError)
_DAMAGED: Final = (BundleError, KeyMissingError, NoteError, TileError, RecordError)


def answer(place: Place, ask: str, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of an answer."""
    try:
        if ask in _STREAMS:
            for row in _STREAMS[ask](place, args):
                yield {"row": row}
            yield {"done": {}}
        elif ask in _ANSWERS:
            yield {"done": _ANSWERS[ask](place, args)}
        else:
            yield {"error": "query.unknown", "message": f"no question `{ask}`"}
    except AskError as error:
        yield {"error": error.code, "message": str(error)}
    except _UNREADABLE as error:
        yield {"error": "ledger.unreadable", "message": f"the ledger cannot be read: {error}"}
    except _DAMAGED as error:
        yield {"error": "ledger.unproved", "message": f"{error}: run `exeat ledger fsck`"}


class Patience(threading.Thread):
    """Watches over the thread that made it: once that has computed for `SHORT_S`, it is `over`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._worker, self._begun = threading.get_native_id(), time.process_time()
        self._answered = threading.Event()
        self.over = False

    def run(self) -> None:
        while not self._answered.wait(_LOOK_S):
            if time.process_time() - self._begun > SHORT_S:
                with contextlib.suppress(OSError):  # a container may not let us
                    os.setpriority(os.PRIO_PROCESS, self._worker, 19)
                    os.sched_setscheduler(self._worker, os.SCHED_IDLE, os.sched_param(0))
                self.over = True
                return

    def end(self) -> bool:
        """The answer is there; whether it took long."""
        self._answered.set()
        self.join()
        return self.over


def _prepare() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(words: list[str]) -> None:
    """`words`: the state directory, the ledger's folder, the file of the index."""
    _prepare()
    place = Place(*map(Path, words))
    for line in sys.stdin:
        asked = json.loads(line)
        patience = Patience()
        patience.start()
        for said in answer(place, str(asked["ask"]), asked["args"]):
            if "row" not in said:
                said["over"] = patience.end()
            sys.stdout.write(json.dumps(said, separators=(",", ":")) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
