"""Power is lost in the middle of writing: what was acknowledged is there. See also `bench.durability`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from tests.support.power import Machine, memory_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture
def memory() -> Iterator[Path]:
    folder = memory_folder("exeat-test-power")
    yield folder
    shutil.rmtree(folder)


def test_nothing_acknowledged_is_lost_with_the_power(memory: Path) -> None:
    machine = Machine(memory)
    assert [machine.cut() for _ in range(6)] == [""] * 6
    assert machine.size > 0


def test_without_a_sync_something_is_lost(memory: Path) -> None:
    """The control: a test of durability that cannot fail shows nothing."""
    assert Machine(memory, synced=False).cut()
