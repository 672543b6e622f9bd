"""Every code that the core can answer with has words, and the words fit an HTTP reason phrase."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exeat.policy.addresses import parse_address
from exeat.policy.model import Decision, Verdict
from exeat.policy.reasons import TEXTS, advise, short_text

ROOT = Path(__file__).parents[3]
_CODE = re.compile(
    r'"((?:malformed|meta|rule|ceiling|budget|lease|address|posture|ip_literal|sni|policy|internal|review)\.[a-z_]+)"'
)
_DOOR_CODE = re.compile(
    r'"((?:tls|http|socks|dial|dns|limit|client|jail|gateway|ledger|policy|malformed|sni|meta|address'
    r'|budget|lease|rule|posture|internal|transparent)\.[a-z_0-9]+)"'
)
# Codes of documents that do not load, or that draw a warning; their text is the message.
LOAD_ONLY = {
    "posture.unknown",
    "posture.off_unacknowledged",
    "posture.acknowledge",
    "posture.default",
    "rule.proto",
    "rule.via",
    "rule.when",
    "rule.approvals",
    "rule.never_matches",
    "rule.duplicate",
    "rule.shadowed",
    "rule.wide",
    "policy.empty",
    "policy.denies_all",
    "policy.unenforced",
    "policy.no_budget",
    "budget.on_exceed",
    "policy.json",
}


def test_every_code_in_the_core_has_a_text() -> None:
    files = [path for path in (ROOT / "policy").glob("*.py") if path.name != "reasons.py"]
    used = {code for path in files for code in _CODE.findall(path.read_text(encoding="utf-8"))}
    actions = {
        code
        for code in used
        if re.fullmatch(r"(lease|policy)\.(request|approve|deny|renew|revoke|update)", code)
    }
    assert used - actions - LOAD_ONLY <= TEXTS.keys()
    assert len(used) > 40


def test_every_code_of_the_doors_has_a_text() -> None:
    files = [path for area in ("proxy", "dns") for path in (ROOT / area).glob("*.py")]
    used = {code for path in files for code in _DOOR_CODE.findall(path.read_text(encoding="utf-8"))}
    others = {"jail.remove", "jail.add", "ledger.sock"}  # messages and a file
    assert used - others <= TEXTS.keys()
    assert len(used) > 60


def test_nobody_gets_no_command() -> None:
    assert advise(Decision(Verdict.DENY, "meta.attribution"), "a.org", 443, "") == TEXTS["meta.attribution"]


def test_texts_are_short_and_plain() -> None:
    for code, words in TEXTS.items():
        assert words.isascii(), code
        assert words.isprintable(), code
        assert len(words) <= 80, code
    assert short_text("unheard.of") == "unheard.of"


@pytest.mark.parametrize("code", TEXTS)
@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize(
    "host", ["a.org", parse_address("::1"), "x" * 250, "a\r\nSet-Cookie: x", "é.org", "", "a.org b"]
)
def test_advice_fits_a_reason_phrase(code: str, verdict: Verdict, host: str) -> None:
    line = advise(Decision(verdict, code, rule="r" * 64), host, 443, "p" * 63)
    assert re.fullmatch(r"[ -~]{1,160}", line)


def test_advice_names_the_next_command() -> None:
    def said(verdict: Verdict, reason: str, rule: str = "") -> str:
        return advise(Decision(verdict, reason, rule=rule), "a.org", 8443, "p")

    assert said(Verdict.DENY, "posture.default_deny").endswith("exeat lease request --project p a.org:8443")
    assert "operator must change rule paste" in said(Verdict.DENY, "rule.deny", "paste")
    assert "exeat lease approve" in said(Verdict.ASK, "rule.ask", "gh")
    assert "private: true on lan" in said(Verdict.DENY, "address.not_public", "lan")
    assert "exeat why --project p a.org:8443" in said(Verdict.DENY, "meta.metadata")
