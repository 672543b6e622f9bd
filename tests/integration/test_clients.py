"""What ordinary clients do in a jail: get out where allowed, show why not, and wait for a person.

The clients are the machine's own. What each shows of a refusal is written down as it is: most
print the reason phrase of the CONNECT answer, some only its status, SOCKS has a number.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.running import Running, wait_for

from exeat.appliance.lab.content import PACKAGE, REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

DENIED, ASKED = "paste.example.net", "downloads.example.com"
REASON = "an operator must change rule exfiltration [rule.deny]"
PAGE = "An origin of the exeat lab"
CA = "$SSL_CERT_FILE"
OUR_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINE_PYTHON = subprocess.run(
    ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
    capture_output=True,
    text=True,
    check=False,
).stdout.strip()


@dataclass(frozen=True)
class Client:
    """`command` with HOST in it; `works` and `shows` are what it prints when let out and when refused."""

    command: str
    works: str = PAGE
    shows: str = REASON
    allowed: str = "index.example.org"
    asked: str = ASKED
    works_code: int = 0  # of a client whose request the lab's origin cannot satisfy

    @property
    def program(self) -> str:
        return self.command.split()[0]

    def to(self, host: str) -> str:
        return self.command.replace("HOST", host)


def python(code: str) -> str:
    return f'python3 -c "{code}"'


AIOHTTP = """
import aiohttp, asyncio, ssl
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get('https://HOST/', ssl=ssl.create_default_context()) as answer:
            print(await answer.text())
asyncio.run(main())
"""
CLIENTS = {
    "curl": Client("curl -sS https://HOST/", shows="CONNECT tunnel failed, response 403"),
    "curl-http": Client(
        "curl -sS http://HOST/", allowed="plain.example.org", asked="", shows='"reason_code":"rule.deny"'
    ),
    "curl-socks": Client(
        "curl -sS --proxy socks5h://127.0.0.1:1080 https://HOST/", shows=f"connection to {DENIED}. (2)"
    ),
    "wget": Client(f"wget -nv -O- --tries=1 --ca-certificate={CA} https://HOST/"),
    "git": Client(
        f"git -c http.sslCAInfo={CA} ls-remote https://HOST/git/{REPOSITORY}.git",
        works="refs/heads/",
        shows="CONNECT tunnel failed, response 403",
        allowed="git.example.org",
    ),
    "git-http": Client(
        f"git ls-remote http://HOST/git/{REPOSITORY}.git",
        works="refs/heads/",
        shows="The requested URL returned error: 403",
        allowed="plain.example.org",
        asked="",
    ),
    "pip": Client(  # without -vv it says only that there is no such package
        f"pip download -vv --no-cache-dir --no-deps --cert {CA} --retries 0 -d /tmp"
        f" -i https://HOST/simple {PACKAGE}",
        works="Successfully downloaded",
    ),
    "npm": Client(
        f"npm view nothing --registry https://HOST/ --cafile={CA} --fetch-retries=0 --cache /tmp/npm",
        works="404 Not Found - GET https://HOST/nothing",
        works_code=1,
    ),
    "urllib": Client(python("import urllib.request as u; print(u.urlopen('https://HOST/').read())")),
    "requests": Client(python(f"import requests; print(requests.get('https://HOST/', verify='{CA}').text)")),
    "aiohttp": Client(python(AIOHTTP)),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("cln")
    _give_aiohttp(made)
    yield made
    made.close()


def _give_aiohttp(running: Running) -> None:
    """Put our own aiohttp where jobs can read it: the machine's Python need not have it."""
    site = running.lab.job / "site"
    for name in (
        "aiohttp",
        "aiohappyeyeballs",
        "aiosignal",
        "attr",
        "frozenlist",
        "idna",
        "multidict",
        "propcache",
        "yarl",
    ):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.submodule_search_locations is not None
        shutil.copytree(found.submodule_search_locations[0], site / name)
    extra = Path(sysconfig.get_path("purelib")) / "typing_extensions.py"
    if extra.exists():
        shutil.copy(extra, site)


def is_here(program: str) -> bool:
    return shutil.which(program, path="/usr/bin:/bin") is not None


# `./dev setup` installs curl, git, pip and requests; of the others, those that the machine has.
HERE = {
    name: client
    for name, client in CLIENTS.items()
    if is_here(client.program) and (name != "aiohttp" or MACHINE_PYTHON == OUR_PYTHON)
}
WAITING = [name for name, client in HERE.items() if client.asked]  # the policy asks for no plain HTTP


def options(running: Running, *more: str) -> list[str]:
    return ["--quiet", f"--env=PYTHONPATH={running.lab.job}/site", *more]


@pytest.mark.parametrize("name", HERE)
def test_a_client_gets_out_where_it_may(running: Running, name: str) -> None:
    client = HERE[name]
    done = running.run("sh", "-c", client.to(client.allowed), options=options(running))
    assert client.works.replace("HOST", client.allowed) in done.stdout + done.stderr
    assert done.returncode == client.works_code


@pytest.mark.parametrize("name", HERE)
def test_a_client_shows_why_it_was_refused(running: Running, name: str) -> None:
    client = HERE[name]
    done = running.run("sh", "-c", client.to(DENIED), options=options(running))
    assert client.shows in done.stdout + done.stderr
    refused = [r for r in running.records() if r["kind"] == "deny" and r["reason_code"] == "rule.deny"]
    assert any(r["dest"]["host"] == DENIED for r in refused)


@pytest.mark.parametrize("name", WAITING)
def test_a_client_waits_for_a_person(running: Running, name: str) -> None:
    client = HERE[name]
    job = running.job("sh", "-c", client.to(client.asked), options=options(running, "--hold=30s"))
    asked = wait_for(lambda: [i for i in running.json("lease", "ls") if i["state"] == "requested"])
    assert job.poll() is None
    running.exeat("lease", "approve", asked[0]["id"], "--ttl", "5m")
    out, err = job.communicate(timeout=30)
    running.exeat("lease", "revoke", asked[0]["id"])
    assert client.works.replace("HOST", client.asked) in out + err
    assert job.returncode == client.works_code


NODE = """
fetch('https://index.example.org/').then(answer => answer.text()).then(
    text => console.log(text), error => console.log('refused', error.cause.code));
"""


if is_here("node"):

    def test_node_needs_to_know_no_proxy(running: Running) -> None:
        """Before version 22.21 its fetch does not; what it does by itself is redirected."""
        done = running.run(
            "node", "-e", NODE, options=["--quiet", f"--env=NODE_EXTRA_CA_CERTS={running.lab.job}/ca.pem"]
        )
        assert PAGE in done.stdout
