"""What the guard's replies mean, whatever they are, and how long one may be used again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.ledger import line
from exeat.ledger.ipc import Channel, listen
from exeat.ledger.reactor import Reactor
from exeat.policy.model import Address, Subject
from exeat.proxy import guard_client
from exeat.proxy.guard_client import UNAVAILABLE, Answer, GuardClient, NoAddress, parse_answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ME = Subject("p", "a", "j")
ASKED = (ME, "a.org", 443, "")
HOME = Address(4, 0xCB007101)
FOUND = [{"family": 4, "value": str(HOME.value), "ttl": 60}]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["family", "value", "ttl"]) | st.text(max_size=5), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["ok", "error", "rule", "addresses"]), json_values))
def test_any_reply_is_addresses_or_a_reason(message: dict[str, Any]) -> None:
    answer = parse_answer(message)
    if isinstance(answer, NoAddress):
        assert answer.reason
    else:
        assert answer
        assert message["ok"] is True


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ({"ok": True, "addresses": FOUND}, (HOME,)),
        ({"ok": True, "addresses": [*FOUND, {"family": 4, "value": "-1"}]}, UNAVAILABLE),
        ({"ok": True, "addresses": [{"family": 4, "value": str(1 << 32)}]}, UNAVAILABLE),
        ({"ok": True, "addresses": []}, NoAddress("dns.no_address")),
        ({"ok": False, "error": "rule.deny", "rule": "r1"}, NoAddress("rule.deny", "r1")),
        ({"ok": False, "error": "rule.deny", "rule": 1}, UNAVAILABLE),
        ({"ok": 1, "addresses": FOUND}, UNAVAILABLE),
    ],
)
def test_replies(message: dict[str, Any], answer: Answer) -> None:
    assert parse_answer(message) == answer


class Asking:
    """A client on a loop that the test turns and whose clock it sets, and the guard's end."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listener = listen(path)
        self.reactor = Reactor()
        self.later = 0.0
        clock = self.reactor.now
        monkeypatch.setattr(self.reactor, "now", lambda: clock() + self.later)
        self.client = GuardClient(self.reactor, path)
        self.reactor.turn(0)
        self.guard = Channel(self.listener.accept()[0])

    def ask(self, before_reply: Any = None, ttl: int = 60, **reply: Any) -> Answer:
        answers: list[Answer] = []
        self.client.resolve(ASKED, answers.append)
        message, _ = self.guard.next()
        if before_reply is not None:
            before_reply()
        found = [{**FOUND[0], "ttl": ttl}]
        self.guard.send({"id": message["id"], "ok": True, "addresses": found, **reply})
        while not answers:
            self.reactor.turn(1)
        return answers[0]

    def known(self, subject: Subject = ME, host: str = "a.org", port: int = 443, lease: str = "") -> Any:
        return self.client.known((subject, host, port, lease))


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    made = Asking(tmp_path / "guard.sock", monkeypatch)
    yield made
    made.client._line.close()
    made.reactor.close()
    made.guard.close()
    made.listener.close()


def test_only_the_same_question_has_the_answer(asking: Asking) -> None:
    asking.ask()
    assert asking.known() == (HOME,)
    assert asking.known(ME._replace(agent="b")) is None
    assert asking.known(host="b.org") is None
    assert asking.known(port=80) is None
    assert asking.known(lease="l") is None


@pytest.mark.parametrize(("ttl", "lives"), [(60, guard_client.HOT_S), (1, 1.0), (0, 0.0), (-1, 0.0)])
def test_an_answer_ends_with_its_time(asking: Asking, ttl: int, lives: float) -> None:
    asking.ask(ttl=ttl)
    assert (asking.known() is not None) is (lives > 0)
    asking.later = lives + 0.001
    assert asking.known() is None


def test_an_answer_that_was_no_good_is_dropped(asking: Asking) -> None:
    asking.ask()
    asking.client.drop((ME, "b.org", 443, ""))
    assert asking.known() == (HOME,)
    asking.client.drop(ASKED)
    assert asking.known() is None


def test_refusals_are_not_kept(asking: Asking) -> None:
    assert asking.ask(ok=False, error="rule.deny") == NoAddress("rule.deny")
    assert asking.known() is None


def test_what_was_asked_before_a_change_is_not_kept(asking: Asking) -> None:
    assert asking.ask(before_reply=asking.client.forget) == (HOME,)
    assert asking.known() is None
    asking.ask()
    asking.client.forget()
    assert asking.known() is None


def test_nothing_is_known_without_the_guard(asking: Asking) -> None:
    asking.ask()
    asking.guard.sock.shutdown(2)
    while asking.known() is not None and not asking.later:
        asking.reactor.turn(0.1)
    assert not asking.client._line.connected


def test_whoever_waits_when_the_guard_goes_is_told(asking: Asking) -> None:
    answers: list[Answer] = []
    for number in range(3):
        asking.client.resolve((ME, f"{number}.org", 443, ""), answers.append)
    forget = asking.client.resolve(ASKED, answers.append)
    forget()
    asking.guard.sock.shutdown(2)
    while len(answers) < 3:
        asking.reactor.turn(1)
    assert answers == [UNAVAILABLE] * 3
    asking.client.resolve(ASKED, answers.append)  # nor is there a guard to ask now
    asking.reactor.turn(0)
    assert answers == [UNAVAILABLE] * 4


def test_a_guard_of_another_user_is_not_believed(
    asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "peer_uid", lambda _: os.getuid() + 1)
    other = GuardClient(asking.reactor, tmp_path / "guard.sock")
    asking.reactor.turn(0)
    answers: list[Answer] = []
    other.resolve(ASKED, answers.append)
    while not answers:
        asking.reactor.turn(0.1)
    assert answers == [UNAVAILABLE]


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ({"ok": True, "names": ["a.org", "b.org"]}, ("a.org", "b.org")),
        ({"ok": True, "names": []}, ()),
        ({"ok": False, "error": "dns.refused", "names": ["a.org"]}, ()),
        ({"ok": True}, ()),
        ({"ok": True, "names": "a.org"}, ()),
        ({"ok": True, "names": ["a.org", "b..org"]}, ()),
        ({"ok": True, "names": [7, "10.0.0.1"]}, ()),
    ],
)
def test_names_of_an_address(asking: Asking, reply: dict[str, Any], names: tuple[str, ...]) -> None:
    found: list[tuple[str, ...]] = []
    asking.client.names(ME, HOME, found.append)
    message, _ = asking.guard.next()
    assert (message["verb"], message["subject"]) == ("names", ME._asdict())
    assert message["address"] == {"family": HOME.family, "value": str(HOME.value)}
    asking.guard.send({"id": message["id"], **reply})
    while not found:
        asking.reactor.turn(1)
    assert found == [names]


def test_no_names_without_the_guard_nor_for_who_went_away(asking: Asking) -> None:
    gone: list[tuple[str, ...]] = []
    forget = asking.client.names(ME, HOME, gone.append)
    left: list[tuple[str, ...]] = []
    asking.client.names(ME, HOME, left.append)
    forget()
    asking.guard.sock.shutdown(2)
    while not left:
        asking.reactor.turn(0.1)
    after: list[tuple[str, ...]] = []
    asking.client.names(ME, HOME, after.append)
    while not after:
        asking.reactor.turn(0.1)
    assert (gone, left, after) == ([], [()], [()])
