"""The lab as a real thing: made by the command, used from its gateway's place, taken down again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rcode
import pytest
from tests.support.running import wait_for

from exeat.appliance.lab import content, manage, network, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

PREFIX = "exlt-"
NAMES = {
    "index.example.org": plan.NORTH4,
    "git.example.org": plan.NORTH4,
    "downloads.example.com": plan.SOUTH4,
    "crowd.cdn.example.org": "203.0.113.200",
}
RESOLVE = [part for name, address in NAMES.items() for part in ("--resolve", f"{name}:443:{address}")]


def lab_at(folder: Path) -> plan.Lab:
    return plan.Lab.named(PREFIX, folder / "exeat-lab-run", folder / "exeat-lab-state")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[plan.Lab]:
    made = lab_at(tmp_path_factory.mktemp("lab"))
    manage.up(made, appliance=False)
    yield made
    manage.down(made)


def at_gateway(lab: plan.Lab, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command where the appliance would stand; the machine's own proxy settings stay out."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["nsenter", f"--net={lab.namespace_path('gw')}", *command],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=environment | options.pop("env", {}),
        **options,
    )


def curl(lab: plan.Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return at_gateway(
        lab, "curl", "-sS", "-g", "--max-time", "8", "--cacert", str(lab.ca), *RESOLVE, *arguments
    )


def events(lab: plan.Lab, service: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lab.events(service).read_text().splitlines()]


def closed(lab: plan.Lab, request: str) -> dict[str, Any]:
    def find() -> dict[str, Any] | None:
        ends = [e for e in events(lab, "origin") if e["ev"] == "close"]
        return next((e for e in ends if any(request in r for r in e["requests"])), None)

    found: dict[str, Any] = wait_for(find)
    return found


# -- the origins ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_origin_has_a_certificate_for_its_names(lab: plan.Lab, name: str) -> None:
    assert "An origin of the exeat lab" in curl(lab, f"https://{name}/").stdout


def test_ipv6_reaches_the_same_origins(lab: plan.Lab) -> None:
    done = curl(lab, "--resolve", f"index.example.org:443:[{plan.NORTH6}]", "https://index.example.org/")
    assert "An origin" in done.stdout


def test_bytes_are_as_many_as_asked_and_known(lab: plan.Lab) -> None:
    count = 3_000_001
    target = lab.run_dir / "fetched"
    assert curl(lab, "-o", str(target), f"https://downloads.example.com/bytes/{count}").returncode == 0
    want = (bytes(range(256)) * (count // 256 + 1))[:count]
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(want).digest()


def test_slow_bytes_come_at_about_the_rate_asked(lab: plan.Lab) -> None:
    done = curl(
        lab,
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
        "https://downloads.example.com/bytes/20000?rate=100000",
    )
    assert done.stdout == "20000"
    assert closed(lab, "/bytes/20000?rate")["ms"] >= 150


@pytest.mark.parametrize("path", ["/bytes/-1", "/bytes/", "/bytes/1?rate=x", "/bytes/٣"])
def test_malformed_counts_are_refused(lab: plan.Lab, path: str) -> None:
    assert (
        curl(lab, "-o", "/dev/null", "-w", "%{http_code}", f"https://downloads.example.com{path}").stdout
        == "400"
    )


@pytest.mark.parametrize(
    "headers", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]]
)
def test_an_upload_is_answered_with_its_size(lab: plan.Lab, headers: list[str], tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * 70_001)
    done = curl(lab, *headers, "-T", str(body), "https://downloads.example.com/upload")
    assert done.stdout == "70001\n"


@pytest.mark.parametrize(
    "path", ["/../pki/ca.pem", "/%2e%2e/pki/north.key", "//etc/passwd", "/files/../../lab.toml"]
)
def test_no_file_outside_the_root_is_served(lab: plan.Lab, path: str) -> None:
    done = curl(
        lab, "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", f"https://index.example.org{path}"
    )
    assert done.stdout == "404"


def test_an_origin_counts_the_bytes_of_its_socket(lab: plan.Lab) -> None:
    """A raw client on plain HTTP knows both numbers itself."""
    ask = b"GET /bytes/54321 HTTP/1.1\r\nHost: plain.example.org\r\nConnection: close\r\n\r\n"
    script = (
        "import socket,sys; s=socket.create_connection((sys.argv[1],80)); s.sendall(sys.argv[2].encode());"
        "print(sum(len(d) for d in iter(lambda: s.recv(65536), b'')))"
    )
    got = int(at_gateway(lab, sys.executable, "-I", "-c", script, plan.NORTH4, ask.decode()).stdout)
    end = closed(lab, "/bytes/54321")
    assert (end["received"], end["sent"], end["ended"]) == (len(ask), got, "eof")


def test_a_tls_client_sees_the_same_counts_as_the_origin(lab: plan.Lab) -> None:
    script = Path(__file__).with_name("lab_tls_client.py")
    done = at_gateway(
        lab, sys.executable, "-I", str(script), str(lab.ca), plan.NORTH4, "index.example.org", "77777"
    )
    assert done.returncode == 0, done.stderr
    sent, received = map(int, done.stdout.split())
    end = closed(lab, "/bytes/77777")
    assert (end["received"], end["sent"]) == (sent, received)
    assert end["sni"] == "index.example.org"


def test_pip_installs_from_the_index(lab: plan.Lab, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    done = at_gateway(
        lab, "unshare", "--mount", "sh", "-c",
        'mount --bind "$1" /etc/hosts && exec python3 -I -m pip --isolated install --no-cache-dir --quiet'
        ' --target "$2" --cert "$3" --index-url https://index.example.org/simple --no-input lab-greeting',
        "sh", str(_hosts(tmp_path)), str(tmp_path / "got"), str(lab.ca),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert content.GREETING in (tmp_path / "got" / "lab_greeting" / "__init__.py").read_text()


def test_git_clones_over_plain_file_serving(lab: plan.Lab, tmp_path: Path) -> None:
    target = tmp_path / "clone"
    done = at_gateway(
        lab, "unshare", "--mount", "sh", "-c", 'mount --bind "$1" /etc/hosts && exec git clone -q "$2" "$3"',
        "sh", str(_hosts(tmp_path)), f"https://git.example.org/git/{content.REPOSITORY}.git", str(target),
        # Without a name of its own git would ask the network for this machine's.
        env={"GIT_SSL_CAINFO": str(lab.ca), "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t.example"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Field notes" in (target / "README.md").read_text()


def _hosts(folder: Path) -> Path:
    path = folder / "hosts"
    path.write_text("".join(f"{address} {name}\n{plan.NORTH6} {name}\n" for name, address in NAMES.items()))
    return path


# -- names ------------------------------------------------------------------------------------


_ASK = """
import dns.message, dns.query, sys
name, kind, server, udp_only = sys.argv[1:]
query = dns.message.make_query(name, kind, use_edns=0, payload=1232)
if udp_only == "1":
    answer = dns.query.udp(query, server, timeout=3)
else:
    answer, _ = dns.query.udp_with_fallback(query, server, timeout=3)
print(answer.to_wire().hex())
"""


def ask(lab: plan.Lab, name: str, kind: str = "A", *, udp_only: bool = False) -> dns.message.Message:
    done = at_gateway(lab, sys.executable, "-I", "-c", _ASK, name, kind, plan.DNS4, str(int(udp_only)))
    assert done.returncode == 0, done.stderr
    return dns.message.from_wire(bytes.fromhex(done.stdout))


def texts(message: dns.message.Message) -> list[str]:
    return sorted(item.to_text() for rrset in message.answer for item in rrset)


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "want"),
    [
        ("index.example.org", "A", "NOERROR", [plan.NORTH4]),
        ("InDeX.ExAmPlE.oRg", "AAAA", "NOERROR", [plan.NORTH6]),
        ("api.example.org", "A", "NOERROR", [plan.NORTH4, "api.edge.example.net.", "pop1.edge.example.net."]),
        ("any.thing.cdn.example.org", "A", "NOERROR", [plan.NORTH4]),
        ("six.cdn.example.org", "A", "NOERROR", []),
        ("private.cdn.example.org", "A", "NOERROR", ["10.20.0.5"]),
        ("below.private.cdn.example.org", "A", "NXDOMAIN", []),
        ("mixed.cdn.example.org", "A", "NOERROR", ["10.20.0.5", plan.NORTH4]),
        ("metadata.cdn.example.org", "A", "NOERROR", [plan.METADATA4]),
        ("nat64.cdn.example.org", "AAAA", "NOERROR", ["64:ff9b::a9fe:a9fe"]),
        ("mapped.cdn.example.org", "AAAA", "NOERROR", ["::ffff:10.20.0.5"]),
        ("secret-data.exfil.example.net", "A", "NOERROR", [plan.EVIL4]),
        ("cdn.example.org", "A", "NOERROR", []),
        ("nobody.example.org", "A", "NXDOMAIN", []),
        ("elsewhere.test", "A", "REFUSED", []),
    ],
)
def test_the_zones_answer(lab: plan.Lab, name: str, kind: str, rcode: str, want: list[str]) -> None:
    got = ask(lab, name, kind)
    assert dns.rcode.to_text(got.rcode()) == rcode
    assert texts(got) == sorted(want)


def test_a_flipping_name_flips_and_must_not_be_kept(lab: plan.Lab) -> None:
    first, second = ask(lab, "flip.cdn.example.org"), ask(lab, "flip.cdn.example.org")
    assert {*texts(first), *texts(second)} == {plan.NORTH4, plan.METADATA4}
    assert first.answer[0].ttl == 0


def test_a_large_answer_is_cut_on_udp_and_whole_on_tcp(lab: plan.Lab) -> None:
    import dns.flags

    assert ask(lab, "many.cdn.example.org", udp_only=True).flags & dns.flags.TC
    assert len(texts(ask(lab, "many.cdn.example.org"))) == 1 + 62


def test_every_query_is_on_the_log(lab: plan.Lab) -> None:
    ask(lab, "CoUnTeD.cdn.example.org")
    logged = [e for e in events(lab, "nameserver") if e.get("name", "").lower() == "counted.cdn.example.org"]
    assert [(e["proto"], e["qtype"], e["name"]) for e in logged] == [("udp", "A", "CoUnTeD.cdn.example.org")]


# -- the hostile host -------------------------------------------------------------------------


def test_the_metadata_address_gives_credentials_away(lab: plan.Lab) -> None:
    assert "LAB-STOLEN" in curl(lab, f"http://{plan.METADATA4}/latest/meta-data/iam/").stdout


@pytest.mark.parametrize(
    "address", [plan.EVIL4, "10.1.2.3", "192.0.2.77", f"[{plan.EVIL6}]", "[fd00:ec2::254]"]
)
def test_whatever_nobody_owns_ends_at_the_hostile_host(lab: plan.Lab, address: str) -> None:
    assert curl(lab, f"http://{address}/loot?a=1").stdout == "thank you\n"
    wait_for(lambda: [e for e in events(lab, "hostile") if e["ev"] == "taken" and "/loot" in e["data"]])


def test_its_certificate_convinces_nobody(lab: plan.Lab) -> None:
    done = curl(lab, "--resolve", f"index.example.org:443:{plan.EVIL4}", "https://index.example.org/")
    assert done.returncode == 60


def test_a_packet_without_a_listener_is_seen_too(lab: plan.Lab) -> None:
    script = (
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.99', 4444))"
    )
    at_gateway(lab, sys.executable, "-I", "-c", script)
    seen = wait_for(lambda: [e for e in events(lab, "hostile") if e.get("target") == "192.0.2.99"])
    assert (seen[0]["protocol"], seen[0]["port"]) == (17, 4444)


def test_traffic_between_others_is_not_taken_for_its_own(lab: plan.Lab) -> None:
    curl(lab, "https://downloads.example.com/")
    assert not [e for e in events(lab, "hostile") if e.get("target") in (plan.SOUTH4, plan.NORTH4, plan.DNS4)]


# -- up and down ------------------------------------------------------------------------------


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    where = [
        "--prefix",
        "exlu-",
        "--lab-dir",
        f"{folder}/exeat-lab-r",
        "--lab-state-dir",
        f"{folder}/exeat-lab-s",
    ]
    script = (
        "import argparse, sys; from exeat.appliance.commands import lab; p = argparse.ArgumentParser();"
        "lab.register(p.add_subparsers()); a = p.parse_args(['lab', *sys.argv[1:]]); sys.exit(a.handler(a))"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", script, words[0], *where, *words[1:]],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def traces(folder: Path) -> list[str]:
    """Whatever a lab leaves on a machine, by every name it could have."""
    found = [name for name in os.listdir("/run/netns") if name.startswith("exlu-")]
    found += [str(path) for path in folder.iterdir()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in line and "exeat.appliance.lab." in line:
                found.append(line)
    return found


def test_up_twice_and_down_twice_leave_nothing(tmp_path: Path) -> None:
    try:
        for _ in range(2):
            done = command(tmp_path, "up", "--no-appliance")
            assert done.returncode == 0, done.stderr
            assert "exlu-gw" in done.stdout
            assert "exeat lab down" in done.stdout
    finally:
        first, second = command(tmp_path, "down"), command(tmp_path, "down")
    assert (first.returncode, second.returncode) == (0, 0)
    assert traces(tmp_path) == []


def test_down_cleans_up_after_everything_was_killed(tmp_path: Path) -> None:
    assert command(tmp_path, "up", "--no-appliance").returncode == 0
    pids = [int(f.read_text().split()[0]) for f in (tmp_path / "exeat-lab-r" / "pid").iterdir()]
    assert len(pids) == 3
    for pid in pids[:2]:
        os.kill(pid, signal.SIGKILL)
    for file in (tmp_path / "exeat-lab-r" / "pid").iterdir():
        file.unlink()  # the third service runs on and nobody remembers it
    assert command(tmp_path, "down").returncode == 0
    assert traces(tmp_path) == []


def test_a_pid_file_of_a_process_that_is_gone_kills_nobody(tmp_path: Path) -> None:
    lab = lab_at(tmp_path)
    lab.pid_file("appliance").parent.mkdir(parents=True)
    bystander = subprocess.Popen(["sleep", "30"])
    try:
        lab.pid_file("appliance").write_text(f"{bystander.pid} 1\n")
        manage.down(lab)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_failed_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = plan.Lab.named("exlu-", tmp_path / "exeat-lab-r", tmp_path / "exeat-lab-s")
    broken = tuple(
        plan.Node(n.name, n.addresses, n.commands, "nosuchservice" if n.name == "dns" else n.service)
        for n in plan.NODES
    )
    monkeypatch.setattr(plan, "NODES", broken)
    with pytest.raises(manage.LabError, match="nosuchservice did not start"):
        manage.up(lab, appliance=False)
    assert network.namespaces(lab) == []
    assert [path.name for path in tmp_path.iterdir()] == ["exeat-lab-r-failed"]
    manage.down(lab)
    assert list(tmp_path.iterdir()) == []


def test_a_second_command_at_the_same_time_is_told_to_wait(tmp_path: Path) -> None:
    lab = lab_at(tmp_path)
    with manage._lock(lab), pytest.raises(manage.LabError, match="another"):
        manage.down(lab)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--prefix", "eth"),
        ("--prefix", "exl-;"),
        ("--lab-dir", "/"),
        ("--lab-dir", "exeat-lab"),
        ("--lab-state-dir", "/etc/../exeat-lab/.."),
    ],
)
def test_unusable_names_and_folders_are_refused(tmp_path: Path, option: str, value: str) -> None:
    assert (
        command(tmp_path, "down", option, value).returncode == 1
    )  # UsageError: exit 2 through the real main
    assert traces(tmp_path) == []
