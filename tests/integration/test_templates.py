"""Jobs by template, as people run them."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.running import Running

from exeat.appliance import template
from exeat.appliance.lab import plan

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.root

CHROMIUM = Path("/usr/lib/chromium/chromium")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("tmpl")
    yield made
    made.close()


def by_template(running: Running, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    options = words[: words.index("--")] if "--" in words else ()
    command = words[words.index("--") + 1 :] if "--" in words else words
    return running.exeat("run", "--quiet", "--template", name, *options, "--", *command, check=False)


SOCKETS = """
import socket, sys
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    try: socket.socket(family); print(family.name)
    except OSError as error: print(error.errno)
"""


@pytest.mark.parametrize(
    ("name", "sockets"),
    [
        ("code-executor", "38 38 AF_UNIX"),
        ("policy-sandbox", "38 38 AF_UNIX"),
        ("integration-test", "AF_INET AF_INET6 AF_UNIX"),
        ("ai-provider", "AF_INET AF_INET6 AF_UNIX"),
    ],
)
def test_profile_limits_and_policy_are_the_templates(running: Running, name: str, sockets: str) -> None:
    done = by_template(running, name, "python3", "-c", SOCKETS)
    assert (done.returncode, " ".join(done.stdout.split())) == (0, sockets), done.stderr
    start = [record for record in running.records(50) if record["kind"] == "job"][-2]
    assert (start["project"], "memory=" in start["detail"]) == (name, True)


def test_what_a_person_says_goes_before_the_template(running: Running) -> None:
    options = ("--limits=pids=24", "--profile=standard", f"--project={plan.PROJECT}")
    assert by_template(running, "integration-test", *options, "--", "true").returncode == 0
    start = [record for record in running.records(50) if record["kind"] == "job"][-2]
    assert start["project"] == plan.PROJECT
    assert "standard, memory=4294967296, pids=24," in start["detail"]


SERVER = """
import http.server, threading, urllib.request
server = http.server.HTTPServer(("127.0.0.1", 8080), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen("http://127.0.0.1:8080/").status)
try: urllib.request.urlopen("http://plain.example.org/")
except OSError as error: print(error.code)
"""


def test_an_integration_test_reaches_its_own_servers_only(running: Running) -> None:
    done = by_template(running, "integration-test", "python3", "-c", SERVER)
    assert done.stdout.split() == ["200", "403"], done.stderr


def test_models_may_be_asked_and_nobody_else(running: Running) -> None:
    """No model answers in the lab: the guard says that there is no such name, and policy let it ask."""
    script = (
        "for host in api.openai.com plain.example.org; do curl -sv https://$host/ 2>&1 | grep -i '< x-'; done"
    )
    assert by_template(running, "ai-provider", "sh", "-c", script).returncode in (0, 1)
    refused = {
        record["dest"]["host"]: record["reason_code"]
        for record in running.records(50)
        if record["kind"] == "deny" and record["project"] == "ai-provider"
    }
    assert refused["plain.example.org"] == "posture.default_deny"
    assert refused["api.openai.com"].startswith("dns.")


# The image keeps the page loading until it has said what came of its worker.
SERVICE_WORKER = """
import http.server, threading
told = threading.Event()
PAGE = b\"\"\"<img src=/slow><p id=said></p><script>
navigator.serviceWorker.register("/worker.js").then(() => "registered", error => error.name).then(
  text => { said.textContent = text; fetch("/told") })
</script>\"\"\"

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/told": told.set()
        if self.path == "/slow": told.wait(30)
        self.send_response(200)
        kind = "text/javascript" if self.path == "/worker.js" else "text/html"
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(PAGE if self.path == "/" else b"")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
open("/tmp/up", "w").close()
server.serve_forever()
"""

# Not on every distribution is there a Chromium that needs no daemon; where it is, it is tried.
if CHROMIUM.exists() and shutil.which("python3"):

    def test_a_browser_shows_the_text_of_a_page_and_goes_through_the_policy(running: Running) -> None:
        options = (f"--project={plan.PROJECT}", "--")
        text = by_template(running, "browser", *options, "http://plain.example.org/")
        assert (text.returncode, text.stdout) == (0, "An origin of the exeat lab.\n"), text.stderr
        opened = {r["dest"]["host"] for r in running.records(100) if r["kind"] == "open"}
        assert opened == {"plain.example.org"}

    def test_a_page_has_no_service_worker(running: Running, tmp_path: Path) -> None:
        """With a server in the job itself: only there, and by https, may a page ask for one."""
        own = tmp_path / "own.yaml"
        text = template.text_of("browser")
        server = f"mkfifo /tmp/up; python3 -c '{SERVICE_WORKER}' & : </tmp/up\n"
        own.write_text(text.replace("shell: |\n", f"shell: |\n{textwrap.indent(server, '  ')}"))
        done = by_template(running, str(own), "--project", plan.PROJECT, "--", "http://127.0.0.1:8080/")
        assert (done.returncode, done.stdout) == (0, "AbortError\n"), done

    def test_a_browser_that_is_given_no_page(running: Running) -> None:
        done = by_template(running, "browser", f"--project={plan.PROJECT}", "--", "file:///etc/passwd")
        assert (done.returncode, "not a URL" in done.stderr) == (2, True)


def test_a_template_that_is_not_there(running: Running) -> None:
    done = by_template(running, "brwoser", "true")
    assert (done.returncode, "there are: ai-provider, browser" in done.stderr) == (2, True)
