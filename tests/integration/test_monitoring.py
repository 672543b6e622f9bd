"""The console watched from outside: Debian's own Prometheus and Alertmanager, and `exeat events`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.support.console import ConsoleRig
from tests.support.events_spec import SPEC, valid
from tests.support.receivers import Web, web_server
from tests.support.running import wait_for

from exeat.appliance.console.journal import Event, Follower

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SHIPPED = Path(__file__).resolve().parents[2] / "appliance" / "metrics" / "prometheus"


@pytest.fixture(scope="module")
def hook() -> Iterator[Web]:
    """What `[[notify]]` sends to."""
    with web_server() as web:
        yield web


@pytest.fixture(scope="module")
def rig(hook: Web) -> Iterator[ConsoleRig]:
    said = f'[[notify]]\nname = "hook"\nto = "{hook.url}"\nprojects = ["q"]\ntopics = ["requests"]\nlink = "https://c.example"\n'
    made = ConsoleRig(said)
    yield made
    made.close()


def scrape(rig: ConsoleRig, token: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name of a sample, and by its labels' values."""
    answer = rig.http("GET", "/metrics", None, {"Authorization": f"Bearer {token}"})
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def token_of(rig: ConsoleRig, name: str, *scopes: str) -> str:
    words = [word for scope in scopes for word in ("--scope", scope)]
    return str(json.loads(rig.exeat("token", "create", name, *words, "--json"))["token"])


def test_a_token_may_be_for_metrics_and_nothing_else(rig: ConsoleRig) -> None:
    token = token_of(rig, "vera", "metrics.read")
    seen = scrape(rig, token)
    assert seen["exeat_process_up"]["console",] == 1
    assert seen["exeat_process_up"]["ledger",] == 1
    other = rig.http("GET", "/api/v1/requests", None, {"Authorization": f"Bearer {token}"})
    assert other.status == 403
    assert rig.http("GET", "/metrics", None, {}).status == 401


def test_of_projects_those_that_one_sees(rig: ConsoleRig) -> None:
    """The label says who; a number about nobody is everybody's."""
    everybody = scrape(rig, token_of(rig, "vera", "metrics.read"))
    quin = scrape(rig, token_of(rig, "quin", "metrics.read"))
    assert {project for _, project in everybody["exeat_posture_info"]} == {"open", "p", "q"}
    assert {project for _, project in quin["exeat_posture_info"]} == {"q"}
    assert quin["exeat_kill_switch"] == everybody["exeat_kill_switch"]


def test_wrong_credentials_are_counted_by_how(rig: ConsoleRig) -> None:
    token = token_of(rig, "vera", "metrics.read")
    before = scrape(rig, token).get("exeat_auth_failures_total", {})
    assert rig.http("GET", "/metrics", None, {"Authorization": "Bearer nonsense"}).status == 401
    body = json.dumps({"name": "vera", "password": "wrong"}).encode()
    sent = {"Content-Type": "application/json", "Origin": rig.origin}
    assert rig.http("POST", "/api/v1/session", body, sent).status == 401
    after = scrape(rig, token)["exeat_auth_failures_total"]
    for method in ("token", "password"):
        assert after[method,] == before.get((method,), 0) + 1


def test_what_the_whole_ledger_was_found_to_be_is_told(rig: ConsoleRig) -> None:
    rig.exeat("ledger", "verify", "--note")
    seen = scrape(rig, token_of(rig, "vera", "metrics.read"))
    assert seen["exeat_ledger_verify_ok"][()] == 1
    assert seen["exeat_ledger_last_verified_timestamp_seconds"][()] > 1.7e9


# --- events


def events(rig: ConsoleRig, *words: str) -> list[Event]:
    lines = rig.exeat("events", "--json", *words).splitlines()
    return [Event(**json.loads(line)) for line in lines]


def test_what_people_do_is_an_event_and_can_be_read_again(rig: ConsoleRig) -> None:
    watcher = Follower(rig.state_dir / "console" / "events", None)
    rig.exeat("lease", "request", "--project", "p", "api.github.com:443", "--as", "olga")
    [lease] = json.loads(rig.exeat("lease", "ls", "--project", "p", "--json"))
    rig.exeat("lease", "approve", lease["id"], "--as", "anna")
    rig.exeat("lease", "revoke", lease["id"], "--as", "anna")
    rig.exeat("kill", "on", "--project", "q", "--reason", "a test", "--as", "adam")
    rig.exeat("kill", "off", "--project", "q", "--as", "adam")
    found: list[Event] = []

    def told() -> bool:
        found.extend(watcher.poll())
        return any(event.data.get("what") == "kill.off" for event in found)

    wait_for(told)
    assert [(event.topic, event.data.get("state", event.data.get("what"))) for event in found] == [
        ("requests", "requested"),
        ("requests", "active"),
        ("leases", "active"),
        ("leases", "revoked"),
        ("admin", "kill.on"),
        ("admin", "kill.off"),
    ]
    assert [event.data["actor"] for event in found if event.topic == "requests"] == ["olga", "anna"]
    for event in found:
        valid(event.topic, event.data)
    first = found[0].id
    assert events(rig, "--since", str(first)) == found[1:]
    assert events(rig, "--since", str(first), "--topic", "admin") == found[-2:]
    assert "kill.off" in rig.exeat("events").splitlines()[-1]


def test_a_job_and_its_lookups_and_flows_are_events(rig: ConsoleRig) -> None:
    watcher = Follower(rig.state_dir / "console" / "events", None)
    rig.exeat(
        "run", "--project", "p", "--", "sh", "-c", "getent hosts no.invalid; curl -s https://192.0.2.1/; true"
    )
    found: list[Event] = []

    def told() -> bool:
        found.extend(watcher.poll())
        return {"jobs", "dns", "flows"} <= {event.topic for event in found} and any(
            event.data.get("what") == "exit" for event in found
        )

    wait_for(told)
    [denied] = [event for event in found if event.topic == "flows" and event.data["ev"] == "deny"]
    assert (denied.data["project"], denied.data["dest"]) == ("p", "192.0.2.1:443")
    looked_up = [event.data["host"] for event in found if event.topic == "dns"]
    assert looked_up == ["no.invalid"]
    for event in found:
        valid(event.topic, event.data)


def test_the_description_of_the_events_is_served(rig: ConsoleRig) -> None:
    answer = rig.http("GET", "/spec/asyncapi.yaml")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/yaml; charset=utf-8")
    assert yaml.safe_load(answer.body) == SPEC


# --- notifications


def request(rig: ConsoleRig, host: str) -> None:
    rig.exeat("lease", "request", "--project", "q", f"{host}.example.net:443", "--as", "olga")


def test_who_is_to_know_of_a_request_is_told_and_nothing_is_lost(rig: ConsoleRig, hook: Web) -> None:
    assert rig.exeat("notify", "test").strip() == "hook: sent"
    assert json.loads(hook.take()[1])["data"] == {"kind": "test"}
    request(rig, "first")
    first = json.loads(hook.take()[1])
    assert (first["topic"], first["data"]["state"]) == ("requests", "requested")
    assert first["link"] == "https://c.example/#/inbox"
    hook.answers = [(503, {}, b"")]  # it is away for a moment, and then we are
    request(rig, "second")
    assert "second" in json.loads(hook.take()[1])["text"]
    os.kill(rig.pid_of("notify"), signal.SIGKILL)
    request(rig, "third")
    texts: dict[str, str] = {}  # by id: what was under way when it was killed may come twice
    while not texts or "third" not in [*texts.values()][-1]:
        notice = json.loads(hook.take()[1])
        texts.setdefault(notice["id"], notice["text"])
    assert [text.partition("asks for ")[2].partition(".")[0] for text in texts.values()] == [
        "second",
        "third",
    ]
    wait_for(lambda: json.loads(rig.exeat("notify", "--json"))[0]["waiting"] == 0)


# --- Prometheus and Alertmanager


class Hooks(BaseHTTPRequestHandler):
    """What Alertmanager sends, by the path it is sent to."""

    heard: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.heard.append((self.path, json.loads(self.rfile.read(length))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def webhooks() -> Iterator[tuple[int, list[tuple[str, dict[str, Any]]]]]:
    heard: list[tuple[str, dict[str, Any]]] = []
    handler = type("Handler", (Hooks,), {"heard": heard})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def started(*command: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def quick_rules(folder: Path) -> Path:
    """The shipped alerts, looked at each second and told at once."""
    rules = yaml.safe_load((SHIPPED / "rules.yaml").read_text())
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule.pop("for", None)
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(rules))
    return path


def prometheus_config(rig: ConsoleRig, folder: Path, alertmanager: int) -> Path:
    """The shipped example, for this console."""
    config = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(quick_rules(folder))]
    [job] = config["scrape_configs"]
    (folder / "exeat.token").write_text(token_of(rig, "vera", "metrics.read"))
    job["authorization"]["credentials_file"] = str(folder / "exeat.token")
    job |= {"scheme": "http", "static_configs": [{"targets": [f"127.0.0.1:{rig.port}"]}]}
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def alertmanager_config(folder: Path, hooks: int) -> Path:
    text = (SHIPPED / "alertmanager.yaml").read_text().replace("127.0.0.1:9095", f"127.0.0.1:{hooks}")
    path = folder / "alertmanager.yaml"
    path.write_text(text)
    return path


def asked(port: int, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None


def firing(port: int) -> set[str]:
    said = asked(port, "alerts") or {"alerts": []}
    return {alert["labels"]["alertname"] for alert in said["alerts"] if alert["state"] == "firing"}


def test_a_real_prometheus_scrapes_and_an_alert_reaches_whom_it_concerns(
    rig: ConsoleRig, tmp_path: Path
) -> None:
    at, mail = free_port(), free_port()
    data = tmp_path / "data"
    with webhooks() as (hooks, heard):
        watch = (
            "prometheus",
            f"--config.file={prometheus_config(rig, tmp_path, mail)}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address=127.0.0.1:{at}",
        )
        tell = (
            "prometheus-alertmanager",
            f"--config.file={alertmanager_config(tmp_path, hooks)}",
            f"--storage.path={tmp_path / 'am'}",
            f"--web.listen-address=127.0.0.1:{mail}",
            "--cluster.listen-address=",
        )
        with started(*tell), started(*watch):
            wait_for(lambda: (asked(at, "query?query=exeat_build_info") or {}).get("result"), 30)
            pid = rig.pid_of("ledger")
            os.kill(pid, signal.SIGSTOP)  # it hangs, as on a disk that does
            try:
                wait_for(lambda: "ExeatLedgerBroken" in firing(at), 30)
                wait_for(lambda: sent(heard, "/on-call"), 30)
            finally:
                os.kill(pid, signal.SIGCONT)
            wait_for(lambda: "ExeatLedgerBroken" not in firing(at), 30)
    alert = sent(heard, "/on-call")[0]
    assert "cannot record" in alert["annotations"]["summary"]
    assert sent(heard, "/people") == []


def sent(heard: list[tuple[str, dict[str, Any]]], path: str) -> list[dict[str, Any]]:
    """The alert about the ledger, as often as it was sent to this path; a slow machine may bring others."""
    alerts = [alert for at, said in heard if at == path for alert in said["alerts"]]
    return [alert for alert in alerts if alert["labels"]["alertname"] == "ExeatLedgerBroken"]
