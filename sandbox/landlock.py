"""Landlock over the mounts of a job that was given files: what it may write to, said once more (pure).

The mounts confine it already. This is a second hand on the same rope, put there by the job's own first
program before the command is: what it does not let is refused even where a mount would take it, and nothing
of the job can look into the container's first process. It needs no right, and it cannot be taken back.
Sources: linux/Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h (ABI 1 to 7).

Where the kernel has no Landlock, the command starts without it; where it has and this fails, it does not
start. A tree of the job's own has its own programs, which would have to be trusted with it: there it is left
out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.sandbox.spec import WORK

if TYPE_CHECKING:
    from exeat.sandbox.spec import JobSpec

# Written to by programs of every kind: /dev/null, terminals, /proc/self/comm.
_COMMON: Final = (WORK, "/tmp", "/dev", "/proc")  # noqa: S108 - the container's own

# sys.argv: how many paths, the paths, the command. Python ignores SIGPIPE and SIGXFSZ, a command must not.
_TEXT: Final = """
import ctypes, errno, os, signal, stat, struct, sys

READ, OF_FILES, NO_DEVICES = 0b1101, 0b1100_0000_0000_0111, ~0b1000_0100_0000
CREATE, ADD, RESTRICT = 444, 445, 446
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    made = libc.syscall(ctypes.c_long(number), *arguments)
    if made < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return made

def allow(ruleset, path, access):
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        access &= OF_FILES
    call(ADD, ruleset, 1, struct.pack("=Qi", access, fd), 0)
    os.close(fd)

def confine(paths):
    try:
        abi = call(CREATE, None, ctypes.c_size_t(0), 1)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return
        raise
    every = (1 << (13, 14, 15, 15, 16)[min(abi, 5) - 1]) - 1
    attributes = struct.pack("=QQQ", every, 0, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = call(CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    allow(ruleset, "/", READ)
    for path in paths:
        allow(ruleset, path, every & NO_DEVICES)
    if libc.prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    call(RESTRICT, ruleset, 0)
    os.close(ruleset)

count = int(sys.argv[1])
command = sys.argv[2 + count :]
try:
    confine(sys.argv[2 : 2 + count])
except OSError as error:
    print(f"exeat: landlock: {error.strerror}", file=sys.stderr)
    sys.exit(126)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execvp(command[0], command)
except OSError as error:
    print(f"{command[0]}: {error.strerror}", file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""


def confined(job: JobSpec) -> tuple[str, ...]:
    """The command of a job, below Landlock if it was given files."""
    if not job.mounts or job.root:
        return job.argv
    paths = (*_COMMON, *(mount.path for mount in job.mounts if mount.owned))
    return below(paths, job.argv)


def below(paths: tuple[str, ...], argv: tuple[str, ...]) -> tuple[str, ...]:
    """`argv`, which may write to what is at and below these paths and nowhere else."""
    return "/usr/bin/python3", "-I", "-S", "-c", _TEXT, str(len(paths)), *paths, *argv
