"""What the gateway is told of jails while it comes and goes. Its links are made up here."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from exeat.appliance.control.hub import Hub, Jail
from exeat.policy.model import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exeat.appliance.control.aio import Link


class Heard:
    """A gateway process: keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def send(self, message: dict[str, Any], _fds: Sequence[int] = ()) -> None:
        self.told.append((message["t"], message.get("jail", "")))


def made(folder: Path, open_sockets: Any = None) -> Hub:
    return Hub(
        folder / "hub.sock",
        os.getuid(),
        snapshot=lambda: {"t": "snapshot"},
        spent=cast("Any", None),
        resolvers=list,
        open_sockets=open_sockets,
        on_ask=cast("Any", None),
        on_flows=cast("Any", None),
        on_direct=cast("Any", None),
        on_desk=cast("Any", None),
        ended=list,
        on_counts=lambda _role, _message: None,
        on_alert=lambda _message: None,
        spawn=cast("Any", None),
    )


JAIL = Jail("j", Subject("p", "run", "j", "j", "n"), 0, ("proxy4", "proxyu"))


def test_a_proxy_that_comes_back_while_its_jail_is_taken_down_lets_go_of_it(tmp_path: Path) -> None:
    """Control was restarted: the guard is back already, and is the one that is waited for."""

    async def story() -> list[tuple[str, str]]:
        hub = made(tmp_path)
        await hub.adopt([replace(JAIL)])
        proxy, guard = Heard(), cast("Link", Heard())
        hub._links = {"guard": guard}
        leaving = asyncio.ensure_future(hub.remove_jail("j"))
        await asyncio.sleep(0)
        await hub._welcome(cast("Link", proxy), {"role": "proxy", "jails": ["j"]})
        hub._on_message(guard, {"t": "jail.removed", "jail": "j"})
        await leaving
        hub._server.close()
        return proxy.told

    assert ("jail.remove", "j") in asyncio.run(story())


def test_a_jail_that_leaves_while_its_sockets_are_opened_again_is_not_added_behind_that(
    tmp_path: Path,
) -> None:
    """Nobody would tell the proxy again to let go of it."""

    async def story() -> list[tuple[str, str]]:
        asked, answer = asyncio.Event(), asyncio.Event()
        pipe = os.pipe()

        async def open_sockets(_jail: str, names: Sequence[str]) -> dict[str, int]:
            asked.set()
            await answer.wait()
            return dict(zip(names, pipe, strict=False))

        hub = made(tmp_path, open_sockets)
        proxy, guard = Heard(), Heard()
        link = cast("Link", proxy)
        hub._links = {"guard": cast("Link", guard)}
        await hub.add_jail(replace(JAIL), {})
        coming = asyncio.ensure_future(hub._welcome(link, {"role": "proxy", "jails": []}))
        await asked.wait()
        leaving = asyncio.ensure_future(hub.remove_jail("j"))
        await asyncio.sleep(0)
        assert ("jail.remove", "j") in proxy.told
        answer.set()
        await coming
        for each in (link, cast("Link", guard)):
            hub._on_message(each, {"t": "jail.removed", "jail": "j"})
        await leaving

        hub._server.close()
        return proxy.told

    told = asyncio.run(story())
    assert ("jail.add", "j") not in told
    assert told[-1] == ("jail.remove", "j")
