"""What the warden may be asked: a table of what passes and, mostly, of what does not."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest

from exeat.sandbox.device import Device
from exeat.sandbox.limits import Limits
from exeat.sandbox.names import SpecError, parse_name
from exeat.sandbox.spec import (
    MAX_ARGS,
    MAX_STRING,
    MAX_TOTAL,
    SOCKETS,
    VERBS,
    JobSpec,
    Mount,
    Profile,
    choose_uid,
    parse_job,
    parse_path,
    parse_request,
    parse_socket_names,
)

ROOTS = (PurePosixPath("/srv"), PurePosixPath("/home"))
GOOD: dict[str, Any] = {
    "job": "crawl-1",
    "argv": ["/bin/true", ""],
    "env": {"A": "1", "_b": "ü"},
    "mounts": [{"path": "/srv/data", "mode": "ro"}],
    "cwd": "/work",
    "profile": "standard-net",
    "user": "fresh",
}


def job(**changes: object) -> JobSpec:
    return parse_job({**GOOD, **changes}, ROOTS, Limits())


def test_a_good_job_becomes_values() -> None:
    assert job() == JobSpec(
        job=parse_name("crawl-1"),
        argv=("/bin/true", ""),
        env=(("A", "1"), ("_b", "ü")),
        mounts=(Mount("/srv/data", writable=False),),
        cwd="/work",
        profile=Profile.STANDARD_NET,
        uid=None,
    )


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a" * 31, "job-", "7-up"])
def test_names(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "A",
        "a_b",
        "a.b",
        "..",
        ".",
        "a/b",
        "/",
        "a" * 32,
        "a\n",
        "a\0",
        "ä",
        "a b",
        "٣",
        None,
        1,
        ["a"],
        {},
    ],
)
def test_bad_names(name: object) -> None:
    with pytest.raises(SpecError) as caught:
        parse_name(name)
    assert caught.value.code == "argument"


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": []},
        {"argv": [""]},
        {"argv": "true"},
        {"argv": [1]},
        {"argv": ["a\0b"]},
        {"argv": ["\ud800"]},
        {"argv": ["x"] * (MAX_ARGS + 1)},
        {"argv": ["x" * MAX_STRING]},
        {"argv": ["x" * (MAX_STRING - 1)] * (MAX_TOTAL // MAX_STRING + 1)},
        {"argv": None},
        {"env": []},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
        {"env": {"1A": "x"}},
        {"env": {"A B": "x"}},
        {"env": {"A": 1}},
        {"env": {"A": "x\0y"}},
        {"env": {"Ä": "x"}},
        {"env": {f"A{n}": "" for n in range(1025)}},
        {"mounts": {}},
        {"mounts": ["/srv/data"]},
        {"mounts": [{"path": "/srv/data"}]},
        {"mounts": [{"path": "/srv/data", "mode": "ro", "options": "suid"}]},
        {"mounts": [{"path": "/srv/data", "mode": "rx"}]},
        {"mounts": [{"path": "/srv/data", "mode": ["ro"]}]},
        {"mounts": [{"path": "/srv/data", "mode": "ro"}, {"path": "/srv/data", "mode": "ro"}]},
        {"mounts": [{"path": f"/srv/{n}", "mode": "ro"} for n in range(65)]},
        {"mounts": [{"path": "/srv/data", "mode": "rw"}]},  # a fresh user owns nothing
        {"cwd": "work"},
        {"cwd": "/"},
        {"cwd": "/etc"},
        {"cwd": "/workspace"},
        {"cwd": "/work/../etc"},
        {"cwd": None},
        {"profile": "none"},
        {"profile": ""},
        {"profile": None},
        {"profile": ["standard"]},
        {"user": 0},
        {"user": 999},
        {"user": -1},
        {"user": 2**32 - 1},
        {"user": 2**64},
        {"user": 1000.0},
        {"user": True},
        {"user": "1000"},
        {"user": "root"},
        {"user": None},
        {"job": "../x"},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_bad_jobs(changes: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        job(**changes)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "srv/data",
        "./srv",
        "//srv/data",
        "/srv//data",
        "/srv/./data",
        "/srv/../etc",
        "/srv/data/",
        "/srv/a\0b",
        "/srv/a\nb",
        "/srv/a\x7fb",
        "/srv/\udc80",
        "/" + "x" * 4096,
        7,
        None,
    ],
)
def test_bad_paths(path: object) -> None:
    with pytest.raises(SpecError):
        parse_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "/etc/shadow",
        "/",
        "/root",
        "/srvx",
        "/usr",
        "/proc",
        "/run/exeat",
        "/home/../etc",
        "/dev/null",
        "/bin",
    ],
)
def test_mounts_outside_the_roots(path: str) -> None:
    with pytest.raises(SpecError):
        job(mounts=[{"path": path, "mode": "ro"}])


@pytest.mark.parametrize(
    "path", ["/", "/usr/share", "/etc", "/proc/1", "/dev", "/run", "/run/exeat/x", "/tmp", "/work"]
)
def test_mounts_never_replace_a_part_of_the_container(path: str) -> None:
    with pytest.raises(SpecError):
        parse_job({**GOOD, "mounts": [{"path": path, "mode": "ro"}]}, (PurePosixPath("/"),), Limits())


def test_mounts_are_ordered_parents_first() -> None:
    got = job(
        user=1000,
        mounts=[
            {"path": "/srv/a/b", "mode": "rw"},
            {"path": "/srv/a", "mode": "ro"},
            {"path": "/srv", "mode": "ro"},
        ],
        cwd="/srv/a/b/c",
    )
    assert [mount.path for mount in got.mounts] == ["/srv", "/srv/a", "/srv/a/b"]
    assert (got.uid, got.cwd) == (1000, "/srv/a/b/c")


def test_every_argument_of_a_start_is_needed() -> None:
    message = {"id": 1, "verb": "job.start", **GOOD}
    assert parse_request(message, 3, ROOTS, Limits()).job == job()
    for name in GOOD:
        with pytest.raises(SpecError, match=name):
            parse_request({key: value for key, value in message.items() if key != name}, 3, ROOTS, Limits())


@pytest.mark.parametrize(
    ("message", "fds", "code"),
    [
        ({}, 0, "verb"),
        ({"verb": "job.exec"}, 0, "verb"),
        ({"verb": "JAIL.LIST"}, 0, "verb"),
        ({"verb": ["jail.list"]}, 0, "verb"),
        ({"verb": None}, 0, "verb"),
        ({"verb": "__init__"}, 0, "verb"),
        ({"verb": "jail.list", "jail": "a"}, 0, "argument"),
        ({"verb": "jail.list"}, 1, "argument"),
        ({"verb": "jail.create"}, 0, "argument"),
        ({"verb": "jail.create", "jail": "a", "nat": True}, 0, "argument"),
        ({"verb": "jail.create", "jail": "a", "names": ["ssh"]}, 0, "argument"),
        ({"verb": "jail.create", "job": "a"}, 0, "argument"),
        ({"verb": "jail.destroy", "jail": "../../etc"}, 0, "argument"),
        ({"verb": "job.start", **GOOD}, 2, "argument"),
        ({"verb": "job.start", **GOOD, "config": {}}, 3, "argument"),
        ({"verb": "job.kill", "job": "a", "signal": 9}, 0, "argument"),
    ],
)
def test_bad_requests(message: dict[str, Any], fds: int, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_request({"id": 1, **message}, fds, ROOTS, Limits())
    assert caught.value.code == code


def test_requests_about_a_jail_or_job() -> None:
    for verb in VERBS:
        if verb == "job.start" or verb.endswith(".list") or verb.startswith("routing."):
            continue
        request = parse_request({"id": 1, "verb": verb, verb.partition(".")[0]: "a-1"}, 0, ROOTS, Limits())
        assert (request.verb, request.name, request.sockets) == (verb, "a-1", SOCKETS)


def test_socket_names() -> None:
    assert parse_socket_names(None) == SOCKETS
    assert parse_socket_names(["dnsu6", "proxy4"]) == ("dnsu6", "proxy4")
    for bad in ([], ["x"], ["proxy4", "proxy4"], "proxy4", [1], [["proxy4"]], {"proxy4": 1}):
        with pytest.raises(SpecError):
            parse_socket_names(bad)


def test_choice_of_a_user() -> None:
    fresh = range(5000, 5003)
    assert choose_uid(None, set(), fresh, 42) == 5000
    assert choose_uid(None, {5000, 5001}, fresh, 42) == 5002
    assert choose_uid(1000, {1000}, fresh, 42) == 1000  # two jobs of one person
    with pytest.raises(SpecError) as caught:
        choose_uid(None, {5000, 5001, 5002}, fresh, 42)
    assert caught.value.code == "uid.exhausted"
    for exeats_own in (5000, 5002, 1042):
        with pytest.raises(SpecError):
            choose_uid(exeats_own, set(), fresh, 1042)


def test_a_device_is_one_of_those_that_root_has_configured() -> None:
    mic = Device("mic", "/run/mic")
    assert parse_job({**GOOD, "device": "mic"}, ROOTS, Limits(), (), (mic,)).device == mic
    assert job().device is None
    for wrong in ("cam", "/run/mic", 7, None, ["mic"]):
        with pytest.raises(SpecError):
            parse_job({**GOOD, "device": wrong}, ROOTS, Limits(), (), (mic,))


@pytest.mark.parametrize("name", ["device-", "device-../x", "device-A", "device-1", f"device-{'x' * 21}", 5])
def test_the_socket_of_a_device_has_a_plain_name(name: object) -> None:
    assert parse_socket_names(["device-mic"]) == ("device-mic",)
    with pytest.raises(SpecError):
        parse_socket_names([name])
