"""Devices that are lent to jobs: which there are, and the sidecar that has one in the job's stead (pure).

The sidecar is a container of its own: a fresh user, no network, and as its standard input the device that
the launcher opened; in its view there is no such path. Its standard output is a socket by which control hands
it the connections that the job made to /run/exeat/device-NAME.sock, one after the other. A job so never holds
the device itself: its access ends with the sidecar, whatever it has kept open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,19}", re.ASCII)
SOCKET: Final = "device-"  # the name of its socket in the job's jail begins so


class Mode(StrEnum):
    """Which way bytes go, from the job's side."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Device:
    """A character device or fifo of the host. Root's configuration: a request can only name it."""

    name: str
    path: str
    mode: Mode = Mode.READ


# One client at a time, the latest: two would each get a part of what is read. It looks at the device only
# while there is one: nothing is listened to that nobody asked for. Each wait sees the end of control and of
# the lease, and what is on the way then is dropped.
_TEXT: Final = """
import os, select, socket, sys, time
mode, until = sys.argv[1], float(sys.argv[2])
control, client = socket.socket(fileno=1), None
os.set_blocking(0, False)

class Another(Exception):
    pass

def wait(readable, writable):
    global client
    while True:
        left = until - time.clock_gettime(time.CLOCK_BOOTTIME)
        if left <= 0:
            sys.exit(0)
        ready, free, _ = select.select([control, *readable], writable, [], min(left, 1))
        if control in ready:
            data, fds, _, _ = socket.recv_fds(control, 1, 8)
            if not data:
                sys.exit(0)
            for fd in fds:
                gone()
                client = socket.socket(fileno=fd)
                client.setblocking(False)
            raise Another
        if any(each in ready for each in readable) or free:
            return

def gone():
    global client
    if client is not None:
        client.close()
    client = None

def send(fd, data):
    while data:
        wait([], [fd])
        try:
            data = data[os.write(fd, data):]
        except BlockingIOError:
            pass

while True:
    try:
        if client is None:
            wait([], [])
        source, sink = (0, client.fileno()) if mode == "read" else (client.fileno(), 0)
        wait([source] if mode == "write" else [source, client], [])
        if mode == "read":
            try:
                if not client.recv(4096):  # what it says is of no use to a device that is read
                    gone()
                    continue
            except BlockingIOError:
                pass
        data = os.read(source, 65536)
        if not data and mode == "read":
            sys.exit(0)  # the device has ended
        if not data:
            gone()
            continue
        send(sink, data)
    except (Another, BlockingIOError):
        continue
    except (BrokenPipeError, ConnectionResetError):
        if mode == "write":
            sys.exit(0)
        gone()
"""


def sidecar(device: Device, until_s: float) -> list[str]:
    """The command of a device's sidecar, which ends at `until_s` (CLOCK_BOOTTIME) at the latest."""
    return ["/usr/bin/python3", "-I", "-S", "-c", _TEXT, str(device.mode), str(until_s)]
