"""Configuration of doors and identities, and opening the doors: all or none."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from tests.support.guard_rig import NoSuffixes

from exeat.appliance import listeners
from exeat.appliance.config import Config, ConfigError, load
from exeat.policy.addresses import Cidr
from exeat.policy.document import load_policy
from exeat.policy.identity import CgroupPath, Uids

PAGE = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text(encoding="utf-8")
IDENTITY = '[[identity]]\nproject = "p"\nsource = '


def config_of(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "exeat.toml"
    file.write_text(text)
    return load(file, environ={"EXEAT_CONSOLE__LISTEN": ""})  # the port of this machine is not ours


def test_the_documented_example_loads(tmp_path: Path) -> None:
    toml = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    config = config_of(tmp_path, toml)
    assert [door for door, _, _ in listeners.wanted(config)] == [
        "http",
        "http",
        "socks",
        "udp",
        "tcp",
        "unix",
    ]
    assert load_policy(yaml, file="docs", suffixes=NoSuffixes()).project == config.identity[0].project


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("10.0.0.0/8", Cidr(4, 10 << 24, 8)),
        ("127.0.0.1", Cidr(4, (127 << 24) + 1, 32)),
        ("::1", Cidr(6, 1, 128)),
        ("uid:0", Uids(0, 0)),
        ("uid:1000", Uids(1000, 1000)),
        ("uid:61184-65519", Uids(61184, 65519)),
        ("cgroup:agents.slice/a", CgroupPath("agents.slice/a")),
    ],
)
def test_sources(tmp_path: Path, source: str, place: object) -> None:
    assert config_of(tmp_path, f'{IDENTITY}"{source}"').identity[0].place() == place


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("10.0.0.1/8", "without host bits"),
        ("localhost", "is no address"),
        ("uid:-1", "neither a uid"),
        ("uid:01", "neither a uid"),
        ("uid:9-8", "neither a uid"),
        ("cgroup:/system.slice", "cannot be used in a rule"),
        ("/run/nowhere.sock", "not in [proxy] listen_unix"),
        ("", "is no address"),
    ],
)
def test_sources_that_are_refused(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        config_of(tmp_path, f'{IDENTITY}"{source}"')


@pytest.mark.parametrize("path", ["relative.sock", "/" + "x" * 107])
def test_socket_paths_that_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        config_of(tmp_path, f'[proxy]\nlisten_unix = ["{path}"]')


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def test_all_or_none(tmp_path: Path) -> None:
    (free,) = free_ports(1)
    path = tmp_path / "p.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = config_of(
            tmp_path, f'[proxy]\nlisten = ["127.0.0.1:{free}"]\nlisten_unix = ["{path}"]\n'
            f'[dns]\nlisten = ["127.0.0.1:{port}"]'
        )  # fmt: skip
        with pytest.raises(
            listeners.ListenError, match=rf"^\[dns\] cannot listen on 127.0.0.1:{port}: .*use$"
        ):
            listeners.open_all(config)
    assert not path.exists()
    listeners.close_all(listeners.open_all(config))  # the free port was given back, the other one is free
    assert not path.exists()


def test_a_left_over_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    config = config_of(tmp_path, f'[proxy]\nlisten_unix = ["{path}"]')
    first = listeners.open_all(config)
    with pytest.raises(listeners.ListenError, match="in use"):
        listeners.open_all(config)
    first[0].sock.close()  # as a crash does
    listeners.close_all(listeners.open_all(config))
    path.write_text("not a socket")
    with pytest.raises(listeners.ListenError, match="no socket"):
        listeners.open_all(config)
    assert path.read_text() == "not a socket"


def test_doors_are_handed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (free,) = free_ports(1)
    config = config_of(tmp_path, f'[proxy]\nlisten = ["127.0.0.1:{free}"]')
    opened = listeners.open_all(config)
    value, descriptors = listeners.handed_down(opened)
    assert descriptors == (opened[0].sock.fileno(),)
    monkeypatch.setenv(listeners.ENVIRONMENT, value)
    (taken,) = listeners.take(config, listeners.PROXY_DOORS)
    opened[0].sock.detach()
    with taken.sock:
        assert taken.sock.getsockname() == ("127.0.0.1", free)
    monkeypatch.delenv(listeners.ENVIRONMENT, raising=False)
    assert listeners.take(config, listeners.GUARD_DOORS) == []
