"""The units agree with the code they start, and systemd agrees with the units."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exeat.appliance.cli import build_parser
from exeat.appliance.config import Config
from exeat.appliance.supervisor import START_ORDER as FIVE

if TYPE_CHECKING:
    from collections.abc import Callable

REPO = Path(__file__).resolve().parents[1]
UNITS = REPO / "systemd"
START_ORDER = (*FIVE, "console")  # of the target; the console is the only one that `exeat up` may leave out
CONFIG = Config()
OWNER = {
    "warden": None,
    "ledger": CONFIG.users.ledger,
    "control": CONFIG.users.control,
    "guard": CONFIG.users.gateway,
    "proxy": CONFIG.users.gateway,
    "console": CONFIG.users.console,
}
# Started by timers, by hand, or only where configured: unit -> (command, user, state folder).
BESIDE = {
    "archive-prepare": ("ledger archive prepare", CONFIG.users.ledger, "ledger"),
    "notify": ("serve notify", CONFIG.users.export, "notify"),
    "stream": ("serve stream", CONFIG.users.export, "stream"),
    "verify": ("ledger verify --note", CONFIG.users.ledger, "ledger"),
    "review": ("ledger review --dir /var/lib/exeat/review", CONFIG.users.ledger, "review exeat/ledger"),
    "archive": ("ledger archive run --carry-only", CONFIG.users.export, "archive"),
    "witness": ("serve witness", CONFIG.users.export, "witness"),
}
STATE = {
    "warden": "work",
    "ledger": "ledger",
    "control": "control",
    "guard": None,
    "proxy": None,
    "console": "console",
}
# What `systemd-analyze security` may say, 0 (tight) to 10; the warden needs what it needs.
EXPOSURE = {"warden": 6.2, "ledger": 1.5, "control": 2.0, "guard": 2.0, "proxy": 2.0, "console": 2.0}
# The file whose loop says to systemd that it turns, of each unit with a watchdog.
LOOPS = {
    "warden": "sandbox/warden.py",
    "ledger": "ledger/daemon.py",
    "control": "appliance/control/server.py",
    "guard": "dns/guard.py",
    "proxy": "proxy/server.py",
    "console": "appliance/console/app.py",
    "witness": "ledger/witnessing.py",
}
# Each gives the unit a mount namespace, and the jails' bind mounts would die with it.
MOUNT_NAMESPACE = re.compile(
    r"^(Protect(System|Home|Kernel\w+|ControlGroups|Proc|Hostname)|Private\w+|ReadOnlyPaths|ReadWritePaths|"
    r"InaccessiblePaths|BindPaths|BindReadOnlyPaths|TemporaryFileSystem|MountAPIVFS|RootDirectory|DynamicUser|"
    r"ProcSubset)=",
    re.MULTILINE,
)


def unit(process: str) -> str:
    return (UNITS / f"exeat-{process}.service").read_text()


def values(process: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit(process), re.MULTILINE)


def test_one_unit_for_each_process() -> None:
    assert {path.name for path in UNITS.glob("*.service")} == {
        f"exeat-{name}.service" for name in (*START_ORDER, *BESIDE)
    }
    wants = re.findall(r"^Wants=(.*)$", (UNITS / "exeat.target").read_text(), re.MULTILINE)
    assert sorted(wants[0].split()) == sorted(f"exeat-{name}.service" for name in START_ORDER)


@pytest.mark.parametrize("process", START_ORDER)
def test_each_unit_starts_its_process_as_its_user(process: str) -> None:
    assert values(process, "Type") == ["notify"]  # `exeat serve` says READY=1
    assert values(process, "ExecStart") == [f"/opt/exeat/bin/exeat serve {process}"]
    owner = OWNER[process]
    assert values(process, "User") == ([owner] if owner else [])
    assert values(process, "RuntimeDirectory") == [f"exeat/{process}"]
    assert values(process, "StateDirectory") == ([f"exeat/{STATE[process]}"] if STATE[process] else [])
    assert "PYTHONSAFEPATH=1" in values(process, "Environment")[0].split()
    assert values(process, "NoNewPrivileges") == ["yes"]


@pytest.mark.parametrize("name", BESIDE)
def test_each_unit_beside_them_is_a_command_of_its_user(name: str) -> None:
    command, owner, state = BESIDE[name]
    assert values(name, "ExecStart") == [f"/opt/exeat/bin/exeat {command}"]
    build_parser().parse_args(command.split())
    assert values(name, "User") == [owner]
    assert values(name, "StateDirectory") == [f"exeat/{state}"]
    assert values(name, "NoNewPrivileges") == ["yes"]
    networks = set(" ".join(values(name, "RestrictAddressFamilies")).split()) - {"AF_UNIX"}
    assert bool(networks) == (owner == CONFIG.users.export)  # a key or a network, never both


def test_a_watchdog_watches_a_loop_that_beats() -> None:
    """One without the other would end a healthy process every minute, or none that is stuck."""
    watched = {name for name in (*START_ORDER, *BESIDE) if values(name, "WatchdogSec")}
    assert watched == set(LOOPS)
    for path in LOOPS.values():
        assert re.search(r"^ +beat\(", (REPO / path).read_text(), re.MULTILINE), path


def test_reloading_is_a_command_and_a_signal() -> None:
    assert values("control", "ExecReload") == ["+/opt/exeat/bin/exeat policy reload"]
    build_parser().parse_args(["policy", "reload"])
    assert values("console", "ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_each_timer_starts_a_unit_that_is_there() -> None:
    for timer in UNITS.glob("*.timer"):
        assert (UNITS / f"{timer.stem}.service").is_file()


def test_the_warden_keeps_the_mounts_of_the_host() -> None:
    assert MOUNT_NAMESPACE.findall(unit("warden")) == []
    assert values("warden", "KillMode") == ["process"]
    # What crun makes of a container, and no more: a filter of system calls, and no namespace of its own.
    assert values("warden", "RestrictNamespaces") == ["cgroup ipc mnt net pid uts"]
    assert "CAP_NET_RAW" not in " ".join(values("warden", "CapabilityBoundingSet"))


@pytest.mark.parametrize("process", [name for name in (*START_ORDER, *BESIDE) if name != "warden"])
def test_nobody_else_holds_a_capability(process: str) -> None:
    assert values(process, "CapabilityBoundingSet") == [""]
    assert values(process, "ProtectSystem") == ["strict"]


def test_the_consoles_workers_may_make_themselves_nice() -> None:
    """`@resources`, which is taken away, holds what they need for that."""
    allowed = {word for line in values("console", "SystemCallFilter") for word in line.split()}
    assert {"setrlimit", "prlimit64", "setpriority", "sched_setscheduler"} <= allowed


def test_the_same_users_everywhere() -> None:
    users = CONFIG.users
    wanted = {users.gateway, users.ledger, users.control, users.export, users.console}
    sysusers = (UNITS / "sysusers.d/exeat.conf").read_text()
    assert set(re.findall(r"^u\s+(\S+)", sysusers, re.MULTILINE)) == wanted
    match = re.search(r"^readonly USERS=\((.*)\)$", (REPO / "dev").read_text(), re.MULTILINE)
    assert match is not None
    assert set(match.group(1).split()) == wanted


def test_the_same_folders_everywhere() -> None:
    tmpfiles = (UNITS / "tmpfiles.d/exeat.conf").read_text()
    folders = set(re.findall(r"^d\s+(\S+)", tmpfiles, re.MULTILINE))
    assert {str(CONFIG.run_dir), str(CONFIG.state_dir), str(CONFIG.policy.dir)} <= folders


# A machine without systemd has nothing to ask; the checks above hold there too.
if shutil.which("systemd-analyze"):

    @pytest.fixture
    def analyze(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        """`systemd-analyze` in a small root: our units, stand-ins for the programs, bare targets."""
        ours = tmp_path / "etc/systemd/system"
        shutil.copytree(UNITS, ours)
        for program in (tmp_path / "opt/exeat/bin/exeat", tmp_path / "bin/kill"):
            program.parent.mkdir(parents=True)
            program.touch(mode=0o755)
        targets = tmp_path / "lib/systemd/system"
        targets.mkdir(parents=True)
        for name in ("sysinit", "basic", "shutdown", "network", "network-online", "multi-user", "timers"):
            (targets / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
        (targets / "system.slice").write_text("[Slice]\n")

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = ["systemd-analyze", *arguments[:1], f"--root={tmp_path}", *arguments[1:]]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        return run

    def test_systemd_accepts_the_units(analyze: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        names = [f"exeat-{name}.service" for name in (*START_ORDER, *BESIDE)]
        names += [path.name for path in UNITS.glob("*.timer")]
        done = analyze("verify", "--man=no", "exeat.target", *names)
        assert (done.stdout + done.stderr, done.returncode) == ("", 0)

    @pytest.mark.parametrize("process", [*START_ORDER, *BESIDE])
    def test_the_units_stay_tight(
        analyze: Callable[..., subprocess.CompletedProcess[str]], process: str
    ) -> None:
        threshold = f"--threshold={round(EXPOSURE.get(process, 2.0) * 10)}"
        done = analyze("security", "--offline=true", threshold, f"exeat-{process}.service")
        assert done.returncode == 0, done.stdout[-200:]
