"""guard.sock: where the proxy turns names into addresses (docs/architecture.md).

Requests are `{id, verb: "resolve", subject, host, port, proto, lease}`. Who may ask is decided by
SO_PEERCRED; what was asked is validated again, field by field, because the answer is dialled.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

from exeat.dns.journal import Journal, Lookup, Sight
from exeat.dns.judge import Asker, Judge
from exeat.dns.vet import Status
from exeat.ledger.ipc import Channel, IpcError, Message, listen, peer_uid
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor
from exeat.policy.model import Subject
from exeat.policy.names import MalformedError, parse_host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.dns.resolver import Finding, Resolver
    from exeat.policy.model import Decision

MAX_WAITING = 1024  # requests of one connection without a reply
MAX_PARKED = 256
LEASE_LAG_S = 1.0  # how long the proxy's snapshot may be ahead of ours


class BadRequestError(Exception):
    """A field is missing or is not what it must be."""


class Desk:
    """Serves guard.sock to the given uids."""

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        uids: frozenset[int],
        services: tuple[Judge, Resolver, Journal],
    ) -> None:
        self._reactor = reactor
        self._uids = uids
        self.judge, self.resolver, self.journal = services
        self._parked: list[tuple[float, Callable[[], None]]] = []
        self._sock = listen(path)
        self._clients: set[Client] = set()
        reactor.add(self._sock.fileno(), EPOLLIN, self._on_readable)

    def _on_readable(self, _events: int) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        if peer_uid(sock) not in self._uids:
            print(f"guard.sock: uid {peer_uid(sock)} may not ask", file=sys.stderr)
            sock.close()
            return
        sock.setblocking(False)
        self._clients.add(Client(self._reactor, self, sock))

    def gone(self, client: Client) -> None:
        self._clients.discard(client)

    def park(self, retry: Callable[[], None]) -> bool:
        """Keep a request for the next snapshot, or for LEASE_LAG_S; False when there is no room."""
        if len(self._parked) >= MAX_PARKED:
            return False
        if not self._parked:
            self._reactor.call_later(LEASE_LAG_S, self._expire)
        self._parked.append((self._reactor.now() + LEASE_LAG_S, retry))
        return True

    def unpark(self) -> None:
        """A new snapshot is in force: ask it again."""
        parked, self._parked = self._parked, []
        for _, retry in parked:
            retry()

    def _expire(self) -> None:
        now = self._reactor.now()
        due = [retry for deadline, retry in self._parked if deadline <= now]
        self._parked = [item for item in self._parked if item[0] > now]
        if self._parked:
            self._reactor.call_later(self._parked[0][0] - now, self._expire)
        for retry in due:
            retry()

    def close(self) -> None:
        self._reactor.remove(self._sock.fileno())
        self._sock.close()
        for client in list(self._clients):
            client.close()


class Client:
    """One connection to guard.sock."""

    def __init__(self, reactor: Reactor, desk: Desk, sock: socket.socket) -> None:
        self._reactor = reactor
        self._desk = desk
        self._channel = Channel(sock)
        self._waiting = 0
        self._closed = False
        reactor.add(sock.fileno(), EPOLLIN, self._on_event)

    def _on_event(self, events: int) -> None:
        try:
            if events & EPOLLOUT:
                self._channel.flush()
            messages = self._channel.receive() if events & ~EPOLLOUT else []
        except (OSError, IpcError):
            self.close()
            return
        for message, fds in messages:
            for fd in fds:
                socket.close(fd)
            self._handle(message)
        self._watch()

    def _watch(self) -> None:
        if not self._closed:
            wanted = EPOLLIN | (EPOLLOUT if self._channel.wants_write else 0)
            self._reactor.modify(self._channel.fileno(), wanted)

    def _handle(self, message: Message) -> None:
        ident = message.get("id")
        if self._closed or type(ident) is not int:
            self.close()  # without an id no reply can be told from another
            return
        self._waiting += 1
        if self._waiting > MAX_WAITING:
            self._refuse(ident, "dns.unavailable", "too many requests in flight")
            return
        try:
            if message.get("verb") != "resolve":
                raise BadRequestError("the only verb is resolve")
            asker, host, lease = read_request(message)
        except BadRequestError as error:
            self._refuse(ident, "dns.refused", str(error))
        except MalformedError as error:
            self._refuse(ident, error.code, "not a host name")
        else:
            self._resolve(ident, asker, host, lease)

    def _resolve(self, ident: int, asker: Asker, host: str, lease: str, *, patient: bool = True) -> None:
        decision = self._desk.judge.admit(asker, host)
        # The proxy asks for what it has allowed: it may know an approval or a job before we do.
        behind = not decision.allowed and (
            decision.reason == "meta.project" or (lease and not self._desk.judge.knows_lease(lease))
        )
        if (
            behind
            and patient
            and self._desk.park(lambda: self._resolve(ident, asker, host, lease, patient=False))
        ):
            return
        lookup = self._lookup(asker, host, decision, self._desk.judge.shadow(asker, host, decision))
        self._note(ident, lookup, lambda: self._look_up(ident, asker, host, decision))

    def _lookup(self, asker: Asker, host: str, decision: Decision, shadow: str = "") -> Lookup:
        binding = self._desk.judge.binding(asker.subject)
        return Lookup.of(asker.subject, host, decision, "proxy", binding, shadow)

    def _note(self, ident: int, lookup: Lookup, then: Callable[[], None]) -> None:
        def done(sight: Sight | None) -> None:
            if sight is not None:
                then()
            else:
                self._refuse(ident, "dns.unavailable", "the lookup cannot be recorded")

        journal = self._desk.journal
        if not journal.ready:
            done(None)
            return
        journal.note(lookup, done)

    def _look_up(self, ident: int, asker: Asker, host: str, decision: Decision) -> None:
        if decision.allowed:
            self._desk.resolver.find_both(asker, host, lambda found: self._found(ident, asker, host, found))
        else:
            self._refuse(ident, decision.reason, "policy does not let this name resolve", decision.rule)

    def _found(self, ident: int, asker: Asker, host: str, finding: Finding) -> None:
        if finding.refused:
            reason, rule = finding.reason, finding.decision.rule
            self._note(
                ident,
                self._lookup(asker, host, finding.decision),
                lambda: self._refuse(ident, reason, "policy does not allow where this name leads", rule),
            )
        elif finding.status is Status.FOUND:
            addresses = [
                {"family": address.family, "value": str(address.value), "ttl": ttl}
                for address, ttl in finding.addresses
            ]
            self._send({"id": ident, "ok": True, "addresses": addresses})
        else:
            self._refuse(ident, finding.reason, "the name has no address")

    def _refuse(self, ident: int, reason: str, text: str, rule: str = "") -> None:
        self._send({"id": ident, "ok": False, "error": reason, "message": text, "rule": rule})

    def _send(self, message: Message) -> None:
        self._waiting -= 1
        if self._closed:
            return
        try:
            self._channel.send(message)
        except (OSError, IpcError):
            self.close()
            return
        self._watch()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._reactor.remove(self._channel.fileno())
            self._channel.close()
            self._desk.gone(self)


def read_request(message: Message) -> tuple[Asker, str, str]:
    """(asker, canonical host, lease id). Raises BadRequestError, or MalformedError for the host."""
    subject = message.get("subject")
    if not isinstance(subject, dict) or not set(subject) <= set(Subject._fields):
        raise BadRequestError("subject is not an object of the known fields")
    asker = Asker(
        Subject(*(_text(subject, field) for field in Subject._fields)),
        _port(message.get("port")),
        _text(message, "proto"),
    )
    if asker.proto not in ("tcp", "udp"):
        raise BadRequestError("proto is neither tcp nor udp")
    host = parse_host(_text(message, "host"))
    if not isinstance(host, str):
        raise BadRequestError("an address needs no lookup")
    return asker, host, _text(message, "lease")


def _text(message: dict[str, Any], field: str) -> str:
    value = message.get(field, "")
    if not isinstance(value, str):
        raise BadRequestError(f"{field} is not text")
    return value


def _port(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 65535:
        raise BadRequestError("port is not a number from 1 to 65535")
    return value
