"""Sealed segments made ready to be kept elsewhere: batches, and manifests that the ledger's key signs.

Two parties, so that who holds the key has no network and who has the network holds no key. Here is
the first: it reads sealed segments, which nobody writes any more, and puts into DIR/archive

    NAME.tar.zst    segments FIRST to LAST, the tiles they filled, a checkpoint, the public key and its chain
    NAME.manifest   a signed note that names all this; NAME is FIRST-LAST, twelve digits each

The other (`appliance/archive/carry.py`) carries them away and leaves a receipt for each. A batch
that has its receipts keeps its manifest here and nothing else. docs/formats/ledger.md has the format.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import tarfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from exeat.ledger import keys, note, proofs, segment, tiles
from exeat.ledger.bundle import signed
from exeat.ledger.files import sync_dir
from exeat.ledger.manifest import Manifest, open_manifest
from exeat.ledger.reader import find_segments, gone
from exeat.ledger.small_files import read_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from exeat.ledger.bundle import Signed

_MEMBER: Final = re.compile(
    r"seg/[0-9]{12}\.seg|checkpoint|keys/log\.(vkey|chain)|tile/[0-9]{1,2}(/x[0-9]{3})*/[0-9]{3}",
    re.ASCII,
)
_LEVEL: Final = 6  # of zstd: a fifth of the bytes is left, at about 100 MB/s
_CHUNK: Final = 1 << 20
_MAX_RECEIPT: Final = 4096  # bytes; who writes them has a network


class ArchiveError(Exception):
    """Something cannot be archived or does not belong in this archive; the message says what to do."""


class BusyError(Exception):
    """Another run is under way."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for one run. Raises BusyError, OSError."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError("another run is under way") from None
        yield


def manifests(directory: Path) -> list[Manifest]:
    """All batches made so far, in order.

    Raises ArchiveError, note.NoteError, keys.KeyMissingError, OSError.
    """
    known = keys.known(directory)
    found: list[Manifest] = []
    for path in sorted((directory / "archive").glob("*.manifest")):
        manifest = open_manifest(path.read_text(encoding="utf-8"), *known)
        if path.stem != manifest.name or not manifest.follows(found[-1] if found else None):
            raise ArchiveError(f"{path} does not go on from the batch before it")
        found.append(manifest)
    return found


# --- receipts: what the carrier says is safe


def receipt_path(receipts: Path, manifest: Manifest, store: str) -> Path:
    return receipts / f"{manifest.name}.{store}.receipt"


def has_receipt(receipts: Path, manifest: Manifest, store: str) -> bool:
    """Whether `store` was seen to hold exactly this batch."""
    try:
        said = json.loads(read_small(receipt_path(receipts, manifest, store), _MAX_RECEIPT))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("manifest") == manifest.chain().hex()


def safely_archived(directory: Path, receipts: Path, stores: Sequence[str]) -> int:
    """How many segments, from the first on, every one of `stores` holds (0 without stores).

    The receipts are the carrier's word: who has taken it over can lie. Raises as `manifests`.
    """
    safe = 0
    for manifest in manifests(directory) if stores else ():
        if not all(has_receipt(receipts, manifest, store) for store in stores):
            break
        safe = manifest.last + 1
    return safe


# --- making batches


class Plan(NamedTuple):
    """`segments` to a batch at most; fewer when the first was sealed `age_s` seconds ago. No more than
    `waiting` batches lie here at a time: a store that is away must not fill the disk."""

    segments: int = 8
    age_s: int = 3600
    waiting: int = 4
    compression: str = "zst"


def prepare(directory: Path, plan: Plan, safe: Callable[[Manifest], bool], now_ns: int) -> list[Manifest]:
    """Make all batches that are due; drop the data of those that are `safe`. The new ones.

    Raises BusyError, ArchiveError, and what `manifests` and `bundle.signed` raise.
    """
    with alone(directory / "archive"):
        return _prepare(directory, plan, safe, now_ns)


def _prepare(directory: Path, plan: Plan, safe: Callable[[Manifest], bool], now_ns: int) -> list[Manifest]:
    folder = directory / "archive"
    for stray in folder.glob("*.tmp"):
        stray.unlink()
    done = manifests(directory)
    for manifest in done:
        if safe(manifest):
            (folder / manifest.object).unlink(missing_ok=True)
    made: list[Manifest] = []
    waiting = sum((folder / manifest.object).exists() for manifest in done)
    while waiting + len(made) < plan.waiting:
        before = (done + made)[-1] if done or made else None
        first = before.last + 1 if before else 0
        count = _due(directory, first, plan, now_ns)
        if count == 0:
            break
        made.append(_make(directory, first, count, before, plan.compression))
    return made


def _due(directory: Path, first: int, plan: Plan, now_ns: int) -> int:
    """How many sealed segments from `first` on make the next batch; 0 if none is due."""
    paths = find_segments(directory)
    sealed = len(paths) - 1 - first
    if sealed >= plan.segments:
        return plan.segments
    if sealed <= 0:
        return 0
    with paths[first + 1].open("rb") as file:  # it was begun when the one before it was sealed
        sealed_ns = segment.head_time(file.read(segment.HEAD_PREFIX))
    return sealed if now_ns - sealed_ns >= plan.age_s * 1_000_000_000 else 0


def _make(directory: Path, first: int, count: int, before: Manifest | None, compression: str) -> Manifest:
    published = signed(directory)
    last = first + count - 1
    begin, end, root = _check(directory, first, last, before, published)
    signer = keys.signer(directory)
    name = f"{first:012d}-{last:012d}"
    folder = directory / "archive"
    target = folder / f"{name}.tar.{compression}"
    checkpoint = signer.sign(note.Checkpoint(published.checkpoint.origin, end, root).text())
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("xb") as file:
        temporary.chmod(0o640)
        with compressor(file, compression) as packed:
            _pack(packed, directory, range(first, last + 1), _filled(begin, end), checkpoint)
        file.flush()
        os.fsync(file.fileno())
    size, digest = digest_of(temporary)
    chain = before.chain() if before else b""
    origin = published.checkpoint.origin
    manifest = Manifest(origin, first, last, begin, end, root, chain, target.name, size, digest)
    temporary.rename(target)
    put(folder / f"{name}.manifest", signer.sign(manifest.text()).encode())
    return manifest


def put(path: Path, content: bytes) -> None:
    """Put a small file in place, whole or not at all, and durably."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        temporary.chmod(0o640)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_dir(os, path.parent)


def _check(
    directory: Path, first: int, last: int, before: Manifest | None, published: Signed
) -> tuple[int, int, bytes]:
    """(begin, end, root) of these segments, read again from the disk: nothing wrong gets a signature."""
    begin = end = before.end if before else 0
    root = before.root if before else b""
    for index in range(first, last + 1):
        path = directory / "seg" / f"{index:012d}.seg"
        begun, sealed_end, root = _seal(path)
        if begun != end:
            raise ArchiveError(f"{path} does not go on from the one before it: `exeat ledger verify`")
        end = sealed_end
        _check_signed(path, end, root, published)
    return begin, end, root


def _check_signed(path: Path, end: int, root: bytes, published: Signed) -> None:
    """That the signed tree begins with the one this segment ends with; each must, not only the last."""
    size, tree = published.checkpoint.size, published.tree
    if end > size:
        raise ArchiveError(f"records up to {end} are not signed yet: try again in a few seconds")
    try:
        proof = proofs.consistency(end, size, tree.roots)
        proofs.check_consistency(end, size, root, published.checkpoint.root, proof)
    except (proofs.ProofError, tiles.TileError) as error:
        raise ArchiveError(f"{path} is not what was signed ({error}): `exeat ledger verify`") from None


def _seal(path: Path) -> tuple[int, int, bytes]:
    """(number of the first record, of the one behind the last, root) of a sealed segment, all of it read.

    Of one whose records were dropped before there was an archive, what is left says it.
    """
    data = path.read_bytes()
    frames = segment.scan(data)
    try:
        head = segment.parse_head(next(frames))
        frontier, found = head.frontier, None
        begin = frontier.size
        for found in frames:
            if found.kind == segment.RECORD:
                frontier.add(found.payload)
        if found is None or found.kind != segment.SEAL:
            raise ArchiveError(f"{path} does not end in a seal: `exeat ledger verify` says more")
        seal = segment.parse_commit(found)
    except (StopIteration, segment.SegmentError) as error:
        raise ArchiveError(f"{path} is damaged ({error}): `exeat ledger verify` says more") from None
    if not gone(path) and (seal.size, seal.root) != (frontier.size, frontier.root()):
        raise ArchiveError(f"{path}: its records are not those that were sealed: `exeat ledger verify`")
    return begin, seal.size, seal.root


def _filled(begin: int, end: int) -> Iterator[str]:
    """The full tiles that the records from `begin` up to `end` completed."""
    level, width = 0, tiles.WIDTH
    while end >= width:
        for number in range(begin // width, end // width):
            yield tiles.path(level, number)
        level, width = level + 1, width * tiles.WIDTH


def _pack(out: IO[bytes], directory: Path, segments: range, filled: Iterator[str], checkpoint: str) -> None:
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        public = [name for name in ("keys/log.vkey", "keys/log.chain") if (directory / name).exists()]
        names = [f"seg/{index:012d}.seg" for index in segments] + public
        for name in (*names, *filled):
            _add(tar, name, (directory / name).read_bytes())
        _add(tar, "checkpoint", checkpoint.encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o640
    tar.addfile(member, io.BytesIO(content))


def compressor(file: IO[bytes], compression: str) -> IO[bytes]:
    """A stream that packs into `file`, which stays open. Raises ArchiveError."""
    if compression == "gz":
        import gzip

        return gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0)  # type: ignore[return-value]
    packed: IO[bytes] = _zstandard().ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False)
    return packed


def decompressor(file: IO[bytes], name: str) -> IO[bytes]:
    """The contents of the object `name`. Raises ArchiveError."""
    if name.endswith(".gz"):
        import gzip

        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    unpacked: IO[bytes] = _zstandard().ZstdDecompressor().stream_reader(file, closefd=False)
    return unpacked


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ArchiveError(
            "zstandard is not installed: pip install 'exeat[archive]', or set compression to gz"
        ) from None
    return zstandard


def digest_of(path: Path) -> tuple[int, bytes]:
    """Bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return file.tell(), digest


# --- and back


def unpack(source: IO[bytes], name: str, target: Path) -> None:
    """Put the members of one batch below `target`. Raises ArchiveError, also at a name that may not be."""
    try:
        with decompressor(source, name) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or not _MEMBER.fullmatch(member.name):
                    raise ArchiveError(f"{name}: {member.name!r} has no place in an archive")
                path = target / member.name
                path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                with path.open("wb") as file:
                    while chunk := content.read(_CHUNK):
                        file.write(chunk)
                path.chmod(0o640)
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveError(f"{name}: not an archive that exeat made: {error}") from None
