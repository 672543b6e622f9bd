"""A witness for the ledgers of others (C2SP tlog-witness): what it has seen of each, it never forgets.

Of each log it keeps the newest checkpoint it cosigned, and cosigns only what goes on from that. Two
histories of one log, signed with its real key, cannot both get its cosignature; the attempt is kept
as evidence. What is cosigned is on the disk before anybody is told.

    DIR/key  DIR/vkey            its key (0400) and the public half
    DIR/<origin hash>/checkpoint the newest checkpoint of a log, as the log signed it
    DIR/<origin hash>/log.chain  how the log's keys made way for each other since it was configured
    DIR/<origin hash>/forks/     each refused history: what stood here, and what was presented
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import defaultdict
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import note, succession
from exeat.ledger.clock import boot_s
from exeat.ledger.note import COSIGNATURE, NoteError, Signer, Verifier
from exeat.ledger.proofs import ProofError, check_consistency
from exeat.ledger.small_files import replace

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exeat.ledger.note import Checkpoint

MAX_PROOF: Final = 63  # hashes, as tlog-witness has it
SIZE_TYPE: Final = "text/x.tlog.size"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})")
_MAX_FORKS: Final = 16  # kept of one log: the first ones say it all


class Reply(NamedTuple):
    """An HTTP status with its body."""

    status: int
    body: str = ""
    content_type: str = TEXT_TYPE


class Request(NamedTuple):
    old: int
    proof: tuple[bytes, ...]
    text: str  # the checkpoint, signed


def write_request(request: Request) -> str:
    """The body of add-checkpoint."""
    proof = "".join(f"{note.b64(each)}\n" for each in request.proof)
    return f"old {request.old}\n{proof}\n{request.text}"


def read_request(body: str) -> Request:
    """Raises NoteError unless `body` is what add-checkpoint takes."""
    head, gap, text = body.partition("\n\n")
    lines = head.split("\n")
    match = _OLD.fullmatch(lines[0])
    if not gap or match is None or len(lines) > 1 + MAX_PROOF:
        raise NoteError("not a request: `old SIZE`, a proof, an empty line, a checkpoint")
    proof = tuple(note.unb64(line) for line in lines[1:])
    return Request(int(match[1]), proof, text)


class Witness:
    """Cosigns for the logs of these keys; safe to be asked by several threads at once."""

    def __init__(self, directory: Path, name: str, logs: Iterable[Verifier]) -> None:
        """Makes a key if there is none. Raises OSError, NoteError."""
        self._directory = directory
        self._signer = own_key(directory, name)
        self._logs: dict[str, list[Verifier]] = defaultdict(list)
        for key in logs:
            self._logs[key.name].append(key)
        self._locks = {origin: threading.Lock() for origin in self._logs}
        # Until one was heard of, the start counts: who is watched has some time to come.
        self._heard = dict.fromkeys(self._logs, boot_s())

    @property
    def verifier(self) -> Verifier:
        return self._signer.verifier

    def add_checkpoint(self, body: str) -> Reply:
        """Cosign a checkpoint, or say why not. Raises OSError: then nothing was cosigned."""
        try:
            request = read_request(body)
            told = note.parse_checkpoint(note.parse(request.text).text)
        except NoteError as error:
            return Reply(400, f"{error}\n")
        if told.origin not in self._logs:
            return Reply(404, "this log is not one of those that are witnessed here\n")
        with self._locks[told.origin]:
            try:
                checkpoint = note.open_checkpoint(request.text, *self._known(told.origin))
            except NoteError as error:
                return Reply(403, f"{error}\n")
            reply = self._judge(request, checkpoint)
        if reply.status == 200:
            self._heard[told.origin] = boot_s()
        return reply

    def add_keys(self, chain: str) -> Reply:
        """Follow a log's change of keys (exeat's own addition to the protocol). Raises OSError."""
        try:
            statements = succession.parse_chain(chain)
        except NoteError as error:
            return Reply(400, f"{error}\n")
        origin = statements[0].origin if statements else ""
        if origin not in self._logs:
            return Reply(404, "this log is not one of those that are witnessed here\n")
        with self._locks[origin]:
            known, path = self._known(origin), self._folder(origin) / "log.chain"
            if path.exists() and not chain.startswith(path.read_text(encoding="utf-8")):
                # Else who has a key that made way long ago could lead past the one that signs now.
                return Reply(403, "this chain does not go on from the one that is known here\n")
            if all(set(succession.follow(statements, key)) <= set(known) for key in known):
                return Reply(403, "no key that is trusted here vouches for another in this chain\n")
            replace(path, chain)
        return Reply(200)

    def checkpoint(self, origin_hash: str) -> Reply:
        """The newest checkpoint of a log, cosigned."""
        for origin in self._logs:
            path = self._folder(origin) / "checkpoint"
            if path.parent.name == origin_hash and path.exists():
                text = path.read_text(encoding="utf-8")
                return Reply(200, text + self._line(note.parse(text).text))
        return Reply(404, "nothing was cosigned of this log\n")

    @property
    def origins(self) -> list[str]:
        return list(self._logs)

    def heard(self, origin: str) -> float:
        """When this log's checkpoint was cosigned last: seconds of CLOCK_BOOTTIME."""
        return self._heard[origin]

    def standing(self, origin: str) -> tuple[int, int]:
        """(size of the tree that was cosigned last, refused histories kept). Raises OSError."""
        with self._locks[origin]:
            seen = self._seen(origin)
        forks = self._folder(origin) / "forks"
        return seen.size if seen is not None else 0, len(list(forks.iterdir())) if forks.exists() else 0

    def _judge(self, request: Request, checkpoint: Checkpoint) -> Reply:
        if request.old > checkpoint.size:
            return Reply(400, "the old size is larger than the checkpoint's\n")
        seen = self._seen(checkpoint.origin)
        size = seen.size if seen is not None else 0
        if request.old != size:
            if checkpoint.size == size and seen is not None and checkpoint.root != seen.root:
                return self._fork(request.text, checkpoint)
            return Reply(409, f"{size}\n", SIZE_TYPE)
        try:
            if seen is not None:
                check_consistency(size, checkpoint.size, seen.root, checkpoint.root, request.proof)
            elif request.proof:
                raise ProofError("a proof where none is due")
        except ProofError:
            return self._fork(request.text, checkpoint)
        if seen != checkpoint:
            replace(self._folder(checkpoint.origin) / "checkpoint", request.text)
        return Reply(200, self._line(checkpoint.text()))

    def _line(self, text: str) -> str:
        return self._signer.line(text, int(time.time()))

    def _fork(self, text: str, checkpoint: Checkpoint) -> Reply:
        """Refuse, and keep what shows that the log has two histories."""
        folder = self._folder(checkpoint.origin)
        (folder / "forks").mkdir(exist_ok=True)
        name = f"{checkpoint.size}-{checkpoint.root.hex()[:16]}"
        kept = sorted(path.name for path in (folder / "forks").iterdir())
        if name not in kept and len(kept) < _MAX_FORKS:
            before = folder / "checkpoint"
            stood = before.read_text(encoding="utf-8") if before.exists() else ""
            replace(folder / "forks" / name, f"{stood}\n{text}")
        seen = self._seen(checkpoint.origin)
        size = seen.size if seen is not None else 0
        what = f"the tree of {checkpoint.size} records does not go on from that of {size} that was cosigned"
        return Reply(422, f"{what}: the log was rewritten, or the proof is wrong\n")

    def _seen(self, origin: str) -> Checkpoint | None:
        """What was cosigned last. Raises OSError, also if it cannot be read: then nothing may be cosigned."""
        path = self._folder(origin) / "checkpoint"
        try:
            text = path.read_text(encoding="utf-8")
            return note.open_checkpoint(text, *self._known(origin))
        except FileNotFoundError:
            return None
        except (NoteError, UnicodeDecodeError) as error:
            raise OSError(f"{path} is damaged ({error}): this log is not cosigned any more") from None

    def _known(self, origin: str) -> list[Verifier]:
        path = self._folder(origin) / "log.chain"
        known = list(self._logs[origin])
        if path.exists():
            chain = succession.parse_chain(path.read_text(encoding="utf-8"))
            for key in self._logs[origin]:
                known += [each for each in succession.follow(chain, key) if each not in known]
        return known

    def _folder(self, origin: str) -> Path:
        folder = self._directory / sha256(origin.encode()).hexdigest()
        folder.mkdir(mode=0o750, exist_ok=True)
        return folder


def own_key(directory: Path, name: str) -> Signer:
    """The witness's key, made at the first use. Raises OSError, NoteError."""
    path = directory / "key"
    if path.exists():
        return note.parse_signer(path.read_text(encoding="utf-8").removesuffix("\n"))
    signer = Signer(note.check_name(name), os.urandom(32), COSIGNATURE)
    replace(directory / "vkey", f"{signer.verifier}\n", 0o444)
    replace(path, f"{signer}\n", 0o400)
    return signer
