"""Tiles, proofs and signed notes, against published vectors and against a tree built naively."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exeat.ledger import note, proofs, tiles
from exeat.ledger.merkle import EMPTY_ROOT, Frontier, leaf_hash, node_hash
from exeat.ledger.note import NoteError
from exeat.ledger.proofs import ProofError

if TYPE_CHECKING:
    from collections.abc import Callable

# The eight leaves of the Certificate Transparency reference tests.
CT = [
    bytes.fromhex(leaf)
    for leaf in (
        *("", "00", "10", "2021", "3031", "40414243"),
        *("5051525354555657", "606162636465666768696a6b6c6d6e6f"),
    )
]
CT_ROOTS = [
    *("6e340b9c a01d", "fac54203 c125", "aeb6bcfe 6e77", "d37ee418 14b7", "4e3bbb1f 64d4"),
    *("76e67dad 87ef", "ddb89be4 4c8c", "5dc9da79 4328"),
]


def naive(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return node_hash(naive(leaves[:half]), naive(leaves[half:]))


def of_leaves(leaves: list[bytes]) -> Callable[[int, int], bytes]:
    @cache
    def roots(first: int, end: int) -> bytes:
        return naive(leaves[first:end])

    return roots


def matches(proof: list[bytes], expected: str) -> bool:
    """`expected`: per hash its first hex digits, and after `..` its last ones."""
    parts = [part.partition("..") for part in expected.split()]
    return len(proof) == len(parts) and all(
        node.hex().startswith(head) and node.hex().endswith(tail)
        for node, (head, _, tail) in zip(proof, parts, strict=True)
    )


def test_ct_roots() -> None:
    for size, expected in enumerate(CT_ROOTS, 1):
        assert matches([naive(CT[:size])], expected.replace(" ", ".."))
    whole = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert naive(CT).hex() == whole


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (
            5,
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b "
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0 "
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ),
        (0, "96a296d2 5f083f0a 6b47aaf2"),
    ],
)
def test_ct_inclusion(index: int, expected: str) -> None:
    assert matches(proofs.inclusion(index, 8, of_leaves(CT)), expected)


@pytest.mark.parametrize(
    ("old", "size", "expected"),
    [
        (
            6,
            8,
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a ca854ea1..0ae0 d37ee418..14b7",
        ),
        (2, 5, "5f083f0a..031e bc1a0643..9e6b"),
        (1, 8, "96a296d2 5f083f0a 6b47aaf2"),
        (4, 8, "6b47aaf2"),
        (3, 7, "0298d122 07506a85 fac54203 837dbb15"),
    ],
)
def test_ct_consistency(old: int, size: int, expected: str) -> None:
    assert matches(proofs.consistency(old, size, of_leaves(CT)), expected)


LEAVES = [n.to_bytes(8, "big") for n in range(70_000)]


@pytest.fixture(scope="module")
def big() -> tiles.Tree:
    """70,000 leaves in tiles."""
    return in_tiles(70_000)[0]


def in_tiles(size: int) -> tuple[tiles.Tree, dict[str, bytes]]:
    stored: dict[str, bytes] = {}

    def keep(level: int, number: int, tile: bytes) -> None:
        stored[tiles.path(level, number, len(tile) // 32)] = tile

    rows = tiles.Rows(keep)
    for leaf in LEAVES[:size]:
        rows.add(leaf_hash(leaf))
    for part in rows.partial():
        keep(*part)
    return tiles.Tree(size, loader(stored)), stored


def loader(stored: dict[str, bytes]) -> tiles.Loader:
    return lambda level, number, width: stored[tiles.path(level, number, width)]


def test_the_example_of_70000(big: tiles.Tree) -> None:
    expected = "0759167a0f98e35e802d46ff7c7d29d2c3f03a63a256deb6abbff357a91b63b1"
    assert big.root().hex() == expected
    frontier = Frontier()
    frontier.extend(LEAVES)
    assert frontier.root().hex() == expected
    assert tiles.ends(70_000) == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ((0, 1234067), "tile/0/x001/x234/067"),
        ((0, 1000), "tile/0/x001/000"),
        ((0, 0, 8), "tile/0/000.p/8"),
        (("entries", 5), "tile/entries/005"),
    ],
)
def test_tile_paths(where: tuple[int | str, int], expected: str) -> None:
    assert tiles.path(*where) == expected


def test_256_leaves_are_one_full_tile_and_one_hash_above() -> None:
    _, stored = in_tiles(256)
    assert sorted(stored) == ["tile/0/000", "tile/1/000.p/1"]


def test_rows_can_be_put_down_and_taken_up() -> None:
    for size in (1, 255, 256, 257, 511, 65_536, 66_000):
        tree, stored = in_tiles(size)
        rows = tiles.Rows.load(lambda *_: None, size, loader(stored))
        assert {
            tiles.path(level, at, len(tile) // 32): tile for level, at, tile in rows.partial()
        }.items() <= (stored.items())
        assert tree.root() == naive(LEAVES[:size])


def test_every_proof_up_to_40() -> None:
    for size in range(1, 41):
        roots = of_leaves(LEAVES[:size])
        root = roots(0, size)
        for index in range(size):
            proof = proofs.inclusion(index, size, roots)
            proofs.check_inclusion(index, size, leaf_hash(LEAVES[index]), proof, root)
        for old in range(size + 1):
            proof = proofs.consistency(old, size, roots)
            proofs.check_consistency(old, size, naive(LEAVES[:old]), root, proof)


@given(st.integers(1, 70_000), st.data())
@settings(max_examples=60)
def test_proofs_from_tiles(big: tiles.Tree, old: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, 69_999))
    proof = proofs.inclusion(index, big.size, big.roots)
    proofs.check_inclusion(index, big.size, leaf_hash(LEAVES[index]), proof, big.root())
    growth = proofs.consistency(old, big.size, big.roots)
    proofs.check_consistency(old, big.size, big.roots(0, old), big.root(), growth)
    for wrong in ((index + 1) % big.size, (index - 1) % big.size):
        with pytest.raises(ProofError):
            proofs.check_inclusion(wrong, big.size, leaf_hash(LEAVES[index]), proof, big.root())
    if growth:
        with pytest.raises(ProofError):
            proofs.check_consistency(old, big.size, big.root(), big.root(), growth)
        with pytest.raises(ProofError):
            proofs.check_consistency(old, big.size, big.roots(0, old), big.root(), growth[:-1])
        with pytest.raises(ProofError):
            proofs.check_consistency(old, big.size, big.roots(0, old), big.root(), [*growth, growth[0]])


def test_a_hash_of_the_wrong_length_proves_nothing() -> None:
    with pytest.raises(ProofError):
        proofs.check_consistency(1, 1, b"twelve bytes", b"twelve bytes", [])
    with pytest.raises(ProofError):
        proofs.check_inclusion(0, 1, b"short", [], b"short")


# --- notes

SIGNER = note.Signer("gateway.test/node1", b"\x42" * 32)
WITNESS = note.Signer("witness.test/w1", b"\x43" * 32, note.COSIGNATURE)
CHECKPOINT = note.Checkpoint("gateway.test/node1", 8, naive(CT)).text()
# The example of the C2SP specification tlog-cosignature.
COSIGNED = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q"
    "1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "\u2014 witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2"
    "oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)


def test_the_log_key_and_its_signature() -> None:
    assert str(SIGNER.verifier) == (
        "gateway.test/node1+df888a4c+ASFS+NGbeR0kRTJC4V8uq2y3z/p7al7TAJeWDgaYgdsS"
    )
    assert SIGNER.line(CHECKPOINT) == (
        "\u2014 gateway.test/node1 34iKTIzwIL5V6SXZw6yv8vagsygAPn+0bD5BWdoCpUUeor5H3luZrVvgNyvG"
        "TDtknqGHwfl7hVYDBXwRehX+1/4/YAQ=\n"
    )


def test_the_witness_key_and_its_cosignature() -> None:
    assert str(WITNESS.verifier) == ("witness.test/w1+dacb6b85+BCL8KXeS8Lb/wL/P237bDAqhTgJaNl7A40Lobjgpy3S2")
    assert WITNESS.line(CHECKPOINT, 1_790_000_000) == (
        "\u2014 witness.test/w1 2strhQAAAABqsTuAuHaGBOqmBx/Mj0GA7taNxza5pjCFDaRyoFTOORwQkQ72rPCJ"
        "DsC3g6pXVYre1O+rTIxwCj+hS750rf0P4aN6Cg==\n"
    )


def test_the_folder_of_an_origin() -> None:
    assert hashlib.sha256(b"gateway.test/node1").hexdigest() == (
        "4ba3a0ec5d9ceeffc50a4b99c63821dfa9f310ffbd1ee69f5638d9807386b5c5"
    )


def test_a_signed_checkpoint_round_trip() -> None:
    text = SIGNER.sign(CHECKPOINT) + WITNESS.line(CHECKPOINT, 1_790_000_000)
    found = note.open_checkpoint(text, SIGNER.verifier)
    assert (found.origin, found.size, found.root) == ("gateway.test/node1", 8, naive(CT))
    signed = note.verify(note.parse(text), SIGNER.verifier, WITNESS.verifier)
    assert signed == [SIGNER.verifier, WITNESS.verifier]
    with pytest.raises(NoteError, match="not signed by gateway"):
        note.open_checkpoint(text, WITNESS.verifier)


def test_the_published_cosigned_checkpoint_parses() -> None:
    found = note.parse(COSIGNED)
    assert note.parse_checkpoint(found.text).size == 20_852_163
    assert [signature.key_id.hex() for signature in found.signatures] == ["033de0ae", "8d66cf3f"]
    assert int.from_bytes(found.signatures[1].body[:8], "big") == 1_679_315_147


def test_sixteen_signatures_of_strangers_are_ignored() -> None:
    strangers = [note.Signer(f"s{n}.test", bytes([n]) * 32).line(CHECKPOINT) for n in range(16)]
    text = SIGNER.sign(CHECKPOINT) + "".join(strangers)
    assert note.open_checkpoint(text, SIGNER.verifier).size == 8


def test_one_changed_letter_is_refused() -> None:
    text = SIGNER.sign(CHECKPOINT)
    for at, char in enumerate(text):
        damaged = text[:at] + ("A" if char != "A" else "B") + text[at + 1 :]
        with pytest.raises(NoteError):
            note.open_checkpoint(damaged, SIGNER.verifier)


@pytest.mark.parametrize("size", ["+8", " 8", "08", "1_0", "8 ", "", "-1", "\u0668", "1" * 20])
def test_a_size_has_one_spelling(size: str) -> None:
    with pytest.raises(NoteError):
        note.parse_checkpoint(CHECKPOINT.replace("\n8\n", f"\n{size}\n"))


def test_keys_have_one_spelling() -> None:
    vkey = str(SIGNER.verifier)
    assert note.parse_vkey(vkey) == SIGNER.verifier
    assert note.parse_signer(str(SIGNER)) == SIGNER
    for wrong in (
        vkey.replace("df888a4c", "df888a4d"),
        vkey.replace("df888a4c", "DF888A4C"),
        vkey + "=",
        vkey.replace("node1", "node 1"),
        vkey[:-4],
        "",
        "a+b",
    ):
        with pytest.raises(NoteError):
            note.parse_vkey(wrong)


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_is_a_note_or_a_note_error(text: str) -> None:
    for candidate in (text, CHECKPOINT + text, SIGNER.sign(CHECKPOINT) + text):
        try:
            found = note.parse(candidate)
        except NoteError:
            continue
        assert candidate.startswith(found.text + "\n")
