"""kill -9 of the ledger under a gateway's own client: no flow is lost, counted twice, or left open.

What comes out is then put to everything that reads a ledger: verify, fsck, export and the strangers'
verifier, and the reading that a gateway's restart needs.
"""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING

from tests.support.ledger_flows import PAYLOAD, Gateway
from tests.support.ledgers import Daemon, flow_id, settings, start

from exeat.ledger import bundle, fsck, keys, verify_offline
from exeat.ledger.reactor import Reactor
from exeat.ledger.reader import read
from exeat.ledger.records import Kind, Record, decode
from exeat.ledger.since import Gist, gists_since
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 12


def check(found: list[Record], gateway: Gateway) -> None:
    kinds: dict[bytes, list[Kind]] = {}
    for entry in found:
        kinds.setdefault(entry.flow, []).append(entry.kind)
    assert not gateway.failed
    assert not gateway.opened
    for flow in gateway.closed:
        told = kinds[flow_id(flow)]
        assert told[0] is Kind.OPEN
        assert told[-1] is Kind.CLOSE
        assert told.count(Kind.OPEN) == told.count(Kind.CLOSE) == 1
        assert Kind.ORPHAN not in told
    assert set(kinds) - {b""} == {flow_id(flow) for flow in gateway.closed}


def test_flows_survive_a_ledger_that_is_killed_again_and_again(tmp_path: Path) -> None:
    chosen = settings(tmp_path, segment_bytes=16384, grace_s=30.0)
    chance, reactor = random.Random(1), Reactor()
    daemon: Daemon = start(chosen)
    gateway = Gateway(reactor, daemon.path)
    for _ in range(ROUNDS):
        enough = gateway.answers + chance.randrange(1, 120)
        gateway.turn_until(lambda enough=enough: gateway.answers >= enough, "some answers")
        daemon.stop(signal.SIGKILL)
        daemon = start(chosen)
    gateway.finish()
    reactor.close()
    assert daemon.stop() == 0

    directory = chosen.directory
    found = [decode(data) for _, data in read(directory)]
    check(found, gateway)
    assert sum(entry.kind is Kind.BOOT for entry in found) == ROUNDS + 1
    report = verify(directory)
    assert report.ok
    assert report.segments > 2
    assert (report.flows_closed, report.flows_open) == (len(gateway.closed), 0)
    assert fsck.check(directory, repair=False) == []
    bundle.export(directory, tmp_path / "bundle", job="job-1")
    key = verify_offline.read_key(str(keys.verifier(directory)))
    told = verify_offline.check_bundle(tmp_path / "bundle", key, None)
    assert told["kinds"]["open"] == sum(flow % 3 == 1 for flow in gateway.closed)
    assert told["bytes_out"] == told["kinds"]["open"] * PAYLOAD
    late = list(gists_since(chosen.state_dir / "ledger", found[-1].t_real_ns))
    assert late[-1][:-1] == Gist.of(found[-1])[:-1]
