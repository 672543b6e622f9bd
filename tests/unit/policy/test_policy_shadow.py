"""What a shadow policy says beside the one in force, in the words of a record."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.document import Document, load_policy
from exeat.policy.model import Decision, Request, Subject, Verdict
from exeat.policy.shadow import note, parse_note
from exeat.policy.snapshot import Snapshot, SnapshotError
from exeat.policy.usage import Usage

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text(encoding="utf-8")
LIVE, SHADOW = (
    load_policy(text, file="docs", suffixes=bundled_suffixes())
    for text in re.findall(r"```yaml\n(egress: v1\nproject: crawler\n.*?)```", PAGE, re.DOTALL)
)
NOW = 1_767_614_400_000
ME = Subject("crawler", "a1")


def snapshot(live: Document = LIVE, shadow: Document = SHADOW, **more: object) -> Snapshot:
    fields: dict[str, object] = {
        "generation": 1,
        "fresh_ms": 1,
        "documents": [live, shadow],
        "projects": {"crawler": live.digest},
        "shadows": {"crawler": shadow.digest},
        **more,
    }
    return Snapshot.load(json.loads(json.dumps(Snapshot.message(**fields))))  # type: ignore[arg-type]


def said(made: Snapshot, host: str, port: int = 443, subject: Subject = ME) -> str:
    request, usage = Request(subject, host, port), Usage()
    return made.shadow(request, made.decide(request, NOW, usage), NOW, usage)


def test_the_example_of_the_page() -> None:
    made = snapshot()
    assert said(made, "www.example.org") == "shadow: deny posture.default_deny"
    assert said(made, "api.openai.com") == ""
    assert said(made, "x.pastebin.com") == "shadow: deny posture.default_deny"  # another reason counts too
    assert said(made, "metadata.google.internal") == ""
    usage = Usage()
    decided = made.decide_lookup(ME, "www.example.org", NOW, usage)
    assert made.shadow_lookup(ME, "www.example.org", decided, NOW, usage) == (
        "shadow: deny posture.default_deny"
    )


def test_whom_it_concerns() -> None:
    own = snapshot(jobs={"j1": LIVE.digest})
    assert said(own, "www.example.org", subject=ME._replace(job="j2")) != ""
    assert said(own, "www.example.org", subject=ME._replace(job="j1")) == ""
    assert said(own, "www.example.org", subject=Subject("other", "a1")) == ""
    assert said(snapshot(shadows={}), "www.example.org") == ""


def test_a_shadow_without_its_document_is_no_snapshot() -> None:
    with pytest.raises(SnapshotError, match="missing"):
        snapshot(documents=[LIVE])


@pytest.mark.parametrize(
    "shadow",
    [
        Decision(Verdict.DENY, "rule.deny", "net"),
        Decision(Verdict.ASK, "rule.ask", "a b"),
        Decision(Verdict.DENY, "posture.default_deny"),
    ],
)
def test_a_note_can_be_read_again(shadow: Decision) -> None:
    text = note(Decision(Verdict.ALLOW, "rule.allow"), shadow)
    assert parse_note(text) == shadow


@pytest.mark.parametrize(
    "text", ["", "shadow: ", "shadow: deny", "shadow: no x", "unacked 7", "xshadow: deny x"]
)
def test_other_details_are_no_notes(text: str) -> None:
    assert parse_note(text) is None
