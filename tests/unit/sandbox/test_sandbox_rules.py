"""The host's table: what a member may do stands in the text, and in the right order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from exeat.policy.addresses import Cidr, parse_address, parse_cidr
from exeat.policy.model import Address
from exeat.sandbox.names import SpecError
from exeat.sandbox.rules import (
    MAX_BYTES,
    MAX_PINHOLES,
    Cgroup,
    Host,
    Pinhole,
    Table,
    Target,
    Veth,
    change,
    replacement,
)


def target(text: str, port: int, proto: str = "tcp") -> Target:
    return Target(parse_address(text), proto, port)


def net(text: str) -> Cidr:
    found = parse_cidr(text)
    assert found is not None
    return found


HOST = Host("builds/agents", Cgroup("agents.slice"), ((61184, 65519),))
VETH = Veth("ext/box", "sbh0", (net("10.231.0.2/32"), net("fd5b::2/128")))
HOLE = Pinhole(
    7, "builds/agents", (target("203.0.113.5", 22), target("2001:db8::1", 51820, "udp")), 1_000_000, 1000
)
TABLE = Table((HOST, VETH), (target("127.0.0.1", 3128),), 3129, 5353, (target("10.0.0.1", 6379),), (HOLE,))

TOO_MANY = tuple(dataclasses.replace(HOLE, number=number) for number in range(1, MAX_PINHOLES + 2))


def rules(table: Table, chain: str) -> list[str]:
    start = f"add rule inet exeat {chain} "
    lines = replacement(table, 900.0).splitlines()
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def position(lines: list[str], text: str) -> int:
    return next(number for number, line in enumerate(lines) if text in line)


def test_a_host_member_is_matched_by_cgroup_and_by_uid_in_both_chains() -> None:
    for chain in ("nat_out", "output"):
        assert [line.partition(" jump ")[0] for line in rules(TABLE, chain)] == [
            'socket cgroupv2 level 1 "agents.slice"',
            "meta skuid 61184-65519",
        ]


def test_the_level_counts_from_the_v2_root_and_the_prefix_does_not() -> None:
    table = Table((Host("a/b", Cgroup("a.slice/b.slice")),), prefix="unified/")
    assert 'socket cgroupv2 level 2 "unified/a.slice/b.slice"' in rules(table, "output")[0]


@pytest.mark.parametrize("member", [0, 1])
def test_every_chain_of_a_member_ends_in_a_rejection(member: int) -> None:
    last = rules(TABLE, f"m{member}_filter")[-1]
    assert last == f"counter name m{member}_rejected reject with icmpx type admin-prohibited"


def test_without_the_doors_nothing_is_let_through_or_redirected() -> None:
    bare = Table((HOST,))
    assert not any("redirect" in line for line in rules(bare, "m0_nat"))
    accepting = [line for line in rules(bare, "m0_filter") if line.endswith("accept")]
    assert accepting == ['oifname "lo" ct direction reply ct state established,related accept']


def test_lookups_are_redirected_before_any_pinhole_is_looked_at() -> None:
    lines = rules(TABLE, "m0_nat")
    assert (
        position(lines, "redirect to :5353") < position(lines, "@p7_4") < position(lines, "redirect to :3129")
    )


def test_own_addresses_and_control_places_are_refused_before_any_pinhole() -> None:
    lines = rules(TABLE, "m0_filter")
    hole = position(lines, "@p7_4")
    assert position(lines, "fib daddr type { local, broadcast, multicast, anycast } reject") < hole
    assert position(lines, "10.0.0.1 . tcp . 6379 } reject") < hole


@pytest.mark.parametrize("member", [0, 1])
def test_attempts_at_other_resolvers_are_counted_once_each(member: int) -> None:
    nat, rest = rules(TABLE, f"m{member}_nat"), rules(TABLE, f"m{member}_filter")
    assert [line for line in nat if "_bypass" in line] == [
        f"tcp dport {{ 784, 853, 8853 }} counter name m{member}_bypass"
    ]
    assert [line.partition(" reject")[0] for line in rest if "_bypass" in line] == [
        f"udp dport {{ 784, 853, 8853 }} counter name m{member}_bypass"
    ]
    assert [line for line in nat if "_dns" in line] == [
        f"meta l4proto {{ tcp, udp }} th dport 53 counter name m{member}_dns"
    ]


def test_a_pinhole_is_only_in_its_members_chains() -> None:
    assert not any("p7_" in line for line in (*rules(TABLE, "m1_filter"), *rules(TABLE, "m1_nat")))


def test_a_pinhole_whose_time_is_over_has_no_elements() -> None:
    assert "add element inet exeat p7_4" in replacement(TABLE, 999.0)
    assert "add element" not in replacement(TABLE, 1000.0)


def test_an_interface_lets_in_its_own_sources_only() -> None:
    lines = rules(TABLE, "m1_source")
    assert lines[0] == "ip saddr { 10.231.0.2/32 } return"
    assert lines[1] == "ip6 saddr { fd5b::2/128 } return"
    assert lines[-1] == "counter name m1_spoofed drop"


def test_an_interface_without_ipv4_sources_has_no_ipv4() -> None:
    table = Table((Veth("a/b", "x0", (net("fd5b::/64"),)),))
    assert not any(line.startswith("ip saddr") for line in rules(table, "m0_source"))


def test_a_door_on_all_addresses_is_any_local_address_of_its_family() -> None:
    table = Table((HOST,), (target("::", 3128),))
    assert "meta nfproto ipv6 fib daddr type local tcp dport 3128 accept" in rules(table, "m0_filter")


def test_a_change_removes_what_has_gone_and_keeps_what_counts() -> None:
    without = dataclasses.replace(TABLE, pinholes=())
    lines = change(TABLE, without, 900.0).splitlines()
    assert lines[0] == "flush table inet exeat"
    assert "delete counter inet exeat p7_out" in lines
    assert "delete quota inet exeat p7" in lines
    assert "delete set inet exeat p7_6" in lines
    kept = change(TABLE, TABLE, 900.0).splitlines()
    assert not any(line.startswith("delete") for line in kept)
    assert "flush set inet exeat p7_4" in kept


def test_a_replacement_is_one_transaction_on_our_table_alone() -> None:
    lines = replacement(TABLE, 0.0).splitlines()
    assert lines[:3] == ["add table inet exeat", "delete table inet exeat", "add table inet exeat"]
    assert all(" inet exeat" in line for line in lines)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Cgroup("../system.slice"),
        lambda: Cgroup("a/.."),
        lambda: Cgroup("/a"),
        lambda: Cgroup("a" * 129),
        lambda: Host("a/b"),
        lambda: Host("a/b", None, ((0, 10),)),
        lambda: Host("a/b", None, ((10, 9),)),
        lambda: Host('a" accept', None, ((10, 10),)),
        lambda: Host("a/b", None, ((True, 10),)),
        lambda: Veth("a/b", "sixteen-letters1", (net("10.0.0.0/8"),)),
        lambda: Veth("a/b", "x", ()),
        lambda: Veth("a/b", "x", (Cidr(4, 1, 33),)),
        lambda: Pinhole(0, "a", HOLE.targets, 1, 1),
        lambda: Pinhole(1, "a", (), 1, 1),
        lambda: Pinhole(1, "a", HOLE.targets * 33, 1, 1),
        lambda: Pinhole(1, "a", HOLE.targets, 0, 1),
        lambda: Pinhole(1, "a", HOLE.targets, MAX_BYTES + 1, 1),
        lambda: Pinhole(1, "a", (target("203.0.113.5", 53, "udp"),), 1, 1),
        lambda: Pinhole(1, "a", (Target(Address(4, 2**32), "tcp", 1),), 1, 1),
        lambda: Pinhole(1, "a", (target("203.0.113.5", 22, "icmp"),), 1, 1),
        lambda: Table(pinholes=(HOLE,)),
        lambda: Table((HOST,), pinholes=(HOLE, HOLE)),
        lambda: Table((HOST, dataclasses.replace(VETH, label=HOST.label))),
        lambda: Pinhole(1, "a b", HOLE.targets, 1, 1),
        lambda: Table((HOST,), pinholes=TOO_MANY),
        lambda: Table(transparent=65536),
        lambda: Table(dns=-1),
        lambda: Table(prefix="elsewhere/"),
    ],
)  # fmt: skip
def test_what_is_refused(build: Any) -> None:
    with pytest.raises(SpecError):
        build()
