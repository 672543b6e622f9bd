"""`[[routing.host]]` and `[[routing.veth]]`: what is accepted, and what the warden gets of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from exeat.appliance.config import ConfigError, load
from exeat.appliance.routing import host_table
from exeat.policy.addresses import Cidr, parse_address
from exeat.sandbox.rules import Cgroup, Host, Target, Veth

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
[dns]
listen = ["127.0.0.1:5353", "[::1]:5353"]
[proxy]
listen = ["127.0.0.1:3128", "0.0.0.0:3127"]
transparent = ["127.0.0.1:3129"]
listen_socks = ["[::1]:1080"]
[routing]
never = ["10.0.0.9:6379"]
[[routing.host]]
cgroup = "agents.slice"
uid = "61184-65519"
project = "builds"
[[routing.veth]]
interface = "sbh0"
addresses = ["10.231.0.2", "fd5b::/64"]
project = "builds"
agent = "box"
"""


def loaded(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "exeat.toml"
    path.write_text(text)
    return path


def test_members_doors_and_places_out_of_bounds(tmp_path: Path) -> None:
    table = host_table(load(loaded(tmp_path, GOOD), environ={}))
    assert table.members == (
        Host("builds/host", Cgroup("agents.slice"), ((61184, 65519),)),
        Veth(
            "builds/box",
            "sbh0",
            (
                Cidr(4, parse_address("10.231.0.2").value, 32),
                Cidr(6, parse_address("fd5b::").value, 64),
            ),
        ),
    )
    assert (table.transparent, table.dns) == (3129, 5353)
    assert Target(parse_address("::1"), "tcp", 1080) in table.doors
    assert Target(parse_address("::1"), "udp", 5353) in table.doors
    assert {place.proto for place in table.never} == {"tcp", "udp"}


def test_without_the_section_there_is_nothing_to_confine(tmp_path: Path) -> None:
    assert host_table(load(loaded(tmp_path, ""), environ={})).members == ()


def test_exeats_own_users_are_never_confined(tmp_path: Path) -> None:
    config = load(loaded(tmp_path, GOOD), environ={})
    with pytest.raises(ValueError, match="uid 61200 is exeat's own"):
        host_table(config, [61200])


BOX = '[[routing.veth]]\nproject = "a"\ninterface = "{}"\naddresses = [{}]\n'
USER = '[[routing.host]]\nproject = "a"\nuid = "9"\n'


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('[[routing.host]]\nproject = "a"\n', 1, "names a cgroup or uids"),
        ('[[routing.host]]\nproject = "a"\nuid = "0"\n', 1, "a uid is a whole number from 1"),
        ('[[routing.host]]\nproject = "a"\nuid = "5-4"\n', 1, "neither a uid nor LOW-HIGH"),
        ('[[routing.host]]\nproject = "a"\nuid = "me"\n', 1, "neither a uid nor LOW-HIGH"),
        ('[[routing.host]]\nproject = "a"\ncgroup = "/a"\n', 1, "cannot be used in a rule"),
        ('[[routing.host]]\nproject = "a"\ncgroup = "a"\nslice = "b"\n', 1, "unknown key"),
        (BOX.format("e", ""), 1, "needs the addresses"),
        (BOX.format("e", '"x"'), 1, "neither an address"),
        (BOX.format("e;", '"10.0.0.1"'), 1, "cannot be used"),
        ('\n[routing]\nnever = ["redis:6379"]\n', 3, "an address, never a name"),
        (USER + USER, 1, "stand in two"),
        ('[dns]\nlisten = ["0.0.0.0:53"]\n' + USER, 3, "name each in"),
        ('[dns]\nlisten = ["[::1]:5", "[::1]:6"]\n' + USER, 3, "one port each"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line_with_its_place(
    tmp_path: Path, text: str, line: int, why: str
) -> None:
    path = loaded(tmp_path, text)
    with pytest.raises(ConfigError, match=why) as caught:
        load(path, environ={})
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)
