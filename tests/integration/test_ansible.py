"""The collection, on two hosts with a systemd of their own: rolled out, again, badly, and taken off."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tests.support.hosts import Hosts, cached, run, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.network, pytest.mark.slow]  # pip and mmdebstrap fetch packages

REPO = Path(__file__).resolve().parents[2]
COLLECTION = REPO / "ansible"
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "build", "dist", "*.egg-info", "*.so"
)
PYTHON = "/usr/bin/python3"  # as on the hosts, whose suite is this machine's
POLICY = """\
egress: v1
project: crawler
posture: allowlist
allow:
  - {id: index, to: [packages.example.com]}
"""
CONFIG = """
[node]
name = "{{ inventory_hostname }}"
[dns]
upstream = ["192.0.2.53:53"]
[policy]
dir = "/etc/exeat/policies"
"""
HOST_VARIABLES = {
    "ansible_user": "root",
    "ansible_python_interpreter": PYTHON,
    "ansible_ssh_common_args": "-F none -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no",
    "node_health_settle": 1,
    "node_health_project": "crawler",
    "node_extra_units": ["exeat-verify.timer"],
}


class Play(NamedTuple):
    """What a play did: exit code, all it printed, and the sums for each host."""

    code: int
    text: str
    stats: dict[str, dict[str, int]]

    def changed(self) -> dict[str, int]:
        assert self.code == 0, self.text[-6000:]
        return {host: sums["changed"] for host, sums in self.stats.items()}


class Desk:
    """The machine from which hosts are rolled out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        place = folder / "collections/ansible_collections/exeat"
        place.mkdir(parents=True)
        (place / "appliance").symlink_to(COLLECTION)
        (folder / "crawler.yaml").write_text(POLICY)
        self.wheel, self.wheels = wheels(folder)
        self.variables: dict[str, object] = {
            **HOST_VARIABLES,
            "ansible_ssh_private_key_file": str(self.key),
            "node_wheelhouse": str(self.wheels),
            "node_policies": [str(folder / "crawler.yaml")],
            "node_config": CONFIG,
        }

    def environment(self) -> dict[str, str]:
        programs = Path(sys.executable).parent
        own = {
            "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "home/tmp"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "ssh"),
            "LC_ALL": "C.UTF-8",
        }
        return {**os.environ, **own}

    def play(self, hosts: Hosts, name: str, wheel: Path, *options: str, **variables: object) -> Play:
        """Run a play of the collection in the hosts' `control` namespace."""
        said = {**self.variables, "node_wheel": str(wheel), **variables}
        there = {each.name: {"ansible_host": each.address} for each in hosts.hosts.values()}
        inventory = self.folder / "inventory.json"
        inventory.write_text(json.dumps({"exeat_nodes": {"hosts": there, "vars": said}}))
        words = ["ansible-playbook", "-i", inventory, f"exeat.appliance.{name}", *options]
        return self.start("ip", "netns", "exec", hosts.control, *words)

    def start(self, *words: object) -> Play:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        return Play(done.returncode, done.stdout + done.stderr, recap(done.stdout))


def recap(text: str) -> dict[str, dict[str, int]]:
    """The sums below PLAY RECAP: {host: {ok: n, changed: n, ...}}."""
    _, _, lines = text.partition("PLAY RECAP")
    found = {}
    for line in lines.splitlines():
        host, colon, sums = line.partition(" : ")
        if colon:
            found[host.strip()] = {
                key: int(n) for key, _, n in (pair.partition("=") for pair in sums.split())
            }
    return found


def wheels(folder: Path) -> tuple[Path, Path]:
    """Our wheel, from the tree as it is, and an archive of those it depends on."""
    copy = folder / "tree"
    shutil.copytree(REPO, copy, symlinks=True, ignore=NOT_SOURCE)
    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, copy, timeout=300)
    (wheel,) = folder.glob("exeat-*.whl")

    def download(place: Path) -> None:
        run(*pip, "download", "--only-binary=:all:", "--dest", place, wheel, timeout=300)
        (place / wheel.name).unlink()
        run("tar", "-cf", place / "wheels.tar", "-C", place, *(path.name for path in place.glob("*.whl")))

    said = (REPO / "pyproject.toml").read_bytes() + sys.version.encode()
    with cached(f"wheels-{hashlib.sha256(said).hexdigest()[:12]}", download) as place:
        shutil.copy(place / "wheels.tar", folder)
    return wheel, folder / "wheels.tar"


def broken(wheel: Path, folder: Path) -> Path:
    """The same as a later version whose proxy ends as it starts."""
    folder.mkdir()
    bad = folder / wheel.name.replace("exeat-0.1.0", "exeat-0.1.1")
    with zipfile.ZipFile(wheel) as good, zipfile.ZipFile(bad, "w") as made:
        for name in good.namelist():
            data = good.read(name)
            if name == "exeat/proxy/server.py":
                data = b'raise SystemExit("broken on purpose")\n'
            elif name.endswith("dist-info/METADATA"):
                data = data.replace(b"\nVersion: 0.1.0\n", b"\nVersion: 0.1.1\n")
            made.writestr(name.replace("exeat-0.1.0.dist-info", "exeat-0.1.1.dist-info"), data)
    return bad


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def hosts(desk: Desk) -> Iterator[Hosts]:
    with tree() as root:
        made = Hosts(("h1", "h2"), root, desk.key)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def first_run(desk: Desk, hosts: Hosts) -> Play:
    return desk.play(hosts, "site", desk.wheel)


def in_force(hosts: Hosts) -> dict[str, str]:
    return {name: host.inside("readlink", "/opt/exeat").strip() for name, host in hosts.hosts.items()}


def test_the_collection_is_clean_by_the_strictest_profile(desk: Desk) -> None:
    place = desk.folder / "collections/ansible_collections/exeat/appliance"
    done = subprocess.run(
        ["ansible-lint", "--offline", "--profile=production", "--strict", "--nocolor"],
        cwd=place,
        env=desk.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_node_can_be_looked_at_first(desk: Desk, hosts: Hosts) -> None:
    looked = desk.play(hosts, "site", desk.wheel, "--check", "--limit=h1")
    assert looked.changed()["h1"] > 0
    assert hosts.hosts["h1"].inside("find", "/opt", "-name", "exeat*") == ""


def test_nodes_are_rolled_out_and_run_jobs(first_run: Play, hosts: Hosts) -> None:
    assert first_run.changed().keys() == {"h1", "h2"}
    for name, host in hosts.hosts.items():
        status = json.loads(host.inside("/opt/exeat/bin/exeat", "status", "--json"))
        assert (status["node"], status["projects"]) == (name, ["crawler"])
        job = host.inside(
            "/opt/exeat/bin/exeat", "run", "--quiet", "--project", "crawler", "--", "echo", name
        )
        assert job.strip() == name
        assert (
            host.inside("systemctl", "is-enabled", "exeat.target", "exeat-verify.timer").split()
            == ["enabled"] * 2
        )
        host.inside("/opt/exeat/bin/exeat", "ledger", "verify")


def test_a_second_run_changes_nothing(first_run: Play, desk: Desk, hosts: Hosts) -> None:
    first_run.changed()
    assert desk.play(hosts, "site", desk.wheel).changed() == {"h1": 0, "h2": 0}


def test_a_bad_release_stops_at_the_first_node_and_is_taken_back(
    first_run: Play, desk: Desk, hosts: Hosts
) -> None:
    first_run.changed()
    before = in_force(hosts)
    bad = broken(desk.wheel, desk.folder / "bad")
    config = CONFIG.replace("192.0.2.53", "192.0.2.54")  # comes with it, and goes with it
    done = desk.play(hosts, "site", bad, node_health_retries=4, node_config=config)
    assert done.code != 0
    assert "Ask whether the node is whole" in done.text
    assert f"back on {Path(before['h1']).name}" in done.text
    assert "h2" not in done.stats, done.text[-3000:]
    assert in_force(hosts) == before
    assert "192.0.2.53" in hosts.hosts["h1"].inside("cat", "/etc/exeat/exeat.toml")
    hosts.hosts["h1"].inside("/opt/exeat/bin/exeat", "run", "--quiet", "--project", "crawler", "--", "true")


def test_a_wider_policy_waits_for_a_second_person(first_run: Play, desk: Desk, hosts: Hosts) -> None:
    first_run.changed()
    wider = desk.folder / "wider/crawler.yaml"
    wider.parent.mkdir()
    wider.write_text(POLICY + "  - {id: files, to: [files.example.com]}\n")
    alone = desk.play(hosts, "site", desk.wheel, "--limit=h1", node_policies=[str(wider)])
    assert alone.code != 0
    assert "a second person must agree" in alone.text
    assert hosts.hosts["h1"].inside("cat", "/etc/exeat/policies/crawler.yaml") == POLICY


def test_what_is_not_there_is_not_gone_back_to(first_run: Play, desk: Desk, hosts: Hosts) -> None:
    first_run.changed()
    done = desk.play(hosts, "rollback", desk.wheel, "--limit=h2")
    assert done.code != 0
    assert "there is no release before the one in force" in done.text


def test_uninstalled_it_leaves_the_evidence(first_run: Play, desk: Desk, hosts: Hosts) -> None:
    first_run.changed()
    assert desk.play(hosts, "uninstall", desk.wheel, "--limit=h2").changed()["h2"] > 0
    host = hosts.hosts["h2"]
    assert host.inside("find", "/opt", "/run", "/etc/systemd", "-name", "exeat*") == ""
    assert host.inside("sh", "-c", "pgrep -u exeat,exeat-ledger,exeat-control || true") == ""
    assert host.inside("ls", "/var/lib/exeat/ledger") != ""
    assert host.inside("ls", "/etc/exeat") == "exeat.toml\npolicies\n"


def test_prometheus_gets_a_configuration_that_it_accepts(desk: Desk) -> None:
    """On this machine, in a folder: promtool judges each file before it is in its place."""
    place, token = desk.folder / "prometheus", desk.folder / "token"
    place.mkdir()
    token.write_text("not a real one")
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": PYTHON,
        "prometheus_targets": ["10.77.0.11:8440"],
        "prometheus_token_file": str(token),
        "prometheus_alertmanagers": ["127.0.0.1:9093"],
        "prometheus_dir": str(place),
        "prometheus_service": "",
    }
    inventory = desk.folder / "watch.json"
    inventory.write_text(json.dumps({"exeat_prometheus": {"hosts": {"localhost": {}}, "vars": variables}}))
    command = ("ansible-playbook", "-i", inventory, "exeat.appliance.site")
    first, second = desk.start(*command), desk.start(*command)
    assert (first.changed(), second.changed()) == ({"localhost": 3}, {"localhost": 0})
    assert "SUCCESS" in run("promtool", "check", "config", place / "prometheus.yml")
