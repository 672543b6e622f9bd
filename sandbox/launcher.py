"""Where the warden keeps things, and the command lines it runs (pure).

A job is started through a small fixed shell text which outlives the warden and writes the exit
code. All that changes reaches it as a positional argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.sandbox.cgroup import Layout

# The caller's descriptors move out of the runtime's way (see oci._INIT). $1 is a mount to hide from it
# in the launcher's own mount namespace ("" for none), $2 the job's folder.
_ENTER: Final = """
exec 3<&0 4>&1 5>&2 </dev/null >/dev/null 2>&1
[ -z "$1" ] || umount -l "$1"
folder=$2
shift 2
"""
# Created exclusively (set -C): `launcher`; either this start owns the job, or a warden that gave it up does.
_RUN: Final = (
    _ENTER
    + """
set -C
echo $$ >"$folder/launcher" || exit
"$@"
echo $? >|"$folder/exit"
"""
)
# $3 is the job's edit, which stays where it changed anything.
_REMOVE: Final = """
rm -rf --one-file-system -- "$1" "$2" || exit
if rmdir "$3/upper" 2>/dev/null || ! [ -e "$3/upper" ]; then rm -rf --one-file-system -- "$3"; fi
"""
_ONCE: Final = _ENTER + 'exec "$@" 3<&- 4>&- 5>&-'


@dataclass(frozen=True, slots=True)
class Places:
    """`run` is RUN/warden, `work` is STATE/work; the changes that jobs leave are beside it."""

    run: Path
    work: Path

    def folders(self) -> list[tuple[Path, int]]:
        """All of them with their modes, parents first. Below `run` only root may enter."""
        inner = [self.run / name for name in ("netns", "jails", "jobs", "mounts", "containers")]
        closed = [self.edit(""), *inner]
        return [(self.work, 0o711), (self.run, 0o711), *((folder, 0o700) for folder in closed)]

    def netns(self, jail: str) -> Path:
        """Where the jail's namespace is mounted; is there exactly as long as the jail."""
        return self.run / "netns" / jail

    def sockets(self, jail: str) -> Path:
        """The folder of proxy.sock, which the jail's job sees."""
        return self.run / "jails" / jail

    def job(self, job: str) -> Path:
        """The bundle: config.json, rootfs, launcher, pid, log, exit."""
        return self.run / "jobs" / job

    def container(self, job: str) -> Path:
        """What the runtime keeps of a container that it has not seen the end of."""
        return self.run / "containers" / job

    def output(self, job: str) -> Path:
        """The job's work folder."""
        return self.work / job

    def removal(self, job: str) -> tuple[str, ...]:
        """The command that removes the folders of an ended job.

        Not shutil.rmtree: a job may leave folders nested deeper than Python recurses.
        """
        folders = map(str, (self.job(job), self.output(job), self.edit(job)))
        return "/bin/sh", "-c", _REMOVE, "exeat-remove", *folders

    def edit(self, job: str) -> Path:
        """What the job changed in the folder it edits: `upper`, `work` (overlayfs) and `edit.json`."""
        return self.work.parent / "edits" / job

    def staged(self, job: str, number: int | str) -> Path:
        """Where a checked host path is held until the container has it. No name contains a dot."""
        return self.run / "mounts" / f"{job}.{number}"


class ContainerRuntime(Protocol):
    """A program that runs OCI bundles, as the launcher calls it on this machine."""

    @property
    def limits(self) -> bool:
        """Do memory, pids and cpu limits hold?"""

    def run(self, job: str) -> list[str]:
        """Run the job's bundle to its end. Standard descriptors are the job's."""

    def delete(self, job: str) -> list[str]:
        """Kill and forget a container whose launcher has vanished."""


@dataclass(frozen=True, slots=True)
class Runc:
    """`mask` and `limits` are cgroup.Layout's."""

    binary: str
    places: Places
    mask: str
    limits: bool

    def run(self, job: str) -> list[str]:
        folder = self.places.job(job)
        options = ["--preserve-fds", "3", "--bundle", str(folder), "--pid-file", str(folder / "pid")]
        return self._command(_RUN, job, "run", *options, job)

    def delete(self, job: str) -> list[str]:
        return self._command(_ONCE, job, "delete", "--force", job)

    def _command(self, text: str, job: str, *arguments: str) -> list[str]:
        folder, root = self.places.job(job), self.places.container("")
        program = (self.binary, "--root", str(root), "--log", str(folder / "log"), *self._options())
        launcher = ("unshare", "-m", "/bin/sh", "-c", text, "exeat-job", self.mask, str(folder))
        return [*launcher, *program, *arguments]

    def _options(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Crun(Runc):
    """Takes what runc takes; can also do without cgroups, and then without limits."""

    def _options(self) -> tuple[str, ...]:
        return () if self.limits else ("--cgroup-manager=disabled",)


def runtime(binary: str, places: Places, layout: Layout) -> ContainerRuntime:
    """Which one `binary` is, by its name. An unknown one is spoken to as runc."""
    kind = Crun if binary.rpartition("/")[2].startswith("crun") else Runc
    return kind(binary, places, layout.mask, layout.limits)
