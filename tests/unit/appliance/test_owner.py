"""Root in a service's folder: with the rights of its account, and with all of its own afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.witnesses import Ledger

from exeat.appliance.cli import main
from exeat.appliance.owner import as_owner

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
NOBODY = 65534


class World:
    """A ledger of another account's, and a file that account must not reach."""

    def __init__(self, base: Path) -> None:
        self.state = base / "state"
        self.ledger = Ledger(self.state / "ledger" / "x")
        self.ledger.grow(300)
        self.ledger.store.close()
        self.target = base / "target"
        self.target.write_text("untouched")
        for path in ((top := self.state / "ledger"), *top.rglob("*")):
            os.chown(path, NOBODY, NOBODY)

    def exeat(self, *argv: str) -> int:
        return main(["--state-dir", str(self.state), *argv])

    def of_root(self) -> list[Path]:
        return [path for path in (self.state / "ledger").rglob("*") if path.lstat().st_uid == 0]


@pytest.fixture
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="exeat-owner-") as folder:
        Path(folder).chmod(0o755)
        yield World(Path(folder))


def test_rights_are_given_up_and_come_back(world: World) -> None:
    before = os.geteuid(), os.getegid(), os.getgroups()
    folder = world.ledger.directory
    (folder / "link").symlink_to(world.target)

    def write() -> None:
        with as_owner(folder):
            (folder / "new").write_text("x")
            (folder / "link").write_text("x")

    with pytest.raises(PermissionError):
        write()
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
    assert (folder / "new").stat().st_uid == NOBODY
    linked = world.state / "ledger" / "y"
    linked.symlink_to(world.target.parent)
    os.chown(linked, NOBODY, NOBODY, follow_symlinks=False)
    with as_owner(linked):
        assert os.geteuid() == NOBODY  # of who made the link


@pytest.mark.parametrize(
    "argv", [("ledger", "fsck", "--repair"), ("ledger", "index"), ("ledger", "review"), ("keys", "rotate")]
)
def test_what_root_makes_in_it_belongs_to_the_account(world: World, argv: tuple[str, ...]) -> None:
    shutil.rmtree(world.ledger.directory / "tile")
    assert world.exeat(*argv) == 0
    assert world.of_root() == []


def test_a_repair_does_not_follow_a_link(world: World) -> None:
    tile = world.ledger.directory / "tile" / "0" / "000"
    tile.write_bytes(b"wrong")
    os.chown(tile, NOBODY, NOBODY)
    tile.with_name("000.tmp").symlink_to(world.target)
    assert world.exeat("ledger", "fsck", "--repair") == 3
    assert world.target.read_text() == "untouched"


def test_a_page_does_not_follow_a_link(world: World) -> None:
    pages = world.state / "review"
    pages.mkdir()
    for name in ("exeat-2026-01-02.html", "exeat-2026-01-02.csv"):
        (pages / f"{name}.tmp").symlink_to(world.target)
        (pages / f".{name}.{os.getpid()}.tmp").symlink_to(world.target)
    assert world.exeat("ledger", "review", "--day", "2026-01-02", "--dir", str(pages)) == 0
    assert world.target.read_text() == "untouched"
    assert (pages / "exeat-2026-01-02.html").read_text().startswith("<!doctype html>")
