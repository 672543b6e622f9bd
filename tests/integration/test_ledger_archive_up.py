"""`exeat up` with an archive: sealed segments come into the bucket by themselves, each part by its user."""

from __future__ import annotations

import shutil
from contextlib import closing
from hashlib import sha256

import pytest
from tests.support.ledgers import deny, wait_for
from tests.support.s3 import credentials, s3_server
from tests.support.standalone import Standalone
from tests.support.witnesses import Ledger

pytestmark = pytest.mark.root


def test_archives_are_kept_by_themselves() -> None:
    alone = Standalone(("127.0.0.1", 5353), {}, "")
    with closing(alone), s3_server("evidence") as s3:
        secret = credentials(alone.base / "secret")
        shutil.chown(secret, "exeat-export")
        text = alone.config.read_text()
        text = text[: text.index("[dns]")] + '[dns]\nupstream = ["127.0.0.1:5353"]\n'
        text += "[ledger]\narchive_after_s = 0\narchive_every_s = 5\n"
        text += f'[[ledger.archive]]\nname = "eu"\nbucket = "evidence"\nendpoint = "{s3.url}"\n'
        alone.config.write_text(f'{text}credentials = "{secret}"\n')
        directory = alone.base / "state" / "ledger" / sha256(b"exeat/n1").hexdigest()
        ledger = Ledger(directory, segment_bytes=16384)
        for first in range(0, 300, 20):
            ledger.store.append([deny(first + n) for n in range(20)], 1)
        ledger.publish()
        ledger.store.close()
        for path in (directory.parent, *directory.parent.rglob("*")):
            shutil.chown(path, "exeat-ledger", "exeat-ledger")
        alone.up()
        wait_for(lambda: any("/manifests/" in key for key in s3.objects("evidence")), "a batch", seconds=40)
        before = len(s3.requests)
        wait_for(lambda: len(s3.requests) > before, "the next run looks again", seconds=40)
        receipts = alone.base / "state" / "archive"  # written once the batch is there
        wait_for(lambda: any(receipts.rglob("*.receipt")), "a receipt", seconds=40)
        (receipt, *_) = receipts.rglob("*.receipt")
        assert receipt.owner() == "exeat-export"
        assert all(path.owner() == "exeat-ledger" for path in (directory / "archive").iterdir())
        assert alone.down() == 0
