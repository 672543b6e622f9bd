"""What a bucket holds of a ledger: checked, and brought back into an empty folder."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from exeat.appliance.archive.carry import Keys, holds
from exeat.appliance.archive.store import StoreError
from exeat.ledger import archive, fsck, keys, note, succession
from exeat.ledger.manifest import open_manifest
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exeat.appliance.archive.store import Store
    from exeat.ledger.manifest import Manifest
    from exeat.ledger.note import Verifier
    from exeat.ledger.verify import Report

_CHUNK: Final = 1 << 20


class Found(NamedTuple):
    """What was found in a bucket: batches in order, and what is wrong, in words."""

    batches: list[Manifest]
    problems: list[str]


def look(store: Store, ledger: str, trusted: Sequence[Verifier], *, deep: bool) -> Found:
    """Check all manifests of a ledger in a bucket, and the objects they name; with `deep`, every byte.

    The newest manifest must be signed by a key that one of `trusted` vouches for; those before it are
    bound by the digests, each of the one before, so who signed them may have made way since.
    Raises StoreError.
    """
    batches: list[Manifest] = []
    problems: list[str] = []
    names, text = Keys(ledger), ""
    every, vouched = _keys(store, names, trusted)
    for name in store.names(names.manifest("")):
        text = _small(store, name)
        try:
            manifest = open_manifest(text, *every)
        except note.NoteError as error:
            problems.append(f"{name}: {error}")
            continue
        if not manifest.follows(batches[-1] if batches else None):
            problems.append(f"{name} does not go on from the batch before it: one is missing or replaced")
        batches.append(manifest)
        problem = _object(store, names.batch(manifest), manifest, deep=deep)
        problems += [problem] if problem else []
    if batches and not problems:
        try:
            open_manifest(text, *vouched)
        except note.NoteError as error:
            problems.append(f"{batches[-1].name}: {error}: give the key of that time, or an earlier one")
    return Found(batches, problems)


def _keys(store: Store, names: Keys, trusted: Sequence[Verifier]) -> tuple[set[Verifier], set[Verifier]]:
    """All keys that may have signed, and those that `trusted` vouch for."""
    every, vouched = set(trusted), set(trusted)
    for name in store.names(names.chain(b"")):
        with contextlib.suppress(note.NoteError):  # what is no chain vouches for nobody
            chain = succession.parse_chain(_small(store, name))
            every |= {key for each in chain for key in (each.former, each.new)}
            vouched |= {key for first in trusted for key in succession.follow(chain, first)}
    return every, vouched


def _small(store: Store, name: str) -> str:
    with store.read(name) as body:
        return body.read(note.MAX_NOTE + 1).decode("utf-8", "replace")


def _object(store: Store, key: str, manifest: Manifest, *, deep: bool) -> str:
    held = store.look(key)
    if held is None:
        return f"{key} is missing"
    if held.size != manifest.size:
        return f"{key} has {held.size} bytes, its manifest says {manifest.size}"
    if deep and not holds(store, key, held._replace(checksum=""), manifest):
        return f"{key} is not what its manifest says"
    return ""


def restore(
    store: Store, ledger: str, trusted: Sequence[Verifier], out: Path
) -> tuple[list[Manifest], Report]:
    """Bring a ledger back into `out`, which must be new or empty, and verify it there.

    Raises StoreError, ArchiveError, OSError. What could not be brought back whole is taken away again.
    """
    if out.exists() and any(out.iterdir()):
        raise archive.ArchiveError(f"{out} is not empty: name a new folder")
    found = look(store, ledger, trusted, deep=False)
    if found.problems or not found.batches:
        raise archive.ArchiveError("; ".join(found.problems) or f"{store.name} holds nothing of {ledger}")
    target = out / "ledger" / ledger
    target.mkdir(mode=0o750, parents=True)
    try:
        for manifest in found.batches:
            with tempfile.TemporaryFile(dir=out) as file:
                _fetch(store, Keys(ledger).batch(manifest), manifest, file)
                archive.unpack(file, manifest.object, target)
        _check_key(target, trusted)
        wrong = [each for each in fsck.check(target, repair=True) if not each.startswith("tile/")]
        if wrong:
            raise archive.ArchiveError("; ".join(wrong))
        last = found.batches[-1]
        return found.batches, verify(target, heads=((last.end, last.root),), two=True)
    except BaseException:
        shutil.rmtree(out / "ledger", ignore_errors=True)
        raise


def _fetch(store: Store, key: str, manifest: Manifest, file: IO[bytes]) -> None:
    whole, size = hashlib.sha256(), 0
    with store.read(key) as body:
        while size <= manifest.size and (chunk := body.read(_CHUNK)):  # no more: there may be no end
            whole.update(chunk)
            size += file.write(chunk)
    if whole.digest() != manifest.digest:
        raise StoreError("archive.mismatch", f"{store.name}: {key} is not what its manifest says")
    file.seek(0)


def _check_key(target: Path, trusted: Sequence[Verifier]) -> None:
    if not set(trusted) & set(keys.known(target)):
        raise archive.ArchiveError("the archive holds other public keys than those that check it")
