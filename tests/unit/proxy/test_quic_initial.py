"""The hello of a QUIC connection, however it is cut, and nothing of a second connection."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import quic_client as quic
from tests.unit.proxy.test_client_hello import extension, hello, sni

from exeat.proxy.client_hello import MAX_HELLO, ClientHello, HelloError
from exeat.proxy.quic_initial import QuicWatch

V2 = 0x6B3343CF
HELLO = hello(sni(b"example.org"), session=b"")
LONG = hello(sni(b"example.org"), extension(0xFFCD, bytes(3000)), session=b"")
EXPECTED = ClientHello("example.org", ech=False)


def outcome(*datagrams: bytes) -> ClientHello | str | None:
    watch = QuicWatch()
    found = None
    for datagram in datagrams:
        try:
            found = watch.client(datagram) or found
        except HelloError as error:
            return error.code
    return found


def judged() -> QuicWatch:
    """A watch that has seen the hello of a connection."""
    watch = QuicWatch()
    assert watch.client(quic.initial(quic.crypto(0, HELLO))) == EXPECTED
    return watch


def pieces(message: bytes, size: int = 1000) -> list[bytes]:
    """One datagram for each piece of a hello, in order."""
    return [
        quic.initial(quic.crypto(at, message[at : at + size]), number=number)
        for number, at in enumerate(range(0, len(message), size))
    ]


def vector() -> bytes:
    text = Path(__file__).parents[2].joinpath("vectors", "rfc9001-client-initial.hex").read_text()
    return bytes.fromhex("".join(line for line in text.splitlines() if not line.startswith("#")))


def test_the_packet_of_rfc_9001() -> None:
    assert outcome(vector()) == ClientHello("example.com", ech=False)


def test_the_keys_of_rfc_9369() -> None:
    """Appendix A.1."""
    assert [part.hex() for part in quic.keys(version=V2)] == [
        "8b1a0bc121284290a29e0971b5cd045d",
        "91f73e2351d8fa91660e909f",
        "45b95e15235d6f45a6b19cbcb0294ba9",
    ]


@pytest.mark.parametrize("version", [1, V2])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_either_version_and_every_width_of_a_packet_number(version: int, width: int) -> None:
    assert outcome(quic.initial(quic.crypto(0, HELLO), version=version, width=width)) == EXPECTED


@pytest.mark.parametrize("size", [37, 1000, 1100])
def test_a_hello_over_many_datagrams_in_any_order(size: int) -> None:
    assert outcome(*pieces(LONG, size)) == EXPECTED
    assert outcome(*reversed(pieces(LONG, size))) == EXPECTED


def test_one_hello_in_shuffled_frames_between_others() -> None:
    frames = [quic.crypto(at, HELLO[at : at + 1]) for at in range(len(HELLO))]
    ack, ack_ecn = b"\x02\x05\x00\x01\x01\x00\x00", b"\x03\x05\x00\x00\x01\x01\x02\x03"
    payload = b"\x01" + ack + b"".join(reversed(frames)) + ack_ecn + bytes(3) + b"\x01"
    assert outcome(quic.initial(payload)) == EXPECTED


def test_two_packets_in_one_datagram() -> None:
    first = quic.initial(quic.crypto(0, HELLO[:20]), pad_to=0)
    rest = quic.initial(quic.crypto(20, HELLO[20:]), number=1, pad_to=1200 - len(first))
    assert outcome(first + rest) == EXPECTED


def test_an_unfinished_hello_says_nothing() -> None:
    assert outcome(quic.initial(quic.crypto(0, HELLO[:-1]))) is None


def test_a_piece_that_comes_twice() -> None:
    same = quic.initial(quic.crypto(0, HELLO[:50]))
    assert outcome(same, same, quic.initial(quic.crypto(40, HELLO[40:]), number=1)) == EXPECTED


def test_a_byte_that_comes_again_as_another() -> None:
    other = bytearray(HELLO[:50])
    other[-1] ^= 1
    again = quic.initial(quic.crypto(0, bytes(other)), number=1)
    assert outcome(quic.initial(quic.crypto(0, HELLO[:50])), again) == "quic.malformed"


@pytest.mark.parametrize(
    ("datagram", "code"),
    [
        (b"", "quic.not_quic"),
        (b"\x40" + bytes(1300), "quic.not_quic"),  # a short header
        (b"hello over UDP" * 100, "quic.not_quic"),
        (b"\xc0\0\0\0\0" + bytes(1300), "quic.version"),  # version negotiation is a server's
        (b"\xc0\xff\0\0\x1d" + bytes(1300), "quic.version"),  # a draft
        (b"\x80\0\0\0\1" + bytes(1300), "quic.malformed"),  # the fixed bit is missing
        (b"\xf0\0\0\0\1" + bytes(1300), "quic.malformed"),  # a Retry is a server's
        (b"\xe0\0\0\0\1\0\0\x40\x20" + bytes(1300), "quic.not_quic"),  # Handshake before Initial
        (b"\xc0\0\0\0\1\x15" + bytes(1300), "quic.malformed"),  # connection id of 21 bytes
        (vector()[:-1], "quic.malformed"),
        (quic.initial(quic.crypto(0, HELLO), pad_to=1199), "quic.malformed"),
        (quic.initial(quic.crypto(0, HELLO), keyed_by=b"another!"), "quic.malformed"),
        (quic.initial(b"\0\1" * 600), "quic.malformed"),  # frames that only cost time
        (quic.initial(quic.crypto(0, b"") * 300), "quic.malformed"),
        (quic.initial(b"\x08\x00"), "quic.malformed"),  # a STREAM frame has no place here
        (quic.initial(b"\x02\x00\x00\xbf\xff\xff\xff\x00"), "quic.malformed"),  # too many ranges
        (quic.initial(quic.crypto(0, HELLO + HELLO)), "tls.malformed"),
        (quic.initial(quic.crypto(0, b"\x02" + HELLO[1:])), "tls.malformed"),
        (quic.initial(quic.crypto(0, b"\x01\xff\xff\xff")), "tls.too_large"),
        (quic.initial(quic.crypto(3 * MAX_HELLO, b"x")), "tls.too_large"),
        (quic.initial(quic.crypto((1 << 62) - 1, b"x")), "tls.too_large"),
        (quic.initial(quic.crypto(0, hello(sni(b"10.0.0.1"), session=b""))), "tls.sni_ip"),
    ],
)
def test_what_does_not_begin_a_connection(datagram: bytes, code: str) -> None:
    assert outcome(datagram) == code


def test_ech_and_absent_names_are_reported() -> None:
    ech = hello(sni(b"example.org"), extension(0xFE0D, b"x"), session=b"")
    assert outcome(quic.initial(quic.crypto(0, ech))) == ClientHello("example.org", ech=True)
    assert outcome(quic.initial(quic.crypto(0, hello(session=b"")))) == ClientHello(None, ech=False)


def test_pieces_of_two_connections_make_no_hello() -> None:
    first = quic.initial(quic.crypto(0, HELLO[:50]))
    other = quic.initial(quic.crypto(50, HELLO[50:]), destination=b"another!")
    assert outcome(first, other) == "quic.second_connection"


# -- after the hello


def test_what_belongs_to_the_connection_goes_on() -> None:
    watch = judged()
    handshake = b"\xe0\0\0\0\1\x04serv\0\x40\x20" + bytes(32)
    acknowledged = quic.initial(b"\x02\x00\x00\x00\x00", number=1, destination=b"serv", keyed_by=quic.CID)
    for datagram in (acknowledged + handshake + b"\x40short", b"\x40short header", b"", handshake):
        assert watch.client(datagram) is None


def test_a_datagram_of_many_packets_costs_no_more_than_one_of_a_few() -> None:
    """Opening one costs tens of microseconds; a datagram of 64 KiB would have room for two thousand."""
    ping = [quic.initial(b"\1\1\1\1", number=number, pad_to=0) for number in range(1, 10)]
    assert judged().client(b"".join(ping[:8])) is None
    with pytest.raises(HelloError, match=r"quic\.malformed"):
        judged().client(b"".join(ping))


def test_a_second_connection_is_noticed() -> None:
    evil = quic.crypto(0, hello(sni(b"evil.example.net"), session=b""))
    handshake = b"\xe0\0\0\0\1\x04serv\0\x40\x20" + bytes(32)
    for datagram in (
        quic.initial(evil, destination=b"another!"),
        handshake + quic.initial(evil, destination=b"another!"),
        quic.initial(evil, destination=b"another!", version=V2),
    ):
        with pytest.raises(HelloError, match=r"quic\.second_connection"):
            judged().client(datagram)


def test_the_same_connection_with_another_hello_is_noticed() -> None:
    evil = hello(sni(b"evilple.org"), session=b"")
    with pytest.raises(HelloError, match=r"quic\.malformed"):
        judged().client(quic.initial(quic.crypto(0, evil), number=9))


def test_the_second_hello_may_claim_no_other_name() -> None:
    """After a HelloRetryRequest (RFC 8446 section 4.1.4)."""
    same, evil = hello(sni(b"example.org"), extension(51, b"x" * 40)), hello(sni(b"evil.example.net"))
    assert judged().client(quic.initial(quic.crypto(len(HELLO), same), number=1)) is None
    with pytest.raises(HelloError, match=r"tls\.two_names"):
        judged().client(quic.initial(quic.crypto(len(HELLO), evil), number=1))


def test_after_a_retry_the_keys_follow_from_the_servers_id() -> None:
    watch = judged()
    again = quic.initial(quic.crypto(0, HELLO), number=1, destination=b"retried!", token=b"token")
    with pytest.raises(HelloError, match=r"quic\.second_connection"):
        watch.client(again)
    watch.server(b"\xc0\0\0\0\0\0\0" + bytes(8))  # version negotiation
    watch.server(b"\x40" + bytes(30))
    watch.server(quic.retry(b"retried!"))
    watch.server(quic.retry(b"another!"))  # a client takes one Retry (RFC 9000 section 17.2.5.2)
    assert watch.client(again) is None
    with pytest.raises(HelloError, match=r"quic\.second_connection"):
        watch.client(quic.initial(quic.crypto(0, HELLO), number=2, destination=b"another!"))
