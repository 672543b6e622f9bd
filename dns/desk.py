"""guard.sock: where the proxy turns names into addresses (docs/architecture.md).

Requests are `{id, verb: "resolve", subject, host, port, proto, lease}`, for a connection of which
only the address is known `{id, verb: "names", subject, address: {family, value}}`, and from people
`{id, verb: "pins", ...}`. Who may ask is decided by SO_PEERCRED; what was asked is validated again,
field by field, because the answer is dialled.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from exeat.dns.journal import Journal, Lookup, Sight
from exeat.dns.judge import Asker, Judge
from exeat.dns.pins_view import FilterError, gather, read_filter
from exeat.dns.vet import Status
from exeat.ledger.busy_service import BusyService
from exeat.policy.model import Address, Subject
from exeat.policy.names import MalformedError, parse_host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.dns.pins import Pins
    from exeat.dns.resolver import Finding, Resolver
    from exeat.ledger.ipc import Message
    from exeat.ledger.reactor import Reactor
    from exeat.ledger.service import Reply
    from exeat.policy.model import Decision

MAX_WAITING = 1024  # requests of one connection without a reply
MAX_PARKED = 256
_MAX_DIGITS = 39  # of 2**128
LEASE_LAG_S = 1.0  # how long the proxy's snapshot may be ahead of ours


class BadRequestError(Exception):
    """A field is missing or is not what it must be."""


class Request(NamedTuple):
    """What one `resolve` asks, and how it is answered."""

    reply: Reply
    asker: Asker
    host: str
    lease: str


class Desk:
    """Serves guard.sock to the given uids."""

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        uids: frozenset[int],
        services: tuple[Judge, Resolver, Journal, Pins],
    ) -> None:
        self._reactor = reactor
        self._judge, self._resolver, self._journal, self._pins = services
        self._parked: list[tuple[float, Callable[[], None]]] = []
        self._service = BusyService(
            reactor, path, uids, self._handle, max_waiting=MAX_WAITING, busy="dns.unavailable"
        )

    def _park(self, retry: Callable[[], None]) -> bool:
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
        """Stop accepting."""
        self._service.close()

    def _handle(self, message: Message, _fds: list[int], reply: Reply) -> None:
        try:
            if message.get("verb") == "names":
                reply({"names": self._pins.names(read_subject(message), read_address(message))})
                return
            if message.get("verb") == "pins":
                gather(self._reactor, self._pins, read_filter(message), reply)
                return
            if message.get("verb") != "resolve":
                raise BadRequestError("the verbs are resolve, names and pins")
            request = Request(reply, *read_request(message))
        except (BadRequestError, FilterError) as error:
            _refuse(reply, "dns.refused", str(error))
        except MalformedError as error:
            _refuse(reply, error.code, "not a host name")
        else:
            self._resolve(request)

    def _resolve(self, request: Request, *, patient: bool = True) -> None:
        decision = self._judge.admit(request.asker, request.host)
        # The proxy asks for what it has allowed: it may know an approval or a job before we do.
        behind = not decision.allowed and (
            decision.reason == "meta.project"
            or (request.lease and not self._judge.knows_lease(request.lease))
        )
        if behind and patient and self._park(partial(self._resolve, request, patient=False)):
            return
        shadow = self._judge.shadow(request.asker, request.host, decision)
        self._note(request, decision, lambda: self._look_up(request, decision), shadow)

    def _note(self, request: Request, decision: Decision, then: Callable[[], None], shadow: str = "") -> None:
        def done(sight: Sight | None) -> None:
            if sight is not None:
                then()
            else:
                _refuse(request.reply, "dns.unavailable", "the lookup cannot be recorded")

        if not self._journal.ready:
            done(None)
            return
        subject = request.asker.subject
        binding = self._judge.binding(subject)
        lookup = Lookup.of(subject, request.host, decision, "proxy", binding, shadow)
        self._journal.note(lookup, done)

    def _look_up(self, request: Request, decision: Decision) -> None:
        if decision.allowed:
            self._resolver.find_both(request.asker, request.host, partial(self._found, request))
        else:
            _refuse(request.reply, decision.reason, "policy does not let this name resolve", decision.rule)

    def _found(self, request: Request, finding: Finding) -> None:
        if finding.refused:
            reason, rule = finding.reason, finding.decision.rule
            text = "policy does not allow where this name leads"
            self._note(request, finding.decision, lambda: _refuse(request.reply, reason, text, rule))
        elif finding.status is Status.FOUND:
            addresses = [
                {"family": address.family, "value": str(address.value), "ttl": ttl}
                for address, ttl in finding.addresses
            ]
            request.reply({"addresses": addresses})
        else:
            _refuse(request.reply, finding.reason, "the name has no address")


def _refuse(reply: Reply, reason: str, text: str, rule: str = "") -> None:
    reply({"ok": False, "error": reason, "message": text, "rule": rule})


def read_request(message: Message) -> tuple[Asker, str, str]:
    """(asker, canonical host, lease id). Raises BadRequestError, or MalformedError for the host."""
    asker = Asker(read_subject(message), _port(message.get("port")), _text(message, "proto"))
    if asker.proto not in ("tcp", "udp"):
        raise BadRequestError("proto is neither tcp nor udp")
    host = parse_host(_text(message, "host"))
    if not isinstance(host, str):
        raise BadRequestError("an address needs no lookup")
    return asker, host, _text(message, "lease")


def read_subject(message: Message) -> Subject:
    """Who asks. Raises BadRequestError."""
    subject = message.get("subject")
    if not isinstance(subject, dict) or not set(subject) <= set(Subject._fields):
        raise BadRequestError("subject is not an object of the known fields")
    return Subject(*(_text(subject, field) for field in Subject._fields))


def read_address(message: Message) -> Address:
    """The address that `names` asks about. Raises BadRequestError."""
    address = message.get("address")
    family, value = (address.get("family"), address.get("value")) if isinstance(address, dict) else (0, "")
    digits = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS
    if family not in (4, 6) or not digits or int(str(value)) >> (32 if family == 4 else 128):
        raise BadRequestError("address is not {family: 4|6, value: a decimal number}")
    return Address(family, int(str(value)))


def _text(message: dict[str, Any], field: str) -> str:
    value = message.get(field, "")
    if not isinstance(value, str):
        raise BadRequestError(f"{field} is not text")
    return value


def _port(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 65535:
        raise BadRequestError("port is not a number from 1 to 65535")
    return value
