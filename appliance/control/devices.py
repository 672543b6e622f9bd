"""Devices lent to jobs by leases: a sidecar for each, opened and ended with its lease.

What is in force is compared with what is open after every change. A record is durable before a sidecar
starts, and one says what came of it. Control holds the sidecar's only line: where control dies, the sidecar
ends, and who comes after opens it again if the lease is still good.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.verbs import ADMIN, Verbs, may
from exeat.appliance.errors import RefusedError
from exeat.policy.admin import Actor
from exeat.sandbox.device import SOCKET, sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from exeat.appliance.control.aio import Requester
    from exeat.appliance.control.jobs import Job, Jobs
    from exeat.appliance.control.leases import Leases
    from exeat.ledger.ipc import Message
    from exeat.policy.leases import Lease
    from exeat.sandbox.device import Device

AGAIN_S: Final = 2.0  # until one that could not be opened is tried again
_SELF: Final = Actor("control", ADMIN)  # who ends what is of no use any more


@dataclass(eq=False)
class Grant:
    """One device that is open. `line` ends with the sidecar, and the sidecar with `line`."""

    lease: Lease
    job: Job
    device: Device
    sidecar: str
    line: socket.socket
    door: socket.socket  # where the job connects
    ended: str = ""  # why
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: str) -> None:
        """At once, whether there is a warden or not."""
        if not self.ended:
            self.ended = reason
            loop = asyncio.get_running_loop()
            loop.remove_reader(self.line.fileno())
            loop.remove_reader(self.door.fileno())
            self.line.close()
            self.door.close()
            self.over.set()


class Devices:
    """`stops`: does the kill switch stop this project? `end_s` is a lease's end on CLOCK_BOOTTIME."""

    def __init__(
        self,
        devices: tuple[Device, ...],
        jobs: Jobs,
        leases: Leases,
        warden: Requester,
        *,
        stops: Callable[[str], bool],
        now_ms: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._devices = {device.name: device for device in devices}
        self._jobs, self._leases, self._warden = jobs, leases, warden
        self._stops, self._now_ms, self._spawn = stops, now_ms, spawn
        self._open: dict[str, Grant] = {}  # by lease
        self._later: dict[str, float] = {}  # by lease, where it could not be opened or has ended
        self._changed = asyncio.Event()

    def verbs(self) -> Verbs:
        return {"device.ls": self._ls, "device.grant": self._grant}

    def changed(self) -> None:
        """Something may be in force, or not any more."""
        for grant in list(self._open.values()):
            if why := self._over(grant):
                grant.end(why)  # here: nothing that ends access waits for its turn
        self._changed.set()

    async def run(self) -> None:
        """Forever, from when the jobs of before are known."""
        while True:
            self._changed.clear()
            self.changed()
            self._changed.clear()
            try:
                await self._let_go()
                await self._open_due()
            except Exception:  # a bug must not keep the rest from being opened, and ended, for good
                traceback.print_exc()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), AGAIN_S)

    # -- what holds

    def _over(self, grant: Grant) -> str:
        """Why it is to end now; "" while it is not."""
        if grant.job.code is not None or grant.job.ending:
            return "the job has ended"
        if self._stops(grant.job.project):
            return "kill switch"
        return "" if grant.lease.id in {lease.id for lease in self._leases.of_devices()} else "lease"

    async def _let_go(self) -> None:
        """A lease of a job that has ended is of no use, and would show as one that is."""
        for lease in self._leases.of_devices():
            job = self._jobs.all.get(lease.job)
            if job is None or job.ended.is_set():
                with contextlib.suppress(RefusedError):  # it has ended meanwhile
                    await self._leases.revoke({"lease": lease.id, "why": "its job has ended"}, _SELF)

    def _due(self) -> list[Lease]:
        now = time.monotonic()
        return [
            lease
            for lease in self._leases.of_devices()
            if lease.id not in self._open
            and self._later.get(lease.id, 0) <= now
            and (job := self._jobs.all.get(lease.job)) is not None
            and job.started_s
            and job.code is None
            and not job.ending
            and not self._stops(lease.project)
        ]

    # -- one

    async def _open_due(self) -> None:
        for lease in self._due():
            try:
                await self._open_one(lease)
            except (RefusedError, OSError) as error:
                print(f"control: device of {lease.id}: {error}", file=sys.stderr, flush=True)
                self._later[lease.id] = time.monotonic() + AGAIN_S

    async def _open_one(self, lease: Lease) -> None:
        job, device = self._jobs.all[lease.job], self._devices.get(str(lease.to[0]))
        if device is None:
            raise RefusedError("device.unknown", f"no [[device]] `{lease.to[0]}` is configured")
        await self._jobs.note(job, "device.open", f"{device.name} ({device.mode})", lease.id)
        name = f"dev-{secrets.token_hex(6)}"
        try:
            grant = await self._start(lease, job, device, name)
        except BaseException:
            await self._jobs.clear(name)
            raise
        self._open[lease.id] = grant
        loop = asyncio.get_running_loop()
        loop.add_reader(grant.line.fileno(), lambda: self._heard(grant))
        loop.add_reader(grant.door.fileno(), lambda: self._accept(grant))
        self._spawn(self._close_when_ended(grant))
        self.changed()  # it may have been revoked meanwhile

    async def _start(self, lease: Lease, job: Job, device: Device, name: str) -> Grant:
        socket_name = f"{SOCKET}{device.name}"
        _, made = await self._warden.call("jail.create", jail=name, names=["proxyu"])
        for fd in made:  # nothing is behind it: the sidecar has no network at all
            os.close(fd)
        _, (door,) = await self._warden.call("jail.sockets", jail=job.name, names=[socket_name])
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        accepting = socket.socket(fileno=door)
        try:
            until_s = time.clock_gettime(time.CLOCK_BOOTTIME) + (lease.exp_ms - self._now_ms()) / 1000
            with its:
                await self._warden.call(
                    "job.start",
                    (its.fileno(),) * 3,  # its input becomes the device
                    job=name,
                    argv=sidecar(device, until_s),
                    env={},
                    mounts=[],
                    cwd="/tmp",  # noqa: S108 - the container's own
                    profile="standard",
                    user="fresh",
                    limits={},
                    device=device.name,
                )
        except BaseException:
            mine.close()
            accepting.close()
            raise
        for each in (mine, accepting):
            each.setblocking(False)
        return Grant(lease, job, device, name, mine, accepting)

    def _accept(self, grant: Grant) -> None:
        """Hand a connection of the job's to the sidecar, which has at most one."""
        with contextlib.suppress(OSError), grant.door.accept()[0] as client:
            socket.send_fds(grant.line, [b"c"], [client.fileno()])

    def _heard(self, grant: Grant) -> None:
        """It never says a thing: its line is at an end, for the device is, or it was killed."""
        grant.end("the device, or its sidecar, has ended")
        self._later[grant.lease.id] = time.monotonic() + AGAIN_S
        self._changed.set()

    async def _close_when_ended(self, grant: Grant) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in (grant.over, grant.job.ended)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()
        grant.end("the job has ended")
        await self._jobs.clear(grant.sidecar)
        said = f"{grant.device.name}: {grant.ended}"
        await self._jobs.note(grant.job, "device.close", said, grant.lease.id)
        self._open.pop(grant.lease.id, None)
        self._changed.set()

    # -- requests

    async def _ls(self, _message: Message, _fds: list[int]) -> dict[str, Any]:
        rows = [
            {
                "device": device.name,
                "path": device.path,
                "mode": str(device.mode),
                "grants": [
                    {**row, "open": row["id"] in self._open}
                    for row in self._leases.rows(None, everything=False)
                    if "device" in row["speech"] and row["to"] == [device.name]
                ],
            }
            for device in self._devices.values()
        ]
        return {"devices": rows}

    async def _grant(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """Ask for it: what opens it is another person's approval of the lease."""
        who = may(message, "lease.request")
        name = str(message.get("device"))
        if name not in self._devices:
            raise RefusedError("device.unknown", f"no [[device]] `{name}`: `exeat device ls` lists them")
        job = self._jobs.get(message.get("job"))
        if message.get("project") not in (None, job.project):  # the console's, which judges by project
            raise RefusedError("job.unknown", f"no job `{job.name}` in project {message['project']}")
        if job.code is not None:
            raise RefusedError("job.ended", f"job {job.name} has ended")
        return {"lease": await self._leases.request_device(name, job, message, who)}
