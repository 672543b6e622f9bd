"""What the warden does so that the table is as it should be, with the commands' ends made up."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.policy.addresses import parse_address
from exeat.sandbox.names import SpecError
from exeat.sandbox.routing import Listing, Routing, parse_listing, parse_pinholes, pinhole_message, sockets_of
from exeat.sandbox.rules import Cgroup, Host, Pinhole, Table, Target

if TYPE_CHECKING:
    from exeat.sandbox.steps import Command, Steps

HOST = Host("builds/agents", Cgroup("agents.slice"), ((61184, 65519),))
HOLE = Pinhole(7, HOST.label, (Target(parse_address("203.0.113.5"), "tcp", 22),), 1000, 100)
LISTED = """table inet exeat {
\tcounter m0_dns {
\t}

\tset p7_4 {
\t\ttype ipv4_addr . inet_proto . inet_service
\t\tflags timeout
\t\telements = { 203.0.113.5 . 6 . 22 timeout 100s,
\t\t\t     203.0.113.6 . 6 . 22 timeout 100s }
\t}

\tchain m0_filter {
\t\tip daddr . meta l4proto . th dport { 127.0.0.1 . 6 . 3128 } accept
\t\tcounter name "m0_rejected" reject with icmpx 3
\t}
}
"""


class Ended(NamedTuple):
    returncode: int = 0
    stdout: str = ""
    stderr: str = ""


class Machine:
    """Plays what commands print. `listed` is the table that is loaded, "" for none."""

    def __init__(self) -> None:
        self.listed, self.beside, self.stored = "", LISTED, ""
        self.sockets = ""
        self.broken: set[str] = set()
        self.ran: list[Command] = []

    def do(self, steps: Steps) -> None:
        ended: Ended | None = None
        while True:
            try:
                command = next(steps) if ended is None else steps.send(ended)
            except StopIteration:
                return
            self.ran.append(command)
            ended = self.end(command)

    def end(self, command: Command) -> Ended:
        program = command.argv[0]
        if program in self.broken:
            return Ended(1, "", f"{program}: cannot\nat all")
        if program == "unshare":
            return Ended(stdout=self.beside)
        if program == "cat":
            return Ended(0, self.stored) if self.stored else Ended(1)
        if program == "tee":
            self.stored = command.stdin
        if program == "ss":
            return Ended(stdout=self.sockets)
        if program == "nft":
            return self.nft(command)
        return Ended()

    def nft(self, command: Command) -> Ended:
        if command.argv == ("nft", "-f", "-"):
            if command.stdin.startswith("flush") and not self.listed:
                return Ended(1, "", "No such file or directory")
            self.listed = self.beside
            return Ended()
        if "-j" in command.argv:
            return Ended(stdout=json.dumps({"nftables": []}))
        return Ended(stdout=self.listed) if self.listed else Ended(1)

    def loads(self) -> list[str]:
        """The first word of each transaction."""
        return [each.stdin.split()[0] for each in self.ran if each.argv == ("nft", "-f", "-")]


def started(machine: Machine) -> Routing:
    routing = Routing(Table((HOST,)), "/run")
    machine.do(routing.watch(0))
    return routing


def test_nobody_confined_means_that_nothing_is_run() -> None:
    machine, routing = Machine(), Routing(Table(), "/run")
    machine.do(routing.watch(0))
    machine.do(routing.stop(0))
    assert machine.ran == []
    with pytest.raises(SpecError) as caught:
        machine.do(routing.set((), 0))
    assert caught.value.code == "routing.none"


def test_what_is_loaded_already_is_taken_over_and_else_made() -> None:
    fresh, known = Machine(), Machine()
    known.listed = LISTED
    assert started(fresh).repairs == started(known).repairs == 0
    assert fresh.loads() == ["flush", "add"]
    assert known.loads() == ["flush"]


@pytest.mark.parametrize("stored", ["{", "[1]", '[{"number": 1}]', json.dumps([pinhole_message(HOLE)])])
def test_whatever_an_earlier_warden_left_ends_in_a_loaded_table(stored: str) -> None:
    machine = Machine()
    machine.stored = stored
    assert started(machine).table.pinholes == ()
    assert machine.listed == LISTED


def test_pinholes_of_a_warden_that_was_killed_are_kept() -> None:
    machine = Machine()
    machine.listed, machine.stored = LISTED, json.dumps([pinhole_message(HOLE)])
    assert started(machine).table.pinholes == (HOLE,)


@pytest.mark.parametrize("program", ["nft", "unshare", "mkdir"])
def test_a_table_that_cannot_be_loaded_at_the_start_is_an_error(program: str) -> None:
    machine = Machine()
    machine.broken.add(program)
    with pytest.raises(SpecError, match=f"{program}: {program}: cannot at all"):
        started(machine)


def test_what_cannot_be_repaired_is_told_and_tried_again() -> None:
    machine = Machine()
    routing = started(machine)
    machine.listed = ""
    machine.broken.add("unshare")
    machine.do(routing.watch(1))
    assert (routing.repairs, routing.failed) == (0, "unshare: unshare: cannot at all")
    machine.broken.clear()
    machine.do(routing.watch(2))
    assert (routing.repairs, routing.failed, routing.note) == (1, "", "the table is gone")
    machine.do(routing.watch(3))
    assert routing.repairs == 1


def test_a_table_as_it_should_be_is_only_looked_at() -> None:
    machine = Machine()
    routing = started(machine)
    machine.ran.clear()
    machine.do(routing.watch(1))
    assert [" ".join(each.argv) for each in machine.ran] == ["nft -s -n list table inet exeat"]


def test_only_the_sockets_of_the_member_are_closed() -> None:
    machine = Machine()
    routing = started(machine)
    machine.do(routing.set((HOLE,), 0))
    machine.sockets = SOCKETS
    machine.ran.clear()
    machine.do(routing.set((), 1))
    listed, killed = (each.argv for each in machine.ran if each.argv[0] == "ss")
    assert listed[-2:] == ("dst", "203.0.113.5:22")
    assert killed[killed.index("-K") + 1 :] == tuple(OWN)


SOCKETS = """\
tcp ESTAB 0      0      10.0.0.1:4001 203.0.113.5:22 uid:1000 ino:9 sk:1 cgroup:/agents.slice/a <->
tcp ESTAB 0      0      10.0.0.1:4002 203.0.113.5:22 uid:61200 ino:9 sk:2 cgroup:/user.slice <->
tcp ESTAB 0      0      10.0.0.1:4003 203.0.113.5:22 ino:9 sk:3 cgroup:/agents.slices <->
tcp ESTAB 0      0      10.0.0.1:4004 203.0.113.5:22 uid:1000 ino:9 sk:4 cgroup:/ <->
udp ESTAB 0      0      [fd00::1]:4005 [2001:db8::1]:22 ino:9 sk:5 cgroup:/agents.slice
nonsense
"""
OWN = [
    *["(", "src", "10.0.0.1:4001", "and", "dst", "203.0.113.5:22", ")", "or"],
    *["(", "src", "10.0.0.1:4002", "and", "dst", "203.0.113.5:22", ")", "or"],
    *["(", "src", "[fd00::1]:4005", "and", "dst", "[2001:db8::1]:22", ")"],
]


def test_whose_socket_a_line_of_ss_shows() -> None:
    assert sockets_of(HOST, SOCKETS) == OWN
    assert sockets_of(Host("a/b", None, ((5, 6),)), SOCKETS) == []


# -- listings


def test_the_order_of_blocks_and_the_end_of_elements_are_no_drift() -> None:
    wanted = parse_listing(LISTED)
    first, *rest = LISTED.partition("{\n")[2].removesuffix("}\n").split("\n\n")
    turned = "table inet exeat {\n" + "\n\n".join([*(part.rstrip() for part in rest), first]) + "\n}\n"
    assert wanted.drift(parse_listing(turned)) == ""
    ended = LISTED.replace(" 203.0.113.5 . 6 . 22 timeout 100s,\n\t\t\t    ", "")
    assert ended != LISTED
    assert wanted.drift(parse_listing(ended)) == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("203.0.113.6", "203.0.113.7", "not wanted: set p7_4: 203.0.113.7 . 6 . 22 timeout 100s"),
        ("100s }", "9d }", "not wanted: set p7_4: 203.0.113.6 . 6 . 22 timeout 9d"),
        ("reject with icmpx 3", "accept", "not wanted: chain m0_filter"),
        ("\tcounter m0_dns {\n\t}\n", "", "gone: counter m0_dns"),
        ("{\n\tcounter", "{\n\tflags dormant\n\tcounter", "not wanted: flags dormant"),
        ("timeout\n\t\tel", "timeout,dynamic\n\t\tel", "not wanted: set p7_4"),
    ],
)
def test_drift_is_named(old: str, new: str, said: str) -> None:
    live = LISTED.replace(old, new)
    assert live != LISTED
    assert parse_listing(LISTED).drift(parse_listing(live)).startswith(said)


def test_no_table_is_drift() -> None:
    assert parse_listing(LISTED).drift(parse_listing("")) == "the table is gone"
    assert parse_listing("") == Listing((), frozenset())


@given(st.integers(1, 0xFFFF), st.integers(1, 2**53), st.integers(0, 2**53), st.integers(1, 52))
def test_a_pinhole_survives_its_message(number: int, quota: int, end: int, port: int) -> None:
    hole = Pinhole(number, "a/b", (Target(parse_address("2001:db8::1"), "udp", port),), quota, end)
    assert parse_pinholes(json.loads(json.dumps([pinhole_message(hole)]))) == (hole,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


@given(JSON | st.lists(st.fixed_dictionaries(dict.fromkeys(pinhole_message(HOLE), JSON)), max_size=2))
def test_whatever_control_sends_is_pinholes_or_refused(raw: Any) -> None:
    with contextlib.suppress(SpecError):
        assert all(isinstance(hole, Pinhole) for hole in parse_pinholes(raw))
