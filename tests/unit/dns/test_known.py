"""The list of public encrypted resolvers, and where it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.guard_rig import NoSuffixes

from exeat.dns import known
from exeat.dns.judge import Asker, Judge
from exeat.policy.document import load_policy
from exeat.policy.model import Subject
from exeat.policy.snapshot import Snapshot

ASKER = Asker(Subject("p", "a", "j", "", "n"))
HOSTS = ("dns.google", "mozilla.cloudflare-dns.com", "abc123.dns.nextdns.io", "dns.quad9.net")


def judge(policy: str) -> Judge:
    document = load_policy(policy, file="test", suffixes=NoSuffixes())
    message = Snapshot.message(
        generation=1, fresh_ms=60_000, documents=[document], projects={"p": document.digest}
    )
    judge = Judge(lambda: 0.0)
    judge.replace(Snapshot.load(message))
    return judge


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("asker", [ASKER, ASKER._replace(port=443)])
def test_posture_public_does_not_let_them_through(host: str, asker: Asker) -> None:
    one = judge("{egress: v1, project: p, posture: public}")
    assert one.admit(asker, host).reason == "dns.encrypted_resolver"
    assert one.admit(asker, "www.google.com").reason == "posture.public"


@pytest.mark.parametrize("host", HOSTS)
def test_an_alias_does_not_lead_to_one(host: str) -> None:
    one = judge("{egress: v1, project: p, posture: public}")
    target = b"".join(bytes([len(label)]) + label.encode() for label in host.split(".")) + b"\0"
    assert one.verdict(ASKER, "innocent.com", [target], ()).reason == "dns.encrypted_resolver"


def test_a_rule_for_one_wins() -> None:
    one = judge("{egress: v1, project: p, posture: public, allow: [{to: [dns.google]}]}")
    assert one.admit(ASKER, "dns.google").reason == "rule.allow"
    assert not one.admit(ASKER, "dns.quad9.net").allowed


@pytest.mark.parametrize("host", ["google", "xdns.google", "dns.google.evil.com", "quad9.net", "com"])
def test_neighbours_are_not_on_it(host: str) -> None:
    assert not known.on_list(host, known.encrypted_resolvers())


def test_the_list_says_where_it_is_from_and_holds_no_name_twice() -> None:
    text = (Path(known.__file__).parent / "rules" / "encrypted-resolvers.txt").read_text(encoding="ascii")
    assert "\n# source: " in text
    assert "\n# date: 20" in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = known.encrypted_resolvers()
    assert sorted(names) == lines
    assert len(names) > 90
    for name in names:
        _, dot, parent = name.partition(".")
        assert dot
        assert not known.on_list(parent, names), name


@pytest.mark.parametrize("line", ["Dns.Google", "a b", "192.0.2.1", ".x.y", "com", "*.dns.google", "[::1]"])
def test_a_list_with_anything_else_does_not_load(line: str) -> None:
    with pytest.raises(ValueError, match=r"^f\.txt:3: `"):
        known.read_names(f"# resolvers\ndns.google\n{line}\n", "f.txt")


def test_a_list_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no name in it"):
        known.read_names("# nothing\n\n")
    monkeypatch.setattr(known, "MAX_NAMES", 2)
    assert known.read_names("a.test\na.test\nb.test\n") == {"a.test", "b.test"}
    with pytest.raises(ValueError, match=r":3: more than 2"):
        known.read_names("a.test\nb.test\nc.test\n")
