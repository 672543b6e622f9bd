"""Where the warden keeps things, and the command lines it runs (pure).

A job is started through a small fixed shell text which outlives the warden and writes the exit
code. All that changes reaches it as a positional argument.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from exeat.sandbox import podman

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from exeat.sandbox.cgroup import Layout
    from exeat.sandbox.device import Device

    Beside = Callable[[Mapping[str, Any], Path], list[tuple[Path, str]]]  # configuration, bundle: files

# The caller's descriptors move out of the runtime's way (see oci._INIT). $1 is a mount to hide from it
# in the launcher's own mount namespace ("" for none), below one that takes what it writes there; $2 is the
# job's folder.
_ENTER: Final = """
exec 3<&0 4>&1 5>&2 </dev/null >/dev/null 2>&1
[ -z "$1" ] || mount -t tmpfs none "$1"
mask=$1 folder=$2
shift 2
"""
# Created exclusively (set -C): `launcher`; either this start owns the job, or a warden that gave it up does.
# A cgroup ($1) that is still there means that the runtime was killed: then its code is not the job's.
_RUN: Final = (
    """
group=$1 device=$2 mode=$3 hook=$4
shift 4
"""
    + _ENTER
    + """
if [ -p "$device" ]; then exec 3<>"$device"
elif [ -n "$device" ]; then
  [ -c "$device" ] || { echo "$device is no character device or fifo" >"$folder/log"; exit; }
  if [ "$mode" = read ]; then exec 3<"$device"; else exec 3>"$device"; fi
fi
set -C
echo $$ >"$folder/launcher" || exit
if [ -n "$hook" ]; then
  "$hook" "${folder##*/}" >"$folder/hook" 2>&1 3<&- 4>&- 5>&- || {
    echo "accelerator hook: exit code $?: $(head -c 400 "$folder/hook")" >"$folder/log"; exit
  }
fi
"$@"
code=$?
for left in /sys/fs/cgroup/"$group" /sys/fs/cgroup/*/"$group"; do
  [ ! -e "$left" ] || [ "$left" = "$mask/$group" ] || exit
done
echo $code >|"$folder/exit"
"""
)
# Takes down what nobody watches any more. The runtime goes first (known by its argument $folder/pid), for it
# could still make what is removed here; then what it says it knows; then who is in the cgroup ($1), which a
# runtime that was killed early has not written down. SIGKILL and rmdir take their time: 10 s at most.
_GIVE_UP: Final = """
group=$1 mask=$2 folder=$3
shift 3
exec </dev/null >/dev/null 2>&1
# Its code says nothing: grep's is 2 where another process ended meanwhile, whatever it found.
running() { printf '%s\\n' "$folder/pid" | grep -lszxFf - /proc/[0-9]*/cmdline; }
groups() {
  for each in /sys/fs/cgroup/"$group" /sys/fs/cgroup/*/"$group"; do [ ! -e "$each" ] || echo "$each"; done
}
tries=500
while found=$(running); [ -n "$found" ] && [ $((tries -= 1)) -gt 0 ]; do
  for each in $found; do each=${each#/proc/}; kill -KILL "${each%/cmdline}"; done
  sleep 0.02
done
for each in /sys/fs/cgroup/freezer/"$group"/freezer.state; do [ ! -e "$each" ] || echo THAWED >"$each"; done
[ -z "$mask" ] || mount -t tmpfs none "$mask"
"$@"
[ -z "$mask" ] || umount "$mask"
while found=$(groups) && [ -n "$found" ] && [ $((tries -= 1)) -gt 0 ]; do
  for each in $found; do
    rmdir "$each" && continue
    while read -r pid; do kill -KILL "$pid"; done <"$each/cgroup.procs"
    sleep 0.02
  done
done
[ -z "$(groups)" ]
"""
# Stops the processes in the cgroup ($1), or lets them go on, and waits until they have (2 s at most). Version
# 1 of cgroups kills nothing that is frozen, so $folder/frozen says that it has to be thawed to die.
_FREEZE: Final = """
group=$1 folder=$2 verb=$3 old=THAWED new=0 found= tries=100
if [ "$verb" = job.pause ]; then
  [ -s "$folder/pid" ] && ! [ -e "$folder/exit" ] || { echo "it does not run" >&2; exit 1; }
  : >"$folder/frozen" && old=FROZEN new=1
fi
for each in /sys/fs/cgroup/"$group" /sys/fs/cgroup/*/"$group"; do
  if [ -e "$each/freezer.state" ]; then echo $old >"$each/freezer.state" && found=$each
  elif [ -e "$each/cgroup.freeze" ]; then echo $new >"$each/cgroup.freeze" && found=$each; fi
done
[ -n "$found" ] || { rm -f "$folder/frozen"; echo "no freezer of cgroups holds it" >&2; exit 1; }
reached() {
  if [ -e "$found/freezer.state" ]; then [ "$(cat "$found/freezer.state")" = $old ]
  else grep -qx "frozen $new" "$found/cgroup.events"; fi
}
until reached || [ $new = 0 -a ! -e "$found" ]; do
  [ $((tries -= 1)) -gt 0 ] || { echo "its processes did not come to a halt in time" >&2; exit 1; }
  sleep 0.02
done
[ $new = 1 ] || rm -f "$folder/frozen"
"""
# podman says on standard error what is wrong. $1 is the job's log, $2 says that there is a container: it
# stays where podman was killed, or the container was; what is there is then taken down. A container that was
# killed before its first program ran is one that podman complains about.
_PODMAN: Final = """
log=$1 there=$2
exec 2>"$log"
shift 2
"$@"
code=$?
[ $code -lt 125 ] || [ $code -gt 127 ] || [ ! -s "$log" ] || code=137
[ $code = 137 ] || rm -f "$there"
exit $code
"""
# $3 is the job's edit, which stays where it changed anything.
_REMOVE: Final = """
rm -rf --one-file-system -- "$1" "$2" || exit
if rmdir "$3/upper" 2>/dev/null || ! [ -e "$3/upper" ]; then rm -rf --one-file-system -- "$3"; fi
"""


@dataclass(frozen=True, slots=True)
class Places:
    """`run` is RUN/warden, `work` is STATE/work; the changes that jobs leave are beside it."""

    run: Path
    work: Path
    hook: str = ""  # what is run before each job, to clear accelerators; "" for nothing

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

    def group(self, job: str) -> str:
        """The name of the container's cgroup. Two appliances on one machine must not share one."""
        return f"exeat-{hashlib.sha256(str(self.run).encode()).hexdigest()[:8]}-{job}"

    def output(self, job: str) -> Path:
        """The job's work folder."""
        return self.work / job

    def removal(self, job: str) -> tuple[str, ...]:
        """The command that removes the folders of an ended job.

        Not shutil.rmtree: a job may leave folders nested deeper than Python recurses.
        """
        folders = map(str, (self.job(job), self.output(job), self.edit(job)))
        return "/bin/sh", "-c", _REMOVE, "exeat-remove", *folders

    def before(self, device: Device | None) -> tuple[str, str, str]:
        """What the launcher is told beside the runtime's command: a device, which way, and the hook.

        A device's sidecar has no accelerator.
        """
        return (device.path, str(device.mode), "") if device else ("", "", self.hook)

    def freezing(self, job: str, verb: str) -> tuple[str, ...]:
        """The command that has a job's processes stop (job.pause) or go on (any other verb)."""
        return "/bin/sh", "-c", _FREEZE, "exeat-freeze", self.group(job), str(self.job(job)), verb

    def frozen(self, job: str) -> Path:
        """Is there from before a job's processes are stopped until they go on."""
        return self.job(job) / "frozen"

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

    @property
    def beside(self) -> Beside | None:
        """What it reads beside the bundle, if that is not all."""

    def run(self, job: str, config: str, device: Device | None = None) -> list[str]:
        """Run the job's bundle, of this configuration, to its end.

        Standard descriptors are the job's; where there is a device, that takes the place of the first.
        """

    def delete(self, job: str) -> list[str]:
        """Kill and forget a container that nobody has seen the end of, however much of it was made."""


@dataclass(frozen=True, slots=True)
class Runc:
    """`mask` and `limits` are cgroup.Layout's."""

    binary: str
    places: Places
    mask: str
    limits: bool

    @property
    def beside(self) -> Beside | None:
        return None

    def run(self, job: str, config: str, device: Device | None = None) -> list[str]:
        folder = self.places.job(job)
        options = ["--preserve-fds", "3", "--bundle", str(folder), "--pid-file", str(folder / "pid")]
        return self._command(_RUN, job, self.places.before(device), "run", *options, job)

    def delete(self, job: str) -> list[str]:
        return self._command(_GIVE_UP, job, (), "delete", "--force", job)

    def _command(self, text: str, job: str, first: Sequence[str], *arguments: str) -> list[str]:
        folder, root = self.places.job(job), self.places.container("")
        program = (self.binary, "--root", str(root), "--log", str(folder / "log"), *self._options())
        launcher = ("unshare", "-m", "/bin/sh", "-c", text, "exeat-job", self.places.group(job))
        return [*launcher, *first, self.mask, str(folder), *program, *arguments]

    def _options(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Crun(Runc):
    """Takes what runc takes; can also do without cgroups, and then without limits."""

    def _options(self) -> tuple[str, ...]:
        return () if self.limits else ("--cgroup-manager=disabled",)


@dataclass(frozen=True, slots=True)
class Podman:
    """Has a storage of its own below RUN/warden; nothing of it is the machine's podman's."""

    binary: str
    places: Places
    mask: str
    limits: bool

    @property
    def beside(self) -> Beside | None:
        return podman.files

    def run(self, job: str, config: str, device: Device | None = None) -> list[str]:
        folder = self.places.job(job)
        # By the path as an argument of its own, all that runs for the job is known.
        known = f"--cidfile={self.places.container(job)}", "--pidfile", f"{folder}/pid", f"--name={job}"
        options = podman.options(json.loads(config), folder)
        return self._command(_RUN, job, self.places.before(device), "run", *known, *options)

    def delete(self, job: str) -> list[str]:
        return self._command(_GIVE_UP, job, (), "rm", "--force", "--time=0", "--ignore", job)

    def _command(self, text: str, job: str, first: Sequence[str], *arguments: str) -> list[str]:
        folder, own = self.places.job(job), self.places.run / "podman"
        launcher = ("unshare", "-m", "/bin/sh", "-c", text, "exeat-job", self.places.group(job))
        said = ("/bin/sh", "-c", _PODMAN, "exeat-podman", f"{folder}/log", str(self.places.container(job)))
        own_places = (f"--root={own}/root", f"--runroot={own}/run", f"--tmpdir={own}/lib")
        ways = (
            "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
            "--log-level=error",
        )
        return [*launcher, *first, self.mask, str(folder), *said, self.binary, *own_places, *ways, *arguments]


_KINDS: Final[dict[str, type[Crun | Podman]]] = {"crun": Crun, "podman": Podman}


def runtime(binary: str, places: Places, layout: Layout) -> ContainerRuntime:
    """Which one `binary` is, by its name. An unknown one is spoken to as runc."""
    name = binary.rpartition("/")[2]
    kind = next((kind for start, kind in _KINDS.items() if name.startswith(start)), Runc)
    return kind(binary, places, layout.mask, layout.limits)
