"""Which subject a source stands for: the longest prefix, compared with a slow search for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from exeat.policy.addresses import WIDTH, Cidr
from exeat.policy.identity import NOBODY, CgroupPath, Identities, Identity, Uids
from exeat.policy.model import Address, Subject


def subject(name: str) -> Subject:
    return Subject("p", name)


@st.composite
def networks(draw: st.DrawFn) -> Cidr:
    """Close together, so that they nest."""
    family = draw(st.sampled_from((4, 6)))
    length = draw(st.integers(0, 12))
    shift = WIDTH[family] - length
    return Cidr(family, draw(st.integers(0, 2**length - 1)) << shift, length)


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    family = draw(st.sampled_from((4, 6)))
    return Address(family, draw(st.integers(0, 2**12 - 1)) << (WIDTH[family] - 12))


@given(st.lists(networks(), max_size=20), addresses())
def test_the_longest_prefix_wins_and_the_first_of_equals(found: list[Cidr], address: Address) -> None:
    known = Identities(Identity(cidr, subject(str(n))) for n, cidr in enumerate(found))
    holding = [(-cidr.length, n) for n, cidr in enumerate(found) if cidr.holds(address)]
    expected = subject(str(min(holding)[1])) if holding else NOBODY
    assert known.of_address(address) == expected


def test_a_uid_says_more_than_the_socket_it_came_by() -> None:
    known = Identities([Identity("/a", subject("any")), Identity(Uids(7, 7), subject("seven"))])
    assert known.of_peer("/a", 7) == subject("seven")
    assert known.of_peer("/a", 8) == subject("any")
    assert known.of_peer("/b", 7) == subject("seven")
    assert known.of_peer("/b", 8) == NOBODY


def test_a_uid_is_no_address_and_an_address_no_uid() -> None:
    known = Identities([Identity(Uids(0, 0), subject("root")), Identity(Cidr(4, 0, 0), subject("all"))])
    assert known.of_address(Address(6, 0)) == NOBODY
    assert known.of_address(Address(4, 0)) == subject("all")
    assert known.of_peer("/a", 1) == NOBODY


def test_the_deepest_cgroup_wins_and_a_cgroup_says_more_than_a_uid() -> None:
    known = Identities(
        [
            Identity(CgroupPath("agents.slice"), subject("agents")),
            Identity(CgroupPath("agents.slice/a"), subject("a")),
            Identity(Uids(1, 9), subject("users")),
            Identity(Uids(5, 5), subject("five")),
        ]
    )
    assert known.of_process(5, "/agents.slice/a/b") == subject("a")
    assert known.of_process(5, "/agents.slice/ab") == subject("agents")
    assert known.of_process(5, "/agents.slices") == subject("five")
    assert known.of_process(6, "/") == subject("users")
    assert known.of_process(10, "/x/agents.slice") is None


def test_only_users_and_cgroups_need_a_look_at_the_process() -> None:
    assert not Identities([Identity("/a", subject("a")), Identity(Cidr(4, 0, 0), subject("b"))]).by_process
    assert Identities([Identity(Uids(1, 1), subject("a"))]).by_process
    assert Identities([Identity(CgroupPath("a"), subject("a"))]).by_process
