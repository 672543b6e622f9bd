"""Whatever a client sends to a QUIC port: a hello as it was made, or a refusal; never anything else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.support import quic_client as quic
from tests.unit.proxy.test_client_hello import extension, hello, sni

from exeat.proxy.client_hello import ClientHello, HelloError
from exeat.proxy.quic_initial import QuicWatch

HELLO = hello(sni(b"example.org"), extension(0xFFCD, bytes(range(256)) * 4), session=b"")
SEALED = quic.initial(quic.crypto(0, HELLO[:600])), quic.initial(quic.crypto(600, HELLO[600:]), number=1)


def outcome(*datagrams: bytes) -> ClientHello | str | None:
    watch = QuicWatch()
    found = None
    for datagram in datagrams:
        try:
            found = watch.client(datagram) or found
            watch.server(datagram)
        except HelloError as error:
            return error.code
    return found


@given(st.lists(st.binary(max_size=1500), max_size=3))
def test_noise(datagrams: list[bytes]) -> None:
    assert outcome(*datagrams) in {None, "quic.not_quic", "quic.version", "quic.malformed"}


@given(st.binary(max_size=1100))
def test_any_frames(payload: bytes) -> None:
    found = outcome(quic.initial(payload))
    assert found is None or isinstance(found, ClientHello) or found.startswith(("quic.", "tls."))


@given(st.integers(0, 1), st.integers(0, 1199), st.integers(1, 255))
def test_no_changed_byte_is_taken_for_a_hello(which: int, at: int, flip: int) -> None:
    """All of an Initial is authenticated; before a hello is whole nothing else is let through."""
    changed = bytearray(SEALED[which])
    changed[at] ^= flip
    datagrams = list(SEALED)
    datagrams[which] = bytes(changed)
    assert isinstance(outcome(*datagrams), str)


@given(st.integers(0, 1), st.integers(0, 1199))
def test_no_cut_datagram_is_taken_for_a_hello(which: int, length: int) -> None:
    datagrams = list(SEALED)
    datagrams[which] = datagrams[which][:length]
    assert isinstance(outcome(*datagrams), str)


@given(st.data())
def test_any_cut_in_any_order_gives_the_same_hello(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(HELLO) - 1), max_size=6)))
    bounds = list(zip([0, *cuts], [*cuts, len(HELLO)], strict=True))
    frames = data.draw(st.permutations([quic.crypto(a, HELLO[a:b]) for a, b in bounds]))
    half = data.draw(st.integers(0, len(frames)))
    parts = [b"".join(frames[:half]), b"".join(frames[half:])]
    numbers = data.draw(st.permutations([0, 1]))
    sealed = [quic.initial(part, number=n) for n, part in zip(numbers, parts, strict=True)]
    assert outcome(*sealed) == ClientHello("example.org", ech=False)
