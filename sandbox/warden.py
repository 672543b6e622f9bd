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
from exeat.sandbox.names import JailName, SpecError, parse_name
from exeat.sandbox.spec import Limits, parse_job, parse_request, parse_socket_names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STOP_S = 5.0


@dataclass(frozen=True)
class WardenSettings:
    """`roots` are the folders below which a job's mounts must lie. `gateway_gid` owns the jails' sockets."""

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
        self._run, work = settings.run_dir / "warden", settings.state_dir / "work"
        work.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._run.mkdir(mode=0o711, parents=True, exist_ok=True)
        for name in ("netns", "jails", "jobs", "mounts", "crun"):
            (self._run / name).mkdir(mode=0o700, exist_ok=True)
        self._jobs = Jobs(self._run, work, settings.runtime, settings.limits, reactor)
        self._jobs.adopt()
        self._listener = ipc.listen(self._run / "warden.sock")
        reactor.add(self._listener.fileno(), EPOLLIN, self._accept)
        self._verbs: dict[str, Callable[[dict[str, Any], list[int], Reply], None]] = {
            "jail.create": self._jail_create,
            "jail.sockets": self._jail_sockets,
            "jail.destroy": self._jail_destroy,
            "jail.list": lambda _, __, reply: reply({"jails": self._jails()}),
            "job.start": self._job_start,
            "job.wait": self._job_wait,
            "job.kill": self._job_kill,
            "job.remove": self._job_remove,
            "job.list": self._job_list,
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
            if events & EPOLLOUT:
                channel.flush()
            if events & ~EPOLLOUT:
                for message, fds in channel.receive():
                    self._handle(channel, message, fds)
            self._reactor.modify(channel.fileno(), EPOLLIN | (EPOLLOUT if channel.wants_write else 0))
        except (ipc.IpcError, OSError):
            self._drop(channel)

    def _drop(self, channel: ipc.Channel) -> None:
        if channel.fileno() >= 0:
            self._reactor.remove(channel.fileno())
            channel.close()

    def _handle(self, channel: ipc.Channel, message: ipc.Message, fds: list[int]) -> None:
        given = message.get("id")
        reply = Reply(self, channel, given if type(given) is int else -1)
        try:
            _number, verb = parse_request(message)
            if self._reactor.stopped:
                raise SpecError("stopping", "the warden is shutting down")
            self._verbs[verb](message, fds, reply)
        except SpecError as error:
            reply(error)
        except OSError as error:
            reply(SpecError("failed", str(error)))
        finally:
            for fd in fds:
                os.close(fd)

    def send(self, channel: ipc.Channel, message: ipc.Message, fds: list[int]) -> None:
        """Answer a peer, if it is still there."""
        if channel.fileno() < 0:
            return
        try:
            channel.send(message, fds)
            self._reactor.modify(channel.fileno(), EPOLLIN | (EPOLLOUT if channel.wants_write else 0))
        except OSError:
            self._drop(channel)

    def _jails(self) -> list[str]:
        return sorted(path.name for path in (self._run / "netns").iterdir() if netns.is_alive(path))

    def _jail(self, message: ipc.Message) -> tuple[JailName, Path, Path]:
        name = parse_name(message["jail"])
        return name, self._run / "netns" / name, self._run / "jails" / name

    def _jail_create(self, message: ipc.Message, _: list[int], reply: Reply) -> None:
        name, path, folder = self._jail(message)
        if netns.is_alive(path):
            raise SpecError("jail.exists", f"jail {name} exists")
        self._destroy(path, folder)  # what a warden killed half-way left
        netns.create(path)
        try:
            folder.mkdir(mode=0o755)
            self._hand_out(path, folder, message, reply)
        except OSError:
            self._destroy(path, folder)
            raise

    def _jail_sockets(self, message: ipc.Message, _: list[int], reply: Reply) -> None:
        name, path, folder = self._jail(message)
        if not netns.is_alive(path):
            raise SpecError("jail.unknown", f"no jail {name}")
        self._hand_out(path, folder, message, reply)

    def _hand_out(self, path: Path, folder: Path, message: ipc.Message, reply: Reply) -> None:
        names = parse_socket_names(message.get("names"))
        sockets = netns.listen(path, folder, names)
        # Ours are closed at once: a socket nobody accepts on would swallow connections (SO_REUSEPORT).
        reply({"sockets": list(names)}, [sock.fileno() for sock in sockets])
        for sock in sockets:
            sock.close()

    def _jail_destroy(self, message: ipc.Message, _: list[int], reply: Reply) -> None:
        name, path, folder = self._jail(message)
        if not netns.is_alive(path):
            raise SpecError("jail.unknown", f"no jail {name}")
        job = self._jobs.all.get(name)
        if job and job.code is None:
            raise SpecError("jail.busy", f"job {name} still runs")
        self._destroy(path, folder)
        reply({})

    def _destroy(self, path: Path, folder: Path) -> None:
        netns.destroy(path)
        shutil.rmtree(folder, ignore_errors=True)

    def _job_start(self, message: ipc.Message, fds: list[int], reply: Reply) -> None:
        spec = parse_job(message, self._settings.roots)
        if not netns.is_alive(self._run / "netns" / spec.job):
            raise SpecError("jail.unknown", f"no jail {spec.job}")
        fresh = range(self._settings.uid_base, self._settings.uid_base + self._settings.uid_count)
        if spec.uid is not None and (spec.uid in fresh or spec.uid == self._settings.control_uid):
            raise SpecError("argument", "that uid is not for jobs to choose")
        taken = {job.uid for job in self._jobs.all.values()}
        uid = spec.uid or next((number for number in fresh if number not in taken), 0)
        if not uid:
            raise SpecError("uid.exhausted", f"all {len(fresh)} uids are in use")
        self._jobs.start(spec, uid, fds, reply)

    def _job(self, message: ipc.Message) -> Job:
        name = parse_name(message["job"])
        if name not in self._jobs.all:
            raise SpecError("job.unknown", f"no job {name}")
        return self._jobs.all[name]

    def _job_wait(self, message: ipc.Message, _: list[int], reply: Reply) -> None:
        job = self._job(message)
        self._jobs.when_ended(job, lambda: reply({"code": job.code, "oom": job.oom}))

    def _job_kill(self, message: ipc.Message, _: list[int], reply: Reply) -> None:
        self._jobs.kill(self._job(message))
        reply({})

    def _job_remove(self, message: ipc.Message, _: list[int], reply: Reply) -> None:
        job = self._job(message)
        if job.code is None and not job.killed:
            raise SpecError("job.running", f"job {job.name} still runs")

        def remove() -> None:
            self._jobs.discard(job)
            reply({})

        self._jobs.when_ended(job, remove)

    def _job_list(self, _: ipc.Message, __: list[int], reply: Reply) -> None:
        jobs = self._jobs.all.values()
        reply({"jobs": [{"job": job.name, "running": job.code is None, "code": job.code} for job in jobs]})

    def stop(self) -> None:
        """End every job and remove every namespace, mount, socket and folder."""
        self._jobs.end_all(STOP_S)
        for name in os.listdir(self._run / "netns"):
            self._destroy(self._run / "netns" / name, self._run / "jails" / name)
        self._listener.close()
        shutil.rmtree(self._run, ignore_errors=True)


class Reply:
    """Answers one request: a result with descriptors, or a refusal."""

    def __init__(self, warden: Warden, channel: ipc.Channel, number: int) -> None:
        self._warden, self._channel, self._number = warden, channel, number

    def __call__(self, result: dict[str, Any] | SpecError, fds: list[int] | None = None) -> None:
        if isinstance(result, SpecError):
            result = {"ok": False, "error": result.code, "message": str(result)}
        self._warden.send(self._channel, {"ok": True, **result, "id": self._number}, fds or [])
