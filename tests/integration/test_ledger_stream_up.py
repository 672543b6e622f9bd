"""`exeat up` with a stream: started with the others, as its own user, and again when it is killed."""

from __future__ import annotations

from contextlib import closing

import pytest
from tests.support.ledgers import wait_for
from tests.support.receivers import numbers
from tests.support.standalone import Standalone

pytestmark = pytest.mark.root


def test_streams_are_supervised() -> None:
    alone = Standalone(("127.0.0.1", 5353), {}, "")
    with closing(alone):
        out = alone.base / "state" / "stream" / "out.jsonl"
        # Ports of its own: this test needs no namespace.
        text = alone.config.read_text()
        text = text[: text.index("[dns]")] + '[dns]\nupstream = ["127.0.0.1:5353"]\n'
        alone.config.write_text(
            f'{text}[[ledger.stream]]\nname = "siem"\nto = "file:{out}"\nbegin = "start"\n'
        )
        alone.up()
        wait_for(lambda: out.exists() and len(numbers(out.read_bytes())) >= 1, "the boot record arrives")
        assert (out.owner(), out.stat().st_mode & 0o777) == ("exeat-export", 0o640)
        before = alone.pid_of("stream")
        alone.kill("stream")
        wait_for(lambda: alone.pid_of("stream") not in (0, before), "it is started again")
        assert alone.exeat("kill", "on", "--all").returncode == 0
        size = len(alone.records())
        assert size >= 2
        wait_for(lambda: set(range(size)) <= set(numbers(out.read_bytes())), "nothing is missing")
        assert alone.down() == 0
