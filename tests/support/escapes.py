"""What each attempt of `escape_probes.py` to get out of a jail may be answered, under each profile."""

from __future__ import annotations

import ctypes

from exeat.sandbox.spec import Profile

# It came to our own door, or the jail's rules refused it.
TAKEN, REFUSED = {"taken in"}, {"EPERM"}
EPERM, ENOSYS = {"EPERM"}, {"ENOSYS"}
READ_ONLY = {"EROFS", "EACCES", "ENOENT"}

# probe -> what the kernel may answer under the widest profile
EXPECTED: dict[str, set[str]] = {
    "tcp4": TAKEN,
    "tcp4_public": TAKEN,
    "tcp4_private": TAKEN,
    "tcp4_metadata": TAKEN,
    "tcp6": TAKEN,
    "tcp6_mapped": TAKEN,
    "tcp6_unique_local": TAKEN,
    "tcp6_link_local": TAKEN,
    "udp4_dns": TAKEN,
    "udp4_quic": REFUSED,
    "udp6_dns": TAKEN,
    "udp6_quic": REFUSED,
    "udp4_multicast": REFUSED | {"ENETUNREACH"},
    "host_loopback": {"ECONNREFUSED"},
    "host_abstract_socket": {"ECONNREFUSED"},
    "warden_socket": {"ENOENT"},
    "raw4": ENOSYS,
    "raw6": ENOSYS,
    "ping4": ENOSYS,
    "packet": ENOSYS,
    "vsock": ENOSYS,
    "alg": ENOSYS,
    "sctp": ENOSYS,
    "mptcp": ENOSYS,
    "netfilter": ENOSYS,
    "mark_packets": EPERM,
    "add_route": EPERM,
    "set_address": EPERM,
    "bind_dns_port": {"EACCES"},
    "steal_proxy_port": {"EADDRINUSE"},
    "unshare_user": EPERM,
    "unshare_net": EPERM,
    "unshare_mount": EPERM,
    "setns": EPERM,
    "clone_user": ENOSYS,
    "clone3": ENOSYS,
    "mount": EPERM,
    "umount": EPERM,
    "fsopen": EPERM,
    "open_tree": EPERM,
    "pivot_root": EPERM,
    "chroot": EPERM,
    "ptrace": EPERM,
    "process_vm_readv": EPERM,
    "pidfd_getfd": EPERM,
    "keyctl": EPERM,
    "add_key": EPERM,
    "bpf": EPERM,
    "io_uring_setup": EPERM,
    "perf_event_open": EPERM,
    "userfaultfd": EPERM,
    "open_by_handle_at": EPERM,
    "kexec_load": EPERM,
    "init_module": EPERM,
    "reboot": EPERM,
    "swapon": EPERM,
    "settimeofday": EPERM,
    "sethostname": EPERM,
    "syslog": EPERM,
    "memfd_secret": EPERM,
    "fanotify_init": EPERM,
    "mount_setattr": EPERM,
    "move_mount": EPERM,
    "process_madvise": EPERM,
    "kcmp": EPERM,
    "io_uring_register": EPERM,
    "name_to_handle_at": EPERM,
    "swapoff": EPERM,
    "iopl": EPERM,
    "modify_ldt": EPERM,
    "clone_net": ENOSYS,
    "personality_without_randomness": ENOSYS,
    "write_memory_of_init": {"EACCES", "EPERM", "EIO"},  # it is the job's own process: nothing is at 0
    "write_attributes_of_init": {"EACCES", "EPERM", "EINVAL", "ENOENT"},
    "write_cgroup_of_v1": {"ENOENT"},
    "write_runtime_state": {"ENOENT", "EROFS"},
    "read_iomem": {"nothing"},
    "read_vmcore": {"ENOENT", "EACCES"},
    "unknown_call": ENOSYS,
    "type_into_terminal": ENOSYS,
    "type_into_terminal_high_bit": ENOSYS,
    "call_x32": {"SIGSYS"},
    "call_i386": {"SIGSYS"},
    "write_usr": {"EROFS"},
    "write_root": {"EROFS"},
    "write_etc": {"EROFS"},
    "write_core_pattern": {"EROFS", "EACCES"},
    "write_sysrq": {"EROFS", "EACCES", "ENOENT"},
    "write_gateway_folder": {"EROFS"},
    "write_dev": {"EACCES"},
    "read_kcore": {"EACCES", "nothing", "ENOENT"},
    "read_shadow": {"ENOENT"},
    "read_host_secret": {"ENOENT"},
    "read_disk": {"ENOENT"},
    "read_mem": {"ENOENT"},
    "read_sys": {"ENOENT"},
    "read_kallsyms": {"nothing"},
    "unlink_gateway_socket": {"EROFS"},
    "make_device": EPERM,
    "become_root": EPERM,
    "join_root_group": EPERM,
    "raise_descriptors": EPERM,
    "signal_host_process": {"ESRCH"},
    "more_capabilities": EPERM,
    "read_config": {"nothing", "EACCES", "ENOENT"},
    "read_kmsg": {"EACCES", "nothing", "EPERM"},
    "read_keys": {"nothing"},
    "read_modules": {"nothing", "ENOENT"},
    "read_timers": {"nothing", "EACCES", "ENOENT"},
    "write_hotplug": READ_ONLY,
    "write_modprobe": READ_ONLY,
    "write_binfmt": READ_ONLY,
    "write_forwarding": READ_ONLY,
    "write_route_localnet": READ_ONLY,
    "write_unprivileged_ports": READ_ONLY,
    "write_user_namespaces": READ_ONLY,
    "write_init_uid_map": EPERM,
    "write_irq": READ_ONLY,
    "write_cgroup": {"ENOENT", "EROFS"},  # podman hides it below an empty folder
    "write_cgroup_release": {"ENOENT"},
    "write_debug_filesystem": {"ENOENT"},
    "write_terminal": {"ENXIO"},
    "write_console": {"ENOENT", "EACCES"},
    "leave_by_the_root_of_init": {"ENOENT"},
    "leave_by_the_folder_of_init": {"ENOENT"},
    "leave_by_dots": {"ENOENT"},
    "leave_by_a_link": {"ENOENT"},
    "leave_by_a_link_in_proc": {"ENOENT"},
    "leave_by_an_open_folder": {"ENOENT"},
    "take_a_descriptor_of_init": {"init holds ['5']"},  # the job's own standard error
    "open_the_runtime": {"EROFS", "ETXTBSY", "EACCES"},
    "link_a_file_of_the_host": {"EXDEV", "EPERM"},
    "lower_the_oom_score": {"EACCES"},
    "run_before_others": {"EACCES"},
    "run_as_real_time": EPERM,
    "dump_core": EPERM,
    "gain_by_setuid_program": {"nothing"},
    "make_a_setuid_program": {"nothing"},
    "gain_file_capabilities": EPERM,
    "give_a_file_away": EPERM,
    "neighbour_abstract_socket": {"ECONNREFUSED"},
    "neighbour_port": {"ECONNREFUSED"},
    "neighbour_tmp": {"ENOENT"},
    "neighbour_shm": {"ENOENT"},
    "neighbour_work": {"ENOENT"},
    "neighbour_work_by_root": {"ENOENT"},
    "neighbour_signal": {"ESRCH"},
    "neighbour_memory": {"ENOENT"},
    "neighbour_queue": {"ENOENT"},
    "type_over_another_terminal": {"nothing"},
}

# Without the call there is nothing to refuse.
NO_SOCKETS = {
    *("tcp4", "tcp4_public", "tcp4_private", "tcp4_metadata", "tcp6", "tcp6_mapped", "tcp6_unique_local"),
    *("tcp6_link_local", "udp4_dns", "udp4_quic", "udp6_dns", "udp6_quic", "udp4_multicast"),
    *("host_loopback", "mark_packets", "add_route", "set_address", "bind_dns_port", "steal_proxy_port"),
    "neighbour_port",
}
NO_IPC = {"run_as_real_time", "neighbour_memory", "neighbour_queue"}
NARROWER = {
    Profile.STRICT: NO_SOCKETS | NO_IPC,
    Profile.STANDARD: NO_SOCKETS,
    Profile.STANDARD_NET: set(),
}

# In a job that was given files Landlock is asked first, where the kernel has it (sandbox/landlock.py).
BY_LANDLOCK = {
    *("leave_by_a_link_in_proc", "leave_by_the_folder_of_init", "leave_by_the_root_of_init", "make_device"),
    *("neighbour_work_by_root", "write_memory_of_init"),
}


def has_landlock() -> bool:
    """landlock_create_ruleset(2), asked for its version."""
    answer: int = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)
    return answer > 0


def expected(profile: Profile, *, files: bool) -> dict[str, set[str]]:
    """What each attempt may be answered; `files`: the job was given some."""
    answers = {name: ENOSYS if name in NARROWER[profile] else said for name, said in EXPECTED.items()}
    if files and has_landlock():
        answers |= {name: {"EACCES"} for name in BY_LANDLOCK}
    return answers
