"""Names and passwords: what the file may be, who is known, and when nobody is asked any more."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from exeat.proxy import credentials
from exeat.proxy.connect import HeadParser
from exeat.proxy.credentials import FAILURES, WINDOW_S, Attempts, CredentialError, Credentials

if TYPE_CHECKING:
    from pathlib import Path

SALT = bytes(range(16))


def entry(name: str, password: bytes = b"secret") -> str:
    return credentials.line(name, password, SALT) + "\n"


def made(path: Path, text: str) -> Path:
    file = path / "credentials"
    file.write_text(text)
    file.chmod(0o640)
    return file


def test_a_hash_is_blake2b_keyed_with_the_salt() -> None:
    name, salt, digest = credentials.line("ci", b"secret", SALT).split(" ")
    assert (name, salt) == ("ci", SALT.hex())
    assert digest != credentials.hashed(b"secret", bytes(16)).hex()
    assert digest != credentials.hashed(b"Secret", SALT).hex()
    assert len(digest) == 64


@pytest.mark.root
def test_who_is_known(tmp_path: Path) -> None:
    known = Credentials(made(tmp_path, "# ours\n\n" + entry("ci") + entry("laptop", b"other")))
    assert known.knows(b"ci", b"secret")
    assert known.knows(b"laptop", b"other")
    wrong = ((b"ci", b"other"), (b"ci", b""), (b"", b""), (b"CI", b"secret"), (b"\xff", b"secret"))
    for name, password in wrong:
        assert not known.knows(name, password)
    assert not known.knows(b"nobody", b"")


@pytest.mark.root
def test_a_change_of_the_file_counts_at_once(tmp_path: Path) -> None:
    file = made(tmp_path, entry("ci"))
    known = Credentials(file)
    made(tmp_path, entry("ci", b"new") + entry("more"))
    os.utime(file, ns=(time.time_ns(), 1))
    assert not known.knows(b"ci", b"secret")
    assert known.knows(b"more", b"secret")
    made(tmp_path, "broken")
    os.utime(file, ns=(time.time_ns(), 2))
    assert not known.knows(b"more", b"secret"), "a file that cannot be read knows nobody"
    file.unlink()
    assert not known.knows(b"more", b"secret")


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o644, 0o660, 0o642])
def test_a_file_that_others_could_use_is_refused(tmp_path: Path, mode: int) -> None:
    file = made(tmp_path, entry("ci"))
    file.chmod(mode)
    with pytest.raises(CredentialError, match="must be a file of root's"):
        Credentials(file)
    file.chmod(0o640)
    os.chown(file, 65534, 0)
    with pytest.raises(CredentialError, match="must be a file of root's"):
        Credentials(file)


@pytest.mark.root
def test_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(made(tmp_path, entry("ci")))
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe", "absent"):
        with pytest.raises(CredentialError):
            Credentials(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    ["ci", "ci secret", entry("ci") * 2, entry("ci").replace("ci", "c i"), entry("ci").upper(), entry("-ci")],
)
def test_what_is_no_entry(text: str) -> None:
    with pytest.raises(CredentialError) as error:
        credentials.parse(text)
    assert SALT.hex() not in str(error.value)


def test_wrong_passwords_are_limited_by_peer() -> None:
    attempts = Attempts()
    for _ in range(FAILURES):
        assert not attempts.barred("a", 100.0)
        attempts.failed("a", 100.0)
    assert attempts.barred("a", 100.0 + WINDOW_S - 1)
    assert not attempts.barred("b", 100.0)
    assert not attempts.barred("a", 100.0 + WINDOW_S)
    attempts.failed("a", 100.0 + WINDOW_S)
    assert not attempts.barred("a", 100.0 + WINDOW_S)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", (b"Aladdin", b"open sesame")),  # RFC 7617 section 2
        (b"basic dGVzdDoxMjPCow==", (b"test", "123£".encode())),  # RFC 7617 section 2.1
        (b"Basic YTpiOmM=", (b"a", b"b:c")),
        (b"Basic QWxhZGRpbg==", None),
        (b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ", None),
        (b"Basic Q Wxh", None),
        (b"Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None),
        (b"Basic", None),
    ],
)
def test_basic_credentials(value: bytes, found: tuple[bytes, bytes] | None) -> None:
    for line in (b"CONNECT a.example:443 HTTP/1.1", b"GET http://a.example/ HTTP/1.1"):
        head = HeadParser().feed(line + b"\r\nHost: a.example\r\nProxy-Authorization: " + value + b"\r\n\r\n")
        assert head is not None
        assert head.credentials == found
        assert value.partition(b" ")[2] not in head.upstream or not value.partition(b" ")[2]
        assert "sesame" not in repr(head)


def test_two_answers_are_none() -> None:
    field = b"Proxy-Authorization: Basic YTpi\r\n"
    head = HeadParser().feed(b"CONNECT a.example:443 HTTP/1.1\r\n" + field * 2 + b"\r\n")
    assert head is not None
    assert head.credentials is None
