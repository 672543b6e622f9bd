"""A running appliance with its console on a free port of loopback, and people who use it.

`exeat up` in the network namespace it is started in, without doors for clients: what asks are people
(`ask`), or jobs (`exeat run`). Start it once for a file of tests.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.up import bring_down, bring_up, child_serving

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

PASSWORD = "correct horse battery"
POLICIES = {
    # As open as a policy can be: what a jail cannot reach even so is what nothing opens.
    "open": "egress: v1\nproject: open\nposture: public\nallow:\n"
    "  - {id: own, to: [127.0.0.0/8, localhost], ports: any, private: true}\n",
    "p": "egress: v1\nproject: p\nask:\n  - {id: gh, to: .github.com, ttl: 30m, max_ttl: 1h}\n"
    "  - {id: two, to: two.example.org, approvals: 2}\n",
    "q": "egress: v1\nproject: q\nask:\n  - {id: any, to: .example.net, ttl: 30m}\n",
}
# One person of each role, and one who sees only project q.
PEOPLE = {
    "vera": ("viewer", ()),
    "olga": ("operator", ()),
    "anna": ("approver", ()),
    "adam": ("admin", ()),
    "audi": ("auditor", ()),
    "quin": ("approver", ("q",)),
}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage  # whatever the case of a name; None for one that is not there
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Person:
    """Somebody who calls the API: by a token, or as a browser with a cookie."""

    def __init__(self, rig: ConsoleRig, headers: Mapping[str, str] | None = None) -> None:
        self._rig = rig
        self.headers = dict(headers or {})

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own. `path` is below /api/v1, or whole from `//`."""
        sent = {**self.headers, **{key.replace("_", "-"): value for key, value in headers.items()}}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        return self._rig.http(method, path[1:] if path.startswith("//") else f"/api/v1{path}", data, sent)

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.call("POST", path, body, **headers)


class ConsoleRig:
    """`more` is added to the configuration, in [console], with `{port}` as its port; `policies` are texts
    by project. `prepare` makes files in the rig's folder before the start. With `trust` it is called by
    TLS."""

    def __init__(
        self,
        more: str = "",
        policies: Mapping[str, str] | None = None,
        prepare: Callable[[Path], str] = lambda _: "",
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.trust = trust
        # Not below pytest's folder, which is 0700: the service users must get in.
        self.base = Path(tempfile.mkdtemp(prefix="exeat-console-"))
        self.base.chmod(0o755)
        (self.base / "policies").mkdir()
        for name, text in (policies or POLICIES).items():
            (self.base / "policies" / f"{name}.yaml").write_text(text)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.config = self.base / "exeat.toml"
        self.config.write_text(
            f'[node]\nname = "n1"\n'
            f'[paths]\nstate_dir = "{self.base}/state"\nrun_dir = "{self.base}/run"\n'
            f'[policy]\ndir = "{self.base}/policies"\n'
            f'[dns]\nupstream = ["127.0.0.1:9"]\n'  # nobody: no test here asks for a name
            f'[console]\nlisten = "127.0.0.1:{self.port}"\n'
            f"{prepare(self.base)}{more.replace('{port}', str(self.port))}"
        )
        self._tokens: dict[str, Person] = {}
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.process = bring_up(self.config)
            for name, (role, projects) in PEOPLE.items():
                only = [word for project in projects for word in ("--project", project)]
                self.exeat("user", "add", name, "--role", role, *only)
        except BaseException:
            self.close()
            raise

    @property
    def origin(self) -> str:
        return f"{'http' if self.trust is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def state_dir(self) -> Path:
        return self.base / "state"

    @property
    def run_dir(self) -> Path:
        return self.base / "run"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-I", "-m", "exeat", "--config", str(self.config), *words]

    def exeat(self, *words: str, stdin: str = "") -> str:
        """The output of a command that must succeed."""
        command = self.command(*words)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"exeat {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def http(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            if self.trust is None
            else http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.trust)
        )
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def pid_of(self, name: str) -> int:
        """The child `exeat serve NAME` of our own `exeat up`, 0 while there is none."""
        assert self.process is not None
        return child_serving(self.process.pid, name)

    def nobody(self) -> Person:
        return Person(self)

    def person(self, name: str) -> Person:
        """One of PEOPLE, with a token for all that their role may."""
        if name not in self._tokens:
            from exeat.appliance.console.permissions import PERMISSIONS

            scopes = [word for scope in PERMISSIONS for word in ("--scope", scope)]
            token = self.exeat("token", "create", name, *scopes).strip()
            self._tokens[name] = Person(self, {"Authorization": f"Bearer {token}"})
        return self._tokens[name]

    def browser(self, name: str) -> Person:
        """One of PEOPLE, signed in by a link, with cookie and CSRF header."""
        link = json.loads(self.exeat("console", "login", name, "--json"))["link"]
        answer = self.nobody().post("/session", {"link": link}, Origin=self.origin)
        assert answer.status == 200, answer.body
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        csrf = answer.json["csrf"]
        return Person(self, {"Cookie": cookie, "X-CSRF-Token": csrf, "Origin": self.origin})

    def ask(self, to: str = "api.github.com:443", project: str = "p", by: str = "olga") -> Any:
        """A request that somebody makes; the row of the API."""
        answer = self.person(by).post("/requests", {"project": project, "to": to, "reason": "to test"})
        assert answer.status == 201, answer.body
        return answer.json

    def close(self) -> None:
        code = bring_down(self.process) if self.process else 0
        shutil.rmtree(self.base)
        assert code == 0
