"""Random policies, leases and requests from a small world, so that they meet each other often."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

from exeat.policy.addresses import parse_address
from exeat.policy.document import Document, load_policy
from exeat.policy.leases import Lease
from exeat.policy.model import Request, Sni, Subject
from exeat.policy.scopes import parse_ports, parse_scope

NOW_MS = 1_767_614_400_000  # 2026-01-05T12:00:00Z, a Monday


class NoSuffixes:
    def is_broad(self, name: str) -> bool:
        return False


NAMES = [
    "a.org",
    "b.a.org",
    "c.b.a.org",
    "x.org",
    "a.x.org",
    "org",
    "printer.local",
    "metadata.google.internal",
]
SCOPES = [
    *NAMES[:5],
    *[f".{name}" for name in NAMES[:5]],
    *[f"*.{name}" for name in NAMES[:4]],
    "*",
    "a.org:22",
    ".a.org:440-450",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "93.184.0.0/16",
    "93.184.216.34:8080",
    "0.0.0.0/0",
    "2606:4700::/32",
    "[2606:4700::1]",
]
ADDRESSES = [
    "93.184.216.34",
    "93.185.0.1",
    "10.1.2.3",
    "10.2.0.1",
    "192.168.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "203.0.113.5",
    "2606:4700::1",
    "64:ff9b::a01:203",
    "2002:a9fe:a9fe::1",
    "fd00::1",
    "ff02::1",
]
HOSTS: list[Any] = [*NAMES, *[parse_address(text) for text in ADDRESSES]]
PORTS = ["443", "22", "80", "any", "440-450", "53"]
PORT_NUMBERS = [443, 22, 80, 445, 53, 8080, 65535]

_few_scopes = st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3, unique=True)


@st.composite
def rule_bodies(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"to": draw(_few_scopes), "broad": "true"}
    if draw(st.booleans()):
        rule["ports"] = draw(st.lists(st.sampled_from(PORTS), min_size=1, max_size=2, unique=True))
    if draw(st.integers(0, 3)) == 0:
        rule["except"] = draw(_few_scopes)
    if draw(st.integers(0, 3)) == 0:
        rule["proto"] = draw(st.sampled_from(["tcp", "udp", "any"]))
    if kind != "ceiling":
        if draw(st.integers(0, 4)) == 0:
            rule["agent"] = draw(st.sampled_from(["a1", "a2"]))
        if draw(st.integers(0, 4)) == 0:
            rule["node"] = ["n1"]
        if draw(st.integers(0, 4)) == 0:
            rule["when"] = draw(
                st.sampled_from(
                    [
                        {"daily": "09:00-17:00", "days": ["mon", "wed"]},
                        {"daily": "22:00-06:00", "days": ["sun"]},
                        {"until": "2026-01-05T12:00:00Z"},
                        {"from": "2026-01-05T12:00:00Z"},
                    ]
                )
            )
    if kind in ("allow", "ask"):
        if draw(st.integers(0, 3)) == 0:
            rule["private"] = "true"
        if draw(st.integers(0, 5)) == 0:
            rule[draw(st.sampled_from(["raw", "ech", "records"]))] = "true"
        if kind == "ask" and draw(st.integers(0, 5)) == 0:
            rule["via"] = draw(st.sampled_from(["direct", "direct", "proxy"]))
        if draw(st.integers(0, 3)) == 0:
            rule["budget"] = draw(st.sampled_from(["hard", "soft"]))
    return rule


def _tree(kind: str, most: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(rule_bodies(kind), max_size=most)


@st.composite
def policy_trees(draw: st.DrawFn) -> dict[str, Any]:
    """A document as YAML data. Rules have explicit ids, so that reordering keeps them."""
    tree: dict[str, Any] = {"egress": "v1", "project": "p"}
    posture = draw(st.sampled_from(["allowlist", "public", "custom", "off"]))
    tree["posture"] = posture
    if posture == "off":
        tree |= {"acknowledge": "unenforced", "expires": "2030-01-01T00:00:00Z"}
    if posture == "custom":
        tree["default"] = draw(st.sampled_from(["ask", "deny", "public"]))
    tree["preset"] = draw(st.sampled_from(["relaxed", "standard", "strict"]))
    for kind in ("allow", "ask", "deny"):
        rules = draw(_tree(kind, 4))
        tree[kind] = [{"id": f"{kind}-{n}", **rule} for n, rule in enumerate(rules)]
    if draw(st.integers(0, 3)) == 0:
        tree["ceiling"] = draw(_tree("ceiling", 3))
    if draw(st.booleans()):
        tree["control"] = ["b.a.org:443", "93.184.216.34:8080"]
    tree["budgets"] = {
        "hard": {"bytes_up": "100/1h"},
        "soft": {"connections": "5/1h", "on_exceed": "ask"},
    }
    if draw(st.booleans()):
        tree["budgets"]["default"] = {"bytes": "1000/1h"}
    return tree


def document_of(tree: dict[str, Any]) -> Document:
    return load_policy(yaml.safe_dump(tree), file="random.yaml", suffixes=NoSuffixes())


@st.composite
def requests(draw: st.DrawFn) -> Request:
    host = draw(st.sampled_from(HOSTS))
    resolved = ()
    if isinstance(host, str):
        resolved = tuple(
            map(parse_address, draw(st.lists(st.sampled_from(ADDRESSES[:4] + ADDRESSES), max_size=2)))
        )
    return Request(
        subject=Subject(
            draw(st.sampled_from(["p", "p", "p", "q"])),
            draw(st.sampled_from(["a1", "a2", ""])),
            job=draw(st.sampled_from(["", "j1"])),
            node=draw(st.sampled_from(["n1", "n2"])),
        ),
        host=host,
        port=draw(st.sampled_from(PORT_NUMBERS)),
        proto=draw(st.sampled_from(["tcp", "tcp", "tcp", "udp", "sctp"])),
        resolved=resolved,
        sni=draw(st.sampled_from([Sni.UNSEEN, Sni.UNSEEN, Sni.ABSENT, "a.org", "x.org"])),
    )


@st.composite
def lease_lists(draw: st.DrawFn) -> list[Lease]:
    return [draw(_leases(f"L{number}")) for number in range(draw(st.integers(0, 3)))]


@st.composite
def _leases(draw: st.DrawFn, name: str) -> Lease:
    return Lease(
        id=name,
        project=draw(st.sampled_from(["p", "p", "q"])),
        to=tuple(map(parse_scope, draw(_few_scopes))),
        ports=parse_ports(draw(st.lists(st.sampled_from(PORTS), min_size=1, max_size=2))),
        except_=tuple(map(parse_scope, draw(st.lists(st.sampled_from(SCOPES), max_size=1)))),
        private=draw(st.booleans()),
        raw=draw(st.sampled_from([False, False, True])),
        ech=draw(st.sampled_from([False, False, True])),
        direct=draw(st.sampled_from([False, False, True])),
        records=draw(st.sampled_from([False, False, True])),
        agents=draw(st.sampled_from([frozenset(), frozenset({"a1"})])),
        job=draw(st.sampled_from(["", "", "j1"])),
        issuer=draw(st.sampled_from(["home", "home", "home", "w1"])),
        nbf_ms=draw(st.sampled_from([0, NOW_MS, NOW_MS + 1])),
        exp_ms=draw(st.sampled_from([NOW_MS, NOW_MS + 1, NOW_MS + 60_000])),
        budget=draw(st.sampled_from(["", "", "hard"])),
    )
