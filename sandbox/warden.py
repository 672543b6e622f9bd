"""The warden: the one privileged server. Makes jails, starts jobs, hands out descriptors.

Speaks docs/architecture.md's verbs on RUN/warden/warden.sock with the control process (and root).
Keeps nothing in memory that it cannot find again below RUN/warden.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from exeat.ledger.reactor import Reactor
from exeat.ledger.service import Reply, Service
from exeat.ledger.supervised import beat
from exeat.sandbox import netns
from exeat.sandbox.jobs import Job, Jobs
from exeat.sandbox.launcher import Places
from exeat.sandbox.names import SpecError, fields_of
from exeat.sandbox.routing import WATCH_S, Routing
from exeat.sandbox.spec import Request, WardenSettings, choose_uid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STOP_S = 5.0


def serve(settings: WardenSettings, ready: Callable[[], None]) -> int:
    """Serve until SIGTERM, then end every job and leave nothing behind. Returns the exit code."""
    os.umask(0o022)
    reactor = Reactor()
    reactor.stop_on_signals()
    warden = Warden(settings, reactor)
    beat(reactor)
    ready()
    reactor.run()
    warden.stop()
    return 0


class Warden:
    def __init__(self, settings: WardenSettings, reactor: Reactor) -> None:
        self._settings, self._reactor = settings, reactor
        self._places = Places(settings.run_dir / "warden", settings.state_dir / "work", settings.hook)
        for folder, mode in self._places.folders():
            folder.mkdir(mode, parents=True, exist_ok=True)
        self._jobs = Jobs(self._places, settings, reactor)
        self._jobs.adopt()
        self._routing = Routing(settings.table, str(self._places.run))
        self._watch()
        users = frozenset({0, settings.control_uid})
        self._service = Service(reactor, self._places.run / "warden.sock", users, self._handle)

    def _handle(self, message: dict[str, Any], fds: list[int], reply: Reply) -> None:
        def work() -> None:
            request = self._settings.parse(message, len(fds))
            if self._reactor.stopped:
                raise SpecError("stopping", "the warden is shutting down")
            self._do(request, fds, reply)

        _guarded(work, reply)

    def _do(self, request: Request, fds: list[int], reply: Reply) -> None:
        match request.verb:
            case "jail.create":
                self._create_jail(request, reply)
            case "jail.sockets":
                self._hand_out(request, reply)
            case "jail.destroy":
                self._destroy_jail(request.name)
                reply({})
            case "jail.list":
                jails = (path.name for path in self._places.netns("").iterdir() if netns.is_alive(path))
                reply({"jails": sorted(jails)})
            case "job.start":
                self._start_job(request, fds, reply)
            case "job.wait":
                job = self._job(request)
                job.when_ended(lambda: reply({"code": job.code, "oom": job.oom}))
            case "job.kill" | "job.pause" | "job.resume":
                self._jobs.steer(self._job(request), request.verb)
                reply({})
            case "job.remove":
                self._remove_job(self._job(request), reply)
            case "job.list":
                rows = self._jobs.all.values()
                reply({"jobs": [{"job": j.name, "running": j.code is None, "code": j.code} for j in rows]})
            case "routing.set" | "routing.status":
                netns.run(self._routing.serve(request, self._reactor.now()))
                reply(self._routing.report(self._reactor.now()))

    def _watch(self) -> None:
        self._reactor.call_later(WATCH_S, self._watch)
        netns.run(self._routing.watch(self._reactor.now()))

    def _create_jail(self, request: Request, reply: Reply) -> None:
        path = self._places.netns(request.name)
        if netns.is_alive(path):
            raise SpecError("jail.exists", f"jail {request.name} exists")
        self._clean(request.name)  # what a warden that was killed half-way left
        try:
            netns.create(path)
            self._places.sockets(request.name).mkdir(mode=0o755)
            self._hand_out(request, reply)
        except OSError:
            self._clean(request.name)
            raise

    def _hand_out(self, request: Request, reply: Reply) -> None:
        path = self._jail(request.name)
        sockets = netns.listen(path, self._places.sockets(request.name), request.sockets)
        reply({"sockets": list(request.sockets)}, [sock.fileno() for sock in sockets])
        # At once: SO_REUSEPORT would hand connections to a socket on which nobody accepts.
        for sock in sockets:
            sock.close()

    def _destroy_jail(self, name: str) -> None:
        self._jail(name)
        if name in self._jobs.all and self._jobs.all[name].code is None:
            raise SpecError("jail.busy", f"job {name} still runs")
        self._clean(name)

    def _clean(self, name: str) -> None:
        netns.destroy(self._places.netns(name))
        shutil.rmtree(self._places.sockets(name), ignore_errors=True)

    def _jail(self, name: str) -> Path:
        if not netns.is_alive(self._places.netns(name)):
            raise SpecError("jail.unknown", f"no jail {name}")
        return self._places.netns(name)

    def _job(self, request: Request) -> Job:
        if request.name not in self._jobs.all:
            raise SpecError("job.unknown", f"no job {request.name}")
        return self._jobs.all[request.name]

    def _start_job(self, request: Request, fds: list[int], reply: Reply) -> None:
        self._jail(request.name)
        if request.job is None or not all(map(netns.may_be_stdio, fds)):
            raise SpecError("argument", "a job's descriptors are files, pipes, terminals or stream sockets")
        taken = {job.uid for job in self._jobs.all.values()}
        uid = choose_uid(request.job.uid, taken, self._settings.fresh_uids, self._settings.control_uid)
        self._jobs.start(request.job, uid, fds, reply)

    def _remove_job(self, job: Job, reply: Reply) -> None:
        if job.code is None and not job.killed:
            raise SpecError("job.running", f"job {job.name} still runs")

        def work() -> None:
            self._jobs.discard(job)
            reply({})

        job.when_ended(lambda: _guarded(work, reply))

    def stop(self) -> None:
        """End every job and pinhole; remove all but the host's table, which lets nobody out by staying."""
        self._jobs.end_all(STOP_S)
        for name in os.listdir(self._places.netns("")):
            self._clean(name)
        self._service.close()
        netns.run(self._routing.stop(self._reactor.now()))
        shutil.rmtree(self._places.run)


def _guarded(work: Callable[[], None], reply: Reply) -> None:
    try:
        work()
    except (SpecError, OSError) as error:
        reply(fields_of(error))
