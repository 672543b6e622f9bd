"""`[dns] resolvers_file`: which list of public resolvers is in force, and what a new one would open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from exeat.appliance.config import ConfigError, load
from exeat.appliance.control import resolvers
from exeat.appliance.control.resolvers import ResolverList
from exeat.appliance.errors import RefusedError
from exeat.dns.known import encrypted_resolvers

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "resolvers.txt"


def test_without_a_file_the_list_of_the_package_is_in_force() -> None:
    known = ResolverList(None)
    change = known.read()
    assert known.names == change.names == encrypted_resolvers()
    assert not change.changed
    assert not change.widens


def test_a_file_takes_its_place(file: Path) -> None:
    file.write_text("# mine\ndoh.test\nx.doh2.test\n")
    known = ResolverList(file)
    change = known.read()
    assert change.changed
    assert change.widens in encrypted_resolvers()
    known.apply(change)
    assert known.names == {"doh.test", "x.doh2.test"}
    file.write_text("doh.test\ndoh2.test\n")  # a domain takes in the names below it
    wider = known.read()
    assert (wider.changed, wider.widens) == (True, "")
    known.apply(wider)
    file.write_text("sub.doh.test\ndoh2.test\n")
    assert known.read().widens == "doh.test"
    assert wider.digest != known.read().digest


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"doh.test\nno name\n", ":2: "),
        (b"", ":1: "),
        (b"a.test\n\xc3\xa4.test\n", ":2: "),
        (None, "No such file"),
    ],
)
def test_a_bad_file_changes_nothing_and_is_named(file: Path, data: bytes | None, where: str) -> None:
    file.write_text("doh.test\n")
    known = ResolverList(file)
    known.apply(known.read())
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(RefusedError) as refused:
        known.read()
    assert str(file) in str(refused.value)
    assert where in str(refused.value)
    assert known.names == {"doh.test"}
    assert known.error == str(refused.value)
    file.write_text("doh.test\n")
    known.read()
    assert known.error == ""


def test_a_file_without_end_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "MAX_FILE", 16)
    file.write_text("doh.test\n" * 2)
    with pytest.raises(RefusedError, match="more than 16 bytes"):
        ResolverList(file).read()


def test_the_path_is_absolute(tmp_path: Path) -> None:
    config = tmp_path / "exeat.toml"
    config.write_text('[dns]\nresolvers_file = "resolvers.txt"\n')
    with pytest.raises(ConfigError, match=r"exeat\.toml:2: .*absolute"):
        load(config)
