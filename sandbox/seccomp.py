"""System call profiles, as the `linux.seccomp` object of the OCI runtime specification (pure).

Allow-lists: what is not named answers ENOSYS, so that a program treats a call we do not know as a
kernel that does not have it; what is refused on purpose answers EPERM. Load-bearing even without
capabilities: an unprivileged user namespace would otherwise give raw and packet sockets, io_uring,
bpf and keyrings back, and AF_VSOCK is not confined by a network namespace at all.

Only the native architecture is listed: through i386 `socketcall` the socket rules could be walked
round, and an x32 call is answered by SIGSYS. System call names unknown to the runtime's libseccomp
are skipped by it, which leaves them at ENOSYS.
"""

from __future__ import annotations

from typing import Any, Final

from exeat.sandbox.spec import Profile

_ENOSYS: Final = 38
_EPERM: Final = 1
_NAMESPACE_FLAGS: Final = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; NEWTIME is clone3 only
_SOCK_TYPE_MASK: Final = 0xF
_PER_LINUX, _PER_ASK = 0, 0xFFFFFFFF  # personality(2): what everybody has, and "which have I?"
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM, _TCP, _UDP, _NETLINK_ROUTE = 1, 2, 6, 17, 0

_ARCHITECTURES: Final = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

_FILES: Final = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr
flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents
getdents64 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown
lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod
mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr
splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink
unlinkat utime utimensat utimes vmsplice write writev statmount listmount getxattrat listxattrat
setxattrat removexattrat
""".split()  # noqa: SIM905

_PROCESS: Final = """
alarm arch_prctl brk capget capset clock_getres clock_gettime clock_nanosleep execve execveat exit
exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake get_robust_list
get_thread_area getcpu getegid geteuid getgid getgroups getitimer getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresuid getrlimit getrusage getsid gettid gettimeofday getuid
kill landlock_add_rule landlock_create_ruleset landlock_restrict_self madvise map_shadow_stack
membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock
munlockall munmap nanosleep pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
pkey_free pkey_mprotect prctl prlimit64 process_mrelease remap_file_pages restart_syscall rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_yield seccomp
set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer
setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sigaltstack
signalfd signalfd4 sysinfo tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill uname vfork wait4 waitid
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 poll ppoll pselect6 select
""".split()  # noqa: SIM905

# On sockets that exist; which may be made is decided by the arguments of socket().
_SOCKET_USE: Final = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
sendmmsg sendmsg sendto setsockopt shutdown
""".split()  # noqa: SIM905

_STANDARD: Final = """
shmat shmctl shmdt shmget semctl semget semop semtimedop msgctl msgget msgrcv msgsnd
sched_setaffinity sched_setattr sched_setparam sched_setscheduler ioprio_get ioprio_set
io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink
""".split()  # noqa: SIM905

_REFUSED: Final = """
acct add_key bpf chroot clock_adjtime clock_settime delete_module fanotify_init fanotify_mark
finit_module fsconfig fsmount fsopen fspick get_mempolicy init_module io_uring_enter
io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl
lookup_dcookie mbind memfd_secret migrate_pages modify_ldt mount mount_setattr move_mount
move_pages name_to_handle_at open_by_handle_at open_tree open_tree_attr perf_event_open
pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace quotactl
quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname
setns settimeofday adjtimex stime swapoff swapon syslog umount umount2 unshare uselib userfaultfd
vhangup
""".split()  # noqa: SIM905


def profile(kind: Profile, machine: str) -> dict[str, Any]:
    """The profile of that kind. `machine` is uname's; raises KeyError for one we have no rules for."""
    calls = [*_FILES, *_PROCESS, *_SOCKET_USE]
    if kind is not Profile.STRICT:
        calls += _STANDARD
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _ENOSYS,
        "architectures": [_ARCHITECTURES[machine]],
        "syscalls": [
            {"names": sorted(calls), "action": "SCMP_ACT_ALLOW"},
            {"names": sorted(_REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
            # Its flags lie behind a pointer, out of a filter's sight; glibc falls back to clone.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            _allow("clone", _masked(0, _NAMESPACE_FLAGS, 0)),
            *_ioctl(),
            # No ADDR_NO_RANDOMIZE, no READ_IMPLIES_EXEC: they only make a program easier to take over.
            *(_allow("personality", _equal(0, value)) for value in (_PER_LINUX, _PER_ASK)),
            _allow("socketpair", _equal(0, _AF_UNIX)),
            *_sockets(kind),
        ],
    }


def _sockets(kind: Profile) -> list[dict[str, Any]]:
    rules = [_allow("socket", _equal(0, _AF_UNIX))]
    if kind is not Profile.STANDARD_NET:
        return rules
    for family in (_AF_INET, _AF_INET6):
        for sock_type, protocol in ((_SOCK_STREAM, _TCP), (_SOCK_DGRAM, _UDP)):
            for number in (0, protocol):
                kind_rule = _masked(1, _SOCK_TYPE_MASK, sock_type)
                rules.append(_allow("socket", _equal(0, family), kind_rule, _equal(2, number)))
    # getifaddrs and if_nameindex; shows only `lo`.
    rules.append(_allow("socket", _equal(0, _AF_NETLINK), _equal(2, _NETLINK_ROUTE)))
    return rules


def _ioctl() -> list[dict[str, Any]]:
    """Every request but TIOCSTI (0x5412) and TIOCLINUX (0x541C), which type into a terminal.

    The kernel looks at the low 32 bits only, and a filter compares 64, so "not equal" would be
    walked round with a high bit. Both requests share 29 bits; a request is allowed when one of
    those differs, or when bits 1 to 3 hold neither's.
    """
    rules = [
        _allow("ioctl", _masked(1, 1 << bit, ~0x5410 & (1 << bit)))
        for bit in range(32)
        if bit not in (1, 2, 3)
    ]
    return rules + [
        _allow("ioctl", _masked(1, 0xE, bits)) for bits in range(0, 16, 2) if bits not in (0x2, 0xC)
    ]


def _allow(name: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(conditions)}


def _equal(index: int, value: int) -> dict[str, Any]:
    # int arguments: the kernel reads 32 bits, a caller may leave anything in the upper half, and a
    # 64-bit comparison then fails, which refuses.
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
