"""Statements by which one signing key of a ledger makes way for the next. No I/O.

A statement is a signed note (`ledger.note`) with this text, a line each:

    exeat-keys/v1
    ORIGIN
    from VKEY       the key so far
    to VKEY         the key from now on
    until SECONDS   the former key signs beside the new one up to this time (Unix)

The new key always signs it. Where the former one signs too, whoever trusts that one may trust the
new one; where it does not (it was lost), trust ends here and has to begin anew. A chain is
statements in their order, an empty line between two of them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import note
from exeat.ledger.note import NoteError, Verifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exeat.ledger.note import Signer

_TEXT: Final = re.compile(r"exeat-keys/v1\n(\S+)\nfrom (\S+)\nto (\S+)\nuntil (0|[1-9][0-9]{0,11})\n")


class Succession(NamedTuple):
    """`vouched`: the former key signed it."""

    origin: str
    former: Verifier
    new: Verifier
    until_s: int
    vouched: bool


def make(former: Signer | Verifier, new: Signer, until_s: int) -> str:
    """The statement that `new` follows `former`; without its signature if only its public half is left."""
    old, signers = (former, (new,)) if isinstance(former, Verifier) else (former.verifier, (new, former))
    text = f"exeat-keys/v1\n{new.name}\nfrom {old}\nto {new.verifier}\nuntil {until_s}\n"
    return note.sign(text, *signers)


def parse(text: str) -> Succession:
    """One statement. Raises NoteError unless it is well-formed and signed by the new key."""
    found = note.parse(text)
    match = _TEXT.fullmatch(found.text)
    if match is None:
        raise NoteError("not a statement about keys")
    former, new = note.parse_vkey(match[2]), note.parse_vkey(match[3])
    if {former.name, new.name} != {match[1]} or former == new:
        raise NoteError("a statement about other keys than its ledger's")
    signed = note.verify(found, former, new)
    if new not in signed:
        raise NoteError("the new key did not sign that it follows")
    return Succession(match[1], former, new, int(match[4]), former in signed)


def join(statements: Sequence[str]) -> str:
    """The chain of these statements, as it is stored and handed out."""
    return "\n".join(statements)


def split(chain: str) -> list[str]:
    """The statements of a chain, unread. Raises NoteError."""
    parts = chain.removesuffix("\n").split("\n\n") if chain else []
    if len(parts) % 2:
        raise NoteError("not a chain of statements")
    return [f"{text}\n\n{lines}\n" for text, lines in zip(parts[::2], parts[1::2], strict=True)]


def parse_chain(chain: str) -> list[Succession]:
    """All statements of a chain, each going on from the one before. Raises NoteError."""
    found = [parse(text) for text in split(chain)]
    for before, after in pairwise(found):
        if after.former != before.new:
            raise NoteError("the chain of keys has a gap")
    return found


def follow(chain: Sequence[Succession], trusted: Verifier) -> list[Verifier]:
    """`trusted` and the keys it vouches for, one through the other; the last one is the newest."""
    keys = [trusted]
    for each in chain:
        if each.former == keys[-1] and each.vouched:
            keys.append(each.new)
    return keys
