"""System calls by name and number, as the libseccomp that the runtime compiles profiles with has them."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

from exeat.sandbox.seccomp import profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exeat.sandbox.spec import Profile

_NATIVE = 0  # SCMP_ARCH_NATIVE
ALLOWED, BY_ARGUMENTS, REFUSED, UNKNOWN = "yes", "by its arguments", "EPERM", "ENOSYS"
LAST = 520  # above every number of x86_64 and aarch64 that Linux has given out


@cache
def numbers() -> Mapping[str, int]:
    """The number of each call that this libseccomp knows on this machine."""
    library = ctypes.CDLL("libseccomp.so.2")
    resolve = library.seccomp_syscall_resolve_num_arch
    resolve.restype, resolve.argtypes = ctypes.c_void_p, (ctypes.c_uint32, ctypes.c_int)
    found: dict[str, int] = {}
    for number in range(LAST):
        if address := resolve(_NATIVE, number):
            found[ctypes.string_at(address).decode()] = number  # malloc'ed; a few hundred short names
    return found


def verdicts(kind: Profile) -> dict[str, str]:
    """What a profile says of each call that it names; the others are UNKNOWN."""
    found: dict[str, str] = {}
    for rule in profile(kind, "x86_64")["syscalls"]:
        refused = UNKNOWN if rule.get("errnoRet") == 38 else REFUSED
        allowed = BY_ARGUMENTS if rule.get("args") else ALLOWED
        for name in rule["names"]:
            found[name] = allowed if rule["action"] == "SCMP_ACT_ALLOW" else refused
    return found
