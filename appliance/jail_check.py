"""`exeat doctor --jail`: make a real jail, look out of it as a job would, and take it down again.

The jail is made by the code the warden uses. What is tried from inside is a handful of ways out
that need no privilege; the test suite tries many more. Addresses outside are from the
documentation ranges (RFC 5737, RFC 3849), so that even a broken jail would reach nobody.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from exeat.appliance.doctor import SEARCH_PATH, Check, fail, ok
from exeat.sandbox import netns
from exeat.sandbox.spec import INET_SOCKETS

if TYPE_CHECKING:
    import pwd

PROBE_S = 15

# Runs inside: prints {what was tried: "reached" or the error's name}.
PROBE = """
import errno, json, socket, sys
def attempt(family, kind, target):
    with socket.socket(family, kind) as sock:
        sock.settimeout(1)  # a datagram that nobody refuses has left
        try:
            sock.connect(target)
            if kind == socket.SOCK_DGRAM:
                sock.send(b"x")
                sock.recv(1)
        except TimeoutError:
            return "reached" if kind == socket.SOCK_DGRAM else "ETIMEDOUT"
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))
    return "reached"
found = {}
for name, family, kind, host, port in json.loads(sys.argv[1]):
    found[name] = attempt(family, kind, (host, port))
print(json.dumps(found))
"""

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
WALLS = (
    ("IPv4 TCP", socket.AF_INET, TCP, "192.0.2.1", 443),
    ("IPv4 UDP", socket.AF_INET, UDP, "192.0.2.1", 443),
    ("IPv6 TCP", socket.AF_INET6, TCP, "2001:db8::1", 443),
    ("IPv6 UDP", socket.AF_INET6, UDP, "2001:db8::1", 443),
    ("metadata", socket.AF_INET, TCP, "169.254.169.254", 80),
    ("foreign DNS", socket.AF_INET, UDP, "192.0.2.53", 53),
)
# The transparent doors are knocked at as a job does that knows nothing of them.
REDIRECTED = {"trans4": WALLS[0][1:], "trans6": WALLS[2][1:]}
REFUSALS = {"ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "EPERM", "EACCES", "EADDRNOTAVAIL"}

Target = tuple[str, int, int, str, int]  # a name, socket family and type, address, port


def check_jail(user: pwd.struct_passwd) -> list[Check]:
    """Look out of a jail as `user`. Two findings: the doors that must open, the walls that must hold."""
    with tempfile.TemporaryDirectory(prefix="exeat-doctor-", dir="/run") as name:
        folder = Path(name)
        try:
            netns.create(folder / "net")
            return _look_out(folder, user)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            return [fail("jail", f"cannot be made and looked out of: {error}", "see the findings above")]
        finally:
            netns.destroy(folder / "net")


def _look_out(folder: Path, user: pwd.struct_passwd) -> list[Check]:
    doors: list[Target] = [(name, *REDIRECTED.get(name, door)) for name, door in INET_SOCKETS.items()]
    sockets = netns.listen(folder / "net", folder, list(INET_SOCKETS))
    try:
        _probe(folder / "net", user, doors)
        # A door counts when our end has the connection (or the packet), not when the probe says so.
        shut = [name for name, sock in zip(INET_SOCKETS, sockets, strict=True) if not _arrived(sock)]
    finally:
        for sock in sockets:
            sock.close()
    # With nobody at the doors any more: what is reached now is not the gateway.
    with socket.create_server(("127.0.0.1", 0)) as host_service:
        walls = (*WALLS, ("the host's 127.0.0.1", socket.AF_INET, TCP, *host_service.getsockname()))
        seen = _probe(folder / "net", user, list(walls))
    return [
        _doors(shut),
        _walls([f"{name} ({seen[name]})" for name, *_ in walls if seen[name] not in REFUSALS]),
    ]


def _doors(shut: list[str]) -> Check:
    if shut:
        return fail(
            "jail doors", f"not reachable inside: {', '.join(shut)}", "check that lo and nftables work"
        )
    return ok("jail doors", f"all {len(INET_SOCKETS)} lead to the gateway")


def _walls(holes: list[str]) -> Check:
    if holes:
        return fail(
            "jail walls", f"reachable from inside: {', '.join(holes)}", "do not run jobs on this kernel"
        )
    return ok("jail walls", f"{len(WALLS) + 1} ways out refused at once")


def _probe(path: Path, user: pwd.struct_passwd, targets: list[Target]) -> dict[str, str]:
    command = [
        "nsenter",
        f"--net={path}",
        "--",
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
    ]
    command += [
        "--clear-groups",
        "--no-new-privs",
        "--",
        sys.executable,
        "-I",
        "-c",
        PROBE,
        json.dumps(targets),
    ]
    done = subprocess.run(
        command,
        env={"PATH": SEARCH_PATH},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROBE_S,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _arrived(sock: socket.socket) -> bool:
    try:
        if sock.type == socket.SOCK_DGRAM:
            return sock.recv(16) == b"x"
        os.close(sock.accept()[0].detach())
    except BlockingIOError:
        return False
    return True
