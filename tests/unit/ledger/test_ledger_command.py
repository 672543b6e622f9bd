"""`exeat ledger tail|verify` through the command line, on ledgers made by the real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import DEST, deny, flow_id, record
from tests.support.witnesses import Ledger

from exeat.appliance.cli import main
from exeat.ledger.records import Kind
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    store = Store.create(tmp_path / "ledger" / "abc", "exeat/n1", 1)
    store.append(
        [
            record(Kind.OPEN, 1, reserved=65536, job="j1", dest=DEST, decision="allow", rule_id="r1"),
            deny(2),
            record(Kind.CLOSE, 1, bytes_out=1500, bytes_in=52_428_800 // 1024, job="j1", dest=DEST),
        ],
        1,
    )
    store.close()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def test_tail_prints_one_line_a_record(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ledger", "tail", "--state-dir", str(state))
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert "open       j1" in lines[0]
    assert "allow  files.example.org:443  up to 65.5 kB  by r1" in lines[0]
    assert "deny  files.example.org:443  rule.deny" in lines[1]
    assert "out 1.5 kB in 51.2 kB" in lines[2]


def test_tail_of_one_job_as_json(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--state-dir", str(state), "ledger", "tail", "--job", "j1", "--json")
    first, last = map(json.loads, out.splitlines())
    assert code == 0
    assert (first["seq"], first["kind"], first["flow"]) == (0, "open", flow_id(1).hex())
    assert first["dest"] == {
        "host": "files.example.org",
        "port": 443,
        "protocol": "tcp",
        "ip": "203.0.113.5",
        "sni": "files.example.org",
    }
    assert (last["seq"], last["bytes_out"], last["bytes_in"]) == (2, 1500, 51200)


def test_tail_n(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count, expected in (("1", ["2"]), ("0", []), ("2", ["1", "2"])):
        _, out, _ = run(capsys, "ledger", "tail", "-n", count, "--state-dir", str(state))
        assert [line.split()[0] for line in out.splitlines()] == expected


def test_follow_shows_what_comes(state: Path) -> None:
    command = [sys.executable, "-m", "exeat", "ledger", "tail", "-f", "-n", "1", "--state-dir", str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as tail:
        assert tail.stdout is not None
        assert tail.stdout.readline().split()[0] == "2"
        store = Store.open(state / "ledger" / "abc", 2, segment_bytes=512)
        for number in range(3):
            store.append([deny(number), deny(number)], 3)
        store.close()
        assert [tail.stdout.readline().split()[0] for _ in range(6)] == ["3", "4", "5", "6", "7", "8"]
        tail.send_signal(signal.SIGINT)
    assert tail.returncode == 130


def test_verify_says_yes(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ledger", "verify", "--state-dir", str(state))
    assert code == 0
    assert "records   3 in 1 segment: 1 close, 1 deny, 1 open" in out
    assert out.rstrip().endswith("result    verified")
    head = next(line for line in out.splitlines() if line.startswith("head")).split()[1]
    assert run(capsys, "ledger", "verify", "--state-dir", str(state), "--head", head)[0] == 0


def test_verify_says_no_and_names_the_record(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = state / "ledger" / "abc" / "seg" / "000000000000.seg"
    data = path.read_bytes()
    at = data.index(b"rule.deny")
    path.write_bytes(data[:at] + b"r" + b"U" + data[at + 2 :])
    code, out, _ = run(capsys, "ledger", "verify", "--state-dir", str(state))
    assert code == 1
    assert "PROBLEM   record 1: damaged" in out
    code, out, _ = run(capsys, "ledger", "verify", "--json", "--state-dir", str(state))
    answer = json.loads(out)
    assert (code, answer["ok"]) == (1, False)
    assert answer["ledgers"][0]["problems"][0]["record"] == 1


def test_a_head_from_elsewhere_shows_a_cut(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ledger", "verify", "--state-dir", str(state), "--head", "9:" + "0" * 64)
    assert code == 1
    assert "record 3: records 3 to 8 are gone: the tail was cut" in out


def test_unusable_and_unreachable(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "ledger", "verify", "--state-dir", str(state), "--head", "x")[0] == 2
    code, _, err = run(capsys, "ledger", "tail", "--state-dir", str(state / "none"))
    assert code == 3
    assert "no ledger here" in err
    with pytest.raises(SystemExit, match="2"):
        main(["ledger", "tail", "-n", "-1"])


def test_verify_says_when_nothing_is_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who rewrites a ledger leaves no checkpoint that would show it."""
    ledger = Ledger(tmp_path / "ledger" / "abc")
    ledger.store.close()
    code, out, _ = run(capsys, "ledger", "verify", "--state-dir", str(tmp_path))
    assert (code, "no signed checkpoint" in out) == (0, False)
    (ledger.directory / "checkpoint").unlink()
    for quick in ([], ["--quick"]):
        code, out, _ = run(capsys, "ledger", "verify", "--state-dir", str(tmp_path), *quick)
        assert (code, "no signed checkpoint" in out) == (0, True)
