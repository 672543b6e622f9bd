"""What `decide` and `decide_lookup` do at their edges, where neither case files nor random policies go."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING, Any

import pytest

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy import verdicts
from exeat.policy.addresses import parse_address, parse_cidr
from exeat.policy.decide import compile_policy, decide, decide_lookup, decide_records
from exeat.policy.document import Document, load_policy
from exeat.policy.leases import Lease
from exeat.policy.meta import MetaRules
from exeat.policy.model import Address, Decision, Request, Subject
from exeat.policy.postures import Default, Posture
from exeat.policy.scopes import parse_scope
from exeat.policy.usage import LeaseIndex, Overlay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exeat.policy.index import Cell
    from exeat.policy.rules import Rule

NOW = 1_767_614_400_000
WHO = Subject("p", "a1")
PUBLIC = Document(project="p", posture=Posture.PUBLIC)


def document(body: str) -> Document:
    return load_policy(f"egress: v1\nproject: p\n{body}", file="x", suffixes=bundled_suffixes())


def ask(policy: Document, host: Any, *resolved: Any, port: int = 443) -> Decision:
    return decide(compile_policy(policy), Request(WHO, host, port, "tcp", resolved), NOW, Overlay())


def look_up(policy: Document, host: str, *leases: Lease) -> Decision:
    return decide_lookup(compile_policy(policy), WHO, host, NOW, Overlay.of(leases))


@pytest.mark.parametrize(
    "resolved",
    [
        [Address(6, 1 << 128)],
        [Address(6, 1 << 200)],
        [Address(6, -1)],
        [Address(6, 1), "a.org"],
        [Address(5, 1), Address(6, 1)],
    ],
)
def test_what_is_no_address_is_never_judged_as_one(resolved: list[Any]) -> None:
    assert ask(PUBLIC, "b.org", *resolved).reason == "malformed.ip"


@pytest.mark.parametrize("resolved", [Address(4, 1 << 32), Address(4, -1), Address(5, 1), "a.org", None])
def test_what_is_no_address_opens_nothing(resolved: Any) -> None:
    assert not ask(PUBLIC, "b.org", resolved).allowed
    assert not ask(PUBLIC, "b.org", parse_address("9.9.9.9"), resolved).allowed


def test_one_mapped_address_among_others_is_made_plain() -> None:
    policy = document("posture: public\ndeny: [{id: net, to: 8.0.0.0/8}]")
    mapped = Address(6, 0xFFFF << 32 | 0x08080808)
    assert ask(policy, "b.org", parse_address("1.1.1.1"), mapped).reason == "rule.deny"
    assert ask(policy, "b.org", mapped, parse_address("1.1.1.1")).reason == "rule.deny"


@pytest.mark.parametrize("posture", [Posture.ALLOWLIST, Posture.PUBLIC])
@pytest.mark.parametrize("default", Default)
def test_a_default_is_only_looked_at_under_custom(posture: Posture, default: Default) -> None:
    policy = Document(project="p", posture=posture, default=default)
    assert ask(policy, "b.org").reason == (
        "posture.public" if posture is Posture.PUBLIC else "posture.default_deny"
    )
    assert ask(policy, parse_address("9.9.9.9")).reason == "ip_literal.denied"


def test_a_name_is_not_below_its_own_last_letter() -> None:
    policy = document("allow: [{id: g, to: .g, broad: true}, {id: org, to: '.org', broad: true}]")
    assert ask(policy, "org").matched == ("org",)
    assert ask(policy, "a.org").matched == ("org",)
    assert ask(policy, "a.g").matched == ("g",)


def test_budgets_that_leases_make_up_are_not_remembered() -> None:
    policy = compile_policy(document(""))
    for number in range(50):
        lease = Lease("L", "p", (parse_scope("b.org"),), exp_ms=NOW + 1, budget=f"none-{number}")
        got = decide(policy, Request(WHO, "b.org", 443), NOW, Overlay.of([lease]))
        assert (got.reason, got.rule) == ("budget.state", f"none-{number}")
    assert len(policy.verdicts._budgets._sets) <= 1


def test_what_budgets_come_to_is_worked_out_once() -> None:
    policy = compile_policy(document("budgets: {a: {bytes: 1/1h}, b: {bytes: 1/1h}}"))
    budgets = policy.verdicts._budgets
    for names in ([], ["a"], ["a", "b"]):
        assert budgets.applying(names) is budgets.applying(names)


def _weight(cells: Iterable[Cell[Rule]]) -> int:
    """References of eight bytes that these tables take: see `MAX_WEIGHT`."""
    slots = [slot for cell in cells for slot in cell.table.slots if slot is not None]
    return sum(24 + 3 * len(cell.table.starts) for cell in cells) + sum(
        48 + 3 * len(slot.hits) + len(slot.loose) for slot in slots if slot.hits or slot.loose
    )


def test_tables_are_weighed_and_dropped_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdicts.MAX_WEIGHT * 8 == 40_000_000
    rules = "".join(f"  - {{to: .r{n}.org, ports: [{n + 1}, 9000]}}\n" for n in range(20))
    policy = compile_policy(document(f"allow:\n{rules}  - {{to: .org, broad: true, agent: a1, ports: 9000}}"))
    index = policy.verdicts.index

    def visit(number: int) -> list[Cell[Rule]]:
        request = Request(WHO, f"x.r{number}.org", 9000)
        assert decide(policy, request, NOW, Overlay()).allowed
        assert policy.verdicts.at(request.host, 9000, "tcp") is policy.verdicts.at(request.host, 9000, "tcp")
        cells = [index.cell(f"x.r{n}.org") for n in range(20)]
        return [cell for cell in cells if cell is not None and cell.table is not None]

    assert policy.verdicts.weight == 0
    for number in range(4):
        kept = visit(number)
        assert len(kept) == number + 1
        assert policy.verdicts.weight == _weight(kept)
    each = policy.verdicts.weight // 4
    monkeypatch.setattr(verdicts, "MAX_WEIGHT", 5 * each)
    assert len(visit(4)) == 5  # as much as there may be
    kept = visit(5)
    assert len(kept) <= 1
    assert policy.verdicts.weight <= each


def test_what_is_compiled_stays_as_it_is() -> None:
    policy = compile_policy(PUBLIC)
    for item, name in ((policy, "meta"), (policy.meta, "project"), (Overlay(), "min_epoch")):
        with pytest.raises(FrozenInstanceError):
            setattr(item, name, getattr(item, name))


@pytest.mark.parametrize(
    ("denied", "expected"),
    [
        ("2-65535", "ask"),  # port 1 is left
        ("1-65534", "ask"),
        ("1-8999, 9001-65535", "ask"),
        ("1-65535", "deny"),
        ("1-52, 54-65535", "deny"),  # 53 is no port for anybody
        ("443, 1-65000", "ask"),
    ],
)
def test_a_lookup_finds_the_last_port_that_is_left(denied: str, expected: str) -> None:
    policy = document(f"posture: custom\ndeny: [{{to: b.org, ports: [{denied}]}}]")
    assert look_up(policy, "b.org").verdict == expected


def test_a_lookup_is_that_of_https_where_it_allows() -> None:
    policy = document(
        "posture: public\nallow: [{id: one, to: b.org, ports: 1, budget: b}]\nbudgets: {b: {bytes: 1/1h}}"
    )
    assert look_up(policy, "b.org").reason == "posture.public"
    assert look_up(policy, "b.org").budgets == ()


def test_a_lookup_that_only_some_port_may_ask_for_names_the_first() -> None:
    policy = document("ask: [{id: two, to: b.org, ports: 22}, {id: one, to: b.org, ports: 80}]")
    assert (look_up(policy, "b.org").reason, look_up(policy, "b.org").rule) == ("rule.ask", "two")


def test_a_lookup_asks_where_a_used_up_budget_asks_on_some_port() -> None:
    """Nothing grants the name and 443 is denied, but a person could be asked about the other ports."""
    soft = "deny: [{to: b.org, ports: 443}]\nbudgets: {default: {lookups: 0/1h, on_exceed: ask}}"
    assert look_up(document(soft), "b.org").reason == "budget.ask"
    assert look_up(document(soft.replace("on_exceed: ask", "on_exceed: deny")), "b.org").reason == "rule.deny"


def test_other_records_are_granted_by_the_port_that_grants_them() -> None:
    allow = "allow: [{id: web, to: b.org}, {id: mail, to: b.org, ports: 25, records: true}]"
    for text, rule in ((allow, "mail"), (allow.replace("true", "false"), None)):
        policy = compile_policy(document(text))
        assert decide_lookup(policy, WHO, "b.org", NOW, Overlay.of(())).rule == "web"
        found = decide_records(policy, WHO, "b.org", NOW, Overlay.of(()))
        assert (found.rule if found is not None else None) == rule
        assert decide_records(policy, WHO, "c.org", NOW, Overlay.of(())) is None


@pytest.mark.parametrize("posture", ["public", "allowlist", "custom"])
@pytest.mark.parametrize("host", ["b\0.org", "", "b..org", "127.1"])
def test_a_lookup_of_what_is_no_name(posture: str, host: str) -> None:
    assert look_up(document(f"posture: {posture}"), host).reason.startswith("malformed.")


def test_two_leases_without_a_public_address_name_the_first() -> None:
    leases = [Lease(name, "p", (parse_scope("b.org"),), exp_ms=NOW + 1) for name in ("L2", "L1")]
    request = Request(WHO, "b.org", 443, "tcp", (parse_address("10.0.0.1"),))
    got = decide(compile_policy(document("")), request, NOW, Overlay.of(leases))
    assert (got.reason, got.rule, got.lease) == ("address.not_public", "L1", "")
    spoken = replace(leases[0], private=True)
    got = decide(compile_policy(document("")), request, NOW, Overlay.of([spoken, leases[1]]))
    assert (got.reason, got.rule, got.lease) == ("lease.active", "L2", "L2")


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0", "0.0.0.1", "1.0.0.0", "8.8.8.8", "10.0.0.1", "127.0.0.1", "169.254.169.254", "224.0.0.1"],
)
def test_the_meta_rules_see_through_a_mapped_address_by_themselves(text: str) -> None:
    plain = parse_address(text)
    mapped = Address(6, 0xFFFF << 32 | plain.value)
    meta = MetaRules("p")
    assert meta.judge(Request(WHO, "b.org", 443, "tcp", (mapped,))) == meta.judge(
        Request(WHO, "b.org", 443, "tcp", (plain,))
    )


@pytest.mark.parametrize("value", [(0xFFFF << 32) - 1, 0x10000 << 32, 0x20000 << 32])
def test_what_lies_beside_the_mapped_addresses_is_reserved(value: int) -> None:
    got = MetaRules("p").judge(Request(WHO, "b.org", 443, "tcp", (Address(6, value),)))
    assert got == ("meta.special_address", False)


NODE = MetaRules(
    "p",
    treat_as_public=tuple(filter(None, map(parse_cidr, ("203.0.113.64/26", "10.0.0.0/9", "fd00::/16")))),
    host_local=frozenset(map(parse_address, ("8.8.8.8", "2606:4700::8"))),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.63", ("", False)),
        ("203.0.113.64", ("", True)),
        ("203.0.113.127", ("", True)),
        ("203.0.113.128", ("", False)),
        ("10.0.0.0", ("", True)),
        ("10.127.255.255", ("", True)),
        ("10.128.0.0", ("", False)),
        ("fcff:ffff::", ("", False)),
        ("fd00::", ("", True)),
        ("fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ("", True)),
        ("fd01::", ("", False)),
        ("fd00:ec2::254", ("meta.metadata", True)),
        ("fd00:ec2::253", ("", True)),
        ("fd00:ec2::255", ("", True)),
        ("8.8.8.7", ("", True)),
        ("8.8.8.8", ("meta.loopback", True)),
        ("8.8.8.9", ("", True)),
        ("2606:4700::7", ("", True)),
        ("2606:4700::8", ("meta.loopback", True)),
        ("2606:4700::9", ("", True)),
        ("64:ff9b::808:808", ("meta.loopback", False)),
        ("168.63.129.15", ("", True)),
        ("168.63.129.16", ("meta.metadata", True)),
        ("168.63.129.17", ("", True)),
    ],
)
def test_what_a_node_knows_of_itself_begins_and_ends_where_it_says(text: str, expected: Any) -> None:
    assert NODE.judge(Request(WHO, "b.org", 443, "tcp", (parse_address(text),))) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"subject": Subject("p", "")}, "meta.attribution"),
        ({"subject": Subject("q", "a1")}, "meta.project"),
        ({"proto": "sctp"}, "meta.proto"),
        ({"port": 53}, "meta.dns_bypass"),
    ],
)
def test_of_what_is_refused_before_its_addresses_nothing_is_called_public(
    change: dict[str, Any], expected: str
) -> None:
    request = Request(WHO, "b.org", 443, "tcp", (parse_address("9.9.9.9"),))
    assert NODE.judge(request) == ("", True)
    assert NODE.judge(replace(request, **change)) == (expected, False)


def test_an_overlay_fences_nothing_off_unless_told_to() -> None:
    leases = LeaseIndex([Lease("L", "p", (parse_scope("b.org"),), exp_ms=NOW + 1, epoch=0)])
    request = Request(WHO, "b.org", 443)
    assert decide(compile_policy(document("")), request, NOW, Overlay(leases)).reason == "lease.active"
