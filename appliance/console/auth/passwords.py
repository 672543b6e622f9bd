"""Passwords: argon2id (RFC 9106), never in the loop's thread and never many at once."""

from __future__ import annotations

import asyncio
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from exeat.appliance.errors import RefusedError

SHORTEST: Final = 12  # characters
LONGEST: Final = 256
AT_ONCE: Final = 2  # each takes 19 MiB
# OWASP's minimum for argon2id: 19 MiB, two passes, one lane.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def hashed(password: str) -> str:
    """Raises RefusedError for one that is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise RefusedError("account.password", f"a password has {SHORTEST} to {LONGEST} characters")
    return _HASHER.hash(password)


class Passwords:
    """Checks them. Whether there is such an account cannot be told from the time it takes."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._nobody = _HASHER.hash("nobody has this password")

    async def fits(self, password: str, kept: str) -> bool:
        """`kept` is the hash; "" where there is no account or no password: never."""
        async with self._turn:
            fits = await asyncio.to_thread(_fits, password, kept or self._nobody)
        return fits and bool(kept)


def _fits(password: str, kept: str) -> bool:
    try:
        return _HASHER.verify(kept, password)
    except (VerificationError, InvalidHashError):
        return False
