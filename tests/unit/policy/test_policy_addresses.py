"""Our own table of what is public, and what hides inside IPv6."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.policy.addresses import (
    AddressClass,
    Cidr,
    classify,
    embedded_v4,
    format_address,
    from_packed,
    is_metadata,
    parse_address,
    parse_cidr,
)
from exeat.policy.errors import MalformedError
from exeat.policy.model import Address

CLASSES = {
    "public": "8.8.8.8 1.1.1.1 100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0 192.0.0.9 192.0.0.10"
    " 192.31.196.1 198.17.255.255 198.20.0.0 223.255.255.255 2606:4700::1111 2a00::1 2001:4860::8888"
    " 2001:1::1 2001:1::2 2001:1::3 2001:3::1 2001:4:112::1 2001:20::1 2001:2f:ffff::1 2001:30::1"
    " 2620:4f:8000::1",
    "unspecified": "0.0.0.0 0.1.2.3 ::",
    "loopback": "127.0.0.1 127.255.255.255 ::1",
    "private": "10.0.0.0 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.0 fc00::1 fdff::1 fec0::1"
    " feff::1",
    "shared": "100.64.0.0 100.100.100.200 100.127.255.255",
    "linklocal": "169.254.0.1 169.254.169.254 fe80::1 febf::1",
    "multicast": "224.0.0.1 239.255.255.255 ff02::1 ff0e::1",
    "doc": "192.0.2.1 198.51.100.1 203.0.113.255 2001:db8::1 3fff::1 3fff:fff::1",
    "bench": "198.18.0.0 198.19.255.255 2001:2::1",
    "reserved": "192.0.0.1 192.0.0.8 192.0.0.11 192.0.0.170 192.88.99.1 240.0.0.1 255.255.255.255 100::1"
    " 200::1"
    " 100:0:0:1::1 2001:1::4 2001:10::1 2001:5::1 2001:1ff::1 4000::1 5f00::1 8000::1 fe00::1 64:ff9b:2::1",
    "translated": "64:ff9b::8.8.8.8 64:ff9b:1::1 2002:808:808::1 2001:0:1::1 ::8.8.8.8 ::ffff:0:8.8.8.8"
    " 2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:10.0.0.1",
}


@pytest.mark.parametrize(
    ("text", "expected"), [(text, name) for name, texts in CLASSES.items() for text in texts.split()]
)
def test_classes(text: str, expected: str) -> None:
    assert classify(parse_address(text)) == expected


def test_mapped_is_the_v4_address() -> None:
    assert parse_address("::ffff:10.0.0.1") == Address(4, 0x0A000001)
    assert from_packed(bytes(10) + b"\xff\xff\x0a\0\0\1") == Address(4, 0x0A000001)
    assert classify(Address(6, 0xFFFF_0A00_0001)) is AddressClass.PRIVATE


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("64:ff9b::10.1.2.3", "10.1.2.3"),
        ("2002:a01:203::1", "10.1.2.3"),
        ("2001:0:a01:203::1", "10.1.2.3"),
        ("2001:0:4136:e378:8000:63bf:f5fe:fdfc", "10.1.2.3"),
        ("::10.1.2.3", "10.1.2.3"),
        ("::ffff:0:10.1.2.3", "10.1.2.3"),
        ("64:ff9b:1:a01:2:300::", "10.1.2.3"),
        ("64:ff9b:1:a:1:203::", "10.1.2.3"),
        ("64:ff9b:1:0:a:102:300:0", "10.1.2.3"),
        ("64:ff9b:1::10.1.2.3", "10.1.2.3"),
        ("2606:4700::5efe:10.1.2.3", "10.1.2.3"),
    ],
)
def test_what_hides_inside(outer: str, inner: str) -> None:
    assert parse_address(inner) in embedded_v4(parse_address(outer))


def test_nothing_hides_inside_plain_addresses() -> None:
    assert embedded_v4(parse_address("10.0.0.1")) == ()
    assert embedded_v4(parse_address("2606:4700::1111")) == ()


METADATA = (
    "169.254.169.254 169.254.170.2 169.254.170.23 168.63.129.16 100.100.100.200 192.0.0.192 fd00:ec2::254"
)
METADATA += " fd00:ec2::23 fd20:ce::254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 64:ff9b:1::a9fe:a9fe"
METADATA += " 2002:a9fe:a9fe::1 ::169.254.169.254 2001:0:a9fe:a9fe::1 2002:a83f:8110::"


@pytest.mark.parametrize("text", METADATA.split())
def test_metadata(text: str) -> None:
    assert is_metadata(parse_address(text))


@pytest.mark.parametrize("text", ["169.254.169.253", "8.8.8.8", "fd00:ec2::255", "64:ff9b::8.8.8.8"])
def test_not_metadata(text: str) -> None:
    assert not is_metadata(parse_address(text))


BAD_TEXT = "1.2.3 1.2.3.4.5 1.2.3.256 01.2.3.4 1.2.3.4/8 0x1.2.3.4 1.2.3. ::: 1::2::3 :1 1: 1:2:3:4:5:6:7"
BAD_TEXT += " 1:2:3:4:5:6:7:8:9 1:2:3:4:5:6:7::8:9 12345:: g:: ::1.2.3 1.2.3.4:: ::1.2.3.4:5"
BAD_TEXT += " [::1] :1::2 +1.2.3.4"


@pytest.mark.parametrize("text", ["", " ", "1.2.3.4 ", "1.2.3.4\n", "\uff11.2.3.4", *BAD_TEXT.split()])
def test_what_is_not_an_address(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_address(text)


@given(st.integers(0, 2**128 - 1) | st.integers(0, 2**48))
def test_v6_text_agrees_with_the_standard_library(value: int) -> None:
    text = str(ipaddress.IPv6Address(value))
    assert parse_address(text) == from_packed(value.to_bytes(16, "big"))
    assert parse_address(ipaddress.IPv6Address(value).exploded) == parse_address(text)
    address = parse_address(text)
    assert parse_address(format_address(address)) == address
    if address.family == 6:
        assert ipaddress.ip_address(format_address(address)) == ipaddress.IPv6Address(value)


@given(st.integers(0, 2**32 - 1))
def test_v4_text_agrees_with_the_standard_library(value: int) -> None:
    assert format_address(Address(4, value)) == str(ipaddress.IPv4Address(value))
    assert parse_address(str(ipaddress.IPv4Address(value))) == Address(4, value)


@given(st.integers(0, 2**128 - 1))
def test_what_the_standard_library_calls_private_is_never_public(value: int) -> None:
    address = from_packed(value.to_bytes(16, "big"))
    listed = ipaddress.ip_address(format_address(address))
    anycast = ("2001:1::1", "2001:1::2", "2001:1::3")
    inside = ("2001:3::/32", "2001:4:112::/48", "2001:20::/28", "2001:30::/28")
    fine = str(listed) in anycast or any(listed in ipaddress.ip_network(net) for net in inside)
    if (listed.is_private or listed.is_multicast or listed.is_reserved) and not fine:
        assert classify(address) is not AddressClass.PUBLIC


def test_networks() -> None:
    net = parse_cidr("10.0.0.0/8")
    assert net == Cidr(4, 0x0A000000, 8)
    assert net.holds(parse_address("10.255.255.255"))
    assert not net.holds(parse_address("11.0.0.0"))
    assert not net.holds(parse_address("::a00:0"))
    assert str(net) == "10.0.0.0/8"
    for bad in [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0.0/08",
        "10.0.0.0",
        "::/8",
        "::/0",
        "::ffff:0:0/96",
        "::ffff:10.0.0.0/104",
        "1/8",
    ]:
        assert parse_cidr(bad) is None, bad


@pytest.mark.parametrize("size", [0, 3, 5, 15, 17])
def test_packed_of_the_wrong_size(size: int) -> None:
    with pytest.raises(MalformedError):
        from_packed(bytes(size))
