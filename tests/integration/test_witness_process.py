"""The witness process of a real appliance: cosignatures by themselves, a fork reported within seconds."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import deny, running, wait_for
from tests.support.rewriting import NAME, World

from exeat.appliance.cli import main
from exeat.ledger.client import append_blocking
from exeat.ledger.doors import ROLES
from exeat.ledger.watched import SILENT
from exeat.ledger.witness_client import FORK, UNREACHABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """One uid plays all: here the gateway may write what the witness process may."""
    monkeypatch.setitem(ROLES, "gateway", ROLES["gateway"] | ROLES["witness"])
    with running(tmp_path) as daemon:
        made = World(tmp_path, daemon)
        yield made
        made.close()


def test_checkpoints_are_cosigned_and_a_witness_that_goes_is_named(world: World) -> None:
    wait_for(lambda: world.cosigned() >= 2, "the first cosignature")
    append_blocking(world.daemon.path, [deny(n) for n in range(300)])
    wait_for(lambda: world.cosigned() >= 302, "a later one")
    world.witness.stop(signal.SIGKILL)
    append_blocking(world.daemon.path, [deny(1)])
    wait_for(lambda: world.trouble() == UNREACHABLE, "it is missed")
    world.witness = world.start_witness()
    wait_for(lambda: world.cosigned() >= 303, "it goes on from where it was")
    wait_for(lambda: world.trouble() == "", "nothing is wrong any more")
    wait_for(
        lambda: world.told() == [("began", UNREACHABLE), ("over", UNREACHABLE)], "both are on the ledger"
    )


def test_a_node_that_falls_silent_is_an_anomaly_on_its_witness(world: World) -> None:
    """The witness's own ledger is here the one that it watches: only who sends is stopped."""
    wait_for(lambda: world.cosigned() >= 2, "it sends")
    world.client.stop()
    world.witness.stop()
    world.witness = world.start_witness(run_dir=world.settings.run_dir, silent_after_s=0.5)
    wait_for(lambda: world.anomalies()[:1] == [("began", SILENT)], "it is missed")
    world.client = world.start_client()
    wait_for(lambda: world.anomalies()[:2] == [("began", SILENT), ("over", SILENT)], "it is back")


def test_a_witness_that_stays_away_is_an_anomaly_on_the_node(world: World) -> None:
    wait_for(lambda: world.cosigned() >= 2, "it cosigns")
    world.client.stop()
    world.client = world.start_client(alarm_s=0.5)
    world.witness.stop(signal.SIGKILL)
    append_blocking(world.daemon.path, [deny(1)])
    wait_for(lambda: world.anomalies() == [("began", UNREACHABLE)], "it is an alarm")
    world.witness = world.start_witness()
    both = [("began", UNREACHABLE), ("over", UNREACHABLE)]
    wait_for(lambda: world.anomalies() == both, "and its end is told")


def test_a_history_rewritten_with_the_real_key_is_reported(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append_blocking(world.daemon.path, [deny(n) for n in range(20)])
    wait_for(lambda: world.cosigned() >= 22, "it is cosigned")
    world.rewrite()
    wait_for(lambda: world.trouble() == FORK, "the fork is reported")
    world.daemon.stop()
    state, log = tmp_path / "state", tmp_path / "w" / "witness" / "logs"
    config = tmp_path / "exeat.toml"
    config.write_text(
        f'[paths]\nstate_dir = "{state}"\n[node]\nname = "n1"\n[[ledger.witness]]\n'
        f'url = "http://127.0.0.1:{world.port}"\nvkey = "{world.key}"\n'
    )
    assert main(["--config", str(config), "ledger", "witness"]) == 1
    assert f"REWRITTEN? {NAME} refuses to cosign" in capsys.readouterr().out
    assert list(log.glob("*/forks/*"))
    assert main(["--state-dir", str(state), "ledger", "verify"]) == 0  # alone it looks sound
    kept = str(world.seals / "cosigned")
    assert main(["--state-dir", str(state), "ledger", "verify", "--checkpoint", kept]) == 1
