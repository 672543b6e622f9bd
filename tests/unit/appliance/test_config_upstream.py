"""`[dns] upstream`: in the clear or over TLS, never both, and never a name to look up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from exeat.appliance.config import ConfigError, Dns, load

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, upstream: str) -> Dns:
    file = folder / "exeat.toml"
    file.write_text(f"[dns]\nupstream = [{upstream}]\n")
    return load(file, environ={}).dns


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ('"192.0.2.53:53"', (("192.0.2.53", 53, ""),)),
        ('"tls://192.0.2.53:853#dns.example"', (("192.0.2.53", 853, "dns.example"),)),
        ('"tls://[2001:db8::1]:8853#DNS.Example"', (("2001:db8::1", 8853, "dns.example"),)),
        (
            '"tls://192.0.2.1:853#a.example", "tls://192.0.2.2:853#b.example"',
            (("192.0.2.1", 853, "a.example"), ("192.0.2.2", 853, "b.example")),
        ),
    ],
)
def test_what_loads(tmp_path: Path, text: str, servers: tuple[tuple[str, int, str], ...]) -> None:
    assert read(tmp_path, text).servers() == servers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"tls://192.0.2.53:853"', "tls://ADDRESS:PORT#NAME"),
        ('"tls://192.0.2.53:853#"', "tls://ADDRESS:PORT#NAME"),
        ('"https://192.0.2.53:443#dns.example"', "tls://ADDRESS:PORT#NAME"),
        ('"tls://dns.example:853#dns.example"', "an address, never a name"),
        ('"tls://192.0.2.53#dns.example"', "ADDRESS:PORT"),
        ('"tls://192.0.2.53:853#192.0.2.53"', "not an address"),
        ('"tls://192.0.2.53:853#a b"', "not a host name"),
        ('"192.0.2.53:53#dns.example"', "ADDRESS:PORT"),
        ('"tls://192.0.2.1:853#a.example", "192.0.2.2:53"', "with and without tls://"),
    ],
)
def test_what_does_not_load(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"exeat\.toml:2: `dns\.upstream`") as caught:
        read(tmp_path, text)
    assert words in str(caught.value)
