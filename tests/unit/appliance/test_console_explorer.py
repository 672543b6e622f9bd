"""The ledger explorer's workers: real processes that read a ledger made by the real store."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.support.ledgers import flow_id

from exeat.appliance.console.explorer import workers as module
from exeat.appliance.console.explorer.asked import AskError
from exeat.appliance.console.explorer.payloads import classify
from exeat.appliance.console.explorer.worker import NICE
from exeat.appliance.console.explorer.workers import Workers
from exeat.appliance.errors import RefusedError
from exeat.ledger import keys, note, proofs
from exeat.ledger.merkle import leaf_hash
from exeat.ledger.publish import Publisher
from exeat.ledger.records import Dest, Kind, Record, encode
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from exeat.appliance.console.explorer.asked import Place

ORIGIN = "exeat/n1"
HOUR_MS = 3_600_000
NOON_MS = time.time_ns() // 1_000_000 // (24 * HOUR_MS) * 24 * HOUR_MS - 12 * HOUR_MS  # yesterday's
NOON_NS = NOON_MS * 1_000_000
POLICY = "egress: v1\nproject: p1\nposture: allowlist\nallow:\n  - {id: a, to: a.example.org}\n"
WRONG = "egress: v1\nproject: p1\nrulez: []\n"


def of(kind: Kind, number: int | None = None, at_ms: int = NOON_MS, **fields: Any) -> bytes:
    return encode(Record(kind, at_ms * 1_000_000, 10**10, flow_id(number) if number else b"", **fields))


def flow(number: int, host: str, out: int, at_ms: int = NOON_MS, **more: Any) -> list[bytes]:
    who = {"project": "p1", "agent": "a1", "job": "j1", "decision": "allow", **more}
    dest = Dest(host, 443, "tcp", b"\xcb\x00\x71\x05", host)
    return [
        of(Kind.OPEN, number, at_ms, dest=dest, **who),
        of(Kind.CLOSE, number, at_ms, dest=dest, bytes_out=out, bytes_in=7, **who),
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    base = tmp_path_factory.mktemp("state") / "ledger" / "abc"
    made = Store.create(base, ORIGIN, NOON_NS, segment_bytes=4096)
    keys.ensure(base, ORIGIN)
    for number in range(1, 21):
        made.append(flow(number, "a.example.org" if number % 2 else "b.example.net", number), NOON_NS)
    made.append(flow(21, "c.example.org", 1000, NOON_MS + HOUR_MS, project="p2"), NOON_NS)
    tunnel = {"project": "p1", "agent": "a1", "decision": "deny", "reason_code": "dns.tunnel"}
    made.append([of(Kind.DNS, dest=Dest("t.example"), count=3, detail="score 9", **tunnel)], NOON_NS)
    made.append([of(Kind.LEASE, lease_id="p1/l1", actor="ann", project="p1", decision="active")], NOON_NS)
    made.append([of(Kind.JOB, job="j1", project="p1", decision="start")], NOON_NS)
    made.append([of(Kind.JOB, job="j1", project="p1", decision="merge", actor="bob")], NOON_NS)
    made.append([of(Kind.POLICY, project="p1", actor="ann", decision="widens")], NOON_NS)
    Publisher(base).publish(made.size, made.root())
    return made


def asking(store: Store, tmp_path: Path, use: Callable[[Workers], Awaitable[Any]], **more: Any) -> Any:
    async def run() -> Any:
        state = store.directory.parent.parent
        workers = Workers(state, store.directory, tmp_path / "index.sqlite", **more)
        try:
            return await use(workers)
        finally:
            await workers.close()

    return asyncio.run(run())


def test_the_ledgers_pages(store: Store, tmp_path: Path) -> None:
    """One worker answers one after the other; the figures are those of the records."""

    async def use(workers: Workers) -> None:
        page = await workers.ask("ann", "entries", limit=5, kinds=["close"], host="a.example.org")
        assert [row["bytes_out"] for row in page["items"]] == [19, 17, 15, 13, 11]
        rest = await workers.ask(
            "ann", "entries", limit=10, kinds=["close"], host="a.example.org", before=page["next"]
        )
        assert [row["bytes_out"] for row in rest["items"]] == [9, 7, 5, 3, 1]
        assert rest["next"] is None
        sums = await workers.ask("ann", "sums", by=["project", "host"], limit=1)
        assert (sums["items"][0]["host"], sums["more"]) == ("c.example.org", 4)

        audit = await workers.ask("ann", "audit")
        assert [(row["kind"], row["actor"]) for row in audit["items"]] == [
            *(("policy", "ann"), ("job", "bob"), ("lease", "ann"))
        ]
        short = await workers.ask("ann", "audit", limit=2)
        older = await workers.ask("ann", "audit", limit=9, before=short["next"])
        assert [row["kind"] for row in short["items"] + older["items"]] == ["policy", "job", "lease"]

        odd = (await workers.ask("ann", "dns.anomalies"))["items"]
        assert [(row["host"], row["times"], row["detail"]) for row in odd] == [("t.example", 3, "score 9")]

        theirs = await workers.ask("ann", "entries", projects=["p2"])
        assert {row["project"] for row in theirs["items"]} == {"p2"}
        with pytest.raises(RefusedError, match="may see"):
            await workers.ask("ann", "entry", seq=0, projects=["p2"])

        rows = [row async for row in workers.stream("export", project="p2")]
        assert [row["host"] for row in rows] == ["c.example.org"]

    asking(store, tmp_path, use)
    assert not (store.directory / "derived").exists()  # the ledger's folder is the ledger's


def test_charts_and_reviews(store: Store, tmp_path: Path) -> None:
    async def use(workers: Workers) -> None:
        span = {"since": NOON_MS, "until": NOON_MS + 2 * HOUR_MS}
        for step in (HOUR_MS, HOUR_MS // 2):  # by the sums per hour, and by rows
            chart = await workers.ask("ann", "egress", by="project", step_ms=step, **span)
            shown = {series["name"]: series["bytes_out"] for series in chart["series"]}
            assert {name: sum(values) for name, values in shown.items()} == {"p1": 210, "p2": 1000}
            assert (shown["p1"][0], shown["p2"][HOUR_MS // step]) == (210, 1000)
        only = await workers.ask("ann", "egress", by="host", step_ms=HOUR_MS, project="p2", **span)
        assert [series["name"] for series in only["series"]] == ["c.example.org"]
        assert [(edge["project"], edge["bytes_out"]) for edge in only["edges"]] == [("p2", 1000)]
        with pytest.raises(RefusedError, match="choose a longer"):
            await workers.ask("ann", "egress", by="host", step_ms=1000, **span)

        days = (await workers.ask("ann", "days"))["items"]
        assert [(row["bytes_out"], row["flows"]) for row in days] == [(1210, 21)]
        review = (await workers.ask("ann", "review", day=days[0]["day"]))["figures"]
        assert (review["flows"], review["bytes_out"], len(review["rows"])) == (21, 1210, 4)

    asking(store, tmp_path, use)


def test_a_proof_holds_without_trust_in_who_gave_it(store: Store, tmp_path: Path) -> None:
    key = note.parse_vkey(str(keys.verifier(store.directory)))

    async def use(workers: Workers) -> None:
        head = await workers.ask("ann", "head")
        for seq in (0, 17, store.size - 1):
            proof = await workers.ask("ann", "proof", seq=seq)
            checkpoint = note.open_checkpoint(proof["checkpoint"], key)
            leaf = leaf_hash(bytes.fromhex(proof["raw"]))
            path = [bytes.fromhex(node) for node in proof["path"]]
            proofs.check_inclusion(seq, checkpoint.size, leaf, path, checkpoint.root)
            entry = await workers.ask("ann", "entry", seq=seq)
            assert (entry["raw"], entry["record"]["seq"]) == (proof["raw"], seq)
        grown = await workers.ask("ann", "consistency", **{"from": 5})
        proofs.check_consistency(
            5,
            head["size"],
            bytes.fromhex(grown["from_root"]),
            bytes.fromhex(head["root"]),
            [bytes.fromhex(node) for node in grown["path"]],
        )
        for ask, args, code in (
            ("proof", {"seq": store.size}, "ledger.not_covered"),
            ("entry", {"seq": 10**9}, "ledger.no_record"),
            ("proof", {"seq": 0, "cosigned": True}, "ledger.not_cosigned"),
            ("consistency", {"from": 10**9}, "ledger.not_covered"),
        ):
            with pytest.raises(RefusedError) as refused:
                await workers.ask("ann", ask, **args)
            assert refused.value.code == code

    asking(store, tmp_path, use)


def test_policies_before_they_are_in_force(store: Store, tmp_path: Path) -> None:
    async def use(workers: Workers) -> None:
        checked = await workers.ask("ann", "policy.check", text=POLICY)
        assert (checked["ok"], checked["project"], checked["rules"]) == (True, "p1", 1)
        wrong = await workers.ask("ann", "policy.check", text=WRONG)
        assert (wrong["ok"], wrong["problem"]["line"]) == (False, 3)
        new = await workers.ask("ann", "policy.diff", text=POLICY)
        assert new["widens"]
        assert "a.example.org" in new["witnesses"][0]["text"]
        tried = await workers.ask(
            "ann", "policy.trial", text=POLICY, since=NOON_MS, treat_as_public=["203.0.113.0/24"]
        )
        assert [(row["host"], row["was"], row["breaking"]) for row in tried["changes"]] == [
            ("b.example.net", "allow", True)
        ]
        none = await workers.ask("ann", "policy.trial", text=POLICY, since=NOON_MS + 24 * HOUR_MS)
        assert none["replayed"] == 0
        with pytest.raises(RefusedError, match="rulez"):
            await workers.ask("ann", "policy.diff", text=WRONG)

    asking(store, tmp_path, use)


def test_a_payloads_secrets_are_named_and_not_shown(store: Store, tmp_path: Path) -> None:
    secret = "AKIA" + "Z" * 16
    text = f"greeting = hello\naws_key = {secret}\n"

    async def use(workers: Workers) -> None:
        content = base64.b64encode(text.encode()).decode()
        found = await workers.ask("ann", "payload", name="notes.txt", content=content)
        assert (found["bytes"], found["text"], found["looked"]) == (len(text), True, True)
        assert found["hits"][0]["line"] == 2
        assert secret not in str(found)
        assert found["head"][0] == "greeting = hello"
        blob = await workers.ask("ann", "payload", content=base64.b64encode(b"\xff\x00" * 9).decode())
        assert (blob["text"], blob["looked"], blob["head"]) == (False, False, [])
        with pytest.raises(RefusedError, match="base64"):
            await workers.ask("ann", "payload", content="?")

    asking(store, tmp_path, use)


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


async def _idle_pid(workers: Workers) -> int:
    await workers.ask("ann", "head")
    return workers._idle[0].pid


def test_workers_give_way(store: Store, tmp_path: Path) -> None:
    async def use(workers: Workers) -> None:
        pid = await _idle_pid(workers)
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, pid) == max(NICE, ours)

    asking(store, tmp_path, use)


def test_a_long_question_gives_way_to_everything() -> None:
    """In a process of its own: nobody can take it back."""
    code = (
        "import os\n"
        "from exeat.appliance.console.explorer import worker\n"
        "worker.SHORT_S = 0.02\n"
        "patience = worker.Patience(); patience.start()\n"
        "while not patience.over: sum(range(1000))\n"
        "idle = os.sched_getscheduler(0) == os.SCHED_IDLE\n"
        "print(patience.end(), idle, os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "True True 19\n"


def test_a_worker_that_gave_way_is_not_asked_again(store: Store, tmp_path: Path) -> None:
    async def use(workers: Workers) -> None:
        pid = await _idle_pid(workers)
        workers._over.add(pid)  # as its answer says
        await workers.ask("ann", "head")
        assert not alive(pid)
        assert (await workers.ask("ann", "head"))["size"] == store.size

    asking(store, tmp_path, use)


def test_who_stops_waiting_ends_the_question(store: Store, tmp_path: Path) -> None:
    """A worker that is stopped says nothing, as one in a question without an end."""

    async def use(workers: Workers) -> None:
        pid = await _idle_pid(workers)
        os.kill(pid, 19)
        asked = asyncio.ensure_future(workers.ask("ann", "head"))
        waits = asyncio.ensure_future(workers.ask("ann", "head"))  # its turn comes
        await asyncio.sleep(0)
        assert not workers._idle
        others = await workers.ask("bob", "head")  # by another worker
        assert others["size"] == store.size
        assert not waits.done()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert (await waits)["size"] == store.size
        assert not alive(pid)

    asking(store, tmp_path, use)


def test_a_question_that_takes_too_long(store: Store, tmp_path: Path) -> None:
    async def use(workers: Workers) -> None:
        pid = await _idle_pid(workers)
        os.kill(pid, 19)
        workers.limit_s = 0.01
        with pytest.raises(RefusedError) as refused:
            await workers.ask("ann", "head")
        assert refused.value.code == "query.timeout"
        assert not alive(pid)

    asking(store, tmp_path, use)


def test_an_export_that_is_broken_off(store: Store, tmp_path: Path) -> None:
    async def use(workers: Workers) -> None:
        pid = await _idle_pid(workers)
        rows = workers.stream("export")
        assert (await anext(rows))["seq"] == store.size - 1
        assert (await workers.ask("ann", "head"))["size"] == store.size  # beside it
        with pytest.raises(RefusedError, match="another export"):
            await anext(workers.stream("export"))
        await rows.aclose()
        assert not alive(pid)
        assert (await workers.ask("ann", "head"))["size"] == store.size

    asking(store, tmp_path, use)


def test_nobody_fills_the_line(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)

    async def use(workers: Workers) -> None:
        asked = await asyncio.gather(*(workers.ask("ann", "head") for _ in range(3)), return_exceptions=True)
        assert [getattr(each, "code", "ok") for each in asked] == ["ok", "ok", "query.busy"]
        assert (await workers.ask("ann", "head"))["size"] == store.size

    asking(store, tmp_path, use)


@pytest.mark.parametrize("content", ["a", "====", "!!!!", "\xe4\xf6", "\u4e16\u754c", "YQ==\n"])
def test_a_payload_that_is_not_base64_is_refused_and_ends_no_worker(content: str) -> None:
    with pytest.raises(AskError) as caught:
        classify(cast("Place", None), {"content": content})
    assert caught.value.code == "payload.encoding"
