"""What is handed to a stranger: proofs of single records, and bundles of many.

A bundle is a folder; `ledger/verify_offline.py` checks it without exeat. docs/formats/ledger.md has
the format. Only what a signed checkpoint covers is handed out.
"""

from __future__ import annotations

import base64
import lzma
from typing import TYPE_CHECKING, NamedTuple

from exeat.ledger import keys, note, proofs, records
from exeat.ledger.published import read_checkpoint, tile_loader
from exeat.ledger.reader import Follower, dropped_before, read, segment_of
from exeat.ledger.tiles import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.ledger.note import Checkpoint
    from exeat.ledger.reader import Entry

_README = """\
Records of the exeat ledger {origin}, with the proof that they stand in it.

    python3 verify_offline.py THIS-FOLDER --key 'VKEY' [--checkpoint A-CHECKPOINT-YOU-KEPT]

verify_offline.py is one file of exeat's source (ledger/verify_offline.py) and needs only Python.
Get VKEY from the operator of the ledger; log.vkey here is only as good as the way it came to you.
If the ledger has changed its key since, log.chain leads from the one you have to the one that signed.
Keep `checkpoint`: with it, a history that is rewritten later shows.
"""


class BundleError(Exception):
    """What was asked for cannot be proved; the message says why."""


class Exported(NamedTuple):
    records: int
    size: int  # of the tree they were proved in
    newer: int  # records that fitted but are not covered by a checkpoint yet


class Signed(NamedTuple):
    """The published state of a ledger: its checkpoint as text and parsed, and the tree under it."""

    text: str
    checkpoint: Checkpoint
    tree: Tree


def signed(directory: Path, cosigned: str | None = None) -> Signed:
    """The ledger's checkpoint, or `cosigned`: one of its checkpoints that witnesses have signed too.

    Raises BundleError, keys.KeyMissingError, note.NoteError, tiles.TileError, OSError."""
    text = read_checkpoint(directory) if cosigned is None else cosigned
    if text is None:
        raise BundleError(f"{directory} has no checkpoint yet")
    checkpoint = note.open_checkpoint(text, *keys.known(directory))
    tree = Tree(checkpoint.size, tile_loader(directory))
    if tree.root() != checkpoint.root:
        raise BundleError(f"{directory}: the tiles are damaged: `exeat ledger fsck --repair` makes them anew")
    return Signed(text, checkpoint, tree)


def prove(directory: Path, seq: int, *, cosigned: str | None = None) -> str:
    """A tlog-proof of record `seq` that carries the record. Raises as `signed`."""
    text, checkpoint, tree = signed(directory, cosigned)
    if seq >= checkpoint.size:
        raise BundleError(f"record {seq} is not covered by the checkpoint of {checkpoint.size} records")
    if seq < dropped_before(directory):
        raise BundleError(f"record {seq} was dropped (`[ledger] keep_days`): only who kept it can show it")
    found = Follower(directory, index=segment_of(directory, seq)).poll()
    data = next((data for number, data in found if number == seq), b"")
    proof = proofs.inclusion(seq, checkpoint.size, tree.roots)
    head = ["c2sp.org/tlog-proof@v1", f"extra {_b64(data)}", f"index {seq}", *map(_b64, proof)]
    return "\n".join(head) + "\n\n" + text


def export(
    directory: Path,
    out: Path,
    *,
    job: str = "",
    first: int = 0,
    last: int | None = None,
    since: str | None = None,
    cosigned: str | None = None,
) -> Exported:
    """Write a bundle of one job's records, or of the records `first` to `last`, into the new folder `out`.

    `since` is a checkpoint of this ledger that the receiver has: the bundle then shows that the
    ledger goes on from it. Raises as `signed`, and FileExistsError.
    """
    text, checkpoint, tree = signed(directory, cosigned)
    old = note.open_checkpoint(since, *keys.known(directory)) if since is not None else None
    if old is not None and old.size > checkpoint.size:
        raise BundleError(f"the checkpoint given has {old.size} records, the ledger's {checkpoint.size}")
    chosen = list(of_job(directory, job) if job else in_range(directory, first, last))
    covered = [entry for entry in chosen if entry[0] < checkpoint.size]
    proof = proofs.of_many([seq for seq, _ in covered], checkpoint.size, tree.roots)
    out.mkdir()
    packed = b"".join(seq.to_bytes(8, "big") + len(data).to_bytes(2, "big") + data for seq, data in covered)
    (out / "records.xz").write_bytes(lzma.compress(packed, preset=6))
    (out / "proof").write_text(_lines(proof))
    if old is not None and 0 < old.size < checkpoint.size:
        growth = proofs.consistency(old.size, checkpoint.size, tree.roots)
        (out / f"consistency-{old.size}").write_text(_lines(growth))
    (out / "log.vkey").write_text(f"{keys.verifier(directory)}\n")
    if chain := keys.chain(directory):
        (out / "log.chain").write_text(chain, encoding="utf-8")
    (out / "README.txt").write_text(_README.format(origin=checkpoint.origin))
    (out / "checkpoint").write_text(text, encoding="utf-8")
    return Exported(len(covered), checkpoint.size, len(chosen) - len(covered))


def in_range(directory: Path, first: int, last: int | None) -> Iterator[Entry]:
    """The records numbered `first` to `last`, both included."""
    for seq, data in Follower(directory, index=segment_of(directory, first)).poll():
        if last is not None and seq > last:
            return
        if seq >= first:
            yield seq, data


def of_job(directory: Path, job: str) -> Iterator[Entry]:
    """All records of a job: those that name it, and those of its flows, most of which do not."""
    flows: set[bytes] = set()
    for seq, data in read(directory):
        brief = records.recall(data)
        if brief.job == job and brief.flow:
            flows.add(brief.flow)
        if brief.job == job or brief.flow in flows:
            yield seq, data


def _lines(hashes: list[bytes]) -> str:
    return "".join(f"{_b64(each)}\n" for each in hashes)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
