"""A policy proposed from what was seen: it loads, it allows what was seen, and nothing beside it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from exeat.appliance.learning import Proposal, as_yaml, propose
from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.appliance.summary import Line, human
from exeat.policy.document import load_policy
from exeat.policy.model import Request, Subject
from exeat.policy.names import parse_host
from exeat.policy.snapshot import Snapshot
from exeat.policy.usage import Usage

SUFFIXES = bundled_suffixes()


def line(host: str, port: int = 443, *, out: int = 10, back: int = 100, **more: object) -> Line:
    made = Line(host, port, allowed=1, bytes_out=out, bytes_in=back)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def proposed(*lines: Line) -> Proposal:
    return propose("p", [("job-1", lines)], SUFFIXES)


def snapshot_of(text: str) -> Snapshot:
    document = load_policy(text, file="proposal.yaml", suffixes=SUFFIXES)
    return Snapshot.load(
        Snapshot.message(
            generation=1, fresh_ms=1000, documents=[document], projects={document.project: document.digest}
        )
    )


def allows(snapshot: Snapshot, host: str, port: int) -> bool:
    request = Request(Subject("p", "run", "", "", "n"), parse_host(host), port)
    return snapshot.decide(request, 0, Usage()).allowed


def test_each_host_is_named_in_full_and_owners_stand_together() -> None:
    text = as_yaml(proposed(line("b.example.org"), line("x.example.com"), line("a.example.org", 80)), human)
    assert text.index("x.example.com") < text.index("b.example.org")
    assert "*" not in text
    snapshot = snapshot_of(text)
    assert allows(snapshot, "b.example.org", 443)
    assert not allows(snapshot, "c.example.org", 443)
    assert not allows(snapshot, "b.example.org", 80)
    # Port 80 alone is doubtful, so it is a comment.
    assert not allows(snapshot, "a.example.org", 80)
    assert "#  - {to: a.example.org, ports: 80}" in text


def test_what_wants_a_second_look_says_why() -> None:
    refused = Line("never.example.net", 443)
    refused.refused["meta.metadata"] = 3
    proposal = proposed(
        line("203.0.113.9"),
        line("github.io"),
        line("git.example.org", 22),
        line("drop.example.org", out=5_000_000, back=10),
        refused,
        line("ok.example.org"),
    )
    assert [host.host for host in proposal.rules] == ["ok.example.org"]
    doubts = {host.host: " ".join(host.doubts) for host in proposal.doubtful}
    assert "an address" in doubts["203.0.113.9"]
    assert "public suffix" in doubts["github.io"]
    assert "port 22" in doubts["git.example.org"]
    assert "more was sent" in doubts["drop.example.org"]
    assert "meta.metadata (3x)" in doubts["never.example.net"]


def test_runs_are_added_up() -> None:
    runs = [("job-1", [line("a.example.org")]), ("job-2", [line("a.example.org"), line("b.example.org")])]
    text = as_yaml(propose("p", runs, SUFFIXES), human)
    assert "2 flows, in 2 of 2 runs: 20 B out, 200 B in" in text
    assert "1 flow, in 1 of 2 runs" in text


def test_nothing_seen_is_a_policy_that_allows_nothing() -> None:
    text = as_yaml(propose("p", [], SUFFIXES), human)
    assert not allows(snapshot_of(text), "a.example.org", 443)


_NAMES = st.from_regex(
    r"[a-z]([a-z0-9-]{0,5}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,5}[a-z0-9])?){1,3}", fullmatch=True
)
_HOSTS = _NAMES | st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str) | st.text(max_size=12)
_LINES = st.builds(
    line,
    _HOSTS,
    st.integers(0, 65535),
    out=st.integers(0, 10**9),
    back=st.integers(0, 10**9),
    allowed=st.integers(0, 3),
)


@settings(max_examples=60)
@given(st.lists(_LINES, max_size=6))
def test_whatever_was_seen_the_proposal_loads_and_allows_its_rules(lines: list[Line]) -> None:
    proposal = proposed(*lines)
    snapshot = snapshot_of(as_yaml(proposal, human))
    assert set(snapshot_hosts(proposal)) <= {entry.host for entry in lines}
    for host, port in snapshot_hosts(proposal).items():
        verdict = snapshot.decide(
            Request(Subject("p", "run", "", "", "n"), parse_host(host), port), 0, Usage()
        )
        assert verdict.allowed or verdict.reason.startswith("meta."), verdict


def snapshot_hosts(proposal: Proposal) -> dict[str, int]:
    return {host.host: min(host.ports or {443}) for host in proposal.rules}
