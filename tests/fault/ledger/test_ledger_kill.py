"""kill -9 under load, again and again: every record the daemon acknowledged is in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.killing import kill_again_and_again

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acked, lost = kill_again_and_again(tmp_path, 25)
    assert acked > 500
    assert lost == 0
