"""Decisions with a passkey, through the console: what was signed is what is done, and nothing else."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from tests.support.authenticator import PRESENT, Authenticator
from tests.support.console import ConsoleRig
from tests.support.running import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
ORIGIN = "https://console.example.org"


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = ConsoleRig(f'[passkeys]\nrp_id = "console.example.org"\norigins = ["{ORIGIN}"]\n')
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def key(rig: ConsoleRig) -> Authenticator:
    """Anna's, registered with root's code."""
    made, anna = Authenticator("console.example.org", ORIGIN), rig.person("anna")
    code = rig.exeat("passkey", "invite", "anna").strip()
    assert rig.person("adam").post("/passkeys/begin", {"code": code}).status == 403  # it is anna's
    options = anna.post("/passkeys/begin", {"code": code}).json["options"]
    sent = {"code": code, "name": "blue key", "credential": made.create(options)}
    done = anna.post("/passkeys", sent)
    assert (done.status, done.json["id"]) == (201, made.id)
    assert anna.post("/passkeys", sent).json["reason_code"] == "passkey.code"  # once
    assert [row["name"] for row in anna.get("/passkeys").json["items"]] == ["blue key"]
    return made


def pending(rig: ConsoleRig, to: str) -> tuple[str, dict[str, Any]]:
    row = rig.ask(to)
    return f"/requests/{quote(row['id'], safe='')}", {"version": row["version"], "ttl_s": 300}


def signed(rig: ConsoleRig, key: Authenticator, path: str, body: Any, **how: Any) -> dict[str, Any]:
    asked = rig.person("anna").post(f"{path}/challenge", body).json
    assert asked["allow"] == [key.id]
    return {"expires_ms": asked["expires_ms"], "credential": key.get(asked["challenge"], **how)}


def test_only_what_was_signed_is_done(rig: ConsoleRig, key: Authenticator) -> None:
    path, body = pending(rig, "api.github.com:443")
    anna = rig.person("anna")
    assert anna.get(path).json["passkey"] is True
    without = anna.post(f"{path}/approve", body)
    assert (without.status, without.json["reason_code"]) == (403, "passkey.needed")
    assertion = signed(rig, key, path, body)
    longer = anna.post(f"{path}/approve", {**body, "ttl_s": 600, "assertion": assertion})
    assert (longer.status, longer.json["reason_code"]) == (403, "passkey.wrong")
    later = {**assertion, "expires_ms": assertion["expires_ms"] + 10**9}
    assert anna.post(f"{path}/approve", {**body, "assertion": later}).json["reason_code"] == "passkey.late"
    other = rig.person("adam").post(f"{path}/approve", {**body, "assertion": assertion})
    assert (other.status, other.json["reason_code"]) == (403, "passkey.unknown")
    done = anna.post(f"{path}/approve", {**body, "assertion": assertion})
    assert (done.status, done.json.get("state")) == (200, "active"), done.body
    again = anna.post(f"{path}/approve", {**body, "assertion": assertion})
    assert (again.status, again.json["reason_code"]) == (403, "passkey.used")


def test_what_no_person_confirmed_does_not_count(rig: ConsoleRig, key: Authenticator) -> None:
    path, body = pending(rig, "gist.github.com:443")
    anna = rig.person("anna")
    touched = signed(rig, key, path, body, flags=PRESENT)  # somebody was there; nobody knows who
    assert anna.post(f"{path}/approve", {**body, "assertion": touched}).json["reason_code"] == "passkey.wrong"
    elsewhere = Authenticator("console.example.org", "https://evil.example.org")
    elsewhere._key = key._key
    wrong = signed(rig, elsewhere, path, body)
    assert anna.post(f"{path}/approve", {**body, "assertion": wrong}).json["reason_code"] == "passkey.wrong"
    assert anna.get(path).json["state"] == "requested"
    denied = anna.post(f"{path}/deny", {"version": body["version"]})
    assert (denied.status, denied.json["state"]) == (200, "denied")  # a no never waits for a key


def test_the_kill_switch_is_let_go_by_passkey_only(rig: ConsoleRig, key: Authenticator) -> None:
    adam = rig.person("adam")
    other = Authenticator("console.example.org", ORIGIN, b"key-2")
    code = rig.exeat("passkey", "invite", "adam").strip()
    made = other.create(adam.post("/passkeys/begin", {"code": code}).json["options"])
    assert adam.post("/passkeys", {"code": code, "credential": made}).status == 201
    stop = {"scope": "project", "project": "q", "on": True, "reason": "to test"}
    assert adam.post("/kill", stop).status == 200
    go = {**stop, "on": False}
    assert adam.post("/kill", go).json["reason_code"] == "passkey.needed"
    asked = adam.post("/kill/challenge", go).json
    sent = {"expires_ms": asked["expires_ms"], "credential": other.get(asked["challenge"])}
    everything = {"scope": "all", "on": False, "reason": "to test", "assertion": sent}
    assert adam.post("/kill", everything).json["reason_code"] == "passkey.wrong"
    assert adam.post("/kill", {**go, "assertion": sent}).json["stopped"] == []


def test_a_passkey_outlives_control_and_can_be_taken_away(rig: ConsoleRig, key: Authenticator) -> None:
    anna = rig.person("anna")
    assert "passkey blue key of anna" in rig.exeat("ledger", "tail", "-n", "100", "--json")
    path, body = pending(rig, "docs.github.com:443")
    before = {**body, "assertion": signed(rig, key, path, body)}
    os.kill(rig.pid_of("control"), signal.SIGKILL)
    wait_for(lambda: "p" in anna.get("/status").json.get("projects", ()))
    # Which signatures were used is forgotten with the process, so those of before count no more.
    assert anna.post(f"{path}/approve", before).json["reason_code"] == "passkey.wrong"
    path, body = pending(rig, "www.github.com:443")
    sent = {**body, "assertion": signed(rig, key, path, body)}
    assert anna.post(f"{path}/approve", sent).json["state"] == "active"
    rig.exeat("passkey", "remove", key.id, "--as", "adam")
    asked = anna.post(f"{path}/challenge", body)
    assert (asked.status, asked.json["reason_code"]) == (403, "passkey.none")
