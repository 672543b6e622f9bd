"""`exeat up` with a witness: each part as its own user, cosignatures by themselves, status that tells."""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import closing

import pytest
from tests.support.ledgers import wait_for
from tests.support.standalone import Standalone

from exeat.appliance.lab import pki

pytestmark = pytest.mark.root


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_node_and_its_witness() -> None:
    """One node that watches itself: it proves nothing, but uses every part."""
    alone, port = Standalone(("127.0.0.1", 5353), {}, ""), free_port()
    with closing(alone):
        text = alone.config.read_text()
        text = text[: text.index("[dns]")] + '[dns]\nupstream = ["127.0.0.1:5353"]\n'
        tls = alone.base / "tls"
        tls.mkdir()
        pki.create(tls)
        shutil.chown(tls / "north.key", "exeat-export")
        (tls / "north.key").chmod(0o400)
        witness = f'[witness]\nlisten = ["127.0.0.1:{port}"]\nname = "witness.test/self"\nlogs = %s\n'
        witness += f'certificate = "{tls}/north.pem"\nkey = "{tls}/north.key"\n'
        alone.config.write_text(text + witness % "[]")
        alone.up()
        logs = alone.base / "state" / "witness" / "logs"
        wait_for((logs / "vkey").exists, "the witness has a key")
        assert ((logs / "key").owner(), (logs / "key").stat().st_mode & 0o777) == ("exeat-export", 0o400)
        vkey = json.loads(alone.exeat("ledger", "checkpoint", "--key", "--json").stdout)["vkey"]
        assert alone.down() == 0
        own = (logs / "vkey").read_text().strip()
        peer = f'[[ledger.witness]]\nurl = "https://api.example.org:{port}"\nvkey = "{own}"\n'
        peer += f'address = "127.0.0.1:{port}"\nca = "{tls}/ca.pem"\n'
        alone.config.write_text(text + witness % json.dumps([vkey]) + peer)
        alone.up()

        def seals() -> dict[str, object]:
            told = json.loads(alone.exeat("ledger", "witness", "--json").stdout)["ledgers"][0]
            return {**told, **told["witnesses"][0]}

        wait_for(lambda: seals()["behind"] == 0, "it cosigns")
        assert seals()["trouble"] == ""
        assert json.loads(alone.exeat("status", "--json").stdout)["seals"] == []
        wait_for(lambda: alone.exeat("ledger", "witness").returncode == 0, "and says whom it watches")
        assert "watching    exeat/n1" in alone.exeat("ledger", "witness").stdout
        before = alone.pid_of("witness")
        alone.kill("witness")
        wait_for(lambda: alone.pid_of("witness") not in (0, before), "it is started again")
        assert alone.exeat("keys", "rotate", "--overlap", "0").returncode == 0
        keys = alone.base / "state" / "ledger"
        wait_for(
            lambda: seals()["behind"] == 0 and not list(keys.glob("*/keys/old.key")), "under the new key"
        )
        (private,) = keys.glob("*/keys/log.key")
        assert (private.owner(), private.stat().st_mode & 0o777) == ("exeat-ledger", 0o400)
        assert "forks" not in {path.name for path in logs.rglob("*")}
        assert alone.exeat("ledger", "verify").returncode == 0
        assert alone.down() == 0
