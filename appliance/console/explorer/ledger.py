"""What the ledger explorer shows: rows, single records, proofs, sums, exports. Runs in a worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.console.explorer.asked import AskError, Place, question_of
from exeat.appliance.ledger_text import as_json
from exeat.ledger import keys, proofs, questions, records
from exeat.ledger.bundle import signed
from exeat.ledger.merkle import leaf_hash
from exeat.ledger.reader import Follower, dropped_before, segment_of
from exeat.ledger.records import Kind, Record
from exeat.ledger.witnessing import seals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from exeat.ledger.bundle import Signed
    from exeat.ledger.index import Index
    from exeat.ledger.reader import Entry

MOST_ROWS: Final = 1000
_EXPORT_PAGE: Final = 5000
_READING_S: Final = 5.0  # of single records, for one page
# Who did what: what people and exeat itself decided. Of a job's records only those that somebody is named in.
_ACTS: Final = (Kind.LEASE, Kind.POLICY, Kind.KEY, Kind.ANOMALY, Kind.JOB, Kind.ADMIN)


def entries(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """A page of rows, newest first; `next` is the number to go on before."""
    limit = min(int(args.get("limit") or 100), MOST_ROWS)
    with place.index() as index:
        found = questions.entries(
            index, question_of(args), limit, kinds=_kinds(args), before=args.get("before")
        )
        fresh = index.fresh()
    items = [dict(zip(questions.ROW, row, strict=True)) for row in reversed(found)]
    following = items[-1]["seq"] if len(items) == limit else None
    return {"items": items, "next": following, "as_of": fresh._asdict()}


def _kinds(args: dict[str, Any]) -> list[Kind]:
    return [Kind[name.upper()] for name in args.get("kinds") or ()]


def entry(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """One record, decoded and as the bytes that are the leaf of the tree."""
    seq, data = _one(place.directory, int(args["seq"]), args)
    return {"record": as_json(seq, records.decode(data)), "raw": data.hex(), "leaf": leaf_hash(data).hex()}


def _one(directory: Path, seq: int, args: dict[str, Any]) -> Entry:
    """The record, if the person may see it."""
    if seq < dropped_before(directory):
        raise AskError(
            "ledger.dropped", f"record {seq} was dropped by `[ledger] keep_days`: ask who archived it"
        )
    found = Follower(directory, index=segment_of(directory, seq)).poll()
    data = next((data for number, data in found if number == seq), None)
    seen = args.get("projects")
    if data is None or (seen and records.decode(data).project not in seen):
        raise AskError("ledger.no_record", f"there is no record {seq} yet that you may see")
    return seq, data


def proof(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """That a record stands in the tree under a signed checkpoint (RFC 6962 section 2.1.1).

    `raw` is the record: whoever checks makes the leaf's hash from it, SHA-256 over 0x00 and the bytes.
    """
    published, seq = _signed(place, cosigned=bool(args.get("cosigned"))), int(args["seq"])
    size = published.checkpoint.size
    if seq >= size:
        raise AskError(
            "ledger.not_covered", f"record {seq} is not covered by the checkpoint of {size} records yet"
        )
    _, data = _one(place.directory, seq, args)
    path = proofs.inclusion(seq, size, published.tree.roots)
    return {
        "index": seq,
        "size": size,
        "leaf": leaf_hash(data).hex(),
        "raw": data.hex(),
        "path": [node.hex() for node in path],
        "checkpoint": published.text,
        "vkey": str(keys.verifier(place.directory)),
    }


def head(place: Place, _args: dict[str, Any]) -> dict[str, Any]:
    """The signed checkpoint, and the one that witnesses have signed, if there is any."""
    published = _signed(place, cosigned=False)
    cosigned = _cosigned(place)
    return {
        "origin": published.checkpoint.origin,
        "size": published.checkpoint.size,
        "root": published.checkpoint.root.hex(),
        "checkpoint": published.text,
        "cosigned": cosigned.read_text(encoding="utf-8") if cosigned.exists() else None,
        "vkey": str(keys.verifier(place.directory)),
        "chain": keys.chain(place.directory),
        "oldest": dropped_before(place.directory),
        "written_ms": int((place.directory / "checkpoint").stat().st_mtime * 1000),
    }


def consistency(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """That the tree of `to` records begins with that of `from` (RFC 6962 section 2.1.2)."""
    published, old = _signed(place, cosigned=False), int(args["from"])
    size = published.checkpoint.size if args.get("to") is None else int(args["to"])
    if not 0 <= old <= size <= published.checkpoint.size:
        raise AskError("ledger.not_covered", f"the checkpoint has {published.checkpoint.size} records")
    roots = published.tree.roots
    return {
        "from": old,
        "to": size,
        "from_root": roots(0, old).hex(),
        "to_root": roots(0, size).hex(),
        "path": [node.hex() for node in proofs.consistency(old, size, roots)],
        "checkpoint": published.text,
    }


def _signed(place: Place, *, cosigned: bool) -> Signed:
    if not cosigned:
        return signed(place.directory)
    path = _cosigned(place)
    if not path.exists():
        raise AskError("ledger.not_cosigned", "no witness has signed yet: see `exeat ledger witness`")
    return signed(place.directory, path.read_text(encoding="utf-8"))


def _cosigned(place: Place) -> Path:
    return seals(place.state_dir, place.directory.name) / "cosigned"


def sums(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """Sums per combination of `by`, most bytes first."""
    by, limit = list(dict.fromkeys(args["by"])), min(int(args.get("limit") or 100), MOST_ROWS)
    with place.index() as index:
        rows = questions.sums(index, question_of(args), by)
        fresh = index.fresh()
    named = (*by, *questions.SUMS)
    return {
        "items": [dict(zip(named, row, strict=True)) for row in rows[:limit]],
        "more": max(0, len(rows) - limit),
        "as_of": fresh._asdict(),
    }


def export(place: Place, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every row that answers, newest first. The index may go on being filled meanwhile."""
    before, question, kinds = args.get("before"), question_of(args), _kinds(args)
    with place.index() as index:
        while page := questions.entries(index, question, _EXPORT_PAGE, kinds=kinds, before=before):
            for row in reversed(page):
                yield dict(zip(questions.ROW, row, strict=True))
            before = page[0][0]


def audit(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """What was decided, and by whom: leases, policies, keys, the kill switch, merges; newest first.

    Records are read one by one, so a page may end early, with `next` to go on from.
    """
    limit = min(int(args.get("limit") or 100), MOST_ROWS)
    question, before = question_of(args), args.get("before")
    with place.index() as index:
        numbers = [row[0] for row in questions.entries(index, question, limit, kinds=_ACTS, before=before)]
    items, last = list[dict[str, Any]](), None
    deadline = time.monotonic() + _READING_S
    for last, record in _descending(place.directory, numbers):
        if record.kind is not Kind.JOB or record.actor:
            items.append(as_json(last, record))
        if time.monotonic() > deadline:
            break
    whole = len(numbers) < limit and (not numbers or last == numbers[0])
    return {"items": items, "next": None if whole else last}


def _descending(directory: Path, numbers: Sequence[int]) -> Iterator[tuple[int, Record]]:
    """The records of these numbers (ascending), the newest first, each segment read once."""
    left = list(numbers)
    while left:
        index = segment_of(directory, left[-1])
        wanted, found = set(left), list[tuple[int, Record]]()
        for seq, data in Follower(directory, index=index).poll():
            if seq in wanted:
                found.append((seq, records.decode(data)))
            if seq >= left[-1]:
                break
        if not found:
            return
        yield from reversed(found)
        left = [seq for seq in left if seq < found[0][0]]


def newest(index: Index, place: Place, args: dict[str, Any]) -> Record | None:
    """The newest record that answers."""
    rows = questions.entries(index, question_of(args), 1, kinds=_kinds(args))
    return records.decode(_one(place.directory, rows[0][0], {})[1]) if rows else None
