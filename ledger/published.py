"""What the publisher has put beside the segments: the signed checkpoint, and tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exeat.ledger import note, tiles
from exeat.ledger.tiles import TileError

if TYPE_CHECKING:
    from pathlib import Path


def tile_loader(directory: Path) -> tiles.Loader:
    """Reads tiles of the ledger in `directory`. Its calls raise TileError."""

    def load(level: int, number: int, width: int) -> bytes:
        path = directory / tiles.path(level, number, width)
        if width < tiles.WIDTH and not path.exists():  # full by now: then the partial ones are gone
            path = directory / tiles.path(level, number)
        try:
            return path.read_bytes()[: width * 32]
        except OSError as error:
            raise TileError(f"{path}: {error.strerror}") from None

    return load


def read_checkpoint(directory: Path) -> str | None:
    """The published checkpoint as it stands; None if there is none yet. Raises OSError, NoteError."""
    try:
        return (directory / "checkpoint").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise note.NoteError("the checkpoint is not text") from None
