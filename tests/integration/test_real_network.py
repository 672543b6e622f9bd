"""One job on the machine's own network: pip downloads a package through the gateway.

Which hosts the machine's package index has is read from pip's configuration at run time and
stands nowhere in this repository. Its addresses may be private (a mirror), so the rule says so.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.running import own_tag

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.network]

EXEAT = [sys.executable, "-I", "-m", "exeat"]
RUN, STATE = (Path(f"{place}/exeat-test-{own_tag('net')}") for place in ("/run", "/var/lib"))
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def pip(folder: Path) -> list[str]:
    return [
        "/usr/bin/python3", "-m", "pip", "-vvv", "download", "--no-deps", "--no-cache-dir",
        "--dest", str(folder), "six",
    ]  # fmt: skip


def pip_settings() -> dict[str, str]:
    """Which index this machine's pip uses, as environment variables that mean the same in a jail."""
    settings = {"PIP_CONFIG_FILE": "/dev/null", "PIP_CERT": CERTIFICATES}
    for name in ("index-url", "extra-index-url"):
        done = subprocess.run(
            ["/usr/bin/python3", "-m", "pip", "config", "get", f"global.{name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        # Only what a jailed job can reach: a file:// index lies outside.
        urls = [url for url in done.stdout.split() if url.startswith("https://")]
        if urls:
            settings[f"PIP_{name.upper().replace('-', '_')}"] = " ".join(urls)
    return settings


def index_hosts(folder: Path) -> list[str]:
    """The hosts that pip connects to on this machine, as it says itself."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **pip_settings()}
    done = subprocess.run(
        pip(folder), capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    hosts = re.findall(r"Starting new HTTPS connection \(\d+\): ([a-z0-9.-]+):443", done.stdout)
    return sorted(set(hosts))


def resolver() -> str:
    """The machine's resolver, as ADDRESS:PORT."""
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        words = line.split()
        if words[:1] == ["nameserver"]:
            return f"[{words[1]}]:53" if ":" in words[1] else f"{words[1]}:53"
    raise AssertionError("this machine has no resolver")


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Path]:
    """`exeat up` on the machine's own network; yields its configuration."""
    hosts = index_hosts(tmp_path)
    RUN.mkdir(mode=0o755)
    policies = RUN / "policies"
    policies.mkdir()
    allowed = json.dumps(hosts)
    rule = f"allow: [{{id: index, to: {allowed}, private: true, why: the machine's package index}}]"
    (policies / "net.yaml").write_text(f"egress: v1\nproject: net\n{rule}\n")
    config = RUN / "exeat.toml"
    config.write_text(
        f"[paths]\nstate_dir = '{STATE}'\nrun_dir = '{RUN}/appliance'\n"
        f"[console]\nlisten = ''\n[dns]\nupstream = ['{resolver()}']\n[policy]\ndir = '{policies}'\n"
    )
    process = subprocess.Popen([*EXEAT, "--config", str(config), "up"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "exeat: up" in process.stdout.readline()
        yield config
    finally:
        process.terminate()
        process.communicate(timeout=30)
        for folder in (RUN, STATE):
            shutil.rmtree(folder, ignore_errors=True)


def test_pip_downloads_through_the_gateway(appliance: Path) -> None:
    environment = [f"--env={name}={value}" for name, value in pip_settings().items()]
    done = subprocess.run(
        [*EXEAT, "--config", str(appliance), "run", "--json", *environment, "--", *pip(Path("/work"))],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Successfully downloaded six" in done.stdout
    lines = json.loads(done.stderr.splitlines()[-1])["destinations"]
    assert {line["verdict"] for line in lines} == {"allowed"}
    assert sum(line["bytes_in"] for line in lines) > 10_000
