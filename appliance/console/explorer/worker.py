"""One worker: questions as lines of JSON on standard input, answers as lines on standard output.

It gives way to everything else on the machine, ends with the process that started it, and is killed
when nobody wants the answer any more. An answer is any number of lines with `row`, then one with
`done`, or with `error` and `message`.
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


def _give_way() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.nice(19)
    with contextlib.suppress(OSError):  # a container may not let us; nice it is in any case
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(words: list[str]) -> None:
    """`words`: the state directory, the ledger's folder, the file of the index."""
    _give_way()
    place = Place(*map(Path, words))
    for line in sys.stdin:
        asked = json.loads(line)
        for said in answer(place, str(asked["ask"]), asked["args"]):
            sys.stdout.write(json.dumps(said, separators=(",", ":")) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
