"""The stream of events: what happens comes, what was missed comes again, each sees what is theirs."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from tests.support.console import ConsoleRig, Person
from tests.support.running import wait_for

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = ConsoleRig()
    try:
        yield made
    finally:
        made.close()


class Stream:
    """Reads messages from an open stream; a read that takes 20 s fails."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        head = self._lines_until_blank()
        self.status = int(head[0].split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in head[1:])
        self.messages = self._messages()

    def close(self) -> None:
        self.messages.close()
        self._file.close()

    def _lines_until_blank(self) -> list[str]:
        lines: list[str] = []
        while line := self._file.readline().decode().rstrip("\r\n"):
            lines.append(line)
        return lines

    def _messages(self) -> Generator[dict[str, Any], None, None]:
        """Each with id, event and data; not those without data (retry)."""
        buffer = b""
        while size := int(self._file.readline().strip() or b"0", 16):  # chunks (RFC 9112 section 7.1)
            buffer += self._file.read(size)
            self._file.readline()
            while b"\n\n" in buffer:
                text, _, buffer = buffer.partition(b"\n\n")
                fields = dict(line.split(": ", 1) for line in text.decode().split("\n"))
                if "data" in fields:
                    yield {**fields, "data": json.loads(fields["data"])}

    def until(self, topic: str, **wanted: Any) -> dict[str, Any]:
        """The next message of this topic with these data."""
        return next(
            each
            for each in self.messages
            if each["event"] == topic and all(each["data"].get(key) == value for key, value in wanted.items())
        )


@contextmanager
def stream(person: Person, rig: ConsoleRig, query: str = "", **headers: str) -> Iterator[Stream]:
    lines = {"Host": f"127.0.0.1:{rig.port}", **person.headers, **headers}
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    with socket.create_connection(("127.0.0.1", rig.port), timeout=30) as sock:
        sock.sendall(f"GET /api/v1/events{query} HTTP/1.1\r\n{head}\r\n".encode())
        events = Stream(sock)
        try:
            yield events
        finally:
            events.close()


def test_a_request_and_its_approval_are_told(rig: ConsoleRig) -> None:
    anna = rig.person("anna")
    with stream(anna, rig, "?topics=requests,leases") as events:
        assert (events.status, events.headers["content-type"]) == (200, "text/event-stream")
        row = rig.ask("told.github.com")
        asked = events.until("requests", id=row["id"])
        assert (asked["data"]["state"], asked["data"]["project"]) == ("requested", "p")
        anna.post(f"/requests/{quote(row['id'], safe='')}/approve", {"version": row["version"]})
        assert events.until("leases", id=row["id"])["data"]["state"] == "active"


def test_what_was_missed_comes_again(rig: ConsoleRig) -> None:
    with stream(rig.person("vera"), rig) as events:
        first = rig.ask("first.github.com")
        number = events.until("requests", id=first["id"])["id"]
    missed = [rig.ask(f"missed{n}.github.com")["id"] for n in range(2)]
    for resumed in ({"Last-Event-ID": number}, {}):
        query = "?topics=requests" + ("" if resumed else f"&after={number}")
        with stream(rig.browser("vera"), rig, query, **resumed) as events:
            again = [next(events.messages) for _ in missed]
            assert [each["data"]["id"] for each in again] == missed


def test_only_their_projects_are_told(rig: ConsoleRig) -> None:
    with stream(rig.person("quin"), rig) as events:
        rig.ask("theirs.github.com", project="p")
        mine = rig.ask("mine.example.net", project="q")
        assert next(events.messages)["data"]["id"] == mine["id"]


def test_the_kill_switch_is_told_to_everybody(rig: ConsoleRig) -> None:
    adam = rig.person("adam")
    with stream(rig.person("quin"), rig, "?topics=admin") as events:
        adam.post("/kill", {"scope": "all", "on": True, "reason": "try"})
        assert events.until("admin", what="kill.on")["data"]["actor"] == "adam"
        adam.post("/kill", {"scope": "all", "on": False, "reason": "tried"})
        assert events.until("admin", what="kill.off")["data"]["actor"] == "adam"


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?topics=nothing", {}, 422),
        ("?after=-1", {}, 422),
        ("?after=x", {}, 422),
        ("", {"Last-Event-ID": "x"}, 400),
        ("", {"Last-Event-ID": "9" * 40}, 400),
        ("", {"Last-Event-ID": "-1"}, 400),
    ],
)
def test_a_place_that_is_none_is_refused(
    rig: ConsoleRig, query: str, headers: dict[str, str], status: int
) -> None:
    with stream(rig.person("vera"), rig, query, **headers) as events:
        assert events.status == status


def test_streams_of_one_person_are_bounded(rig: ConsoleRig) -> None:
    def many(left: int) -> int:
        """The status of the last of `left` streams that are open at once."""
        with stream(rig.person("audi"), rig) as events:
            return many(left - 1) if left > 1 else events.status

    assert many(32) == 200
    assert many(33) == 429


def test_what_happens_while_it_is_away_is_told(rig: ConsoleRig) -> None:
    vera = rig.person("vera")
    with stream(vera, rig, "?topics=requests") as events:
        first = rig.ask("before.github.com")
        number = events.until("requests", id=first["id"])["id"]
    killed = rig.pid_of("console")
    os.kill(killed, signal.SIGKILL)
    rig.exeat("lease", "request", "away.github.com", "--project", "p", "--as", "carl")
    wait_for(lambda: rig.pid_of("console") not in (0, killed))
    wait_for(lambda: answers(vera))
    with stream(vera, rig, f"?topics=requests&after={number}") as events:
        assert events.until("requests", requester="carl")["data"]["state"] == "requested"


def answers(person: Person) -> bool:
    try:
        return person.get("/session").status == 200
    except OSError:
        return False


def test_who_watches_holds_up_no_end(rig: ConsoleRig) -> None:
    """The console is asked to stop while a stream is open: it ends, and the stream with it."""
    with stream(rig.person("vera"), rig) as events:
        asked = rig.pid_of("console")
        os.kill(asked, signal.SIGTERM)
        assert list(events.messages) == []
        wait_for(lambda: rig.pid_of("console") not in (0, asked))
