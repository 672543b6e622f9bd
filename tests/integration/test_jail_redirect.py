"""What a job gets that knows nothing of a proxy: every way leads to one of the gateway's sockets."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.support.redirected import original
from tests.support.warden_rig import WardenRig, read_all

from exeat.sandbox import netns, redirect
from exeat.sandbox.spec import SOCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

# Talks to each target as programs do that were configured for nothing; prints what came of it.
CLIENT = """
import errno, json, socket, sys
for name, family, kind, host, port in json.loads(sys.argv[1]):
    with socket.socket(family, kind) as sock:
        sock.settimeout(30)
        try:
            sock.connect((host, port))
            sock.send(name.encode())
            print(name, sock.recv(64).decode(), *sock.getpeername()[:2], flush=True)
        except OSError as error:
            print(name, errno.errorcode[error.errno], flush=True)
"""
OWN_SERVICE = """
import socket
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        here, there = socket.socket(family, kind), socket.socket(family, kind)
        here.bind((host, 8443))
        if kind == socket.SOCK_STREAM:
            here.listen()
        there.connect((host, 8443))
        there.send(b"to myself")
        print(here.recv(16) if kind == socket.SOCK_DGRAM else here.accept()[0].recv(16))
"""
TCP, UDP, V4, V6 = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.AF_INET, socket.AF_INET6
Target = tuple[str, int, int, str, int]
ANYWHERE: tuple[Target, ...] = (
    ("tls", V4, TCP, "192.0.2.1", 443),
    ("mail", V4, TCP, "198.51.100.7", 25),
    ("private", V4, TCP, "10.0.0.1", 22),
    ("metadata", V4, TCP, "169.254.169.254", 80),
    ("mapped", V6, TCP, "::ffff:192.0.2.1", 80),
    ("proxy-elsewhere", V4, TCP, "192.0.2.1", 3128),
    ("tls6", V6, TCP, "2001:db8::1", 443),
    ("unique-local", V6, TCP, "fd00::1", 65535),
)
RESOLVERS: tuple[Target, ...] = (
    ("dnsu4", V4, UDP, "8.8.8.8", 53),
    ("dnsu6", V6, UDP, "2001:4860:4860::8888", 53),
    ("dnst4", V4, TCP, "9.9.9.9", 53),
    ("dnst6", V6, TCP, "2620:fe::fe", 53),
    ("dnsu4", V4, UDP, "127.0.0.53", 53),
)
NO_WAY: tuple[Target, ...] = (
    ("quic", V4, UDP, "192.0.2.1", 443),
    ("quic6", V6, UDP, "2001:db8::1", 443),
    ("dns-over-quic", V4, UDP, "8.8.8.8", 853),
    ("time", V4, UDP, "192.0.2.123", 123),
)


@pytest.fixture(scope="module")
def rig() -> Iterator[WardenRig]:
    with WardenRig() as made:
        yield made


def client(rig: WardenRig, name: str, targets: tuple[Target, ...]) -> int:
    read, write = os.pipe()
    started = rig.start_job(name, ["/usr/bin/python3", "-c", CLIENT, json.dumps(targets)], (write,) * 3)
    os.close(write)
    assert started["ok"], started.message
    return read


def jail(rig: WardenRig, name: str) -> dict[str, socket.socket]:
    made = rig.call("jail.create", jail=name)
    assert made["ok"], made.message
    sockets = {door: socket.socket(fileno=fd) for door, fd in zip(SOCKETS, made.fds, strict=True)}
    for sock in sockets.values():
        sock.settimeout(30)
    return sockets


def close(rig: WardenRig, name: str, sockets: dict[str, socket.socket]) -> None:
    for sock in sockets.values():
        sock.close()
    rig.call("job.wait", job=name)
    rig.call("job.remove", job=name)
    assert rig.call("jail.destroy", jail=name)["ok"]


def test_every_connection_arrives_with_where_it_was_going(rig: WardenRig) -> None:
    doors = jail(rig, "tcp")
    output = client(rig, "tcp", ANYWHERE)
    for name, family, _, host, port in ANYWHERE:
        ours = family == V6 and not host.startswith("::ffff:")
        connection, _ = doors["trans6" if ours else "trans4"].accept()
        with connection:
            assert connection.recv(64).decode() == name
            assert original(connection) == (host.removeprefix("::ffff:"), port)
            connection.send(b"seen")
    assert read_all(output).splitlines() == [
        f"{name} seen {host} {port}" for name, _, _, host, port in ANYWHERE
    ]
    os.close(output)
    close(rig, "tcp", doors)


def test_every_resolver_is_the_guard(rig: WardenRig) -> None:
    """The answer comes from the address that was asked, or a client would not take it."""
    doors = jail(rig, "dns")
    output = client(rig, "dns", RESOLVERS)
    for name, _, kind, _, _ in RESOLVERS:
        if kind == UDP:
            said, peer = doors[name].recvfrom(64)
            doors[name].sendto(b"answer", peer)
        else:
            connection, _ = doors[name].accept()
            with connection:
                said = connection.recv(64)
                connection.send(b"answer")
        assert said.decode() == name
    lines = read_all(output).splitlines()
    assert lines == [f"{name} answer {host} 53" for name, _, _, host, _ in RESOLVERS]
    os.close(output)
    close(rig, "dns", doors)


def test_other_datagrams_are_refused_at_once(rig: WardenRig) -> None:
    doors = jail(rig, "udp")
    output = client(rig, "udp", NO_WAY)
    assert read_all(output).splitlines() == [f"{name} EPERM" for name, *_ in NO_WAY]
    os.close(output)
    close(rig, "udp", doors)


def test_with_nobody_at_the_doors_nothing_is_reached(rig: WardenRig) -> None:
    rig.call("jail.create", jail="dead").close()
    output = client(rig, "dead", ANYWHERE + RESOLVERS)
    assert {line.split()[1] for line in read_all(output).splitlines()} == {"ECONNREFUSED"}
    os.close(output)
    close(rig, "dead", {})


def test_loopback_stays_the_jobs_own(rig: WardenRig) -> None:
    ended = rig.run_job("own", ["/usr/bin/python3", "-c", OWN_SERVICE])
    assert ended.out.splitlines() == ["b'to myself'"] * 4, ended.err


def listed(path: Path) -> str:
    """The ruleset of the namespace at `path`, as nft reads it back."""
    command = ["nsenter", f"--net={path}", "nft", "--numeric-priority", "list", "ruleset"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_rules_are_those_that_are_written_down(rig: WardenRig) -> None:
    """Our messages and the text in redirect.py, compared by nft, which shares no code with us."""
    assert redirect.__doc__ is not None
    written = re.findall(r"^    (table inet .*?^    })$", redirect.__doc__, re.MULTILINE | re.DOTALL)[0]
    rig.call("jail.create", jail="rules").close()
    ours = listed(rig.run / "netns" / "rules")
    script = ["unshare", "--net", "sh", "-c", "nft --file - && nft --numeric-priority list ruleset"]
    theirs = subprocess.run(script, input=written, capture_output=True, text=True, check=True).stdout
    assert ours == theirs
    assert rig.call("jail.destroy", jail="rules")["ok"]


def test_without_its_rules_a_jail_is_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel takes the table whole or not at all, and then there is no namespace to run in."""
    routes, table = redirect.exchanges()
    begin, first = struct.unpack_from("=I", table.data)[0], struct.unpack_from("=I", table.data, 20)[0]
    headless = table._replace(data=table.data[:begin] + table.data[begin + first :])  # chains of no table
    monkeypatch.setattr(redirect, "exchanges", lambda: (routes, headless))
    with pytest.raises(FileNotFoundError, match="netlink 12"):
        netns.create(tmp_path / "net")
    assert not netns.is_alive(tmp_path / "net")
