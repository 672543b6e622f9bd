"""Cgroup before uid before address; and a client of this machine that cannot be told is nobody."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.ledger.local_clients import LocalClients
from exeat.policy.addresses import Cidr
from exeat.policy.identity import NOBODY, CgroupPath, Identities, Identity, Uids
from exeat.policy.model import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = Identity(Cidr(4, 127 << 24, 8), Subject("by-address", "a"))
UID = Identity(Uids(os.getuid(), os.getuid()), Subject("by-uid", "a"))
OTHER = Identity(Uids(os.getuid() + 1, os.getuid() + 9), Subject("by-other", "a"))
LINES = Path("/proc/self/cgroup").read_text().splitlines()
PATH = next(line.partition("::")[2] for line in LINES if line.startswith("0::"))
CGROUP = Identity(CgroupPath(PATH.removeprefix("/")), Subject("by-cgroup", "a"))


@contextmanager
def known(*identities: Identity) -> Iterator[LocalClients]:
    clients = LocalClients(Identities(identities))
    yield clients
    clients.close()


@contextmanager
def accepted() -> Iterator[tuple[socket.socket, socket.socket, Any]]:
    """(the client, what was accepted, the client's address)."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        sock, peer = listener.accept()
        with sock:
            yield client, sock, peer


def subject(*identities: Identity) -> str:
    with accepted() as (_, sock, peer), known(*identities) as clients:
        return clients.of_tcp(sock, peer).project


def test_the_most_specific_source_wins() -> None:
    assert subject(ADDRESS) == "by-address"
    assert subject(ADDRESS, UID) == "by-uid"
    assert subject(ADDRESS, OTHER) == "by-address"
    assert subject(ADDRESS, UID, CGROUP) == "by-cgroup"
    assert subject(OTHER) == NOBODY.project


def test_a_client_that_has_gone_is_nobody_whatever_its_address_stands_for() -> None:
    with accepted() as (client, sock, peer), known(ADDRESS, UID) as clients, known(ADDRESS) as by_address:
        client.close()
        assert clients.of_tcp(sock, peer) == NOBODY
        assert by_address.of_tcp(sock, peer).project == "by-address"


def test_clients_of_other_machines_are_their_address() -> None:
    far = Identity(Cidr(4, 203 << 24, 8), Subject("far", "a"))
    with accepted() as (_, sock, _peer), known(far, UID) as clients:
        assert clients.of_tcp(sock, ("203.0.113.9", 5)).project == "far"


def test_datagrams() -> None:
    with known(ADDRESS, UID) as clients:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            peer = sock.getsockname()
            assert clients.of_udp(socket.AF_INET, peer).project == "by-uid"
        assert clients.of_udp(socket.AF_INET, peer) == NOBODY


def test_only_processes_need_a_look() -> None:
    with known(ADDRESS) as by_address, known(UID) as by_process:
        assert by_address.by_address
        assert not by_process.by_address
