"""What control does again and again goes on after it has failed once."""

from __future__ import annotations

import asyncio
import sqlite3
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from exeat.appliance.control import server

if TYPE_CHECKING:
    import pytest


def test_a_tick_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = 0
    control: Any = object.__new__(server.Control)

    async def body() -> None:
        again = asyncio.Event()

        def tick() -> bool:
            nonlocal ticks
            ticks += 1
            if ticks == 2:
                again.set()
            raise sqlite3.OperationalError("database or disk is full")

        control._clock = SimpleNamespace(tick=tick)
        control.jobs = SimpleNamespace(end_ungranted=lambda: None)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            running = group.create_task(control._tick())
            await again.wait()
            running.cancel()

    monkeypatch.setattr(server, "TICK_S", 0)
    asyncio.run(body())
    assert capsys.readouterr().err.count("disk is full") >= 1
