"""The ledger, policies and the queue through the console's real door."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from tests.support.console import ConsoleRig
from tests.support.running import wait_for

from exeat.ledger import note, proofs
from exeat.ledger.merkle import leaf_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
TEXT = "egress: v1\nproject: fresh\n# as few as can be\nposture: allowlist\n"
WIDER = TEXT + "allow:\n  - {id: a, to: a.example.org}\n"


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = ConsoleRig('[[prices]]\nname = "web"\nto = [".github.com"]\nout_per_gb = 90_000_000\n')
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def lease(rig: ConsoleRig) -> Any:
    """One that anna approved."""
    row = rig.ask()
    path = f"/requests/{quote(row['id'], safe='')}/approve"
    assert rig.person("anna").post(path, {"version": row["version"]}).status == 200
    return row


def test_a_decision_can_be_proved(rig: ConsoleRig, lease: Any) -> None:
    """From the list to the record, its proof and the signed checkpoint, checked with the pinned key alone."""
    vera = rig.person("vera")
    rows = vera.get("/ledger/entries?kind=lease&limit=1").json["items"]
    assert (rows[0]["kind"], rows[0]["project"]) == ("lease", "p")
    seq = rows[0]["seq"]
    entry = vera.get(f"/ledger/entries/{seq}").json
    assert (entry["fields"]["lease_id"], entry["fields"]["actor"]) == (lease["id"], "anna")

    def covered() -> Any:
        answer = vera.get(f"/ledger/entries/{seq}/proof")
        return answer.json if answer.status == 200 else None

    proof = wait_for(covered)
    key = note.parse_vkey(json.loads(rig.exeat("ledger", "checkpoint", "--key", "--json"))["vkey"])
    checkpoint = note.open_checkpoint(proof["checkpoint"], key)
    leaf = leaf_hash(bytes.fromhex(proof["raw"]))
    assert leaf.hex() == entry["leaf_hash"]
    path = [bytes.fromhex(node) for node in proof["path"]]
    proofs.check_inclusion(seq, checkpoint.size, leaf, path, checkpoint.root)
    assert vera.get("/ledger/consistency?from=2&to=3").json["to"] == 3
    grown = vera.get("/ledger/consistency?from=2").json
    assert (grown["from"], grown["to"]) == (2, vera.get("/ledger/head").json["size"])


def test_rows_sums_and_exports(rig: ConsoleRig, lease: Any) -> None:
    vera = rig.person("vera")
    sums = vera.get("/ledger/sums?by=project,kind").json["items"]
    assert {"project": "p", "kind": "lease"} in [row["keys"] for row in sums]
    assert vera.get("/ledger/sums?by=colour").status == 422
    lines = vera.get("/ledger/export?kind=lease,policy").body.splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {"lease", "policy"}
    table = list(csv.DictReader(io.StringIO(vera.get("/ledger/export?format=csv").body.decode())))
    assert "lease" in {row["kind"] for row in table}
    assert vera.get("/dns").json["items"] == []
    assert vera.get("/dns/anomalies").json["items"] == []
    chart = vera.get("/charts/egress?by=host").json
    assert (chart["step_s"], chart["series"], chart["edges"]) == (300, [], [])
    day = vera.get("/reviews").json["items"][0]
    assert day["state"] == "open"
    assert "leases" in vera.get(f"/reviews/{day['day']}").json["text"]
    acts = rig.person("audi").get("/audit").json["items"]
    assert ("anna", "active", lease["id"]) in [(row["who"], row["action"], row["target"]) for row in acts]
    assert rig.person("vera").get("/audit").status == 403
    assert rig.person("vera").get("/nodes").json["items"][0]["state"] == "whole"


def test_what_a_yes_would_let_out(rig: ConsoleRig) -> None:
    """Bytes, their price, a witness of what newly opens, and the secrets in what is going to be sent."""
    secret = "AKIA" + "Q" * 16
    content = base64.b64encode(f"to = you\nkey = {secret}\n".encode()).decode()
    ask = {"project": "p", "to": "codeload.github.com:443", "reason": "to test", "bytes": 5_000_000_000}
    made = rig.person("olga").post("/requests", {**ask, "payload": {"name": "a.txt", "content": content}})
    assert made.status == 201, made.body
    shown = rig.person("anna").get(f"/requests/{quote(made.json['id'], safe='')}")
    preview = shown.json["preview"]
    assert (preview["bytes"], preview["cost_usd"]) == (5_000_000_000, 0.45)
    assert preview["widens"].endswith("newly lets out, for example, codeload.github.com:443/tcp")
    assert preview["classification"][0].startswith("line 2: AWS")
    assert (preview["payload"]["name"], preview["payload"]["head"][0]) == ("a.txt", "to = you")
    assert "secrets" in shown.json["flags"]
    assert secret.encode() not in shown.body
    kept = b"".join(path.read_bytes() for path in (rig.state_dir / "console").glob("payloads*"))
    assert secret.encode() not in kept
    wrong = rig.person("olga").post("/requests", {**ask, "payload": {"content": "?"}})
    assert (wrong.status, wrong.json["reason_code"]) == (422, "payload.encoding")


def test_who_sees_one_project_sees_no_other(rig: ConsoleRig, lease: Any) -> None:
    quin, adam = rig.person("quin"), rig.person("adam")
    assert {row["project"] for row in quin.get("/ledger/entries").json["items"]} == {"q"}
    theirs = adam.get("/ledger/entries?kind=lease").json["items"][0]["seq"]
    for path in (
        f"/ledger/entries/{theirs}",
        "/ledger/entries?project=p",
        "/policies/p",
        "/projects/p/posture",
    ):
        assert (path, quin.get(path).status) == (path, 404)
    assert quin.get(f"/ledger/entries/{theirs}/proof").status in (404, 409)
    assert b'"p"' not in quin.get("/ledger/export").body
    assert [row["project"] for row in quin.get("/policies").json["items"]] == ["q"]
    assert quin.get("/reviews").status == 403


def test_a_policy_of_a_file_is_changed_there(rig: ConsoleRig) -> None:
    adam = rig.person("adam")
    shown = adam.get("/policies/p")
    assert (shown.json["source"], shown.json["editable"]) == ("file", False)
    assert shown.json["text"].startswith("egress: v1")
    tag = {"If_Match": shown.headers["Etag"]}
    refused = adam.call("PUT", "/policies/p", {"text": shown.json["text"]}, **tag)
    assert (refused.status, refused.json["reason_code"]) == (409, "policy.elsewhere")
    assert "p.yaml" in refused.json["detail"]


def test_a_policy_from_nothing_to_two_persons_and_back(rig: ConsoleRig) -> None:
    adam, eve = rig.person("adam"), second_admin(rig)
    none = adam.call("PUT", "/policies/fresh", {"text": TEXT})
    assert none.status == 428
    made = adam.call("PUT", "/policies/fresh", {"text": TEXT, "note": "begin"}, If_None_Match="*")
    assert (made.status, made.json["state"]) == (200, "in_force")
    first = adam.get("/policies/fresh")
    assert (first.json["text"], first.json["source"]) == (TEXT, "console")

    diff = adam.post("/policies/diff", {"text": WIDER}).json
    assert diff["widens"]
    assert "a.example.org" in diff["witness"][0]
    assert "+  - {id: a, to: a.example.org}" in diff["changes"]
    tag = {"If_Match": first.headers["Etag"]}
    asked = adam.call("PUT", "/policies/fresh", {"text": WIDER}, **tag)
    assert (asked.json["state"], adam.get("/policies/fresh").json["text"]) == ("proposed", TEXT)
    agree = {"digest": asked.json["digest"]}
    own = adam.post("/policies/fresh/agree", agree)
    assert (own.status, own.json["reason_code"]) == (403, "meta.second_reviewer")
    assert rig.person("anna").post("/policies/fresh/agree", agree).status == 403
    done = eve.post("/policies/fresh/agree", agree)
    assert (done.status, done.json["state"]) == (200, "in_force")
    now = adam.get("/policies/fresh")
    assert (now.json["text"], now.json["proposal"]) == (WIDER, None)
    acts = rig.person("audi").get("/audit?limit=1").json["items"]
    assert (acts[0]["who"], acts[0]["action"]) == ("adam", "widens")
    assert acts[0]["detail"].startswith("agreed by eve: ")

    stale = adam.call("PUT", "/policies/fresh", {"text": TEXT}, **tag)
    assert (stale.status, stale.json["reason_code"]) == (412, "review.stale")
    versions = adam.get("/policies/fresh/versions").json["items"]
    assert [(row["by"], row["agreed_by"], row["current"]) for row in versions] == [
        *(("adam", "eve", True), ("adam", "", False))
    ]
    tag = {"If_Match": now.headers["Etag"]}
    back = adam.call("POST", "/policies/fresh/revert", {"digest": versions[1]["digest"]}, **tag)
    assert (back.status, back.json["state"]) == (200, "in_force")

    posture = adam.get("/projects/fresh/posture")
    assert (posture.json["posture"], posture.json["enforced"]) == ("allowlist", True)
    tag = {"If_Match": posture.headers["Etag"]}
    wider = adam.call("PUT", "/projects/fresh/posture", {"posture": "public"}, **tag)
    assert wider.json["state"] == "proposed"
    gone = adam.post("/policies/fresh/withdraw", {"digest": wider.json["digest"]})
    assert gone.status == 200
    off = adam.call("PUT", "/projects/fresh/posture", {"posture": "off"}, **tag)
    assert (off.status, off.json["reason_code"]) == (422, "policy.invalid")


def second_admin(rig: ConsoleRig) -> Any:
    from tests.support.console import Person

    rig.exeat("user", "add", "eve", "--role", "admin")
    token = rig.exeat("token", "create", "eve", "--scope", "policies.write").strip()
    return Person(rig, {"Authorization": f"Bearer {token}"})


def test_the_queue(rig: ConsoleRig) -> None:
    olga = rig.person("olga")
    made = olga.post("/jobs", {"project": "p", "argv": ["sh", "-c", "echo one; printf 'a\\033[31mb'"]})
    assert made.status == 201, made.body
    name = made.json["id"]
    wait_for(lambda: olga.get(f"/jobs/{name}").json["state"] == "done", 30)
    log = olga.get(f"/jobs/{name}/logs").json
    assert (log["text"], log["size"], log["truncated"]) == ("one\na[31mb", 11, False)
    assert olga.get(f"/jobs/{name}/logs?offset=4").json["text"] == "a[31mb"
    assert [row["id"] for row in olga.get("/jobs?state=all").json["items"]] == [name]
    assert rig.person("quin").get(f"/jobs/{name}").status == 404
    assert rig.person("vera").post("/jobs", {"project": "p", "argv": ["true"]}).status == 403
    assert olga.post("/jobs", {"project": "p", "argv": ["true"], "mounts": []}).status == 422


def test_who_may_use_the_console_and_who_did_is_on_the_ledger(rig: ConsoleRig) -> None:
    """Accounts, tokens, sign-ins, wrong ones, sign-outs and exports, whoever the audit asks afterwards."""
    rig.exeat("user", "add", "zoe", "--role", "viewer")
    zoe = rig.browser("zoe")
    assert rig.nobody().post("/session", {"link": "x" * 43}, Origin=rig.origin).status == 401
    assert zoe.get("/ledger/export?kind=lease").status == 200
    assert zoe.call("DELETE", "/session").status == 200
    rig.exeat("user", "rm", "zoe")

    def deeds() -> list[tuple[str, str]]:
        words = ("ledger", "tail", "-n", "1000", "--kind", "admin", "--json")
        found = [json.loads(line) for line in rig.exeat(*words).splitlines()]
        return [(each["decision"], each.get("actor", "")) for each in found]

    wanted = {
        *(("user.add", "root"), ("link.add", "root"), ("user.remove", "root"), ("session.refused", "")),
        *((what, "zoe") for what in ("session.open", "session.close", "ledger.export")),
    }
    wait_for(lambda: wanted <= {*deeds()})
    audit = rig.person("audi").get("/audit?limit=200").json["items"]
    assert ("user.remove", "root") in {(row["action"], row["who"]) for row in audit}


def test_deeds_wait_for_a_ledger_that_is_away(rig: ConsoleRig) -> None:
    os.kill(rig.pid_of("ledger"), signal.SIGSTOP)
    try:
        rig.exeat("user", "add", "yan", "--role", "viewer")
    finally:
        os.kill(rig.pid_of("ledger"), signal.SIGCONT)

    def known() -> bool:
        words = ("ledger", "tail", "-n", "1000", "--kind", "admin", "--json")
        return "yan: viewer, all projects" in rig.exeat(*words)

    wait_for(known)
