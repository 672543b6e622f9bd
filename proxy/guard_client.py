"""Asking the guard for vetted addresses (docs/architecture.md, guard.sock)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.ledger.line import Line
from exeat.policy.model import Address, Subject
from exeat.policy.names import MalformedError, parse_host

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.ledger.ipc import Message
    from exeat.ledger.reactor import Reactor

MAX_PENDING: Final = 8192
HOT_S: Final = 1.0  # how long an answer may be used again, if its time to live is not shorter
MAX_HOT: Final = 4096


class NoAddress(NamedTuple):
    """Why there is none: a reason code, and the rule that decided where policy did."""

    reason: str
    rule: str = ""


# Addresses in dial order, or why there are none.
Answer = tuple[Address, ...] | NoAddress
OnAnswer = Callable[[Answer], None]
Question = tuple[Subject, str, int, str]  # who, host, port, lease
UNAVAILABLE: Final = NoAddress("dns.unavailable")


class GuardClient:
    """Connects to `path` and keeps doing so. When the guard is away, every answer is a refusal."""

    def __init__(self, reactor: Reactor, path: Path) -> None:
        self._reactor = reactor
        self._pending: dict[int, OnAnswer] = {}
        self._named: dict[int, Callable[[tuple[str, ...]], None]] = {}
        self._questions: dict[int, Question] = {}  # of those in `_pending` whose answer may be kept
        self._hot: dict[Question, tuple[tuple[Address, ...], float]] = {}
        self._numbers = itertools.count(1)
        self._line = Line(reactor, path, frozenset({0, os.getuid()}), self)  # the guard runs as we do

    def known(self, question: Question) -> tuple[Address, ...] | None:
        """The guard's answer to this very question, if it was given a moment ago."""
        found = self._hot.get(question)
        if found is None or self._reactor.now() >= found[1]:
            return None
        return found[0]

    def drop(self, question: Question) -> None:
        """This answer was no good: the next flow is to ask again."""
        self._hot.pop(question, None)

    def forget(self) -> None:
        """What was answered so far may not hold any more, nor what is being asked now."""
        self._hot.clear()
        self._questions.clear()

    def resolve(self, question: Question, on_answer: OnAnswer, proto: str = "tcp") -> Callable[[], None]:
        """Ask; `on_answer` is called once, later. The returned call forgets the question."""
        number = next(self._numbers)
        if not self._line.connected or len(self._pending) >= MAX_PENDING:
            self._pending[number] = on_answer
            self._reactor.call_soon(lambda: self._answer(number, UNAVAILABLE))
            return lambda: self._forget(number)
        self._pending[number] = on_answer
        if proto == "tcp":
            self._questions[number] = question
        subject, host, port, lease = question
        self._line.send(
            {
                "id": number,
                "verb": "resolve",
                "subject": subject._asdict(),
                "host": host,
                "port": port,
                "proto": proto,
                "lease": lease,
            }
        )
        return lambda: self._forget(number)

    def names(
        self, subject: Subject, address: Address, on_names: Callable[[tuple[str, ...]], None]
    ) -> Callable[[], None]:
        """Ask for which names `subject` was answered this address; none when the guard is away.

        `on_names` is called once, later. The returned call forgets the question.
        """
        number = next(self._numbers)
        self._named[number] = on_names
        if not self._line.connected or len(self._named) > MAX_PENDING:
            self._reactor.call_soon(lambda: self._name(number, ()))
        else:
            asked = {"family": address.family, "value": str(address.value)}
            self._line.send({"id": number, "verb": "names", "subject": subject._asdict(), "address": asked})
        return lambda: self._forget(number)

    def _name(self, number: int, names: tuple[str, ...]) -> None:
        on_names = self._named.pop(number, None)
        if on_names is not None:
            on_names(names)

    def _forget(self, number: int) -> None:
        self._pending.pop(number, None)
        self._named.pop(number, None)
        self._questions.pop(number, None)

    def _answer(self, number: int, answer: Answer) -> None:
        on_answer = self._pending.pop(number, None)
        if on_answer is not None:
            on_answer(answer)

    def on_connected(self) -> None:
        """There is nothing to say first: each question stands for itself."""

    def on_lost(self) -> None:
        """Whoever waits is told that there is no guard; nothing it said is used again."""
        self.forget()
        # The answers may reach flows that are in the middle of asking: not from inside here.
        for number in list(self._named):
            self._reactor.call_soon(lambda number=number: self._name(number, ()))  # type: ignore[misc]
        for number in list(self._pending):
            self._reactor.call_soon(lambda number=number: self._answer(number, UNAVAILABLE))  # type: ignore[misc]

    def on_message(self, message: Message, fds: list[int]) -> None:
        """One reply of the guard's; it has no descriptors to give."""
        number = message.get("id")
        if number in self._named:
            self._name(number, parse_names(message))
        elif isinstance(number, int):
            answer = parse_answer(message)
            self._keep(number, answer, message)
            self._answer(number, answer)

    def _keep(self, number: int, answer: Answer, message: Message) -> None:
        question = self._questions.pop(number, None)
        if question is None or isinstance(answer, NoAddress):
            return
        if len(self._hot) >= MAX_HOT:
            self._hot.clear()
        self._hot[question] = (answer, self._reactor.now() + min(HOT_S, shortest_life(message)))


def parse_answer(message: Message) -> Answer:
    """The guard's reply as addresses or a reason code; anything odd is `dns.unavailable`."""
    if message.get("ok") is not True:
        error, rule = message.get("error"), message.get("rule", "")
        if not isinstance(error, str) or not error or not isinstance(rule, str):
            return UNAVAILABLE
        return NoAddress(error, rule)
    found = message.get("addresses")
    if not isinstance(found, list) or not found:
        return NoAddress("dns.no_address")
    addresses = tuple(_address(item) for item in found)
    whole = tuple(address for address in addresses if address is not None)
    return whole if len(whole) == len(addresses) else UNAVAILABLE


def parse_names(message: Message) -> tuple[str, ...]:
    """The guard's reply to `names`; anything odd is no name."""
    names = message.get("names")
    if message.get("ok") is not True or not isinstance(names, list):
        return ()
    try:
        hosts = tuple(parse_host(name) for name in names if isinstance(name, str))
    except MalformedError:
        return ()
    return tuple(host for host in hosts if isinstance(host, str))


def shortest_life(message: Message) -> int:
    """The least time to live of the addresses in a reply, in seconds; 0 if one does not say."""
    lives = [item.get("ttl") for item in message["addresses"]]
    return min(life if type(life) is int else 0 for life in lives)


def _address(item: Any) -> Address | None:
    if not isinstance(item, dict):
        return None
    family, value = item.get("family"), item.get("value")
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 39:
        value = int(value)
    if family not in (4, 6) or type(value) is not int or not 0 <= value < 1 << (32 if family == 4 else 128):
        return None
    return Address(family, value)
