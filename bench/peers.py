"""The proxies that exeat is measured beside, each with the least configuration that is fair.

From Debian; none of them need run as a service. Each gets: no access log, no filter, CONNECT to any
port, room for all connections that the limit of descriptors allows, and targets as address literals,
so that none of them resolves a name (exeat does). HAProxy is no competitor but the bound: TCP mode
with splice speaks no proxy protocol, decides nothing and connects to one address that stands in its
configuration.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.loader import ECHO, POUR, SINK, LoadError, Tunnels, room_for_tunnels, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST, PORT = "127.0.0.1", 8100  # where a peer listens: one runs at a time
ORIGIN = ("203.0.113.1", 7000)
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STARTING_S, STOPPING_S = 20, 10

SQUID = """
http_port {host}:{port}
http_access allow all
access_log none
cache_log {folder}/cache.log
cache_store_log none
cache deny all
cache_mem 8 MB
pid_filename {folder}/squid.pid
coredump_dir {folder}
netdb_filename none
pinger_enable off
client_db off
max_filedescriptors {descriptors}
workers 1
shutdown_lifetime 0 seconds
cache_effective_user proxy
"""
TINYPROXY = """
Listen {host}
Port {port}
Timeout 600
MaxClients {tunnels}
LogLevel Critical
LogFile "{folder}/tinyproxy.log"
DisableViaHeader Yes
"""
PRIVOXY = """
listen-address {host}:{port}
toggle 0
confdir /etc/privoxy
logdir {folder}
debug 0
max-client-connections {tunnels}
listen-backlog 8192
socket-timeout 600
keep-alive-timeout 5
"""
DANTE = """
logoutput: {folder}/danted.log
internal: {host} port = {port}
external: 203.0.113.1
external: 127.0.0.1
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 log: error }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 log: error }}
"""
HAPROXY = """
global
  maxconn {tunnels}
  maxpipes 100
  nbthread 1
  tune.pipesize 1048576
defaults
  mode tcp
  option splice-request
  option splice-response
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout tunnel 600s
"""


class Peer(NamedTuple):
    """A program. `words` and `config` are formatted with host, port, folder, tunnels and descriptors."""

    name: str
    package: str
    protocol: str
    words: tuple[str, ...]
    config: str = ""

    @property
    def version(self) -> str:
        """Of its Debian package; "" when the program is not there."""
        if shutil.which(self.words[0], path=SEARCH_PATH) is None:
            return ""
        words = ["dpkg-query", "-W", "-f=${Version}", self.package]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown version"

    def tunnels(self, service: int) -> Tunnels:
        """The way through it to one of the origin's services."""
        # HAProxy has a port of its own for each service: nothing tells it where to.
        own = PORT + (service if self.protocol == "direct" else 0)
        return Tunnels(self.protocol, f"{HOST}:{own}", f"{ORIGIN[0]}:{ORIGIN[1] + service}")


CONFIG = "{folder}/config"
PRODUCTS = (
    Peer("squid", "squid", "connect", ("squid", "-N", "-n", "bench", "-f", CONFIG), SQUID),
    Peer("tinyproxy", "tinyproxy", "connect", ("tinyproxy", "-d", "-c", CONFIG), TINYPROXY),
    Peer("privoxy", "privoxy", "connect", ("privoxy", "--no-daemon", CONFIG), PRIVOXY),
    Peer("dante", "dante-server", "socks5", ("danted", "-f", CONFIG, "-p", "{folder}/danted.pid"), DANTE),
    Peer("microsocks", "microsocks", "socks5", ("microsocks", "-i", "{host}", "-p", "{port}")),
)
BOUND = Peer(
    "haproxy",
    "haproxy",
    "direct",
    ("haproxy", "-db", "-f", CONFIG),
    HAPROXY
    + "".join(
        f"listen s{n}\n  bind {HOST}:{PORT + n} backlog 8192\n  server s {ORIGIN[0]}:{ORIGIN[1] + n}\n"
        for n in (ECHO, POUR, SINK)
    ),
)


class Started(NamedTuple):
    """A peer that runs."""

    peer: Peer
    process: subprocess.Popen[bytes]

    def tunnels(self, service: int) -> Tunnels:
        return self.peer.tunnels(service)

    def pids(self) -> list[int]:
        return tree(self.process.pid)

    def relaying(self) -> list[int]:
        """The processes that tunnels live in: all of them."""
        return self.pids()

    def parts(self) -> dict[str, list[int]]:
        return {}


@contextlib.contextmanager
def started(peer: Peer, core: int) -> Iterator[Started]:
    """Run `peer` on one core until the block ends. LoadError when it does not listen in time."""
    with tempfile.TemporaryDirectory(prefix="exeat-peer-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o777)  # noqa: S103 - some leave root at once, and write their pid and errors here
        tunnels = room_for_tunnels()
        places = {
            "host": HOST,
            "port": PORT,
            "folder": name,
            "tunnels": tunnels,
            "descriptors": 2 * tunnels + 200,
        }
        Path(name, "config").write_text(peer.config.format(**places))
        words = ["taskset", "-c", str(core), *(word.format(**places) for word in peer.words)]
        with Path(name, "output").open("wb") as output:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": SEARCH_PATH},
                start_new_session=True,
            )
        try:
            _wait_listening(process, Path(name, "output"))
            yield Started(peer, process)
        finally:
            _stop(process)


def _wait_listening(process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + STARTING_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, PORT), 1):
            return
        time.sleep(0.05)
    text = output.read_text(errors="replace").strip()[-300:]
    raise LoadError(f"it does not listen on port {PORT}: {text or 'and says nothing'}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOPPING_S)
    with contextlib.suppress(ProcessLookupError):  # those that did not end with their parent
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOPPING_S)
