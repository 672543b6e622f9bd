"""Reading a ClientHello over any cut, and refusing what is not exactly one we let out."""

from __future__ import annotations

import pytest

from exeat.proxy.client_hello import MAX_HELLO, ClientHello, HelloError, HelloParser


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content


def server_names(*names: tuple[int, bytes]) -> bytes:
    content = b"".join(bytes((kind,)) + len(name).to_bytes(2, "big") + name for kind, name in names)
    return extension(0, len(content).to_bytes(2, "big") + content)


def sni(name: bytes) -> bytes:
    return server_names((0, name))


def hello(*extensions: bytes, session: bytes = b"s" * 32) -> bytes:
    """The handshake message, header included."""
    joined = b"".join(extensions)
    body = (
        b"\x03\x03"
        + b"r" * 32
        + bytes((len(session),))
        + session
        + b"\x00\x04\x13\x01\x13\x02"
        + b"\x01\x00"
        + len(joined).to_bytes(2, "big")
        + joined
    )
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(message: bytes, *sizes: int) -> bytes:
    """Cut into records of these sizes, the last size for all the rest."""
    out, at, wanted = b"", 0, list(sizes) or [16384]
    while at < len(message):
        size = wanted.pop(0) if len(wanted) > 1 else wanted[0]
        piece = message[at : at + size]
        out += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
        at += len(piece)
    return out


def outcome(data: bytes, step: int = 0) -> ClientHello | str | None:
    parser = HelloParser()
    for at in range(0, len(data), step or len(data)):
        try:
            found = parser.feed(data[at : at + (step or len(data))])
        except HelloError as error:
            return error.code
        if found is not None:
            return found
    return None


GREASE = extension(0x0A0A, b"") + extension(0x1A1A, b"\0")
ALPN = extension(16, b"\x00\x03\x02h2")


@pytest.mark.parametrize("step", [0, 1, 37])
@pytest.mark.parametrize("sizes", [(), (1, 16384), (1,), (5, 100), (37,)])
def test_any_cut(sizes: tuple[int, ...], step: int) -> None:
    data = records(hello(GREASE, sni(b"WWW.Example.org"), ALPN), *sizes)
    assert outcome(data, step) == ClientHello("www.example.org", ech=False)


@pytest.mark.parametrize("padding", [3_000, 16_000, 30_000])
def test_large_hellos_pass(padding: int) -> None:
    data = records(hello(extension(51, b"k" * padding), sni(b"a.example")))
    assert outcome(data, 37) == outcome(data) == ClientHello("a.example", ech=False)


def test_no_name_is_not_an_error_here() -> None:
    assert outcome(records(hello(ALPN))) == ClientHello(None, ech=False)
    bare = b"\x03\x01" + b"r" * 32 + b"\x00" + b"\x00\x02\x00\x2f" + b"\x01\x00"
    message = b"\x01" + len(bare).to_bytes(3, "big") + bare
    assert outcome(records(message)) == ClientHello(None, ech=False)


@pytest.mark.parametrize("kind", [0xFE0D, 0xFFCE, 0xFE08, 0xFD00])
def test_ech_is_reported(kind: int) -> None:
    assert outcome(records(hello(sni(b"a.example"), extension(kind, b"\0" * 40)))) == ClientHello(
        "a.example", ech=True
    )


def test_what_follows_the_hello_is_not_looked_at() -> None:
    data = records(hello(sni(b"a.example"))) + b"\x14\x03\x03\x00\x01\x01\x17\x03\x03"
    assert outcome(data) == ClientHello("a.example", ech=False)


HELLO = hello(sni(b"a.example"))
BODY = HELLO[4:]


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "tls.not_tls"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "tls.not_tls"),
        (b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n", "tls.not_tls"),
        (b"\x80\x2e\x01\x00\x02" + b"\0" * 40, "tls.sslv2"),
        (b"\x15\x03\x01\x00\x02\x02\x28" + records(HELLO), "tls.not_tls"),
        (b"\x17\x03\x03\x00\x01x" + records(HELLO), "tls.not_tls"),
        (b"\x16\x02\x00\x00\x05hello", "tls.not_tls"),
        (b"\x16\x03\x01\x00\x00" + records(HELLO), "tls.malformed"),
        (b"\x16\x03\x01\x40\x01", "tls.malformed"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "tls.malformed"),
        (records(HELLO[:20]) + b"\x17\x03\x03\x00\x01x", "tls.early_data"),
        (records(HELLO[:20]) + b"\x14\x03\x03\x00\x01\x01", "tls.early_data"),
        (records(HELLO[:20]) + b"\x15\x03\x03\x00\x02\x01\x00", "tls.malformed"),
        (records(HELLO + HELLO), "tls.malformed"),
        (records(b"\x01\x01\x00\x00" + b"x" * 100), "tls.too_large"),
        (records(hello(sni(b"a.example"), sni(b"b.example"))), "tls.two_names"),
        (records(hello(server_names((0, b"a.example"), (0, b"b.example")))), "tls.two_names"),
        (records(hello(server_names((0, b"a.example"), (7, b"b.example")))), "tls.two_names"),
        (records(hello(server_names((7, b"a.example")))), "tls.name_type"),
        (records(hello(sni(b"192.0.2.1"))), "tls.sni_ip"),
        (records(hello(sni(b"0x7f.1"))), "tls.sni_ip"),
        (records(hello(sni(b"[2001:db8::1]"))), "tls.sni_ip"),
        (records(hello(sni(b"a.example\0.evil.example"))), "tls.malformed"),
        (records(hello(sni(b"a.example."))), "tls.malformed"),
        (records(hello(sni(b""))), "tls.malformed"),
        (records(hello(sni(b" a.example"))), "tls.malformed"),
        (records(hello(sni("\u212a.example".encode()))), "tls.malformed"),
        (records(hello(extension(0, b""))), "tls.malformed"),
        (records(hello(extension(0, b"\x00\x00"))), "tls.malformed"),
        (records(hello(extension(0, b"\x00\x05\x00\x00\x09a.example"))), "tls.malformed"),
        (records(hello(sni(b"a.example")[:-1])), "tls.malformed"),
        (records(hello(ALPN, ALPN, sni(b"a.example"))), "tls.malformed"),
        (records(hello(sni(b"a.example"), session=b"s" * 33)), "tls.malformed"),
        (records(b"\x01" + (len(BODY) + 1).to_bytes(3, "big") + BODY + b"x"), "tls.malformed"),
        (records(b"\x01\x00\x00\x02\x03\x03"), "tls.malformed"),
    ],
)
def test_refused(data: bytes, code: str, step: int) -> None:
    assert outcome(data, step) == code


def test_a_hello_of_the_largest_size_in_the_smallest_records_is_judged() -> None:
    promise = b"\x01" + MAX_HELLO.to_bytes(3, "big")
    data = records(promise + b"\0" * MAX_HELLO, 1)
    assert outcome(data, 6) == "tls.malformed"
