"""What the console owes the ledger: deeds of people, and how many credentials opened nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from typing import TYPE_CHECKING, Final

from exeat.appliance.console.auth.deeds import send

if TYPE_CHECKING:
    from collections import Counter

    from exeat.appliance.console.state import Console

LOOK_S: Final = 1.0
REFUSED_S: Final = 60.0  # refusals are summed up for so long: anybody can make them


async def tell_ledger(console: Console) -> None:
    """For as long as the console runs. What cannot be told now is told later."""
    counted, summed_up = console.failures.copy(), 0.0
    clock = asyncio.get_running_loop().time
    said = ""
    while True:
        try:
            if clock() >= summed_up + REFUSED_S and console.failures != counted:
                note_refused(console, console.failures - counted)
                counted, summed_up = console.failures.copy(), clock()
            await bring(console)
        except sqlite3.Error as error:
            if str(error) != said:
                said = str(error)
                print(f"console: the accounts cannot be read: {error}", file=sys.stderr, flush=True)
        await asyncio.sleep(LOOK_S)


def note_refused(console: Console, new: Counter[str]) -> None:
    """Passwords, links, tokens and certificates that opened nothing."""
    detail = ", ".join(f"{what} {count}" for what, count in sorted(new.items()))
    console.accounts.deeds.note("session.refused", "", detail, new.total())


async def bring(console: Console) -> None:
    """All that is owed, or nothing more while the ledger does not take it."""
    deeds, config = console.accounts.deeds, console.config
    path = config.run_dir / "ledger" / "ledger.sock"
    while True:
        upto, records = deeds.owed(config.node.name)
        if not upto or not await asyncio.to_thread(send, path, records):
            return
        deeds.forget(upto)
