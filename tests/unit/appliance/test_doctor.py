"""Each check of the doctor on facts that are right, limited and wrong; and the real machine."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exeat.appliance import doctor
from exeat.appliance.commands import doctor as command
from exeat.appliance.config import Config
from exeat.appliance.doctor import Check, Status, Tool

if TYPE_CHECKING:
    from collections.abc import Iterator

V1 = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V2_BESIDE = "31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
EVERYTHING = "Name:\tx\nCapEff:\t000001ffffffffff\n"
GIB = 1024**3


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (doctor.check_root(0), Status.OK),
        (doctor.check_root(1000), Status.FAIL),
        (doctor.check_capabilities(EVERYTHING), Status.OK),
        (doctor.check_capabilities(""), Status.FAIL),
        (doctor.check_python((3, 11, 2)), Status.OK),
        (doctor.check_python((3, 13, 0)), Status.OK),
        (doctor.check_python((3, 10, 12)), Status.FAIL),
        (doctor.check_seccomp("kill_process errno log allow\n"), Status.OK),
        (doctor.check_seccomp(""), Status.FAIL),
        (doctor.check_landlock(7), Status.OK),
        (doctor.check_landlock(-1), Status.WARN),
        (doctor.check_cgroups(V2), Status.OK),
        (doctor.check_cgroups(f"{V1}\n{V2_BESIDE}"), Status.WARN),
        (doctor.check_cgroups(V1), Status.WARN),
        (doctor.check_cgroups(""), Status.WARN),
        (doctor.check_disk(50 * GIB, 1_000_000), Status.OK),
        (doctor.check_disk(50 * GIB, 0), Status.OK),  # a file system without a limit on files
        (doctor.check_disk(GIB // 2, 1_000_000), Status.WARN),
        (doctor.check_disk(GIB // 64, 1_000_000), Status.FAIL),
        (doctor.check_disk(50 * GIB, 3), Status.FAIL),
        (doctor.check_clock(2_000_000_000.0, 1_900_000_000.0), Status.OK),
        (doctor.check_clock(0.0, 1_900_000_000.0), Status.FAIL),
        (doctor.check_resolver(("192.0.2.53:53",), ""), Status.OK),
        (doctor.check_resolver((), "nameserver 192.0.2.1\n"), Status.FAIL),
        (doctor.check_descriptors(resource.RLIM_INFINITY), Status.OK),
        (doctor.check_descriptors(65_536), Status.OK),
        (doctor.check_descriptors(4096), Status.WARN),
        (doctor.check_descriptors(256), Status.FAIL),
        (doctor.check_lab(()), Status.OK),
        (doctor.check_table(wanted=True, loaded=True), Status.OK),
        (doctor.check_table(wanted=True, loaded=False), Status.OK),
        (doctor.check_table(wanted=False, loaded=False), Status.OK),
        (doctor.check_table(wanted=False, loaded=True), Status.WARN),
        (doctor.check_lab(("203.0.113.0/24",)), Status.WARN),
        (doctor.check_users(["root"]), Status.OK),
        (doctor.check_users(["root", "nobody-has-this-name"]), Status.FAIL),
        (doctor.check_reuseport(), Status.OK),
        (doctor.check_splice(), Status.OK),
        (doctor.check_relay("python"), Status.OK),
    ],
)
def test_facts_become_findings(check: Check, status: Status) -> None:
    assert check.status is status
    assert bool(check.fix) == (status is not Status.OK)  # whatever is wrong comes with a next step


def test_the_lacking_capabilities_are_named() -> None:
    without_admin = f"CapEff:\t{0x1FFFFFFFFFF & ~(1 << 21):016x}\n"
    assert "CAP_SYS_ADMIN" in doctor.check_capabilities(without_admin).detail
    assert "CAP_NET_ADMIN" not in doctor.check_capabilities(without_admin).detail


def test_the_command_for_missing_users_names_only_them() -> None:
    check = doctor.check_users(["root", "exeat-absent"])
    assert check.fix.startswith("useradd --system")
    assert check.fix.endswith(" exeat-absent")
    assert " root" not in check.fix


def test_the_resolver_advice_quotes_the_machine_and_nothing_else() -> None:
    text = (
        "# nameserver 192.0.2.9\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver 0x7f.1\nsearch x\n"
    )
    fix = doctor.check_resolver((), text).fix
    assert 'upstream = ["192.0.2.1:53", "[2001:db8::1]:53"]' in fix


def program(folder: Path, prints: str) -> str:
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' '{prints}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("prints", "status"),
    [
        ("crun version 1.8.1", Status.OK),
        ("nftables v1.10.0 (Name #2)", Status.OK),
        ("ip utility, iproute2-6.1.0, libbpf 1.1.2", Status.OK),
        ("crun version 1.7.9", Status.FAIL),
        ("version unknown", Status.FAIL),
        ("", Status.FAIL),
    ],
)
def test_versions_are_compared_as_numbers(tmp_path: Path, prints: str, status: Status) -> None:
    check = doctor.check_tool(Tool(program(tmp_path, prints), "a-package", (1, 8)))
    assert check.status is status
    assert check.fix == ("" if status is Status.OK else "apt-get install a-package")


def test_a_missing_tool_names_its_package() -> None:
    check = doctor.check_tool(Tool("no-such-tool", "its-package", (1,)))
    assert (check.status, check.fix) == (Status.FAIL, "apt-get install its-package")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Not below pytest's own folder, which is private all the way up."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_private_parent_folder_is_found(public_folder: Path) -> None:
    home = public_folder / "home"
    inner = home / "deep/module.py"
    inner.parent.mkdir(parents=True)
    inner.touch()
    assert doctor.check_readable("package", [inner]).status is Status.OK
    home.chmod(0o700)
    check = doctor.check_readable("package", [inner])
    assert check.status is Status.FAIL
    assert f"by {home}" in check.detail
    home.chmod(0o755)
    inner.chmod(0o600)
    assert f"by {inner}" in doctor.check_readable("package", [inner]).detail
    link = public_folder / "link"
    link.symlink_to(inner)
    assert doctor.check_readable("package", [link]).status is Status.FAIL
    assert doctor.check_readable("package", [public_folder / "absent"]).status is Status.FAIL


def test_a_folder_may_be_made_later_but_not_below_a_file(tmp_path: Path) -> None:
    assert doctor.check_folder("state folder", tmp_path).status is Status.OK
    assert doctor.check_folder("state folder", tmp_path / "a/b").status is Status.OK
    (tmp_path / "file").touch()
    assert doctor.check_folder("state folder", tmp_path / "file/b").status is Status.FAIL


@pytest.mark.root
def test_a_read_only_file_system_is_found(tmp_path: Path) -> None:
    """In a mount namespace of its own, so that the machine's mounts stay as they are."""
    script = (
        "import sys; from pathlib import Path; from exeat.appliance import doctor;"
        "print(doctor.check_folder('state folder', Path(sys.argv[1])).status)"
    )
    mount = 'mount -t tmpfs -o ro none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(Path(doctor.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "fail\n", done.stderr


def test_ipv6_switched_off_is_found(tmp_path: Path) -> None:
    disable = tmp_path / "disable"
    assert doctor.check_ipv6(tmp_path, disable).status is Status.FAIL
    (tmp_path / "if_inet6").touch()
    assert doctor.check_ipv6(tmp_path, disable).status is Status.OK
    disable.write_text("1\n")
    assert doctor.check_ipv6(tmp_path, disable).status is Status.FAIL


@pytest.mark.root
def test_namespaces_can_be_made_by_root_only() -> None:
    assert doctor.check_namespaces().status is Status.OK


def arguments(tmp_path: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--config", "--state-dir", "--run-dir"):
        parser.add_argument(name, type=Path)
    command.register(parser.add_subparsers())
    empty = tmp_path / "exeat.toml"
    empty.touch()
    return parser.parse_args(["--config", str(empty), "--state-dir", str(tmp_path), "doctor", *words])


@pytest.mark.root
def test_this_machine_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(tmp_path, "--json")
    code = args.handler(args)
    document = json.loads(capsys.readouterr().out)
    found = {each["name"]: each["status"] for each in document["checks"]}
    assert document["ok"] == (code == 0) == ("fail" not in found.values())
    real = {name: shutil.which(name, path=doctor.SEARCH_PATH) is not None for name in ("crun", "nft", "ip")}
    assert {name: found[name] == "ok" for name in real} == real
    assert len(found) == len(document["checks"])


def test_what_people_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(tmp_path)
    code = args.handler(args)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == (["ok", "root"] if os.geteuid() == 0 else ["fail", "root"])
    assert lines[-1].startswith("fit:" if code == 0 else "not fit:")


def test_the_fix_stands_below_its_finding() -> None:
    text = command.render([Check("root", Status.FAIL, "not root", "sudo exeat doctor")])
    assert text.splitlines()[:2] == [
        "fail  root          not root",
        "                    -> sudo exeat doctor",
    ]


def test_someone_else_sees_one_failure_for_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    names = [check.name for check in doctor.examine(Config())]
    assert "root" in names
    assert not {"capabilities", "namespaces", "run folder", "state folder"} & set(names)


def test_a_relay_that_was_not_built_comes_with_what_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.relays, "BUILT", False)
    for wanted, status in (("auto", Status.WARN), ("compiled", Status.FAIL), ("python", Status.OK)):
        check = doctor.check_relay(wanted)
        assert check.status is status
        assert ("python3-dev" in check.fix) == (status is not Status.OK)
