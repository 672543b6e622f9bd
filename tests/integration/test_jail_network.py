"""A jail's sockets: what is accepted outside, in both families, and silence when nobody holds them."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from tests.support.warden_rig import WardenRig, read_all

from exeat.sandbox.spec import SOCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

CLIENT = """
import json, socket, sys
for name, family, kind, address in json.loads(sys.argv[1]):
    with socket.socket(family, kind) as sock:
        sock.settimeout(30)
        address = tuple(address) if isinstance(address, list) else address
        try:
            sock.connect(address)
            sock.send(name.encode())
            print(name, sock.recv(64).decode(), flush=True)
        except OSError as error:
            print(name, type(error).__name__, flush=True)
"""
TCP, UDP, V4, V6 = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.AF_INET, socket.AF_INET6
ADDRESSES: dict[str, tuple[int, int, object]] = {
    "proxy4": (V4, TCP, ("127.0.0.1", 3128)),
    "proxy6": (V6, TCP, ("::1", 3128)),
    "proxyu": (socket.AF_UNIX, TCP, "/run/exeat/proxy.sock"),
    "socks4": (V4, TCP, ("127.0.0.1", 1080)),
    "socks6": (V6, TCP, ("::1", 1080)),
    "trans4": (V4, TCP, ("127.0.0.1", 3129)),
    "trans6": (V6, TCP, ("::1", 3129)),
    "udp4": (V4, UDP, ("127.0.0.1", 3128)),
    "udp6": (V6, UDP, ("::1", 3128)),
    "dnsu4": (V4, UDP, ("127.0.0.1", 53)),
    "dnsu6": (V6, UDP, ("::1", 53)),
    "dnst4": (V4, TCP, ("127.0.0.1", 53)),
    "dnst6": (V6, TCP, ("::1", 53)),
}


@pytest.fixture(scope="module")
def rig() -> Iterator[WardenRig]:
    with WardenRig() as made:
        yield made


def client(rig: WardenRig, name: str, targets: tuple[str, ...]) -> int:
    """Start a job that asks each target in turn; its output's read end."""
    asked = [(target, *ADDRESSES[target]) for target in targets]
    read, write = os.pipe()
    started = rig.start_job(name, ["/usr/bin/python3", "-c", CLIENT, json.dumps(asked)], (write,) * 3)
    os.close(write)
    assert started["ok"], started.message
    return read


def serve_once(listener: socket.socket) -> str:
    """Answer one client with what it said, doubled."""
    listener.settimeout(30)
    if listener.type == UDP:
        said, peer = listener.recvfrom(64)
        listener.sendto(said * 2, peer)
        return said.decode()
    connection, _ = listener.accept()
    with connection:
        said = connection.recv(64)
        connection.sendall(said * 2)
        return said.decode()


def test_every_socket_is_reached_from_inside_and_served_outside(rig: WardenRig) -> None:
    made = rig.call("jail.create", jail="all")
    assert made["sockets"] == list(SOCKETS)
    assert not any(os.get_blocking(fd) for fd in made.fds)
    listeners = {name: socket.socket(fileno=fd) for name, fd in zip(SOCKETS, made.fds, strict=True)}
    output = client(rig, "all", SOCKETS)
    for name in SOCKETS:
        assert serve_once(listeners[name]) == name
    assert read_all(output).splitlines() == [f"{name} {name * 2}" for name in SOCKETS]
    os.close(output)
    for listener in listeners.values():
        listener.close()


def test_a_jail_whose_gateway_is_gone_reaches_nothing_until_there_is_a_new_one(rig: WardenRig) -> None:
    rig.call("jail.create", jail="gone").close()
    output = client(rig, "gone", SOCKETS)
    lines = dict(line.split() for line in read_all(output).splitlines())
    os.close(output)
    assert lines == dict.fromkeys(SOCKETS, "ConnectionRefusedError")
    rig.call("job.wait", job="gone")
    rig.call("job.remove", job="gone")

    wanted = ("proxyu", "proxy6", "dnsu4")
    again = rig.call("jail.sockets", jail="gone", names=list(wanted))
    listeners = [socket.socket(fileno=fd) for fd in again.fds]
    output = client(rig, "gone", wanted)
    assert [serve_once(listener) for listener in listeners] == list(wanted)
    assert len(read_all(output).splitlines()) == 3
    os.close(output)
    for listener in listeners:
        listener.close()


def test_a_running_job_finds_the_new_sockets_of_a_restarted_gateway(rig: WardenRig) -> None:
    """Also the Unix socket, whose path holds another inode by then."""
    rig.call("jail.create", jail="again").close()
    script = 'read line; exec /usr/bin/python3 -c "$0" "$1"'  # waits for us, then asks
    asked = json.dumps([(target, *ADDRESSES[target]) for target in ("proxyu", "proxy4")])
    go, out = os.pipe(), os.pipe()
    assert rig.start_job("again", ["sh", "-c", script, CLIENT, asked], (go[0], out[1], out[1]))["ok"]
    for fd in (go[0], out[1]):
        os.close(fd)
    again = rig.call("jail.sockets", jail="again", names=["proxyu", "proxy4"])
    listeners = [socket.socket(fileno=fd) for fd in again.fds]
    os.write(go[1], b"go\n")
    assert [serve_once(listener) for listener in listeners] == ["proxyu", "proxy4"]
    assert len(read_all(out[0]).splitlines()) == 2
    for fd in (go[1], out[0]):
        os.close(fd)
    for listener in listeners:
        listener.close()


def test_what_is_received_names_the_jail(rig: WardenRig) -> None:
    """A socket of one jail is never reached from another."""
    first, second = (rig.call("jail.create", jail=name) for name in ("one", "two"))
    output = client(rig, "one", ("proxy4",))
    other = socket.socket(fileno=second.fds.pop(0))
    with socket.socket(fileno=first.fds.pop(0)) as mine:
        assert serve_once(mine) == "proxy4"
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.accept()
    other.close()
    read_all(output)
    os.close(output)
    first.close()
    second.close()
