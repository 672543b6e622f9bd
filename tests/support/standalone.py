"""`exeat up` alone, as a stranger starts it: one configuration file, clients on loopback.

Made and used inside `proxy_world.in_namespace`, with a name server and origins of the test's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.up import bring_down, bring_up, child_serving

from exeat.ledger.reader import read_records

if TYPE_CHECKING:
    from exeat.ledger.records import Record

SOCKET_NAME = "proxy.sock"


class Standalone:
    """Folders below /tmp, not pytest's: the service users must get in."""

    def __init__(self, upstream: tuple[str, int], policies: dict[str, str], more: str) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="exeat-alone-"))
        self.base.chmod(0o755)
        (self.base / "policies").mkdir()
        for name, text in policies.items():
            (self.base / "policies" / f"{name}.yaml").write_text(text)
        self.config = self.base / "exeat.toml"
        self.config.write_text(
            f'[node]\nname = "n1"\n'
            f'[paths]\nstate_dir = "{self.base}/state"\nrun_dir = "{self.base}/run"\n'
            f'[console]\nlisten = ""\n'
            f'[policy]\ndir = "{self.base}/policies"\n'
            f'[lab]\ntreat_as_public = ["203.0.113.0/24", "2001:db8:1::/64"]\n'
            f'[dns]\nupstream = ["{upstream[0]}:{upstream[1]}"]\nlisten = ["127.0.0.1:53", "[::1]:53"]\n'
            f'[proxy]\nlisten = ["127.0.0.1:3128", "[::1]:3128"]\nlisten_socks = ["127.0.0.1:1080"]\n'
            f'listen_unix = ["{self.base}/{SOCKET_NAME}"]\n{more}'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def exeat(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-m", "exeat", "--config", str(self.config), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def up(self) -> None:
        self.process = bring_up(self.config)

    def down(self) -> int:
        process, self.process = self.process, None
        return bring_down(process) if process else 0

    def pid_of(self, name: str) -> int:
        """The child `exeat serve NAME` of our own `exeat up`, 0 while there is none."""
        assert self.process is not None
        return child_serving(self.process.pid, name)

    def kill(self, name: str) -> None:
        os.kill(self.pid_of(name), signal.SIGKILL)

    def unix(self, uid: int) -> socket.socket:
        """A connection to the Unix door by a process of this uid."""
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        code = (
            "import os, socket, sys\n"
            "os.setgid(65534); os.setuid(int(sys.argv[2]))\n"
            "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
            "socket.send_fds(socket.socket(fileno=int(sys.argv[3])), [b'x'], [sock.fileno()])\n"
        )
        path = str(self.base / SOCKET_NAME)
        with ours, theirs:
            subprocess.run(
                [sys.executable, "-c", code, path, str(uid), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                check=True,
                timeout=30,
            )
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        sock = socket.socket(fileno=fds[0])
        sock.settimeout(30)
        return sock

    def records(self) -> list[Record]:
        return [record for _, record in read_records(self.base / "state" / "ledger")]

    def wait_records(self, count: int, reason: str) -> list[Record]:
        """All records with this reason code, once there are `count`."""
        deadline = time.monotonic() + 30
        while True:
            found = [record for record in self.records() if record.reason_code == reason]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, [(r.kind.label, r.reason_code) for r in self.records()]
            time.sleep(0.02)

    def close(self) -> None:
        self.down()
        shutil.rmtree(self.base)
