"""The warden: the one privileged server. Makes jails, starts jobs, hands out descriptors.

Speaks docs/architecture.md's verbs on RUN/warden/warden.sock with the control process (and root).
Keeps nothing in memory that it cannot find again below RUN/warden.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exeat.ledger import ipc
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor
from exeat.sandbox import netns
from exeat.sandbox.jobs import Job, Jobs
from exeat.sandbox.launcher import Places
from exeat.sandbox.names import SpecError
from exeat.sandbox.spec import Limits, Request, choose_uid, parse_id, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

STOP_S = 5.0


@dataclass(frozen=True)
class WardenSettings:
    """`roots` are the folders below which a job's mounts must lie; uids are for fresh users of jobs."""

    run_dir: Path
    state_dir: Path
    control_uid: int
    uid_base: int
    uid_count: int
    roots: tuple[Path, ...]
    runtime: str = "crun"
    gateway_gid: int = 0
    limits: Limits = field(default_factory=Limits)


def serve(settings: WardenSettings, ready: Callable[[], None]) -> int:
    """Serve until SIGTERM, then end every job and leave nothing behind. Returns the exit code."""
    os.umask(0o022)
    reactor = Reactor()
    reactor.stop_on_signals()
    warden = Warden(settings, reactor)
    ready()
    reactor.run()
    warden.stop()
    return 0


class Warden:
    def __init__(self, settings: WardenSettings, reactor: Reactor) -> None:
        self._settings, self._reactor = settings, reactor
        self._places = Places(settings.run_dir / "warden", settings.state_dir / "work")
        for folder in (self._places.work, self._places.run):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        for folder in self._places.folders():
            folder.mkdir(mode=0o700, exist_ok=True)
        self._jobs = Jobs(self._places, settings.runtime, settings.limits, reactor)
        self._jobs.adopt()
        self._listener = ipc.listen(self._places.run / "warden.sock")
        reactor.add(self._listener.fileno(), EPOLLIN, self._accept)
        self._verbs: dict[str, Callable[[Request, list[int], Reply], None]] = {
            "jail.create": self._jail_create,
            "jail.sockets": self._jail_sockets,
            "jail.destroy": self._jail_destroy,
            "jail.list": lambda _, __, reply: reply({"jails": self._jails()}),
            "job.start": self._job_start,
            "job.wait": self._job_wait,
            "job.kill": self._job_kill,
            "job.remove": self._job_remove,
            "job.list": lambda _, __, reply: reply({"jobs": [_row(job) for job in self._jobs.all.values()]}),
        }

    def _accept(self, _: int) -> None:
        sock, _address = self._listener.accept()
        if ipc.peer_uid(sock) not in (0, self._settings.control_uid):
            sock.close()
            return
        sock.setblocking(False)
        channel = ipc.Channel(sock)
        self._reactor.add(sock.fileno(), EPOLLIN, lambda events: self._on_event(channel, events))

    def _on_event(self, channel: ipc.Channel, events: int) -> None:
        try:
            channel.flush()
            for message, fds in channel.receive() if events & ~EPOLLOUT else ():
                self._handle(Reply(self, channel, message), message, fds)
            self._arm(channel)
        except (ipc.IpcError, OSError):
            self._drop(channel)

    def _arm(self, channel: ipc.Channel) -> None:
        self._reactor.modify(channel.fileno(), EPOLLIN | (EPOLLOUT if channel.wants_write else 0))

    def _drop(self, channel: ipc.Channel) -> None:
        if channel.fileno() >= 0:
            self._reactor.remove(channel.fileno())
            channel.close()

    def _handle(self, reply: Reply, message: ipc.Message, fds: list[int]) -> None:
        try:
            parse_id(message)
            request = parse_request(message, len(fds), self._settings.roots)
            if self._reactor.stopped:
                raise SpecError("stopping", "the warden is shutting down")
            self._verbs[request.verb](request, fds, reply)
        except SpecError as error:
            reply(error)
        except OSError as error:
            reply(SpecError("failed", str(error)))
        finally:
            for fd in fds:
                os.close(fd)

    def send(self, channel: ipc.Channel, message: ipc.Message, fds: Sequence[int]) -> None:
        """Answer a peer, if it is still there."""
        try:
            if channel.fileno() >= 0:
                channel.send(message, list(fds))
                self._arm(channel)
        except OSError:
            self._drop(channel)

    def _jails(self) -> list[str]:
        return sorted(path.name for path in self._places.netns("").iterdir() if netns.is_alive(path))

    def _need_jail(self, name: str) -> None:
        if not netns.is_alive(self._places.netns(name)):
            raise SpecError("jail.unknown", f"no jail {name}")

    def _job(self, request: Request) -> Job:
        if request.name not in self._jobs.all:
            raise SpecError("job.unknown", f"no job {request.name}")
        return self._jobs.all[request.name]

    def _jail_create(self, request: Request, fds: list[int], reply: Reply) -> None:
        if netns.is_alive(self._places.netns(request.name)):
            raise SpecError("jail.exists", f"jail {request.name} exists")
        self._destroy(request.name)  # what a warden that was killed half-way left
        try:
            netns.create(self._places.netns(request.name))
            self._places.sockets(request.name).mkdir(mode=0o755)
            self._jail_sockets(request, fds, reply)
        except OSError:
            self._destroy(request.name)
            raise

    def _jail_sockets(self, request: Request, _: list[int], reply: Reply) -> None:
        self._need_jail(request.name)
        places = self._places
        sockets = netns.listen(places.netns(request.name), places.sockets(request.name), request.sockets)
        reply({"sockets": list(request.sockets)}, [sock.fileno() for sock in sockets])
        # At once: SO_REUSEPORT would hand connections to a socket on which nobody accepts.
        for sock in sockets:
            sock.close()

    def _jail_destroy(self, request: Request, _: list[int], reply: Reply) -> None:
        self._need_jail(request.name)
        job = self._jobs.all.get(request.name)
        if job and job.code is None:
            raise SpecError("jail.busy", f"job {request.name} still runs")
        self._destroy(request.name)
        reply({})

    def _destroy(self, name: str) -> None:
        netns.destroy(self._places.netns(name))
        shutil.rmtree(self._places.sockets(name), ignore_errors=True)

    def _job_start(self, request: Request, fds: list[int], reply: Reply) -> None:
        self._need_jail(request.name)
        if request.job is None:
            raise SpecError("argument", "no job")
        base = self._settings.uid_base
        taken = {job.uid for job in self._jobs.all.values()}
        fresh = range(base, base + self._settings.uid_count)
        uid = choose_uid(request.job.uid, taken, fresh, self._settings.control_uid)
        self._jobs.start(request.job, uid, fds, reply)

    def _job_wait(self, request: Request, _: list[int], reply: Reply) -> None:
        job = self._job(request)
        self._jobs.when_ended(job, lambda: reply({"code": job.code, "oom": job.oom}))

    def _job_kill(self, request: Request, _: list[int], reply: Reply) -> None:
        self._jobs.kill(self._job(request))
        reply({})

    def _job_remove(self, request: Request, _: list[int], reply: Reply) -> None:
        job = self._job(request)
        if job.code is None and not job.killed:
            raise SpecError("job.running", f"job {job.name} still runs")
        self._jobs.when_ended(job, lambda: self._jobs.discard(job))
        self._jobs.when_ended(job, lambda: reply({}))

    def stop(self) -> None:
        """End every job and remove every namespace, mount, socket and folder."""
        self._jobs.end_all(STOP_S)
        for name in os.listdir(self._places.netns("")):
            self._destroy(name)
        self._listener.close()
        shutil.rmtree(self._places.run)


class Reply:
    """Answers one request: a result with descriptors, or a refusal."""

    def __init__(self, warden: Warden, channel: ipc.Channel, message: ipc.Message) -> None:
        self._warden, self._channel, self._number = warden, channel, message.get("id")

    def __call__(self, result: dict[str, Any] | SpecError, fds: Sequence[int] = ()) -> None:
        if isinstance(result, SpecError):
            result = {"ok": False, "error": result.code, "message": str(result)}
        self._warden.send(self._channel, {"ok": True, **result, "id": self._number}, fds)


def _row(job: Job) -> dict[str, Any]:
    return {"job": job.name, "running": job.code is None, "code": job.code}
