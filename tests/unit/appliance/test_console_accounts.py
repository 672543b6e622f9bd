"""Accounts, sessions, tokens, links and windows of tries, with a real database and a clock of the test's."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance.console.auth.accounts import LINK_MS, Accounts
from exeat.appliance.console.auth.limits import MAX_KEYS, Window
from exeat.appliance.console.auth.passwords import Passwords, hashed
from exeat.appliance.console.permissions import PERMISSIONS, READS, ROLES, scope_of
from exeat.appliance.errors import RefusedError
from exeat.ledger.records import Kind, decode
from exeat.ledger.wire import MAX_DATAGRAM, REPLY, Status, request_number, request_records
from exeat.policy.admin import ACCOUNTS, Actor, authorize

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = 1_800_000_000_000
IDLE, LONGEST = 1_000, 5_000


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    made = Accounts(tmp_path)
    made.add("anna", "approver", ["p"], NOW)
    yield made
    made.close()


def test_a_session_ends_when_idle_and_when_old(accounts: Accounts) -> None:
    cookie, _ = accounts.open_session("anna", NOW)
    assert accounts.session(cookie, NOW + IDLE - 1, IDLE, LONGEST) is not None
    assert accounts.session(cookie, NOW + IDLE, IDLE, LONGEST) is None
    assert accounts.session(cookie, NOW, IDLE, LONGEST) is None, "what has ended does not begin again"
    cookie, _ = accounts.open_session("anna", NOW)
    assert accounts.session(cookie, NOW + LONGEST, 10 * LONGEST, LONGEST) is None
    cookie, _ = accounts.open_session("anna", NOW)
    assert accounts.session(cookie, NOW - 1, IDLE, LONGEST) is None, "the clock was set back"
    assert accounts.session("x" * 43, NOW, IDLE, LONGEST) is None


def test_use_keeps_a_session_open(accounts: Accounts) -> None:
    cookie, _ = accounts.open_session("anna", NOW)
    idle = 30_000
    for step in range(1, 6):
        assert accounts.session(cookie, NOW + step * 20_000, idle, 10**9) is not None


def test_a_token_ends_and_a_secret_of_another_kind_opens_nothing(accounts: Accounts) -> None:
    name, token = accounts.add_token("anna", ["read"], "n", NOW, NOW + 10)
    found = accounts.token(token, NOW + 9)
    assert found is not None
    assert (found.id, found.account, found.scopes) == (name, "anna", ("read",))
    assert accounts.token(token, NOW + 10) is None
    cookie, _ = accounts.open_session("anna", NOW)
    link = accounts.add_link("anna", NOW)
    assert accounts.token(cookie, NOW) is None
    assert accounts.token(link, NOW) is None
    assert accounts.session(token, NOW, IDLE, LONGEST) is None
    assert accounts.use_link(token, NOW) is None


def test_a_link_works_once_and_in_time(accounts: Accounts) -> None:
    link = accounts.add_link("anna", NOW)
    assert accounts.use_link(link, NOW + LINK_MS - 1) == "anna"
    assert accounts.use_link(link, NOW) is None
    late = accounts.add_link("anna", NOW)
    assert accounts.use_link(late, NOW + LINK_MS) is None


def test_who_is_removed_opens_nothing(accounts: Accounts) -> None:
    cookie, _ = accounts.open_session("anna", NOW)
    _, token = accounts.add_token("anna", ["read"], "", NOW, NOW + 10)
    link = accounts.add_link("anna", NOW)
    accounts.remove("anna")
    accounts.add("anna", "admin", [], NOW)  # another person of this name
    assert accounts.session(cookie, NOW, IDLE, LONGEST) is None
    assert accounts.token(token, NOW) is None
    assert accounts.use_link(link, NOW) is None


def test_a_new_password_ends_the_sessions(accounts: Accounts) -> None:
    cookie, _ = accounts.open_session("anna", NOW)
    accounts.set_password("anna", hashed("a new long password"))
    assert accounts.session(cookie, NOW, IDLE, LONGEST) is None


def test_another_key_opens_nothing(accounts: Accounts, tmp_path: Path) -> None:
    """A copy of the database is worth nothing without the key beside it."""
    _, token = accounts.add_token("anna", ["read"], "", NOW, NOW + 10)
    (tmp_path / "key").write_bytes(bytes(32))
    other = Accounts(tmp_path)
    assert other.token(token, NOW) is None
    other.close()
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(OSError, match="is not a key"):
        Accounts(tmp_path)


@pytest.mark.parametrize(
    ("name", "role", "code"),
    [
        ("anna", "viewer", "account.exists"),
        ("root", "admin", "account.name"),
        ("", "viewer", "account.name"),
        ("a b", "viewer", "account.name"),
        ("é", "viewer", "account.name"),
        ("a\n", "viewer", "account.name"),
        ("../x", "viewer", "account.name"),
        ("a" * 64, "viewer", "account.name"),
        ("bert", "driver", "account.role"),
        ("bert", "", "account.role"),
    ],
)
def test_who_cannot_be_is_refused(accounts: Accounts, name: str, role: str, code: str) -> None:
    with pytest.raises(RefusedError) as caught:
        accounts.add(name, role, [], NOW)
    assert caught.value.code == code


def test_passwords() -> None:
    async def story() -> None:
        passwords = Passwords()
        kept = hashed("correct horse battery")
        assert await passwords.fits("correct horse battery", kept)
        assert not await passwords.fits("correct horse batterz", kept)
        assert not await passwords.fits("correct horse battery", "")
        assert not await passwords.fits("nobody has this password", "")
        assert not await passwords.fits("x", "not a hash")

    asyncio.run(story())
    for bad in ("short", "x" * 257):
        with pytest.raises(RefusedError):
            hashed(bad)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 5)), max_size=60))
def test_no_window_holds_more_than_it_may(steps: list[tuple[str, float]]) -> None:
    """Against the definition: of what was let through, never more than 3 within any 10 s."""
    window, now = Window(3, 10.0), 0.0
    passed: dict[str, list[float]] = {"a": [], "b": []}
    for key, pause in steps:
        now += pause
        wait = window.take(key, now)
        recent = [at for at in passed[key] if at > now - 10.0]
        assert bool(wait) == (len(recent) >= 3)
        if wait:
            assert wait == pytest.approx(recent[-3] + 10.0 - now)
        else:
            passed[key].append(now)


def test_windows_are_bounded() -> None:
    window = Window(1, 1e9)
    for number in range(MAX_KEYS + 5):
        window.take(str(number), 0.0)
    assert len(window._seen) == MAX_KEYS


def test_scopes_are_permissions() -> None:
    assert scope_of(("read",)) == READS
    assert scope_of(("kill.write", "requests.read")) == {"kill.write", "requests.read"}
    with pytest.raises(ValueError, match="is no scope"):
        scope_of(("everything",))


# What the table of the console lets a role do, the policy lets it do, too, wherever it has a word for it.
ACTIONS = {
    "requests.ask": "lease.request",
    "requests.decide": "lease.approve",
    "flows.cut": "flow.cut",
    "kill.write": "kill.on",
    "policies.write": "policy.update",
    "ledger.read": "ledger.read",
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("permission", ACTIONS)
def test_both_gates_agree(role: str, permission: str) -> None:
    context = {"requester": "somebody", "widens": False}
    judged = authorize(Actor("u1", ACCOUNTS[role]), ACTIONS[permission], context).allowed
    allowed = role in PERMISSIONS[permission]
    # The console may be stricter (who only looks does not ask), never looser, but for reading: its own
    # account is what reads the ledger, and who drives a job may look at what it did.
    assert judged or not allowed or (permission, role) == ("ledger.read", "operator")
    if permission in ("requests.decide", "kill.write"):
        assert judged == allowed


def noted(accounts: Accounts) -> list[tuple[str, str, str]]:
    """(what, actor, detail) of all that the ledger is owed."""
    _, records = accounts.deeds.owed("n1")
    found = [decode(data) for data in records]
    assert {(each.kind, each.node) for each in found} <= {(Kind.ADMIN, "n1")}
    assert all(each.t_real_ns and each.t_boot_ns for each in found)
    return [(each.decision, each.actor, each.detail) for each in found]


def test_whatever_changes_who_may_do_what_is_owed_to_the_ledger(accounts: Accounts) -> None:
    accounts.change("anna", "admin", [])
    accounts.set_password("anna", hashed("a new long password"))
    name, token = accounts.add_token("anna", ["read"], "for\nlater", NOW, NOW + 1000)
    link = accounts.add_link("anna", NOW)
    cookie, session = accounts.open_session("anna", NOW, "link")
    accounts.sign_out(session)
    accounts.revoke_token(name)
    accounts.remove("anna")
    assert noted(accounts) == [
        ("user.add", "root", "anna: approver, p"),
        ("user.set", "root", "anna: admin, all projects"),
        ("user.password", "root", "anna"),
        ("token.add", "root", f"{name} of anna: read until 2027-01-15T08:00:01+00:00"),
        ("link.add", "root", "for anna"),
        ("session.open", "anna", "link"),
        ("session.close", "anna", ""),
        ("token.remove", "root", name),
        ("user.remove", "root", "anna"),
    ]
    said = b"".join(accounts.deeds.owed("n1")[1])
    assert not any(secret.encode() in said for secret in (token, link, cookie, session.csrf))


def test_what_did_not_happen_is_not_owed(accounts: Accounts) -> None:
    before = noted(accounts)
    for wrong in (
        lambda: accounts.add("anna", "viewer", [], NOW),
        lambda: accounts.change("nobody", "viewer", []),
        lambda: accounts.remove("nobody"),
        lambda: accounts.revoke_token("00000000"),
        lambda: accounts.add_token("nobody", ["read"], "", NOW, NOW),
    ):
        with pytest.raises(RefusedError):
            wrong()
    assert noted(accounts) == before
    assert accounts.find("anna") is not None


def test_a_change_whose_note_fails_does_not_happen(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(accounts.deeds, "note", full)
    with pytest.raises(sqlite3.OperationalError):
        accounts.change("anna", "admin", [])
    found = accounts.find("anna")
    assert found is not None
    assert found.role == "approver"


def test_deeds_stay_owed_until_the_ledger_has_them(accounts: Accounts, tmp_path: Path) -> None:
    for number in range(50):  # of more than one request
        accounts.deeds.note("ledger.export", "vera", str(number))
    owed = len(noted(accounts))
    assert not accounts.deeds.bring(tmp_path / "nobody.sock", "n1")
    assert len(noted(accounts)) == owed
    with FakeLedger(tmp_path / "ledger.sock") as ledger:
        assert accounts.deeds.bring(ledger.path, "n1")
        assert [decode(each).detail for each in ledger.records[1:]] == [str(number) for number in range(50)]
    assert noted(accounts) == []


class FakeLedger:
    """Says that all is durable, and keeps it."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, list[bytes]()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeLedger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                while datagram := client.recv(MAX_DATAGRAM):
                    self.records += request_records(datagram)
                    client.send(REPLY.pack(request_number(datagram), Status.DURABLE, 0))
