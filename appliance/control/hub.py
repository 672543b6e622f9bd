"""Control's side of hub.sock: every gateway process gets the whole truth on each connection."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from exeat.appliance.control.aio import Link, Server
from exeat.appliance.errors import RefusedError
from exeat.sandbox.spec import SOCKETS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from pathlib import Path

    from exeat.appliance.control.desk import Answer
    from exeat.ledger.ipc import Channel, Message
    from exeat.policy.model import Subject

ROLE_SOCKETS = {
    "proxy": ("proxy4", "proxy6", "proxyu", "socks4", "socks6", "trans4", "trans6", "udp4", "udp6"),
    "guard": ("dnsu4", "dnsu6", "dnst4", "dnst6"),
}
REMOVE_S = 10.0
CONNECT_S = 5.0


@dataclass
class Jail:
    """A jail as the gateway needs to know it."""

    name: str
    subject: Subject
    hold_ms: int
    doors: tuple[str, ...] = SOCKETS  # which of them it has
    removed: dict[str, asyncio.Event] = field(default_factory=dict)
    leaving: bool = False  # it is being removed: who connects now is not told of it any more


class Hub:
    """The gateway processes that are connected now, and the jails they must serve."""

    def __init__(
        self,
        path: Path,
        gateway_uid: int,
        *,
        snapshot: Callable[[], Message],
        spent: Callable[[str], Awaitable[Message]],
        resolvers: Callable[[], Iterable[str]],
        open_sockets: Callable[[str, Sequence[str]], Awaitable[dict[str, int]]],
        on_ask: Callable[[Message], Awaitable[str]],
        on_flows: Callable[[Message], None],
        on_direct: Callable[[Message], Awaitable[None]],
        on_desk: Callable[[Message], Awaitable[Answer]],
        on_counts: Callable[[str, Message], None],
        on_alert: Callable[[Message], None],
        ended: Callable[[], list[str]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._snapshot = snapshot
        self._spent = spent
        self._resolvers = resolvers
        self._open_sockets = open_sockets
        self._on_ask = on_ask
        self._on_flows = on_flows
        self._on_direct = on_direct
        self._on_desk = on_desk
        self._on_counts = on_counts
        self._on_alert = on_alert
        self._ended = ended
        self._spawn = spawn
        self._links: dict[str, Link] = {}
        self.relay = ""  # what moves the bytes in the proxy, once it has said so
        self._whole = asyncio.Event()  # set while every gateway process is connected
        self.jails: dict[str, Jail] = {}
        self._served: dict[str, set[str]] = {}  # the jails that each role had when it connected
        self._adopted = False
        self._server = Server(path, {gateway_uid}, self._accepted)

    @property
    def roles(self) -> list[str]:
        return sorted(self._links)

    def _accepted(self, channel: Channel) -> None:
        def on_message(message: Message, fds: list[int]) -> None:
            for fd in fds:
                os.close(fd)
            self._on_message(link, message)

        def on_closed() -> None:
            for role, known in list(self._links.items()):
                if known is link:
                    del self._links[role]
                    self._whole.clear()

        link = Link(channel, on_message, on_closed)

    def _on_message(self, link: Link, message: Message) -> None:
        kind = message.get("t")
        if kind == "hello" and message.get("role") in ROLE_SOCKETS:
            self._spawn(self._welcome(link, message))
        elif kind == "ask":
            self._spawn(self._ask(link, message))
        elif kind == "desk":
            self._spawn(self._desk(link, message))
        elif kind in ("flows", "flows.part"):
            self._on_flows(message)
        elif kind in ("direct.said", "pins"):
            self._spawn(self._direct(message))
        elif kind == "alert":
            print(f"control: {_alert_text(message)}", file=sys.stderr)
            self._on_alert(message)
        elif kind == "counts":
            self._on_counts(self._role(link), message)
        elif kind == "jail.removed":
            jail = self.jails.get(str(message.get("jail")))
            role = self._role(link)
            if jail is not None and role in jail.removed:
                jail.removed[role].set()

    async def _desk(self, link: Link, message: Message) -> None:
        said = await self._on_desk(message)
        link.send({"t": "desk.said", "question": message.get("question"), **asdict(said)})

    def _role(self, link: Link) -> str:
        return next((role for role, known in self._links.items() if known is link), "")

    async def _welcome(self, link: Link, hello: Message) -> None:
        role = str(hello["role"])
        if hello.get("fresh"):  # before the snapshot, without which it opens nothing
            link.send(await self._spent(role))
        self._links[role] = link
        self.relay = str(hello.get("relay", self.relay))
        if len(self._links) == len(ROLE_SOCKETS):
            self._whole.set()
        if role == "guard":
            link.send(self._list_message())
        link.send(self._snapshot())
        if role == "proxy":
            link.send(_ended(self._ended()))
        self._served[role] = set(map(str, hello.get("jails", ())))
        if self._adopted:
            self._drop_strangers(role, link)
        await self._send_missing(role, link, list(self.jails.values()))

    async def adopt(self, jails: list[Jail]) -> None:
        """The jails of before: now all that there are are known, and the gateway lets go of others."""
        self.jails |= {jail.name: jail for jail in jails}
        self._adopted = True
        for role, link in list(self._links.items()):
            self._drop_strangers(role, link)
            await self._send_missing(role, link, jails)

    def _drop_strangers(self, role: str, link: Link) -> None:
        for name in self._served[role] - {name for name, jail in self.jails.items() if not jail.leaving}:
            link.send({"t": "jail.remove", "jail": name})

    async def _send_missing(self, role: str, link: Link, jails: list[Jail]) -> None:
        for jail in jails:
            if jail.name not in self._served[role] and self._links.get(role) is link:
                await self._send_jail(role, link, jail, None)

    async def _send_jail(self, role: str, link: Link, jail: Jail, given: dict[str, int] | None) -> None:
        wanted = [name for name in ROLE_SOCKETS[role] if name in jail.doors]
        sockets = given or {}
        try:
            if given is None and wanted:
                sockets = await self._open_sockets(jail.name, wanted)
        except RefusedError:
            return  # the jail is gone, or the warden is: nothing opens
        if not jail.leaving:  # else the gateway has been told to let go of it, and would not be again
            mine = {name: sockets[name] for name in wanted if name in sockets}
            message = {
                "t": "jail.add",
                "jail": jail.name,
                "subject": jail.subject._asdict(),
                "sockets": list(mine),
                "hold_ms": jail.hold_ms,
            }
            link.send(message, list(mine.values()))
        if given is None:
            for fd in sockets.values():
                os.close(fd)

    async def _direct(self, message: Message) -> None:
        await self._on_direct(message)

    async def _ask(self, link: Link, message: Message) -> None:
        try:
            request = await self._on_ask(message)
        except RefusedError as error:
            link.send({"t": "ask.refused", "key": message.get("key"), "error": error.code})
            return
        link.send({"t": "ask.pending", "key": message.get("key"), "request": request})

    async def wait_for_gateway(self) -> None:
        """Until proxy and guard are both connected; RefusedError after a few seconds."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._whole.wait()
        except TimeoutError:
            missing = ", ".join(role for role in ROLE_SOCKETS if role not in self._links)
            raise RefusedError("gateway.unavailable", f"not running: {missing}") from None

    def publish(self) -> None:
        """Send the current snapshot to every gateway process."""
        message = self._snapshot()
        for link in list(self._links.values()):
            link.send(message)

    def publish_resolvers(self) -> None:
        """Tell the guard which public resolvers it refuses now."""
        self.tell("guard", self._list_message())

    def _list_message(self) -> Message:
        return {"t": "resolvers", "names": sorted(self._resolvers())}

    async def add_jail(self, jail: Jail, sockets: dict[str, int]) -> None:
        """Hand a new jail's sockets to the gateway (the descriptors stay the caller's)."""
        self.jails[jail.name] = jail
        for role, link in list(self._links.items()):
            await self._send_jail(role, link, jail, sockets)

    async def remove_jail(self, name: str) -> None:
        """End a jail's flows and wait until their records are durable (bounded)."""
        jail = self.jails.get(name)
        if jail is None:
            return
        jail.leaving = True
        jail.removed = {role: asyncio.Event() for role in self._links}
        for link in list(self._links.values()):
            link.send({"t": "jail.remove", "jail": name})
        try:
            async with asyncio.timeout(REMOVE_S):
                for event in jail.removed.values():
                    await event.wait()
        except TimeoutError:
            pass  # a gateway that died meanwhile: its flows are settled by the ledger
        del self.jails[name]

    def ended(self, lease: str) -> None:
        """A lease has ended for good: what was counted for it is of no use any more."""
        self.tell("proxy", _ended([lease]))

    def tell(self, role: str, message: Message) -> bool:
        """Say something to one process; False if it is not connected."""
        link = self._links.get(role)
        if link is not None:
            link.send(message)
        return link is not None

    def cut(self, reason: str, **what: str) -> None:
        """End one live flow, or those of a lease, job or project, at once."""
        for link in list(self._links.values()):
            link.send({"t": "cut", "reason": reason, **what})

    def close(self) -> None:
        self._server.close()
        for link in list(self._links.values()):
            link.close()


def _ended(leases: list[str]) -> Message:
    return {"t": "leases.ended", "leases": leases}


def _alert_text(message: Message) -> str:
    """One line about an alert; whatever a gateway sends, it is plain text."""
    subject = message.get("subject")
    who = subject if isinstance(subject, dict) else {}
    place = f"{who.get('project', '')}/{who.get('job') or who.get('agent', '')}"
    facts = (
        f"{key}={message.get(key)}" for key in ("domain", "verdict", "score", "signals", "octets", "names")
    )
    text = f"alert {message.get('reason')}: {place} {' '.join(facts)}"
    return text.encode("ascii", "replace").decode()[:300].replace("\n", " ")
