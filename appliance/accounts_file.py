"""The console's accounts for the commands of root: opened as the console's user, whose file it is."""

from __future__ import annotations

import os
import pwd
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from exeat.appliance.console.auth.accounts import Accounts
from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.owner import as_owner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.appliance.config import Config


@contextmanager
def accounts_of(config: Config) -> Iterator[Accounts]:
    """Raises UsageError, or NotReachableError where they cannot be opened."""
    folder = config.state_dir / "console"
    if os.geteuid() != 0:
        raise UsageError("accounts are root's to give: run it with sudo")
    try:
        if not folder.exists():
            owner = pwd.getpwnam(config.users.console)
            folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            folder.mkdir(mode=0o750)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        with as_owner(folder):
            accounts = Accounts(folder)
            try:
                yield accounts
                # If that cannot be now, or there is no console, it stays owed.
                accounts.deeds.bring(config.run_dir / "ledger" / "ledger.sock", config.node.name)
            finally:
                accounts.close()
    except KeyError:
        raise NotReachableError(f"user `{config.users.console}` does not exist: run `exeat doctor`") from None
    except (OSError, sqlite3.Error) as error:
        raise NotReachableError(f"{folder}: {error}") from None
