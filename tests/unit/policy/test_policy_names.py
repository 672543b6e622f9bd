"""The wire grammar of hosts and ports: the classes of hostile names that other proxies let through."""

from __future__ import annotations

import pytest

from exeat.policy.addresses import parse_address
from exeat.policy.errors import MalformedError
from exeat.policy.model import Address
from exeat.policy.names import canonical_host, parse_authority, parse_host, parse_port

GOOD = {
    "a.org": "a.org",
    "A.ORG": "a.org",
    "a.org.": "a.org",
    "intranet": "intranet",
    "_dmarc.a.org": "_dmarc.a.org",
    "xn--bcher-kva.de": "xn--bcher-kva.de",
    "1password.com": "1password.com",
    "r3---sn-x.example.com": "r3---sn-x.example.com",
    "a" * 63 + ".org": "a" * 63 + ".org",
    "0x.org": "0x.org",
    "1.2.3.4.org": "1.2.3.4.org",
}


@pytest.mark.parametrize(("raw", "host"), GOOD.items())
def test_names(raw: str, host: str) -> None:
    assert parse_host(raw) == host
    assert parse_host(raw.encode()) == host
    assert canonical_host(host) == host


BAD = {
    "": "host",
    ".": "host",
    "a..org": "host",
    "a.org..": "host",
    ".a.org": "host",
    "evil\0.wild.org": "host",
    "evil%00.wild.org": "host",
    "blocked%2ewild.org": "host",
    "a.org\r\n": "host",
    "a.org\n": "host",
    "a.org ": "host",
    " a.org": "host",
    "a\t.org": "host",
    "allowed.org@evil.org": "host",
    "evil.org@allowed.org": "host",
    "evil.org#.wild.org": "host",
    "evil.org/.wild.org": "host",
    "evil.org\\.wild.org": "host",
    "evil.org?.wild.org": "host",
    "evil.org:443.wild.org": "host",
    "evil.org:443": "host",
    "*.wikipedia.org": "host",
    "-a.org": "host",
    "a-.org": "host",
    "a" * 64 + ".org": "host",
    ".".join(["a" * 63] * 4): "host_length",
    "a." * 126 + "ab": "host_length",
    "bücher.de": "non_ascii_host",
    "\uff42locked.wild.org": "non_ascii_host",
    "bloc\u212aed.wild.org": "non_ascii_host",
    "a\u3002org": "non_ascii_host",
    "a\u00ad.org": "non_ascii_host",
    "\uff11\uff12\uff17.0.0.1": "non_ascii_host",
    "127\u30020\u30020\u30021": "non_ascii_host",
    "[blocked.wild.org]": "ip",
    "[1.2.3.4]": "ip",
    "[::1": "ip",
    "[]": "ip",
    "[": "ip",
    "[::1]x": "ip",
    "[::g]": "ip",
    "[[::1]]": "ip",
    "::1": "ip",
    "fe80::1%eth0": "ip_zone",
    "[fe80::1%25eth0]": "ip_zone",
    "[::ffff:1.2.3.4%x.wild.example.com]": "ip_zone",
    "2130706433": "legacy_ip",
    "0x7f000001": "legacy_ip",
    "0X7F000001": "legacy_ip",
    "0x": "legacy_ip",
    "0177.0.0.1": "legacy_ip",
    "127.1": "legacy_ip",
    "127.0.0.1.1": "legacy_ip",
    "0": "legacy_ip",
    "256.1.1.1": "legacy_ip",
    "01.2.3.4": "legacy_ip",
    "0x7f.1": "legacy_ip",
    "a.org.1": "legacy_ip",
    "a.0x1f": "legacy_ip",
    "127.0.0.1 foo": "host",
}


@pytest.mark.parametrize(("raw", "code"), BAD.items())
def test_hostile_names(raw: str, code: str) -> None:
    for form in (raw, raw.encode()):
        with pytest.raises(MalformedError) as caught:
            parse_host(form)
        assert caught.value.code == f"malformed.{code}"


@pytest.mark.parametrize("raw", [42, None, ["a.org"], 1.5])
def test_what_is_not_text_is_not_a_host(raw: object) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_host(raw)  # type: ignore[arg-type]
    assert caught.value.code == "malformed.host"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("169.254.169.254.", "169.254.169.254"),
        ("[::1]", "::1"),
        ("[::FFFF:10.0.0.1]", "10.0.0.1"),
        ("[::ffff:a00:1]", "10.0.0.1"),
        ("[2001:DB8::1]", "2001:db8::1"),
    ],
)
def test_literals(raw: str, text: str) -> None:
    assert parse_host(raw) == parse_address(text)


def test_an_address_that_is_none_is_refused() -> None:
    for address in (Address(4, 1 << 32), Address(6, -1), Address(5, 1)):
        with pytest.raises(MalformedError):
            canonical_host(address)


def test_ports() -> None:
    assert [parse_port(text) for text in (b"1", b"443", b"65535")] == [1, 443, 65535]
    hostile = [b"", b"0", b"00", b"0443", b"65536", b"65979", b"70000", b"99999", b"100000", b"+443", b"-443"]
    hostile += [
        b" 443",
        b"443 ",
        b"443\n",
        b"4_43",
        b"4.43",
        b"1e2",
        b"0x1bb",
        "\uff14\uff14\uff13".encode(),
        "٤٤٣".encode(),
    ]
    for raw in hostile:
        with pytest.raises(MalformedError) as caught:
            parse_port(raw)
        assert caught.value.code == "malformed.port"


def test_authorities() -> None:
    assert parse_authority(b"A.org:443") == ("a.org", 443)
    assert parse_authority(b"1.2.3.4:80") == (parse_address("1.2.3.4"), 80)
    assert parse_authority(b"[::1]:8443") == (parse_address("::1"), 8443)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"a.org", "port"),
        (b"a.org:", "port"),
        (b":443", "host"),
        (b"", "port"),
        (b"[::1]", "port"),
        (b"[::1:443", "ip"),
        (b"[::1", "ip"),
        (b"::1:443", "ip"),
        (b"evil.org:443:allowed.org", "host"),
        (b"evil.org:443:443", "host"),
        (b"user@a.org:443", "host"),
        (b"http://a.org:443", "host"),
        (b"a.org:443 ", "port"),
        (b"a.org:\xd9\xa4", "port"),
        (b"[a.org]:443", "ip"),
        (b"[::1%lo]:443", "ip_zone"),
    ],
)
def test_hostile_authorities(raw: bytes, code: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_authority(raw)
    assert caught.value.code == f"malformed.{code}"
