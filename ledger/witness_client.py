"""A ledger's checkpoints, sent to witnesses, and what they answered.

One round takes the newest checkpoint and asks all witnesses at once; a slow one delays the next
round by `TIMEOUT_S` at most, and nothing else ever. The folder of a ledger's seals holds

    cosigned      the newest checkpoint that has cosignatures, with them: a signed note
    status.json   of each witness: what it cosigned last and when, and what is the matter now
"""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger import keys, note, proofs
from exeat.ledger.clock import boot_s
from exeat.ledger.note import NoteError, Verifier
from exeat.ledger.published import read_checkpoint, tile_loader
from exeat.ledger.records import printable
from exeat.ledger.small_files import read_small, replace
from exeat.ledger.tiles import TileError, Tree
from exeat.ledger.witness import Request, write_request
from exeat.ledger.witness_http import HttpError, Place, post

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exeat.ledger.note import Checkpoint

_MAX_STATUS: Final = 1 << 20  # bytes
TIMEOUT_S: Final = 3.0
# A checkpoint is sent again after this time, though nothing is new: a witness that has gone shows, and a node
# that has shows to its witness.
HEARTBEAT_S: Final = 60.0
_SIZE: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})\n?")
FORK: Final = "witness.fork"
UNREACHABLE: Final = "witness.unreachable"
REFUSED: Final = "witness.refused"


@dataclass(frozen=True, slots=True)
class Peer:
    """A witness: where it is, and the key with which it cosigns."""

    place: Place
    key: Verifier


@dataclass(slots=True)
class Standing:
    """How things stand with one witness. Times are Unix seconds; `trouble` is a code, "" if there is none."""

    vkey: str
    size: int = 0  # of the newest tree it cosigned
    root: str = ""  # of that tree, in hex
    time_s: int = 0  # when it says it did
    seen: int = 0  # of the newest tree it says it knows
    trouble: str = ""
    what: str = ""
    since_s: float = 0.0  # when the trouble began
    alarmed: str = ""  # the trouble that has lasted too long, as it is on the ledger

    def overdue(self, after_s: float) -> bool:
        """Whether its trouble is an alarm: another history at once, all else after `after_s`."""
        lasting = bool(self.trouble) and time.time() - self.since_s > after_s
        return lasting or self.trouble == FORK


class WitnessError(Exception):
    """A witness did not cosign; `code` is one of this module."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code


@dataclass(slots=True)
class Rounds:
    """Asks `peers` about the ledger in `directory`; keeps the answers in `folder`."""

    directory: Path
    folder: Path
    peers: Sequence[Peer]
    standings: list[Standing] = field(default_factory=list)
    _asked: dict[int, float] = field(default_factory=dict)  # boot time

    def __post_init__(self) -> None:
        before = {each.vkey: each for each in read_standings(self.folder)}
        known = [str(peer.key) for peer in self.peers]
        self.standings = [before.get(vkey) or Standing(vkey) for vkey in known]

    def run(self) -> list[tuple[Standing, str]]:
        """Ask whoever has not cosigned the newest checkpoint; with whom trouble began or ended (the code).

        Raises OSError, NoteError, KeyMissingError, TileError.
        """
        text = read_checkpoint(self.directory)
        if text is None:
            return []
        checkpoint = note.open_checkpoint(text, *keys.known(self.directory))
        newest = (checkpoint.size, checkpoint.root.hex(), "")
        due = [n for n in range(len(self.standings)) if self._is_due(n, newest)]
        if not due:
            return []
        self._asked |= dict.fromkeys(due, boot_s())
        tree = Tree(checkpoint.size, tile_loader(self.directory))
        if tree.root() != checkpoint.root:
            raise TileError("the tiles are not those of the checkpoint")
        before = [each.trouble for each in self.standings]
        with ThreadPoolExecutor(len(due)) as pool:
            lines = list(pool.map(lambda n: self._ask(n, text, checkpoint, tree), due))
        self._keep(text, checkpoint, "".join(lines))
        pairs = zip(self.standings, before, strict=True)
        return [(each, each.trouble or was) for each, was in pairs if each.trouble != was]

    def _is_due(self, number: int, newest: tuple[int, str, str]) -> bool:
        each = self.standings[number]
        news = (each.size, each.root, each.trouble) != newest
        return news or boot_s() - self._asked.get(number, -HEARTBEAT_S) >= HEARTBEAT_S

    def _ask(self, number: int, text: str, checkpoint: Checkpoint, tree: Tree) -> str:
        """The cosignature's line; empty if there is none, and then the standing says why."""
        peer, standing = self.peers[number], self.standings[number]
        try:
            line = _cosignature(peer, standing, text, checkpoint, tree, self.directory)
        except WitnessError as error:
            if standing.trouble != error.code:
                standing.trouble, standing.since_s = error.code, time.time()
            standing.what = str(error)
            return ""
        standing.size = standing.seen = checkpoint.size
        standing.root = checkpoint.root.hex()
        standing.trouble = standing.what = ""
        return line

    def _keep(self, text: str, checkpoint: Checkpoint, lines: str) -> None:
        """Another round may have others' lines for the same checkpoint: those stay."""
        path = self.folder / "cosigned"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if lines:
            others = _others(before.removeprefix(text), lines) if before.startswith(text) else ""
            replace(path, text + others + lines)
        told = {"size": checkpoint.size, "witnesses": [asdict(each) for each in self.standings]}
        replace(self.folder / "status.json", json.dumps(told) + "\n")


def _others(before: str, lines: str) -> str:
    """The lines of `before` that are none of those who signed `lines`."""
    again = {_signer(line) for line in lines.splitlines()}
    return "".join(f"{line}\n" for line in before.splitlines() if _signer(line) not in again)


def _signer(line: str) -> tuple[str, bytes]:
    _, name, signature = line.split(" ")
    return name, note.unb64(signature)[:4]


def _cosignature(
    peer: Peer, standing: Standing, text: str, checkpoint: Checkpoint, tree: Tree, directory: Path
) -> str:
    """Ask until the witness and we mean the same old size, or the same keys. Raises WitnessError."""
    for _ in range(3):
        old = standing.seen
        if old > checkpoint.size:
            what = f"it has seen {old} records, the ledger has {checkpoint.size}: set back, or rewritten"
            raise WitnessError(FORK, what)
        request = Request(old, tuple(proofs.consistency(old, checkpoint.size, tree.roots)), text)
        try:
            answer = post(peer.place, "add-checkpoint", write_request(request), TIMEOUT_S)
            chain = keys.chain(directory) if answer.status == 403 else ""
            if chain and post(peer.place, "add-keys", chain, TIMEOUT_S).status == 200:
                continue
        except HttpError as error:
            raise WitnessError(UNREACHABLE, str(error)) from None
        if answer.status == 200:
            return _checked(peer, standing, answer.body, checkpoint)
        said = printable(answer.body.strip(), 200)
        if answer.status == 422:
            what = f"it holds another history than the first {old} records here: {said}"
            raise WitnessError(FORK, what)
        if answer.status != 409 or not _SIZE.fullmatch(answer.body):
            raise WitnessError(REFUSED, f"status {answer.status}: {said}")
        standing.seen = int(answer.body)
    raise WitnessError(REFUSED, "it says another size each time")


def _checked(peer: Peer, standing: Standing, body: str, checkpoint: Checkpoint) -> str:
    """The line of this witness's cosignature in its answer. Raises WitnessError."""
    try:
        answer = note.parse(f"{checkpoint.text()}\n{body}")
        note.verify(answer, peer.key)
    except NoteError as error:
        raise WitnessError(REFUSED, f"its answer is no cosignature: {error}") from None
    mine = [
        each for each in answer.signatures if (each.name, each.key_id) == (peer.key.name, peer.key.key_id)
    ]
    standing.time_s = int.from_bytes(mine[0].body[:8], "big")
    return f"\u2014 {mine[0].name} {note.b64(mine[0].key_id + mine[0].body)}\n"


def read_standings(folder: Path) -> list[Standing]:
    """How things stood with each witness at the last round; empty if there was none yet. Raises OSError."""
    try:
        found: dict[str, Any] = json.loads(read_small(folder / "status.json", _MAX_STATUS))
        standings = [Standing(**each) for each in found["witnesses"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, RecursionError):
        return []  # not ours, or of another version: asked anew
    return standings if all(map(_is_whole, standings)) else []


def _is_whole(standing: Standing) -> bool:
    texts = (standing.vkey, standing.root, standing.trouble, standing.what, standing.alarmed)
    numbers = (standing.size, standing.time_s, standing.seen, standing.since_s)
    return all(isinstance(each, str) for each in texts) and all(
        type(each) in (int, float) for each in numbers
    )
