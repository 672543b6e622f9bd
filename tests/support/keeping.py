"""A ledger whose old records are dropped when a test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.ledgers import deny
from tests.support.witnesses import Ledger, own

from exeat.appliance.cli import main
from exeat.ledger.reader import dropped_before
from exeat.ledger.records import encode
from exeat.ledger.retention import Dropping, Rules, propose
from exeat.ledger.upkeep import Upkeep

if TYPE_CHECKING:
    from pathlib import Path

DAY_NS = 86_400 * 10**9
OLD = Rules(keep_days=10, at_least_days=1)
NOW = 100 * DAY_NS


class Kept(Ledger):
    """A ledger whose time is the test's, with the writer's part of dropping."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, segment_bytes=16384)
        self.oldest: int | None = None
        self.dropping = Dropping(directory, lambda: self.oldest, lambda: self.store.size)
        self.kept_note = ""

    def fill(self, day: int, count: int) -> None:
        for first in range(0, count, 20):
            self.store.append([deny(self.store.size + n) for n in range(20)], day * DAY_NS + first)
        self.publish()

    def run_errands(self) -> None:
        for each in Upkeep(self.directory, own, self.dropping).due():
            self.store.append([encode(each)], NOW)

    def drop(self, rules: Rules = OLD) -> int:
        """The whole way; the number of the first record that is kept."""
        propose(self.directory, rules, NOW)
        for _ in range(100):
            self.run_errands()
            self.publish()
            if not (self.directory / "retention").exists():
                break
        return dropped_before(self.directory)

    def exeat(self, *argv: str) -> int:
        return main(["--state-dir", str(self.directory.parent.parent), "ledger", *argv])
