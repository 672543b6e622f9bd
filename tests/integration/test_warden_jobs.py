"""Real jobs in real containers: codes, streams, files, limits, and what the warden refuses."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.warden_rig import CONTROL_UID, OWNER_UID, UID_BASE, WardenRig, mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def rig() -> Iterator[WardenRig]:
    with WardenRig(memory=96 * 1024**2, pids=40) as made:
        yield made


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["true"], 0),
        (["false"], 1),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["python3", "-c", "import os; os.abort()"], 134),
        (["no-such-command"], 127),
        (["/etc/hosts"], 126),
        (["echo", "-n"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_codes(rig: WardenRig, argv: list[str], code: int) -> None:
    assert rig.run_job("code", argv).code == code


def test_streams_and_arguments(rig: WardenRig) -> None:
    script = 'cat; printf "%s|" "$@"; echo oops >&2; pwd; umask'
    ended = rig.run_job("streams", ["sh", "-c", script, "sh", "a b", "", "*", "ü"], stdin=b"in:")
    assert ended.out == "in:a b||*|ü|/work\n0022\n"
    assert ended.err == "oops\n"


def test_output_arrives_while_the_job_runs(rig: WardenRig) -> None:
    rig.call("jail.create", jail="live").close()
    (stdin, feed), (out, stdout) = os.pipe(), os.pipe()
    started = rig.start_job("live", ["cat"], (stdin, stdout, stdout))
    os.close(stdin)
    os.close(stdout)
    assert started["pid"] > 1
    for word in (b"one", b"two"):
        os.write(feed, word)
        assert os.read(out, 16) == word
    os.close(feed)
    assert os.read(out, 16) == b""
    os.close(out)
    assert rig.call("job.wait", job="live").message | {"id": 0} == {
        "ok": True,
        "code": 0,
        "oom": False,
        "id": 0,
    }


def test_the_callers_files_stay_the_callers(rig: WardenRig) -> None:
    """The runtime would give its standard descriptors to the job's user, even those opened for reading."""
    rig.call("jail.create", jail="mine").close()
    source, target = rig.base / "input", rig.base / "output"
    source.write_bytes(b"said")
    with source.open("rb") as given, target.open("wb") as taken:
        fds = (given.fileno(), taken.fileno(), taken.fileno())
        rig.start_job("mine", ["sh", "-c", "cat; chmod 777 /dev/stdin /dev/stdout 2>/dev/null"], fds)
        rig.call("job.wait", job="mine")
    assert target.read_bytes() == b"said"
    for path in (source, target):
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (0, 0o644)


def test_the_environment_is_the_given_one(rig: WardenRig) -> None:
    ended = rig.run_job("env", ["/usr/bin/env"], env={"PATH": "/usr/bin", "A_B": "c d=e"})
    assert set(ended.out.splitlines()) == {"PATH=/usr/bin", "A_B=c d=e", "PWD=/work", "HOME=/work"}


PYTHON = """
import asyncio, multiprocessing, os, ssl, tempfile, threading
async def run():
    return await (await asyncio.create_subprocess_exec("true")).wait()
ssl.create_default_context()
thread = threading.Thread(target=int); thread.start(); thread.join()
child = multiprocessing.get_context("fork").Process(target=int); child.start(); child.join()
multiprocessing.Lock()
tempfile.NamedTemporaryFile().close()
assert asyncio.run(run()) == 0 and os.openpty()
"""
REAL = """
python3 -c "$0"
python3 -m pip --version >/dev/null
git init -q repo
cd repo
git -c user.name=n -c user.email=e commit -q --allow-empty -m message
getent hosts localhost >/dev/null
ls -l /dev/fd/ >/dev/null
id -un
"""


@pytest.mark.parametrize("profile", ["strict", "standard", "standard-net"])
def test_real_programs_run_under_every_profile(rig: WardenRig, profile: str) -> None:
    ended = rig.run_job("real", ["sh", "-ec", REAL, PYTHON], profile=profile)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.split() == ["job"]


def test_profiles_decide_about_sockets(rig: WardenRig) -> None:
    script = """
import socket
for family in (1, 2, 10):
    try: socket.socket(family); print(family)
    except OSError as error: print(error.errno)
"""
    for profile, expected in (("strict", "1 38 38"), ("standard", "1 38 38"), ("standard-net", "1 2 10")):
        assert (
            " ".join(rig.run_job("sockets", ["python3", "-c", script], profile=profile).out.split())
            == expected
        )


def test_work_folder_belongs_to_the_job_and_goes_with_it(rig: WardenRig) -> None:
    rig.call("jail.create", jail="work").close()
    with open(os.devnull, "r+b") as null:
        started = rig.start_job(
            "work", ["sh", "-c", "echo hi >file; ln -s /etc/passwd link"], (null.fileno(),) * 3
        )
    work = started["work"]
    assert rig.call("job.wait", job="work")["code"] == 0
    assert Path(work, "file").read_text() == "hi\n"
    assert os.stat(f"{work}/file").st_uid == os.stat(work).st_uid
    assert rig.call("job.remove", job="work")["ok"]
    assert not os.path.lexists(work)
    assert rig.call("job.remove", job="work").error == "job.unknown"


def test_no_two_jobs_share_a_fresh_user(rig: WardenRig) -> None:
    works = []
    for name in ("uid-1", "uid-2"):
        rig.call("jail.create", jail=name).close()
        with open(os.devnull, "r+b") as null:
            works.append(rig.start_job(name, ["sleep", "60"], (null.fileno(),) * 3)["work"])
    assert len({os.stat(work).st_uid for work in works}) == 2
    for name in ("uid-1", "uid-2"):
        rig.call("job.kill", job=name)
        assert rig.call("job.remove", job=name)["ok"]


def test_a_work_folder_nested_deeper_than_recursion_goes_too(rig: WardenRig) -> None:
    script = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    assert rig.run_job("deep", ["python3", "-c", script]).code == 0


def test_mounts(rig: WardenRig) -> None:
    share = rig.base / "share"
    (share / "in").mkdir()
    (share / "in" / "data").write_text("data")
    (share / "out").mkdir()
    os.chown(share / "out", OWNER_UID, OWNER_UID)
    script = (
        f"cat {share}/in/data; cp {share}/in/data {share}/out/copy; touch {share}/in/x; id -u; ls {share}"
    )
    mounts = [{"path": str(share / "in"), "mode": "ro"}, {"path": str(share / "out"), "mode": "rw"}]
    ended = rig.run_job("mounts", ["sh", "-c", script], mounts=mounts, user=OWNER_UID)
    assert ended.out.split() == ["data4321", "in", "out"]
    assert "Read-only file system" in ended.err
    assert (share / "out" / "copy").stat().st_uid == OWNER_UID
    assert not mounts_below(rig.run / "mounts")
    assert os.listdir(rig.run / "mounts") == []


def test_limits_hold(rig: WardenRig) -> None:
    script = """
import os, time
made = 0
try:
    while made < 200 and os.fork():
        made += 1
    time.sleep(60 if made < 200 else 0)
except OSError as error:
    print(made, error.errno)
"""
    out = rig.run_job("forks", ["python3", "-c", script]).out.split()
    assert 20 < int(out[0]) < 40
    assert out[1] == "11"


def test_a_job_over_its_memory_is_killed_and_says_so(rig: WardenRig) -> None:
    ended = rig.run_job("memory", ["python3", "-c", "x = b'x' * 300_000_000"])
    assert (ended.code, ended.oom) == (137, True)


def test_orphans_end_with_the_job(rig: WardenRig) -> None:
    ended = rig.run_job("orphans", ["sh", "-c", "setsid sleep 97531 </dev/null >/dev/null 2>&1 & exit 3"])
    assert ended.code == 3
    found = subprocess.run(["pgrep", "-f", "sleep 97531"], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_kill(rig: WardenRig) -> None:
    rig.call("jail.create", jail="kill").close()
    with open(os.devnull, "r+b") as null:
        rig.start_job("kill", ["sh", "-c", "trap '' TERM INT HUP; sleep 60"], (null.fileno(),) * 3)
    assert rig.call("job.remove", job="kill").error == "job.running"
    assert rig.call("jail.destroy", jail="kill").error == "jail.busy"
    assert rig.call("job.kill", job="kill")["ok"]
    ended = rig.call("job.wait", job="kill")
    assert (ended["code"], ended["oom"]) == (137, False)
    assert {"job": "kill", "running": False, "code": 137} in rig.call("job.list")["jobs"]
    assert rig.call("job.kill", job="kill")["ok"]  # again, of what has ended


def test_replies_come_out_of_order(rig: WardenRig) -> None:
    rig.call("jail.create", jail="order").close()
    with open(os.devnull, "r+b") as null:
        rig.start_job("order", ["sleep", "60"], (null.fileno(),) * 3)
    with contextlib.closing(rig.connect()) as channel:
        channel.send({"id": 1, "verb": "job.wait", "job": "order"})
        channel.send({"id": 2, "verb": "job.kill", "job": "order"})
        first, second = channel.next()[0], channel.next()[0]
    assert (first["id"], second["id"], second["code"]) == (2, 1, 137)


def refuse(rig: WardenRig, **changes: Any) -> str:
    rig.call("jail.create", jail="bad").close()
    before = sorted(os.listdir(rig.run / "jobs")), sorted(os.listdir(rig.work))
    with open(os.devnull, "r+b") as null:
        got = rig.start_job(
            changes.pop("job", "bad"), changes.pop("argv", ["true"]), (null.fileno(),) * 3, **changes
        )
    assert not got["ok"]
    assert (sorted(os.listdir(rig.run / "jobs")), sorted(os.listdir(rig.work))) == before
    assert not mounts_below(rig.run / "mounts")
    rig.call("jail.destroy", jail="bad")
    return f"{got.error}: {got['message']}"


@pytest.fixture(scope="module")
def share(rig: WardenRig) -> str:
    share = rig.base / "share"
    (share / "real").mkdir()
    (share / "link").symlink_to("/etc")
    (share / "real" / "link").symlink_to(rig.base)
    (share / "file").write_text("x")
    os.mkfifo(share / "fifo")
    (rig.base / "outside").mkdir()
    os.chown(rig.base / "outside", OWNER_UID, OWNER_UID)
    return str(share)


BAD_STARTS: list[tuple[dict[str, Any], str]] = [
    ({"mounts": [{"path": "SHARE/../outside", "mode": "ro"}]}, "argument"),
    ({"mounts": [{"path": "BASE/outside", "mode": "ro"}]}, "argument"),
    ({"mounts": [{"path": "BASE/outside", "mode": "rw"}], "user": OWNER_UID}, "argument"),
    ({"mounts": [{"path": "/etc", "mode": "ro"}]}, "argument"),
    ({"mounts": [{"path": "share/real", "mode": "ro"}]}, "argument"),
    ({"mounts": [{"path": "SHARE/re\0al", "mode": "ro"}]}, "argument"),
    ({"mounts": [{"path": "SHARE/real", "mode": "rw"}]}, "argument"),
    ({"mounts": [{"path": "SHARE/link", "mode": "ro"}]}, "start"),
    ({"mounts": [{"path": "SHARE/link/ssl", "mode": "ro"}]}, "start"),
    ({"mounts": [{"path": "SHARE/real/link/outside", "mode": "ro"}]}, "start"),
    ({"mounts": [{"path": "SHARE/absent", "mode": "ro"}]}, "start"),
    ({"mounts": [{"path": "SHARE/file/x", "mode": "ro"}]}, "start"),
    ({"mounts": [{"path": "SHARE/fifo", "mode": "ro"}]}, "start"),
    ({"mounts": [{"path": "SHARE/real", "mode": "rw"}], "user": OWNER_UID}, "start"),  # is root's
    ({"mounts": [{"path": "SHARE/real", "mode": "ro"}, {"path": "SHARE/link", "mode": "ro"}]}, "start"),
    ({"mounts": [{"path": "SHARE/real", "mode": "edit"}]}, "argument"),
    ({"mounts": [{"path": "SHARE/real", "mode": "edit"}], "user": OWNER_UID}, "start"),  # is root's
    ({"mounts": [{"path": "SHARE/link", "mode": "edit"}], "user": OWNER_UID}, "start"),
    ({"mounts": [{"path": "BASE/outside", "mode": "edit"}], "user": OWNER_UID}, "argument"),
    ({"user": 0}, "argument"),
    ({"user": 999}, "argument"),
    ({"user": UID_BASE + 1}, "argument"),
    ({"user": CONTROL_UID}, "argument"),
    ({"cwd": "/etc"}, "argument"),
    ({"cwd": "work"}, "argument"),
    ({"profile": "unconfined"}, "argument"),
    ({"argv": []}, "argument"),
    ({"argv": ["a\0b"]}, "argument"),
    ({"env": {"A\0": "b"}}, "argument"),
    ({"job": "no-jail"}, "jail.unknown"),
    ({"job": "../bad"}, "argument"),
    ({"ociVersion": "1.0.2"}, "argument"),
    ({"config": {"root": {"path": "/"}}}, "argument"),
]


@pytest.mark.parametrize(("changes", "code"), BAD_STARTS, ids=lambda value: str(value)[:70])
def test_refused_starts_leave_nothing(rig: WardenRig, share: str, changes: dict[str, Any], code: str) -> None:
    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(item) for item in value]
        if isinstance(value, dict):
            return {key: place(item) for key, item in value.items()}
        return (
            value.replace("SHARE", share).replace("BASE", str(rig.base)) if isinstance(value, str) else value
        )

    assert refuse(rig, **place(changes)).startswith(f"{code}: ")


def test_a_runtime_that_refuses_says_why(rig: WardenRig) -> None:
    """A mount whose target in the container is a file of another mount."""
    share = rig.base / "share"
    (share / "plain").write_text("x")
    got = refuse(rig, mounts=[{"path": str(share / "plain"), "mode": "ro"}], cwd=str(share / "plain"))
    assert got.startswith("start: ")
    assert len(got) > 12


@pytest.mark.parametrize(
    ("verb", "arguments", "code"),
    [
        ("job.exec", {"job": "a"}, "verb"),
        ("nft", {"rules": "flush ruleset"}, "verb"),
        ("jail.create", {}, "argument"),
        ("jail.create", {"jail": "a/b"}, "argument"),
        ("jail.create", {"jail": "a", "path": "/x"}, "argument"),
        ("jail.sockets", {"jail": "absent"}, "jail.unknown"),
        ("jail.sockets", {"jail": "absent", "names": ["ssh"]}, "argument"),
        ("jail.destroy", {"jail": "absent"}, "jail.unknown"),
        ("job.wait", {"job": "absent"}, "job.unknown"),
        ("job.kill", {"job": "absent"}, "job.unknown"),
        ("job.kill", {"job": "../../1"}, "argument"),
        ("job.remove", {"job": "absent"}, "job.unknown"),
    ],
)
def test_refused_requests(rig: WardenRig, verb: str, arguments: dict[str, Any], code: str) -> None:
    assert rig.call(verb, **arguments).error == code


def test_what_leads_out_of_the_jail_is_no_standard_descriptor(rig: WardenRig) -> None:
    """A folder of the host, a socket of the host's network, an unconnected socket, a device."""
    rig.call("jail.create", jail="out").close()
    left, right = socket.socketpair()
    datagram = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    inet, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    client = socket.create_connection(inet.getsockname())
    folder, path_only = os.open("/", os.O_RDONLY), os.open("/etc", os.O_PATH)
    devices = [os.open("/dev/kmsg", os.O_RDONLY)]
    bad = [inet.fileno(), client.fileno(), unix.fileno(), datagram[0].fileno(), folder, path_only, *devices]
    with open(os.devnull, "r+b") as null:
        for fd in bad:
            got = rig.start_job("out", ["true"], (null.fileno(), null.fileno(), fd))
            assert got.error == "argument", fd
        zero = os.open("/dev/zero", os.O_RDONLY)
        devices.append(zero)
        assert rig.start_job("out", ["echo", "hi"], (zero, left.fileno(), null.fileno()))["ok"]
    assert right.recv(8) == b"hi\n"
    assert rig.call("job.wait", job="out")["code"] == 0
    for sock in (left, right, inet, client, unix, *datagram):
        sock.close()
    for fd in (folder, path_only, *devices):
        os.close(fd)


def test_a_terminal_stays_its_owners(rig: WardenRig) -> None:
    rig.call("jail.create", jail="tty").close()
    main, terminal = os.openpty()
    owner = os.fstat(terminal).st_uid
    assert rig.start_job("tty", ["sh", "-c", "test -t 0 && echo yes"], (terminal,) * 3)["ok"]
    assert rig.call("job.wait", job="tty")["code"] == 0
    assert os.read(main, 16) == b"yes\r\n"
    assert os.fstat(terminal).st_uid == owner
    os.close(main)
    os.close(terminal)


def test_descriptors_are_counted_and_never_kept(rig: WardenRig) -> None:
    assert rig.process
    fds = f"/proc/{rig.process.pid}/fd"
    before = len(os.listdir(fds))
    with open(os.devnull, "r+b") as null:
        assert rig.call("jail.list", (null.fileno(),)).error == "argument"
        assert rig.call("job.start", (null.fileno(),) * 2, job="x").error == "argument"
        assert rig.call("nonsense", (null.fileno(),) * 9).error == "verb"
    rig.call("jail.create", jail="leak").close()
    assert rig.call("jail.create", jail="leak").error == "jail.exists"
    rig.call("jail.destroy", jail="leak")
    rig.run_job("leak", ["true"])
    assert len(os.listdir(fds)) == before


@pytest.mark.parametrize(
    "data", [b"\0\0\0\x02[]", b"\xff\xff\xff\xff", b"\0\0\0\x03{{{", b"\0\0\0\x04\xff\xff\xff\xff"]
)
def test_a_peer_that_breaks_the_framing_is_dropped(rig: WardenRig, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(rig.run / "warden.sock"))
        sock.sendall(data)
        assert sock.recv(1) == b""
    assert rig.call("jail.list")["ok"]


KNOCK = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect(sys.argv[1])
body = b'{"id":1,"verb":"jail.list"}'
try:
    s.sendall(len(body).to_bytes(4, "big") + body)
    print(len(s.recv(1)))
except ConnectionError:
    print(0)
"""


@pytest.mark.parametrize(
    ("uid", "heard"), [(CONTROL_UID, "1"), (OWNER_UID, "0"), (65534, "0"), (UID_BASE, "0")]
)
def test_who_may_speak(rig: WardenRig, uid: int, heard: str) -> None:
    command = [sys.executable, "-c", KNOCK, str(rig.run / "warden.sock"), str(uid)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == heard
