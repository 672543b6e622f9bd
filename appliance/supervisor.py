"""`exeat up`: the processes in the foreground, each under its own user.

Runs as root and so counts as privileged code: it makes folders, starts fixed commands and
restarts what dies; it parses nothing from outside. Start order: the ledger first (nothing opens
without it), the proxy last. Stop order: warden first, so that jobs end and their flows close
while proxy and ledger can still record them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from exeat.appliance import listeners
from exeat.appliance.archive_runs import ArchiveRuns
from exeat.ledger.reactor import EPOLLIN, Reactor

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.appliance.config import Config
    from exeat.appliance.listeners import Listener

START_ORDER = ("ledger", "warden", "control", "guard", "proxy")
# After them all, each only where something is configured for it: what goes out, by the exporting user.
EXPORTING = ("stream", "witness", "notify")
OPTIONAL = ("console", *EXPORTING)
STOP_ORDER = ("console", "warden", "proxy", "guard", "control", "ledger", *EXPORTING)
READY_S = 15.0
STOP_S = 8.0
MAX_DESCRIPTORS = 262_144  # of each process; a tunnel of the proxy takes two, while it is busy six
DOORS = {
    "proxy": listeners.PROXY_DOORS,
    "guard": listeners.GUARD_DOORS,
    "console": listeners.CONSOLE_DOORS,
}
BACKOFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)


class StartError(Exception):
    """The appliance cannot start; the message is one line."""


@dataclass
class Child:
    name: str
    user: pwd.struct_passwd
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    ready: bool = False
    deaths: int = 0
    started: float = 0.0

    @property
    def running(self) -> bool:
        return self.process is not None


@dataclass
class Supervisor:
    config: Config
    arguments: list[str]  # of every `exeat serve NAME`
    reactor: Reactor = field(default_factory=Reactor)
    children: dict[str, Child] = field(default_factory=dict)
    doors: list[Listener] = field(default_factory=list)
    stopping: bool = False
    failed: str = ""
    archiving: ArchiveRuns | None = None

    def run(self) -> int:
        """Start all, wait for the end, stop all. Returns the exit code (0, or 3)."""
        wanted = {
            "console": self.config.console.listen,
            "stream": self.config.ledger.stream,
            "notify": self.config.notify,
            "witness": witnesses(self.config),
        }
        names = (*START_ORDER, *(name for name in OPTIONAL if wanted[name]))
        self.children = {name: Child(name, self._user(name)) for name in names}
        with contextlib.suppress(ValueError, OSError):  # a container may not let us
            most = max(MAX_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.doors = self._open_doors()
        try:
            return self._run()
        finally:
            listeners.close_all(self.doors)

    def _open_doors(self) -> list[Listener]:
        """Before anything is made: a taken port must leave nothing behind."""
        try:
            return listeners.open_all(self.config)
        except listeners.ListenError as error:
            if (self.config.run_dir / "lock").exists():
                self._lock().close()  # held: the better explanation
            raise StartError(str(error)) from None

    def _run(self) -> int:
        self._make_folders()
        lock = self._lock()
        notify = self._notify_socket()
        self.reactor.stop_on_signals()
        try:
            self._start_all()
            if not self.failed:
                if self.config.ledger.archive:
                    every_s = self.config.ledger.archive_every_s
                    self.archiving = ArchiveRuns(self.reactor, self.arguments, every_s)
                print("exeat: up (ctrl-c or SIGTERM to stop)", flush=True)
                self.reactor.run()
        finally:
            self._stop_all()
            notify.close()
            lock.close()
            self._clear_run_dir()
        if self.failed:
            print(f"exeat: {self.failed}", file=sys.stderr)
        return 3 if self.failed else 0

    def _user(self, name: str) -> pwd.struct_passwd:
        users = self.config.users
        owners = {
            "warden": "root",
            "ledger": users.ledger,
            "control": users.control,
            "console": users.console,
        }
        owners |= dict.fromkeys(EXPORTING, users.export)
        owner = owners.get(name, users.gateway)
        try:
            return pwd.getpwnam(owner)
        except KeyError:
            raise StartError(
                f"user `{owner}` does not exist: run `exeat doctor` to see how to make it"
            ) from None

    def _make_folders(self) -> None:
        state, run = self.config.state_dir, self.config.run_dir
        try:
            for base in (state, run):
                _enterable(base)
            for name, child in self.children.items():
                _own(run / name, child.user, 0o755)
            for name in {"ledger", "control", *OPTIONAL} & set(self.children):
                _own(state / name, self.children[name].user, 0o750)
            _own(state / "work", self.children["warden"].user, 0o711)
        except OSError as error:
            raise StartError(f"{error.filename}: {error.strerror}") from None

    def _clear_run_dir(self) -> None:
        """Remove what we made, and the folder only if it holds nothing else: it may be anybody's."""
        run = self.config.run_dir
        for name in self.children:
            shutil.rmtree(run / name, ignore_errors=True)
        for name in ("notify.sock", "lock"):
            (run / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            run.rmdir()

    def _lock(self) -> TextIO:
        handle = open(self.config.run_dir / "lock", "w")  # noqa: SIM115 - held until the end
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(f"another exeat is running on {self.config.run_dir}") from None
        return handle

    def _notify_socket(self) -> socket.socket:
        """The same READY=1 protocol as systemd's (sd_notify(3)), with the sender's pid from the kernel."""
        path = self.config.run_dir / "notify.sock"
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.bind(str(path))
        path.chmod(0o666)
        self.reactor.add(sock.fileno(), EPOLLIN, lambda _: self._on_notify(sock))
        return sock

    def _on_notify(self, sock: socket.socket) -> None:
        data, ancillary, _, _ = sock.recvmsg(256, socket.CMSG_SPACE(12))
        pid = next((struct.unpack("3i", body)[0] for _, kind, body in ancillary if kind == 2), 0)
        for child in self.children.values():
            if child.process is not None and child.process.pid == pid and b"READY=1" in data:
                child.ready = True

    def _start_all(self) -> None:
        for child in self.children.values():
            self._start(child)
            deadline = self.reactor.now() + READY_S
            while not child.ready and not self.failed and not self.reactor.stopped:
                self.reactor.turn(0.2)
                if self.reactor.now() > deadline:
                    self.failed = f"{child.name} did not become ready in {READY_S:.0f} s"
            if self.failed or self.reactor.stopped:
                return

    def _start(self, child: Child) -> None:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "NOTIFY_SOCKET": str(self.config.run_dir / "notify.sock"),
            "EXEAT_SUPERVISED": "1",
        }
        doors = [door for door in self.doors if door.door in DOORS.get(child.name, ())]
        environment[listeners.ENVIRONMENT], inherited = listeners.handed_down(doors)
        child.ready, child.started = False, self.reactor.now()
        child.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "exeat", *self.arguments, "serve", child.name],
            user=child.user.pw_uid,
            group=child.user.pw_gid,
            # Control rebuilds the budgets from the ledger's files, others send of them: they may only read.
            extra_groups=[self.children["ledger"].user.pw_gid]
            if child.name in ("control", *OPTIONAL)
            else [],
            env=environment,
            stdin=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            pass_fds=inherited,
        )
        child.pidfd = os.pidfd_open(child.process.pid)
        self.reactor.add(child.pidfd, EPOLLIN, lambda _: self._on_death(child))

    def _reap(self, child: Child) -> int:
        assert child.process is not None  # noqa: S101 - only called for a started child
        self.reactor.remove(child.pidfd)
        os.close(child.pidfd)
        code = child.process.wait()
        child.process = None
        return code

    def _on_death(self, child: Child) -> None:
        was_ready, lived = child.ready, self.reactor.now() - child.started
        code = self._reap(child)
        if self.stopping:
            return
        if not was_ready and not child.deaths:
            self.failed = self.failed or f"{child.name} could not start (exit {code})"
            return
        child.deaths = 1 if lived > 30 else child.deaths + 1
        delay = BACKOFF_S[min(child.deaths, len(BACKOFF_S)) - 1]
        print(
            f"exeat: {child.name} ended ({code}), starting it again in {delay} s", file=sys.stderr, flush=True
        )
        self.reactor.call_later(delay, lambda: None if self.stopping else self._start(child))

    def _stop_all(self) -> None:
        self.stopping = True
        if self.archiving is not None:
            self.archiving.stop()
        for name in STOP_ORDER:
            child = self.children.get(name)
            if child is None or child.process is None:
                continue
            child.process.send_signal(signal.SIGTERM)
            deadline = self.reactor.now() + STOP_S
            while child.running and self.reactor.now() < deadline:
                self.reactor.turn(0.2)
            if child.running:
                print(f"exeat: {name} did not stop in {STOP_S:.0f} s, killing it", file=sys.stderr)
                child.process.kill()
                self._reap(child)


def witnesses(config: Config) -> bool:
    """Whether the configuration has something for the witness process to do."""
    return bool(config.ledger.witness or config.witness.listen)


def _enterable(base: Path) -> None:
    """Make a folder that the service users can enter; one that exists is not changed."""
    if not base.exists():
        base.mkdir(mode=0o755, parents=True)
        base.chmod(0o755)  # whatever the umask
    elif not base.is_dir():
        raise StartError(f"{base}: is not a folder")
    elif not base.stat().st_mode & 0o001:
        raise StartError(f"{base}: the service users cannot enter it: chmod o+x, or name another folder")


def _own(path: Path, user: pwd.struct_passwd, mode: int) -> None:
    path.mkdir(mode=mode, exist_ok=True)
    os.chown(path, user.pw_uid, user.pw_gid)
    path.chmod(mode)
