"""The lab's small Internet with a console in it, people, and jobs that move bytes: for pictures and figures.

The console listens on the gateway node's loopback. Whoever wants to see it has to be in that namespace:
`inside` starts a module of the bench again, there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import requests

from exeat.appliance.lab import manage, plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PORT: Final = 8440
ORIGIN: Final = f"http://127.0.0.1:{PORT}"
# This checkout's own: another one on this machine has its own, too.
_TAG: Final = hashlib.sha256(__file__.encode()).hexdigest()[:6]
LAB: Final = plan.Lab.named(
    f"exl{_TAG}-", Path(f"/run/exeat-lab-{_TAG}-con"), Path(f"/var/lib/exeat-lab-{_TAG}-con")
)
PEOPLE: Final = {"anna": "approver", "adam": "admin", "olga": "operator", "vera": "viewer"}
POLICIES: Final = {
    "research": """egress: v1
project: research
allow:
  - {id: index, to: index.example.org}
  - {id: api, to: api.example.org}
  - {id: pages, to: "*.cdn.example.org"}
ask:
  - {id: data, to: .downloads.example.com, ttl: 2h, max_ttl: 8h}
deny:
  - {id: paste, to: [paste.example.net, .exfil.example.net]}
""",
    "evals": """egress: v1
project: evals
allow:
  - {id: git, to: git.example.org}
  - {id: api, to: api.example.org}
ask:
  - {id: any, to: .example.com, ttl: 1h}
""",
}


@contextmanager
def running(policies: Mapping[str, str] = POLICIES, more: str = "") -> Iterator[None]:
    """The lab with an appliance that has a console."""
    manage.up(LAB, appliance=False)
    try:
        text = LAB.config.read_text()
        LAB.config.write_text(re.sub(r'(?m)^listen = ""', f'listen = "127.0.0.1:{PORT}"', text) + more)
        for name, policy in policies.items():
            (LAB.policies / f"{name}.yaml").write_text(policy)
        manage.start_appliance(LAB)
        for name, role in PEOPLE.items():
            exeat("user", "add", name, "--role", role)
        yield
    finally:
        manage.down(LAB)


def inside(module: str, *words: str) -> int:
    """Run `python -m MODULE WORDS` in the gateway node's network; its exit code."""
    enter = ["nsenter", f"--net={LAB.namespace_path('gw')}"]
    return subprocess.run([*enter, sys.executable, "-m", module, *words], check=False).returncode


def command(*words: str) -> list[str]:
    return [sys.executable, "-I", "-m", "exeat", "--config", str(LAB.config), *words]


def exeat(*words: str) -> str:
    """The output of a command that must succeed."""
    return subprocess.run(command(*words), check=True, capture_output=True, text=True).stdout


def job_command(project: str, script: str, *options: str) -> list[str]:
    """A shell script as a job, with the lab's CA where curl looks for it."""
    trust = [f"--env=CURL_CA_BUNDLE={LAB.job}/ca.pem", "--ro", str(LAB.job)]
    return command("run", "--project", project, "--quiet", *trust, *options, "--", "sh", "-c", script)


def script(module: str, *words: str) -> str:
    """The command of a job that runs a module of the bench by itself, with the system's Python."""
    copied = shutil.copy(Path(__file__).with_name(f"{module}.py"), LAB.job)
    return shlex.join(["exec", "/usr/bin/python3", str(copied), *words])


def job(project: str, script: str, *options: str) -> subprocess.Popen[bytes]:
    """`job_command`, started, without what it says."""
    words = job_command(project, script, *options)
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Api:
    """The API as one of PEOPLE, by a token."""

    def __init__(self, name: str) -> None:
        scopes = ["read", "requests.ask", "requests.decide", "leases.keep"]
        token = exeat("token", "create", name, *(word for scope in scopes for word in ("--scope", scope)))
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {token.strip()}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._session.request(method, f"{ORIGIN}/api/v1{path}", json=body, timeout=30)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def ask(self, project: str, to: str, reason: str, **more: Any) -> Any:
        return self.call("POST", "/requests", {"project": project, "to": to, "reason": reason, **more})

    def approve(self, row: Mapping[str, Any], ttl_s: int) -> Any:
        path = f"/requests/{quote(row['id'], safe='')}/approve"
        return self.call("POST", path, {"version": row["version"], "ttl_s": ttl_s})

    def pending(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", "/requests?state=pending&limit=500")["items"]
        return found


def link(name: str) -> str:
    """An address that signs somebody in, once."""
    return str(json.loads(exeat("console", "login", name, "--json"))["url"])
