"""The tree against the well-known roots of the eight CT test leaves, and our own regression root."""

from __future__ import annotations

from hashlib import sha256

import pytest

from exeat.ledger.merkle import EMPTY_ROOT, Frontier, leaf_hash, node_hash

CT_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        *("", "00", "10", "2021", "3031"),
        *("40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"),
    )
]
CT_ROOTS = [
    ("6e340b9c", "a01d"),
    ("fac54203", "c125"),
    ("aeb6bcfe", "6e77"),
    ("d37ee418", "14b7"),
    ("4e3bbb1f", "64d4"),
    ("76e67dad", "87ef"),
    ("ddb89be4", "4c8c"),
    ("5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328", "4328"),
]


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(naive_root(leaves[:split]), naive_root(leaves[split:]))


def test_ct_roots() -> None:
    tree = Frontier()
    assert tree.root() == EMPTY_ROOT == sha256(b"").digest()
    for leaf, (begins, ends) in zip(CT_LEAVES, CT_ROOTS, strict=True):
        tree.add(leaf)
        assert tree.root().hex().startswith(begins)
        assert tree.root().hex().endswith(ends)


def test_seventy_thousand_counters() -> None:
    tree = Frontier()
    tree.extend(number.to_bytes(8, "big") for number in range(70000))
    assert tree.root().hex() == "0759167a0f98e35e802d46ff7c7d29d2c3f03a63a256deb6abbff357a91b63b1"


def test_a_root_that_was_asked_for_is_asked_again() -> None:
    tree = Frontier()
    tree.extend([b"a", b"b", b"c"])
    assert tree.root() == naive_root([b"a", b"b", b"c"])
    copy = tree.copy()
    assert copy.root() == tree.root()
    copy.add(b"d")
    tree.add(b"e")
    assert copy.root() == naive_root([b"a", b"b", b"c", b"d"])
    assert tree.root() == naive_root([b"a", b"b", b"c", b"e"])


def test_incremental_equals_the_definition_and_survives_a_restart() -> None:
    leaves = [number.to_bytes(2, "big") for number in range(130)]
    tree = Frontier()
    for count in range(1, 131):
        tree = Frontier(tree.size, tree.peaks)
        tree.add(leaves[count - 1])
        assert tree.root() == naive_root(leaves[:count])


def test_a_copy_goes_its_own_way() -> None:
    tree = Frontier()
    tree.add(b"a")
    other = tree.copy()
    other.add(b"b")
    assert (tree.size, other.size) == (1, 2)
    assert tree.root() == leaf_hash(b"a")


@pytest.mark.parametrize(("size", "peaks"), [(1, []), (0, [bytes(32)]), (3, [bytes(32)]), (1, [b"short"])])
def test_a_frontier_that_cannot_be(size: int, peaks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="frontier"):
        Frontier(size, peaks)


def test_many_at_once_make_the_tree_that_one_by_one_makes() -> None:
    leaves = [bytes((number,)) * 3 for number in range(80)]
    for begin in range(40):
        for count in range(40):
            at_once, one_by_one = Frontier(), Frontier()
            at_once.extend(leaves[:begin])
            at_once.extend(leaves[begin : begin + count])
            for leaf in leaves[: begin + count]:
                one_by_one.add(leaf)
            assert (at_once.size, at_once.peaks) == (one_by_one.size, one_by_one.peaks)
