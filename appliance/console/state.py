"""What the parts of the console process share."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exeat.appliance.console.auth.limits import Window
from exeat.appliance.console.auth.oidc import BACK, Provider
from exeat.appliance.console.auth.passwords import Passwords
from exeat.appliance.console.connections import Connections
from exeat.appliance.console.explorer.workers import Workers
from exeat.appliance.console.journal import Journal
from exeat.appliance.console.payload_notes import PayloadNotes
from exeat.appliance.control.aio import Requester
from exeat.appliance.errors import RefusedError
from exeat.ledger.reader import ledger_of, origin_of

if TYPE_CHECKING:
    from exeat.appliance.config import Config
    from exeat.appliance.console.auth.accounts import Accounts
    from exeat.appliance.console.auth.principal import Principal
    from exeat.ledger.ipc import Message

CONTROL_S = 15.0  # control waits 10 s for news and 5 s for the proxy
LOGIN_TRIES, LOGIN_S = 5, 30.0
CALLS, CALLS_S = 1200, 60.0  # of one account; of one address twice as many


@dataclass
class Console:
    """One console process. `secure`: it speaks TLS."""

    config: Config
    accounts: Accounts
    secure: bool
    passwords: Passwords = field(default_factory=Passwords)
    tries: Window = field(default_factory=lambda: Window(LOGIN_TRIES, LOGIN_S))
    tries_of_address: Window = field(default_factory=lambda: Window(LOGIN_TRIES * 4, LOGIN_S))
    calls: Window = field(default_factory=lambda: Window(CALLS, CALLS_S))
    calls_of_address: Window = field(default_factory=lambda: Window(CALLS * 2, CALLS_S))
    answering: set[tuple[str, str]] = field(default_factory=set)  # idempotency keys of calls under way
    failures: Counter[str] = field(default_factory=Counter)  # refused logins and tokens, for the metrics
    connections: Connections = field(default_factory=Connections)
    streams: Counter[str] = field(default_factory=Counter)  # of events, by whose they are

    def __post_init__(self) -> None:
        ledger = ledger_of(self.config.state_dir, origin_of(self.config.node.name))
        index = self.config.state_dir / "console" / "index.sqlite"
        self.workers = Workers(self.config.state_dir, ledger, index)
        self.payloads = PayloadNotes(self.config.state_dir / "console" / "payloads.sqlite")
        self.journal = Journal(self.config.state_dir / "console" / "events", self.now_ms)
        section = self.config.oidc
        self.provider = Provider(section, f"{self.config.console.url()}{BACK}") if section.issuer else None
        self._control = Requester(self.config.run_dir / "control" / "control.sock", "control")

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def control(self, who: Principal, verb: str, **arguments: Any) -> Message:
        """Ask control as this person. Raises RefusedError."""
        said = {key: value for key, value in arguments.items() if value is not None}
        said |= {"as": who.name, "role": who.role}
        try:
            async with asyncio.timeout(CONTROL_S):
                reply, _ = await self._control.call(verb, (), **said)
        except TimeoutError:
            raise RefusedError("unavailable", "control does not answer") from None
        return reply

    async def close(self) -> None:
        await self.workers.close()
        self._control.close()
        self.payloads.close()
        self.accounts.close()
