"""`exeat run` as people use it: streams, exit codes, mounts, policies of its own, interrupts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.running import Running, wait_for
from tests.support.trees import small_tree

from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

OWN_POLICY = """\
egress: v1
project: own
allow:
  - {id: plain, to: "plain.example.org:80"}
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("run")
    yield made
    made.close()


@pytest.fixture
def folder(running: Running) -> Iterator[Path]:
    """A folder below the sandbox's roots that belongs to an ordinary user."""
    path = Path(running.lab.job).parent / "job" / "mine"
    path.mkdir()
    os.chown(path, 4321, 4321)
    yield path
    shutil.rmtree(path)


def test_streams_and_exit_code_are_the_jobs(running: Running) -> None:
    done = subprocess.run(
        running.command("run", "--quiet", "--", "sh", "-c", "cat; echo bad >&2; exit 7"),
        input="from outside\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "from outside\n", "bad\n")


def test_large_output_arrives_whole(running: Running) -> None:
    done = running.run("head", "-c", "20000000", "/dev/zero", options=["--quiet"])
    assert len(done.stdout) == 20_000_000


def test_output_streams_while_the_job_runs(running: Running) -> None:
    job = running.job("sh", "-c", "echo one; cat >/dev/null; echo two", options=["--quiet"])
    assert job.stdout is not None
    assert job.stdout.readline() == "one\n"
    assert job.poll() is None
    job.kill()
    job.communicate()


def test_a_missing_command(running: Running) -> None:
    done = running.run("no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_job(running: Running, number: signal.Signals) -> None:
    job = running.job("sh", "-c", "echo started; sleep 1000", options=["--quiet"])
    assert job.stdout is not None
    assert job.stdout.readline() == "started\n"
    job.send_signal(number)
    job.communicate(timeout=30)
    assert job.returncode == 137
    assert wait_for(lambda: running.json("status")["jobs"] == 0)


def test_a_writable_folder_is_the_jobs_own_place(running: Running, folder: Path) -> None:
    done = running.run("sh", "-c", "pwd; id -u; echo made > file", options=[f"--rw={folder}", "--quiet"])
    assert done.stdout.split() == [str(folder), "4321"]
    assert (folder / "file").read_text() == "made\n"
    assert (folder / "file").stat().st_uid == 4321


def test_a_readable_folder_cannot_be_written(running: Running, folder: Path) -> None:
    (folder / "given").write_text("text")
    done = running.run(
        "sh", "-c", f"cat {folder}/given; touch {folder}/x", options=[f"--ro={folder}", "--quiet"]
    )
    assert done.stdout == "text"
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_an_edited_folder_keeps_what_it_has(running: Running, folder: Path) -> None:
    (folder / "given").write_text("text")
    os.chown(folder / "given", 4321, 4321)
    script = f"pwd; cat given; echo new > given; echo made > file; cat {folder}/given"
    done = running.run("sh", "-c", script, options=[f"--edit={folder}"])
    assert done.stdout == f"{folder}\ntextnew\n"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"given": "text"}
    edits = running.lab.state_dir / "edits"
    assert edits.stat().st_mode & 0o777 == 0o700
    (edit,) = edits.iterdir()
    assert f"exeat job diff {edit.name}" in done.stderr
    assert {path.name: path.read_text() for path in (edit / "upper").iterdir()} == {
        "given": "new\n",
        "file": "made\n",
    }
    shutil.rmtree(edit)
    running.run("true", options=[f"--edit={folder}"])  # changes nothing, so nothing is kept
    assert list(edits.iterdir()) == []


def test_a_job_in_a_tree_of_its_own_now_and_from_the_queue(running: Running) -> None:
    tree = small_tree(Path(running.lab.job) / "tree")
    try:
        done = running.run("cat", "/etc/mine", options=[f"--root={tree}", "--quiet"])
        assert (done.stdout, done.stderr) == ("of the tree\n", "")
        words = ("--project", "crawler", "--wait", "--json", "--root", str(tree), "--", "cat", "/etc/mine")
        task = json.loads(running.exeat("job", "submit", *words).stdout)["id"]
        assert running.exeat("job", "logs", task).stdout == "of the tree\n"
    finally:
        shutil.rmtree(tree)


def test_the_work_folder_is_gone_afterwards(running: Running) -> None:
    done = running.run("sh", "-c", "pwd; touch here && ls", options=["--quiet"])
    assert done.stdout.split() == ["/work", "here"]
    assert list((running.lab.state_dir / "work").iterdir()) == []


def test_variables(running: Running) -> None:
    done = running.run(
        "sh", "-c", "echo $COLOUR $https_proxy $ALL_PROXY", options=["--env=COLOUR=red", "--quiet"]
    )
    assert done.stdout == "red http://127.0.0.1:3128\n"


def test_a_policy_of_its_own_holds_for_this_job_alone(running: Running, tmp_path: Path) -> None:
    policy = tmp_path / "own.yaml"
    policy.write_text(OWN_POLICY)
    get = "curl -s -o /dev/null -w '%{http_code} ' --max-time 10"
    script = f"{get} http://plain.example.org/bytes/10; {get} http://index.example.org/"
    done = subprocess.run(
        running.command("run", "--policy", str(policy), "--json", "--", "sh", "-c", script),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["200", "403"]
    lines = {line["host"]: line for line in json.loads(done.stderr)["destinations"]}
    assert lines["plain.example.org"]["verdict"] == "allowed"
    assert lines["plain.example.org"]["rule_id"] == "plain"
    assert lines["index.example.org"]["refused"] == {"posture.default_deny": 1}
    assert "exeat lease request --project own index.example.org:80" in lines["index.example.org"]["next"]
    decided = [r for r in running.records() if r.get("project") == "own" and r["kind"] in ("open", "deny")]
    explained = [running.json("ledger", "why", str(record["seq"])) for record in decided]
    assert [said["now"]["reason"] for said in explained] == ["rule.allow", "posture.default_deny"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--project", "nobody"], "no policy for project `nobody`"),
        (["--rw", "{job}"], "belongs to root"),
        (["--root", "{job}"], "{job} has no /bin/sh"),
        (["--root", "/usr"], "/usr lies outside of what jobs may be given"),
        (["--ro", "/etc"], "/etc lies outside of what jobs may be given ({job})"),
        (["--ro", "/nowhere"], "/nowhere: No such file or directory"),
        (["--hold", "56s"], "at most 55s"),
        (["--hold", "soon"], "--hold soon"),
        (["--env", "nothing"], "want NAME=VALUE"),
        (["--policy", "/nowhere.yaml"], "/nowhere.yaml: No such file or directory"),
    ],
)
def test_what_cannot_be_run_is_refused_with_one_line(running: Running, options: list[str], said: str) -> None:
    job = str(running.lab.job)
    words = [word.replace("{job}", job) for word in options]
    done = running.exeat("run", *words, "--", "true", check=False)
    assert done.returncode in (1, 2)
    assert said.replace("{job}", job) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert running.json("status")["jobs"] == 0


def test_a_bad_policy_starts_nothing(running: Running, tmp_path: Path) -> None:
    policy = tmp_path / "bad.yaml"
    policy.write_text("egress: v1\nproject: own\nalow: []\n")
    done = running.exeat("run", "--policy", str(policy), "--", "true", check=False)
    assert done.returncode == 1
    assert f"{policy}:3:1: " in done.stderr
    mismatch = tmp_path / "own.yaml"
    mismatch.write_text(OWN_POLICY)
    done = running.exeat("run", "--project", "crawler", "--policy", str(mismatch), "--", "true", check=False)
    assert "is for project `own`, not `crawler`" in done.stderr


def test_an_approval_lets_a_waiting_flow_go_on(running: Running) -> None:
    job = running.job(
        "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "https://files.downloads.example.com/bytes/10",
        options=["--hold=30s", "--quiet"],
    )  # fmt: skip
    lease = wait_for(lambda: [row["id"] for row in running.json("lease", "ls") if "files" in row["to"][0]])[0]
    assert running.exeat("why", "files.downloads.example.com", check=False).returncode == 1
    running.exeat("lease", "approve", lease, "--ttl", "5m", "--why", "tested")
    out, _ = job.communicate(timeout=30)
    assert out == "200"
    assert running.exeat("why", "files.downloads.example.com").returncode == 0
    shown = running.json("lease", "show", lease)
    assert (shown["state"], shown["approvals"], shown["ttl_ms"]) == ("active", ["root"], 300_000)


def test_many_jobs_at_once_do_not_mix(running: Running) -> None:
    jobs = [running.job("sh", "-c", f"echo {n}; exit {n}", options=["--quiet"]) for n in range(12)]
    for number, job in enumerate(jobs):
        out, _ = job.communicate(timeout=60)
        assert (out, job.returncode) == (f"{number}\n", number)


UDP_POLICY = """
egress: v1
project: own
allow:
  - {id: datagrams, to: plain.example.org, ports: 7000, proto: udp}
"""
UDP_ORIGIN = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 7000))
print("ready", flush=True)
data, peer = sock.recvfrom(100)
sock.sendto(data * 2, peer)
"""
UDP_CLIENT = """
import socket
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    tcp = socket.create_connection((address, 1080), 10)
    tcp.sendall(bytes.fromhex("050100 05030001 00000000 0000"))
    reply = tcp.recv(2) + tcp.recv(64)
    port = int.from_bytes(reply[-2:], "big")
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.settimeout(30)
    head = bytes((0, 0, 0, 3, 17)) + b"plain.example.org" + (7000).to_bytes(2, "big")
    if family == socket.AF_INET:
        udp.sendto(head + b"hello", (address, port))
        print(udp.recv(100).removeprefix(head).decode())
    else:
        print(address, port)
"""


def test_datagrams_by_association(running: Running, tmp_path: Path) -> None:
    policy = tmp_path / "udp.yaml"
    policy.write_text(UDP_POLICY)
    www = running.lab.namespace("www")
    origin = subprocess.Popen(
        ["ip", "netns", "exec", www, sys.executable, "-c", UDP_ORIGIN], stdout=subprocess.PIPE, text=True
    )
    try:
        assert origin.stdout is not None
        assert origin.stdout.readline() == "ready\n"
        words = ("run", "--policy", str(policy), "--json", "--", "/usr/bin/python3", "-c", UDP_CLIENT)
        done = running.exeat(*words)
    finally:
        origin.kill()
        origin.communicate()
    assert done.stdout.splitlines() == ["hellohello", "::1 3128"]
    [line] = json.loads(done.stderr)["destinations"]
    assert (line["host"], line["bytes_out"], line["bytes_in"]) == ("plain.example.org", 5, 10)


def ends(running: Running) -> list[tuple[str, int]]:
    """Reason and code of the jobs that ended, as the ledger has them."""
    records = [record for record in running.records(200) if record["kind"] == "job"]
    return [(r["reason_code"], r.get("count", 0)) for r in records if r["decision"] == "exit"]


LIMITED = [
    # limits, command, exit code, reason, what is said
    ("time=300ms", ["sleep", "600"], 124, ("timeout", 137), "its time is up"),
    ("memory=32MiB", ["python3", "-c", "x = b'x' * 99_000_000"], 137, ("oom", 137), "more memory"),
    ("pids=8", ["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9; do sleep 9 & done"], 2, ("exited", 2), "fork"),
    ("tmp=1MiB", ["dd", "if=/dev/zero", "of=/tmp/x", "bs=64K", "count=64"], 1, ("exited", 1), "No space"),
    ("work=1MiB", ["dd", "if=/dev/zero", "of=x", "bs=64K", "count=64"], 1, ("exited", 1), "No space"),
    ("file=1MiB", ["sh", "-c", "ulimit -f; exec head -c 2000000 /dev/zero >x"], 153, ("exited", 153), ""),
    ("files=70", ["sh", "-c", "ulimit -n; ulimit -Hn; exit 4"], 4, ("exited", 4), ""),
]


@pytest.mark.parametrize(
    ("limits", "command", "code", "ended", "said"), LIMITED, ids=[row[0] for row in LIMITED]
)
def test_a_job_at_its_limits(
    running: Running, limits: str, command: list[str], code: int, ended: tuple[str, int], said: str
) -> None:
    done = running.run(*command, options=[f"--limits={limits}", "--quiet"])
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert ends(running)[-1] == ended
    assert done.stdout in ("", "70\n70\n", "2048\n")


def test_half_a_processor(running: Running) -> None:
    """The kernel counts how often it had to wait for its turn."""
    burn = "import time; end = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    script = f"import time; begin = time.monotonic()\n{burn}\nprint(time.monotonic() - begin)"
    done = running.run("python3", "-c", script, options=["--limits=cpu=0.25", "--quiet"])
    assert float(done.stdout) > 1.0, "four tenths of a second of work at a quarter of a processor"


@pytest.mark.parametrize(
    ("limits", "code", "said"),
    [
        ("memory=1TiB", 1, "this node gives at most"),
        ("memory=1KiB", 1, "at least"),
        ("colour=3", 2, "a limit is NAME=VALUE"),
        ("cpu=much", 2, "not a number of processors"),
    ],
)
def test_limits_that_are_refused(running: Running, limits: str, code: int, said: str) -> None:
    done = running.run("true", options=[f"--limits={limits}"])
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_start_and_end_are_on_the_ledger_without_arguments_and_variables(running: Running) -> None:
    done = running.run(
        "sh", "-c", "exit 7 # hush", options=["--quiet", "--env=TOKEN=hush", "--limits=pids=64"]
    )
    assert done.returncode == 7
    start, end = [record for record in running.records(200) if record["kind"] == "job"][-2:]
    assert (start["decision"], start["detail"]) == ("start", "sh, standard-net, pids=64")
    assert (end["decision"], end["reason_code"], end["count"]) == ("exit", "exited", 7)
    assert start["job"] == end["job"]
    assert start["policy_digest"] == end["policy_digest"] != ""
    assert "hush" not in json.dumps([start, end])


def test_without_a_network_there_is_the_proxys_socket_and_nothing_else(running: Running) -> None:
    script = """
import os, socket
print(os.listdir("/run/exeat"))
for family, kind, place in (
    (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 1080)),
    (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 3129)),
    (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)),
    (socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 443)),
):
    with socket.socket(family, kind) as sock:
        print(sock.connect_ex(place))
try: print(socket.getaddrinfo("plain.example.org", 80))
except OSError as error: print("no names")
"""
    done = running.run("python3", "-c", script, options=["--network=none", "--quiet"])
    assert done.stdout.splitlines() == ["['proxy.sock']", *["111"] * 4, "no names"], done.stderr


def test_without_a_network_the_proxys_port_leads_to_its_socket(running: Running) -> None:
    script = "curl -s http://plain.example.org/; curl -s -o /dev/null -w '%{http_code}\\n' http://paste.example.net/"
    script += "; curl -s -o /dev/null -w '%{http_code}\\n' https://api.example.org/bytes/1000000; exit 5"
    done = running.run("sh", "-c", script, options=["--network=none", "--quiet"])
    assert done.returncode == 5, done.stderr
    assert done.stdout.splitlines()[-2:] == ["403", "200"], done.stderr
    assert "An origin of the exeat lab." in done.stdout
    assert {r["src"].partition("/")[2] for r in running.records(9) if r["kind"] in ("open", "deny")} == {
        "proxyu"
    }
    assert running.run("no-such-command", options=["--network=none", "--quiet"]).returncode == 127


def test_without_a_network_a_gateway_that_comes_back_opens_the_one_door_again(running: Running) -> None:
    script = "echo up; read word; curl -s -o /dev/null -w '%{http_code}\\n' --retry 9 --retry-all-errors http://plain.example.org/"
    job = subprocess.Popen(
        running.command("run", "--quiet", "--project", "crawler", "--network=none", "--", "sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdin is not None
    assert job.stdout is not None
    assert job.stdout.readline() == "up\n"
    for process in ("proxy", "guard"):
        running.kill(process)
    wait_for(running.healed)
    out, _ = job.communicate("go\n", timeout=60)
    assert out == "200\n"


def test_what_enforces_is_on_the_ledger_as_anybody_finds_it(running: Running) -> None:
    """Digests of the rules in the job's jail, of its policy and of the program: on record, and made again."""
    jails = running.lab.appliance_run / "warden" / "netns"
    wait_for(lambda: not any(jails.iterdir()))
    process = running.job("sleep", "30")

    def attested() -> list[dict[str, object]]:
        return [each for each in running.records(200) if each["kind"] == "attest"]

    try:
        (name,) = wait_for(lambda: [path.name for path in jails.iterdir()])
        in_jail = wait_for(lambda: next((each for each in attested() if each.get("job") == name), None))
        shell = f"nsenter --net={jails / name} nft -s -n list ruleset | sha256sum"
        rules = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout[:64]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    node = next(each for each in attested() if not each.get("job"))
    said = [json.loads(bytes.fromhex(str(each["data"]))) for each in (in_jail, node)]
    assert [(each["where"], each["rules"]) for each in said] == [("jail", rules), ("host", "")]
    program = running.exeat("version", "--digest").stdout.strip()
    assert {each["program"] for each in said} == {program}
    assert in_jail["policy_digest"] == _digest_in_force(running, plan.PROJECT)
    assert in_jail["decision"] == node["decision"] == "first"


def _digest_in_force(running: Running, project: str) -> str:
    policies = [each for each in running.records(1000) if each["kind"] == "policy"]
    return str([each for each in policies if each.get("project") == project][-1]["policy_digest"])
