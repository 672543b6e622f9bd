"""Streams of records to file, syslog, webhook and OTLP: all of them, in order, across failures and kills."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.ledgers import DEST, record, wait_for
from tests.support.receivers import PATIENCE_S, numbers, syslog_server, web_server

from exeat.appliance.cli import main
from exeat.appliance.config import load
from exeat.appliance.lab import pki
from exeat.appliance.ledger_config import Stream
from exeat.appliance.stream.events import Event, otlp, syslog
from exeat.appliance.stream.follow import BATCH, Streaming
from exeat.appliance.stream.marks import Marks
from exeat.appliance.stream.sinks import SinkError
from exeat.ledger.records import Dest, Kind, Record, encode
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = re.compile(
    r"<(1(?:0[4-9]|1[01]))>1 [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z n1 exeat - ([a-z]+) - (\{.*\})"
)


class World:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.state = base / "state"
        self.store = Store.create(self.state / "ledger" / "abc", "exeat/n1", 1, segment_bytes=16384)
        self.config = base / "exeat.toml"
        self.size = 0

    def grow(self, count: int, **fields: Any) -> None:
        base = {"project": "p1", "dest": DEST, "decision": "deny", "reason_code": "rule.deny", **fields}
        for _ in range(count):
            self.store.append([record(Kind.DENY, **base)], 1)
        self.size += count

    def configure(self, to: str, **more: str) -> None:
        text = f'[node]\nname = "n1"\n[paths]\nstate_dir = "{self.state}"\n[[ledger.stream]]\nname = "s"\n'
        text += f'to = "{to}"\n' + "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
        self.config.write_text(text)

    def streaming(self) -> Streaming:
        config = load(self.config)
        (self.state / "stream").mkdir(exist_ok=True)
        return Streaming(config, config.ledger.stream[0], threading.Event())

    def run(self, *argv: str) -> int:
        return main(["--config", str(self.config), "ledger", *argv])


def drain(streaming: Streaming) -> None:
    while streaming.turn():
        pass


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_a_file_gets_every_record_once_and_goes_on_after_rotation(world: World) -> None:
    out = world.base / "out.jsonl"
    world.configure(f"file:{out}", begin="start")
    world.grow(BATCH + 7)
    first = world.streaming()
    drain(first)
    assert numbers(out.read_bytes()) == list(range(BATCH + 7))
    out.rename(world.base / "old.jsonl")
    world.grow(5)
    drain(first)
    drain(world.streaming())  # another start goes on at the position
    assert numbers(out.read_bytes()) == list(range(BATCH + 7, BATCH + 12))
    event = json.loads(out.read_bytes().splitlines()[0])
    assert event["ledger"] == "abc"
    assert event["dest"]["host"] == DEST.host


def test_half_a_line_does_not_spoil_the_next(world: World) -> None:
    out = world.base / "out.jsonl"
    out.write_bytes(b'{"half')
    world.configure(f"file:{out}", begin="start")
    world.grow(1)
    drain(world.streaming())
    assert numbers(out.read_bytes().removeprefix(b'{"half\n')) == [0]


def test_a_new_stream_begins_now_unless_told_otherwise(world: World) -> None:
    out = world.base / "out.jsonl"
    world.configure(f"file:{out}")
    world.grow(3)
    streaming = world.streaming()
    drain(streaming)
    assert not out.exists()
    world.grow(2)
    drain(streaming)
    assert numbers(out.read_bytes()) == [3, 4]


def test_only_what_fits_is_sent_and_the_rest_is_not_read_again(world: World) -> None:
    out = world.base / "out.jsonl"
    world.configure(f"file:{out}", begin="start", host="*.example.org", project="p2")
    world.grow(3)
    world.grow(2, project="p2")
    world.grow(2, project="p2", dest=Dest("example.net", 443))
    drain(world.streaming())
    assert numbers(out.read_bytes()) == [3, 4]
    assert json.loads((world.state / "stream" / "s.abc").read_text())["next"] == 7


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_syslog_gets_framed_messages_and_none_is_lost_when_it_hangs_up(world: World, tls: bool) -> None:
    pki.create(world.base)
    certificate = world.base / "north.pem" if tls else None
    with syslog_server(certificate) as server:
        where = f"syslog+{'tls' if tls else 'tcp'}://127.0.0.1:{server.port}{'#api.example.org' * tls}"
        world.configure(where, begin="start", ca=str(world.base / "ca.pem"))
        world.grow(10)
        streaming = world.streaming()
        drain(streaming)
        seen = []
        for message in server.take(10):
            match = HEADER.fullmatch(message)
            assert match, message
            assert (int(match[1]), match[2]) == (13 * 8 + 4, "deny")
            seen.append(json.loads(match[3])["seq"])
        assert seen == list(range(10))
        server.hang_up()
        world.grow(3)
        thread = threading.Thread(target=streaming.run)
        thread.start()
        more = [json.loads(HEADER.fullmatch(message)[3])["seq"] for message in server.take(3)]  # type: ignore[index]
        assert sorted(set(more)) == [10, 11, 12]
        streaming._stop.set()
        thread.join(PATIENCE_S)


def test_syslog_of_another_name_gets_nothing(world: World) -> None:
    pki.create(world.base)
    with syslog_server(world.base / "north.pem") as server:
        where = f"syslog+tls://127.0.0.1:{server.port}#other.example.org"
        world.configure(where, begin="start", ca=str(world.base / "ca.pem"))
        world.grow(1)
        streaming = world.streaming()
        with pytest.raises(Exception, match=r"[Hh]ostname mismatch"):
            streaming.turn()
        assert server.messages.empty()
        streaming._sink.close()  # type: ignore[union-attr]


def test_a_local_syslog_socket_gets_datagrams(world: World) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(world.base / "log"))
        server.settimeout(PATIENCE_S)
        world.configure(f"syslog+unix:{world.base}/log", begin="start")
        world.grow(2)
        drain(world.streaming())
        assert [
            json.loads(HEADER.fullmatch(server.recv(65536).decode())[3])["seq"]  # type: ignore[index]
            for _ in range(2)
        ] == [0, 1]


def test_a_webhook_is_signed_and_asked_again_until_it_takes_them(world: World) -> None:
    secret = world.base / "secret"
    secret.write_bytes(b"0123456789abcdef-shared\n")
    secret.chmod(0o400)
    with web_server() as web:
        world.configure(web.url, begin="start", secret=str(secret))
        web.answers = [(503, {}, b""), (302, {"Location": web.url}, b""), (400, {}, b"")]
        world.grow(3)
        streaming = world.streaming()
        streaming._stop.wait = lambda _pause=None: False  # type: ignore[method-assign,assignment]
        thread = threading.Thread(target=streaming.run)
        thread.start()
        posts = [web.take() for _ in range(4)]
        wait_for(
            lambda: (world.state / "stream" / "s.abc").read_text().startswith('{"next": 3,'), "position kept"
        )
        streaming._stop.set()
        thread.join(PATIENCE_S)
        for headers, body in posts:
            assert numbers(body) == [0, 1, 2]
            assert headers["Exeat-First-Seq"] == "0"
            match = re.fullmatch(r"t=([0-9]+),v1=([0-9a-f]{64})", headers["Exeat-Signature"])
            assert match
            message = match[1].encode() + b"." + body
            assert hmac.new(b"0123456789abcdef-shared", message, hashlib.sha256).hexdigest() == match[2]
        assert web.posts.empty()


def test_otlp_that_refuses_a_part_is_asked_again(world: World) -> None:
    with web_server() as web:
        web.answers = [(200, {}, b'{"partialSuccess": {"rejectedLogRecords": "1"}}')]
        world.configure(f"otlp+{web.url}", begin="start")
        world.grow(2)
        streaming = world.streaming()
        with pytest.raises(Exception, match="refused 1 of the events"):
            streaming.turn()
        drain(world.streaming())
        bodies = [json.loads(web.take()[1]) for _ in range(2)]
        (logs,) = (each["scopeLogs"][0]["logRecords"] for each in bodies[1]["resourceLogs"])
        assert [log["body"]["stringValue"] for log in logs] == ["deny", "deny"]
        attributes = {each["key"]: each["value"] for each in logs[1]["attributes"]}
        assert attributes["exeat.seq"] == {"intValue": "1"}
        assert attributes["exeat.dest.host"] == {"stringValue": DEST.host}


def test_flows_are_spans_whose_trace_is_the_flow(world: World) -> None:
    flow = bytes(range(16))
    ended = Record(
        Kind.CLOSE, 9_000_000_000, 1, flow=flow, dest=DEST, duration_ms=1500, close_reason="eof", bytes_in=7
    )
    refused = Record(Kind.DENY, 1, 1, flow=b"2" * 16, dest=DEST, reason_code="posture.default_deny")
    with web_server() as web:
        web.answers = [(200, {}, b'{"partialSuccess": {"rejectedSpans": "0"}}')]
        world.configure(f"otlp-traces+{web.url}", begin="start")
        world.store.append([encode(each) for each in (ended, refused, Record(Kind.DENY, count=9))], 1)
        world.store.append([record(Kind.POLICY)], 1)
        drain(world.streaming())
        [resource] = json.loads(web.take()[1])["resourceSpans"]
        assert web.posts.empty()
    whole, failed = resource["scopeSpans"][0]["spans"]
    assert whole["traceId"] == flow.hex()
    assert len(whole["spanId"]) == 16
    assert (whole["startTimeUnixNano"], whole["endTimeUnixNano"]) == ("7500000000", "9000000000")
    assert (whole["name"], whole["status"]) == (f"{DEST.host}:{DEST.port}", {"code": 1})
    assert failed["status"] == {"code": 2, "message": "posture.default_deny"}
    assert {"key": "exeat.bytes_in", "value": {"intValue": "7"}} in whole["attributes"]


def test_killed_at_any_time_it_sends_everything_at_least_once(world: World) -> None:
    out = world.base / "out.jsonl"
    world.configure(f"file:{out}", begin="start")
    command = [sys.executable, "-m", "exeat", "--config", str(world.config), "serve", "stream"]
    for _ in range(3):
        world.grow(200)
        process = subprocess.Popen(command)
        before = out.stat().st_size if out.exists() else 0
        wait_for(lambda at=before: out.exists() and out.stat().st_size > at, "events arrive", seconds=30)
        process.send_signal(signal.SIGKILL)
        process.wait()
    world.grow(1)  # so that its arrival shows that the last one is there
    process = subprocess.Popen(command)
    wait_for(lambda: set(numbers(out.read_bytes())) == set(range(world.size)), "all arrive", seconds=30)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_a_sink_that_fails_is_shown_until_it_works(
    world: World, capsys: pytest.CaptureFixture[str], restarted: bool
) -> None:
    world.configure(f"file:{world.base}/missing/out.jsonl", begin="start")
    world.grow(4)
    streaming = world.streaming()
    streaming._stop.wait = lambda _pause=None: streaming._stop.set() or True  # type: ignore[method-assign,assignment,func-returns-value]
    streaming.run()
    assert world.run("stream", "--json") == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["next"], row["waiting"]) == (0, 4)
    assert "No such file" in row["failed"]
    (world.base / "missing").mkdir()
    if restarted:
        streaming = world.streaming()
    streaming.turn()
    assert world.run("stream") == 0
    assert "0 records behind" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("to", "file:relative"),
        ("to", "http://hooks.example.org"),
        ("to", "syslog+tcp://192.0.2.1:514"),
        ("to", "syslog+tls://192.0.2.1:6514"),
        ("to", "syslog+tls://logs.example.org:6514#logs.example.org"),
        ("to", "carrier-pigeon://roof"),
        ("kinds", ["deny", "nothing"]),
        ("secret", "../x"),
    ],
)
def test_a_wrong_stream_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        Stream(**{"name": "s", "to": "file:/x", key: value})


@pytest.mark.parametrize("mode", [0o444, 0o420])
def test_a_secret_that_others_can_read_is_refused(world: World, mode: int) -> None:
    secret = world.base / "secret"
    secret.write_bytes(b"0123456789abcdef-shared\n")
    secret.chmod(mode)
    world.configure("https://hooks.example.org/x", secret=str(secret))
    with pytest.raises(Exception, match="mode 0440 or less") as caught:
        world.streaming().turn()
    assert "0123456789" not in str(caught.value)


def test_hostile_text_stays_inside_its_message() -> None:
    hostile = Record(Kind.DENY, dest=Dest('x" <13>1 \u00e4\U0001f600', 1), detail="a" * 1024)
    message = syslog(Event("abc", 1, hostile), "n1")
    assert message.isascii()
    assert b"\n" not in message
    text = message.decode().split(" - ", 2)[2]
    assert json.loads(text)["dest"]["host"] == hostile.dest.host  # type: ignore[union-attr]
    large = Record(Kind.CLOSE, flow=b"1" * 16, bytes_out=2**64 - 1)
    (log,) = json.loads(otlp([Event("abc", 1, large)], "n1", 5))["resourceLogs"][0]["scopeLogs"][0][
        "logRecords"
    ]
    values = {each["key"]: each["value"] for each in log["attributes"]}
    assert values["exeat.bytes_out"] == {"stringValue": str(2**64 - 1)}


def test_tail_takes_the_same_words(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.configure("file:/x")
    world.grow(30)
    world.grow(1, project="p2", dest=Dest("a.example.net", 443))
    world.store.append([record(Kind.POLICY, detail="loaded")], 1)
    world.grow(30)

    def seqs(*argv: str) -> list[int]:
        assert world.run("tail", "--json", *argv) == 0
        return [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()]

    assert seqs("--project", "p2") == [30]
    assert seqs("--kind", "policy,boot") == [31]
    assert seqs("--host", "*.example.net") == [30]
    assert seqs("--kind", "deny", "-n", "2") == [60, 61]
    assert seqs("--verdict", "allow") == []
    with pytest.raises(SystemExit):
        world.run("tail", "--kind", "nothing")
    assert os.listdir(world.state) == ["ledger"]


@contextmanager
def raw_server(answer: bytes) -> Iterator[int]:
    """Takes what comes and says `answer` to everybody, until that is more than anybody reads; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, suppress(OSError):
                        sock.settimeout(PATIENCE_S)
                        sock.recv(65536)
                        sock.sendall(answer)
                        sock.shutdown(socket.SHUT_WR)
                        while sock.recv(65536):
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)


def run_until_it_fails(streaming: Streaming) -> None:
    """Run it as its thread does, up to the first failure."""
    streaming._stop.wait = lambda _pause=None: streaming._stop.set() or True  # type: ignore[method-assign,assignment,func-returns-value]
    streaming.run()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x1b[2J no HTTP\x07\r\n\r\n",
        b"HTTP/1.1 2x0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200,
        b"",
    ],
    ids=["status", "number", "headers", "nothing"],
)
def test_what_is_no_http_neither_ends_a_stream_nor_reaches_a_terminal(world: World, answer: bytes) -> None:
    with raw_server(answer) as port:
        world.configure(f"http://127.0.0.1:{port}/hook", begin="start")
        world.grow(1)
        run_until_it_fails(world.streaming())
        said = (world.state / "stream" / "s.failed").read_text()
        assert said.startswith(f"http://127.0.0.1:{port}/hook: ")
        assert said.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    "said",
    [
        b"[" * 60_000,
        b'{"partialSuccess": null}',
        b'{"partialSuccess": {"rejectedLogRecords": null}}',
        b'{"partialSuccess": {"rejectedLogRecords": [1]}}',
        b'{"partialSuccess": {"rejectedLogRecords": 1e999}}',
    ],
)
def test_an_otlp_answer_that_means_nothing_is_no_failure(world: World, said: bytes) -> None:
    with web_server() as web:
        web.answers = [(200, {}, said)]
        world.configure(f"otlp+{web.url}", begin="start")
        world.grow(1)
        drain(world.streaming())
        web.take()


def test_no_failure_at_all_ends_a_stream(world: World) -> None:
    world.configure("file:/x", begin="start")
    world.grow(1)
    streaming = world.streaming()

    class Broken:
        def send(self, _events: Any) -> None:
            raise RecursionError("\x1b[2Jdeep\udc80")

        def close(self) -> None: ...

    streaming._sink = Broken()
    run_until_it_fails(streaming)
    assert "deep" in (world.state / "stream" / "s.failed").read_text()


def test_a_syslog_server_that_talks_is_none(world: World) -> None:
    with raw_server(b"x" * 50_000_000) as port:
        world.configure(f"syslog+tcp://127.0.0.1:{port}", begin="start")
        world.grow(1)
        streaming = world.streaming()

        def send_on() -> None:
            for _ in range(1000):
                world.grow(1)
                streaming.turn()

        with pytest.raises(SinkError, match=r"talks without end"):
            send_on()
        streaming._sink.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("running", [False, True], ids=["started anew", "all the time"])
def test_numbers_that_are_given_again_are_sent_again(world: World, running: bool, capfd: Any) -> None:
    """An old copy is put back, or a power cut took the end: what comes then is not passed over."""
    out = world.base / "out.jsonl"
    world.configure(f"file:{out}", begin="start")
    streaming = world.streaming()
    for count in (6, 4):
        world.grow(count)
        drain(streaming)
        if count == 6:
            shutil.copytree(world.state / "ledger", world.base / "copy")
    world.store.close()
    shutil.rmtree(world.state / "ledger")
    shutil.copytree(world.base / "copy", world.state / "ledger")
    world.store = Store.open(world.state / "ledger" / "abc", 1, segment_bytes=16384)
    world.grow(8, project="later")
    if running:
        streaming._looked = -float("inf")
    drain(streaming if running else world.streaming())
    events = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [event["seq"] for event in events] == [*range(10), *range(6, 14)]
    assert {event["project"] for event in events[10:]} == {"later"}
    assert "record 9 is not the one that was sent" in capfd.readouterr().err
    world.grow(1)
    drain(world.streaming())
    assert numbers(out.read_bytes())[-1] == 14


def test_a_ledger_of_which_nothing_is_the_same_is_sent_from_its_start(world: World) -> None:
    out = world.base / "out.jsonl"
    world.configure(f"file:{out}")
    world.grow(5)
    drain(world.streaming())  # begins now
    world.store.close()
    shutil.rmtree(world.state / "ledger")
    world.store = Store.create(world.state / "ledger" / "abc", "exeat/n1", 1, segment_bytes=16384)
    world.grow(3, project="other")
    drain(world.streaming())
    assert numbers(out.read_bytes()) == [0, 1, 2]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=300), st.data())
def test_few_marks_lead_back_to_nearly_every_place(steps: list[int], data: st.DataObject) -> None:
    ends = list(accumulate(steps))
    marks = Marks()
    for end in ends:
        marks = marks.add(end, str(end))
    assert marks[-1] == (ends[-1], str(ends[-1]))
    assert len(marks) <= ends[-1].bit_length() + 1
    cut = data.draw(st.sampled_from(ends))
    found = marks.newest(lambda end, leaf: end <= cut and leaf == str(end))
    assert found <= cut
    # Sent twice at most: a few times what was lost, and what one sending holds.
    assert cut - found <= 4 * (ends[-1] - cut) + 4 * max(steps)
