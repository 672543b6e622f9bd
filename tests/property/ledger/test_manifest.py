"""Manifests of an archive: one spelling, one signer, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.ledger import note
from exeat.ledger.manifest import Manifest, open_manifest

SIGNER = note.Signer("exeat/n1", b"k" * 32)
OTHER = note.Signer("exeat/n1", b"o" * 32)
STRANGER = note.Signer("exeat/n2", b"s" * 32)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    first = draw(st.integers(0, 10**11))
    last = first + draw(st.integers(0, 64))
    begin = draw(st.integers(0, 10**17))
    previous = draw(st.sampled_from([b"", b"p" * 32]))
    suffix = draw(st.sampled_from(["zst", "gz"]))
    return Manifest(
        "exeat/n1",
        first,
        last,
        begin,
        begin + draw(st.integers(1, 10**9)),
        draw(st.binary(min_size=32, max_size=32)),
        previous,
        f"{first:012d}-{last:012d}.tar.{suffix}",
        draw(st.integers(1, 10**15)),
        draw(st.binary(min_size=32, max_size=32)),
    )


@given(manifests())
def test_what_was_signed_is_read_back(manifest: Manifest) -> None:
    assert open_manifest(SIGNER.sign(manifest.text()), OTHER.verifier, SIGNER.verifier) == manifest


@given(manifests(), st.data())
def test_no_changed_byte_passes(manifest: Manifest, data: st.DataObject) -> None:
    text = SIGNER.sign(manifest.text())
    at = data.draw(st.integers(0, len(text) - 1))
    changed = (
        text[:at] + data.draw(st.characters(codec="ascii").filter(lambda c: c != text[at])) + text[at + 1 :]
    )
    with pytest.raises(note.NoteError):
        open_manifest(changed, SIGNER.verifier)


@given(manifests())
def test_only_the_ledgers_own_key_counts(manifest: Manifest) -> None:
    with pytest.raises(note.NoteError):
        open_manifest(OTHER.sign(manifest.text()), SIGNER.verifier)
    with pytest.raises(note.NoteError, match="not signed by exeat/n1 itself"):
        open_manifest(STRANGER.sign(manifest.text()), SIGNER.verifier, STRANGER.verifier)


@given(st.text(max_size=300))
def test_garbage_is_refused_by_its_one_error(text: str) -> None:
    for each in (text, SIGNER.sign(text.replace("\n", "") + "\n")):
        with pytest.raises(note.NoteError):
            open_manifest(each, SIGNER.verifier)


BASE = Manifest("exeat/n1", 0, 1, 0, 9, b"r" * 32, b"", f"{0:012d}-{1:012d}.tar.zst", 5, b"d" * 32)


@pytest.mark.parametrize(
    "change",
    [
        {"first": 2, "object": f"{2:012d}-{1:012d}.tar.zst"},
        {"end": 0},
        {"object": f"{0:012d}-{2:012d}.tar.zst"},
        {"origin": "exeat/n2"},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_though_signed(change: dict[str, object]) -> None:
    with pytest.raises(note.NoteError):
        open_manifest(SIGNER.sign(BASE._replace(**change).text()), SIGNER.verifier)  # type: ignore[arg-type]


def test_a_checkpoint_is_no_manifest_and_a_manifest_no_checkpoint() -> None:
    with pytest.raises(note.NoteError):
        open_manifest(SIGNER.sign(note.Checkpoint("exeat/n1", 9, b"r" * 32).text()), SIGNER.verifier)
    with pytest.raises(note.NoteError):
        note.open_checkpoint(SIGNER.sign(BASE.text()), SIGNER.verifier)


@pytest.mark.parametrize(
    "change",
    [{"first": 3}, {"begin": 10}, {"previous": b"x" * 32}, {"origin": "exeat/n2"}, {"previous": b""}],
)
def test_only_the_very_next_batch_follows(change: dict[str, object]) -> None:
    after = BASE._replace(first=2, last=2, begin=9, end=12, previous=BASE.chain())
    assert BASE.follows(None)
    assert after.follows(BASE)
    assert not after.follows(None)
    assert not after._replace(**change).follows(BASE)  # type: ignore[arg-type]
