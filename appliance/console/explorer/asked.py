"""What workers are asked about: which ledger, and the words of a question."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exeat.ledger.index import WHO, open_index
from exeat.ledger.questions import Question

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.ledger.index import Index


class AskError(Exception):
    """The question has no answer; `code` is a stable reason code, the message says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Place:
    """The ledger in `directory` of `state_dir`. The index is the worker's own: the ledger's folder is the
    ledger's alone to write in."""

    state_dir: Path
    directory: Path
    index_path: Path

    @contextlib.contextmanager
    def index(self) -> Iterator[Index]:
        """Caught up with the ledger. Raises OSError, sqlite3.Error, ReaderError."""
        opened = open_index(self.directory, path=self.index_path)
        try:
            yield opened
        finally:
            opened.close()


def question_of(args: dict[str, Any]) -> Question:
    """The filters among the arguments, by the names of `WHO`; times are milliseconds.

    `projects` are those that the person may see (none: all).
    """
    where: dict[str, str | tuple[str, ...]] = {
        name: str(args[name]) for name in WHO if args.get(name) is not None
    }
    if args.get("projects"):
        where.setdefault("project", tuple(args["projects"]))
    return Question(where, args.get("since"), args.get("until"))
