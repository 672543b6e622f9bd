"""`exeat ledger archive` against a real S3 server: carried, resumed, refused, verified, brought back."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.ledgers import record
from tests.support.s3 import S3, SECRET, credentials, s3_server

from exeat.appliance.archive.back import _fetch
from exeat.appliance.archive.carry import Carrier, holds
from exeat.appliance.archive.store import Body, Held, StoreError
from exeat.appliance.archive.store import Store as Bucket
from exeat.appliance.cli import main
from exeat.appliance.ledger_config import ArchiveStore
from exeat.ledger import archive, keys, note, segment
from exeat.ledger.manifest import Manifest
from exeat.ledger.publish import Publisher
from exeat.ledger.records import Kind
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

PART = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server("evidence", "second") as made:
        yield made


@pytest.fixture
def s3(server: S3) -> Iterator[S3]:
    server.requests.clear()
    yield server
    server.fail, server.hold_after, server._parts = None, -1, 0
    for bucket in ("evidence", "second"):
        for upload in server.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            server.client.abort_multipart_upload(
                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        for key in server.objects(bucket):
            server.client.delete_object(Bucket=bucket, Key=key)


class World:
    """A ledger of node n1 with sealed segments, its configuration, and the command."""

    def __init__(self, base: Path, s3: S3) -> None:
        self.base, self.s3 = base, s3
        self.state = base / "state"
        self.directory = self.state / "ledger" / hashlib.sha256(b"exeat/n1").hexdigest()
        self.receipts = self.state / "archive" / self.directory.name
        self.secret = credentials(base / "secret")
        self.config = base / "exeat.toml"
        self.configure()

    def configure(self, *, after_s: int = 0, stores: tuple[str, ...] = ("evidence",), **more: str) -> None:
        text = f'[node]\nname = "n1"\n[paths]\nstate_dir = "{self.state}"\n[users]\nexport = "root"\n'
        text += f"[ledger]\narchive_after_s = {after_s}\n"
        for name in stores:
            text += (
                f'[[ledger.archive]]\nname = "{name}"\nbucket = "{name}"\nendpoint = "{self.s3.url}"\n'
                f'prefix = "a/b"\ncredentials = "{self.secret}"\n'
            )
            text += "".join(f'{key} = "{value}"\n' for key, value in more.items())
        self.config.write_text(text)

    def grow(self, *, records: int = 240, size: int = 300, segment_bytes: int = 16384) -> None:
        source = random.Random(1)
        if self.directory.exists():
            store = Store.open(self.directory, 1, segment_bytes=segment_bytes)
        else:
            store = Store.create(self.directory, "exeat/n1", 1, segment_bytes=segment_bytes)
        keys.ensure(self.directory, "exeat/n1")
        for _ in range(0, records, 20):
            store.append([record(Kind.POLICY, data=source.randbytes(size)) for _ in range(20)], 1)
        Publisher(self.directory).publish(store.size, store.root())
        self.size = store.size
        store.close()

    def run(self, *argv: str) -> int:
        return main(["--config", str(self.config), "ledger", "archive", *argv])

    def carrier(self, bucket: str = "evidence") -> Carrier:
        settings = ArchiveStore(
            name=bucket, bucket=bucket, endpoint=self.s3.url, prefix="a/b", credentials=self.secret
        )
        self.receipts.mkdir(parents=True, exist_ok=True)
        return Carrier(self.directory, self.receipts, Bucket(settings), part=PART)


@pytest.fixture
def world(tmp_path: Path, s3: S3) -> World:
    made = World(tmp_path, s3)
    made.grow()
    return made


def sealed(world: World) -> int:
    return len(list((world.directory / "seg").glob("*.seg"))) - 1


def test_a_ledger_comes_back_from_the_bucket_and_verifies(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("run") == 0
    assert archive.safely_archived(world.directory, world.receipts, ["evidence"]) == sealed(world) > 1
    assert world.run("verify", "--deep") == 0
    out = world.base / "back"
    vkey = str(keys.verifier(world.directory))
    before = {path.name: path.read_bytes() for path in (world.directory / "seg").glob("*.seg")}
    shutil.rmtree(world.state)
    assert world.run("restore", str(out), "--key", vkey) == 0
    assert "verified" in capsys.readouterr().out
    restored = out / "ledger" / world.directory.name
    assert {path.name: path.read_bytes() for path in (restored / "seg").glob("*.seg")} == {
        name: content for name, content in before.items() if name != max(before)
    }
    assert main(["--state-dir", str(out), "ledger", "verify"]) == 0
    assert main(["--state-dir", str(out), "ledger", "fsck"]) == 0
    assert main(["--state-dir", str(out), "ledger", "prove", "3"]) == 0
    Store.open(restored, 1).close()  # and a ledger process can go on with it


def test_the_next_run_carries_only_what_is_new(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("run") == 0
    first = set(world.s3.objects("evidence"))
    assert world.run("run") == 0
    assert set(world.s3.objects("evidence")) == first
    assert not list((world.directory / "archive").glob("*.tar.*"))  # the data of safe batches is dropped
    world.grow()
    assert world.run("run") == 0
    new = set(world.s3.objects("evidence")) - first
    assert sorted(key.split("/")[-2] for key in new) == ["batches", "checkpoints", "manifests"]
    capsys.readouterr()
    assert world.run("status", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["sealed"] == row["prepared"] == row["safe"] == sealed(world)
    assert row["stores"] == {"evidence": {"batches": 2, "waiting": 0, "failed": ""}}
    assert world.run("restore", str(world.base / "back")) == 0


def test_it_is_checked_across_a_change_of_keys(world: World) -> None:
    first = str(keys.verifier(world.directory))
    assert world.run("run") == 0
    keys.prepare(world.directory, until_s=0)
    keys.install(world.directory)
    keys.settle(world.directory)
    world.grow()
    assert world.run("run") == 0
    newest = str(keys.verifier(world.directory))
    assert newest != first
    assert world.run("verify", "--deep") == 0
    shutil.rmtree(world.state)
    for number, key in enumerate((first, newest)):
        assert world.run("verify", "--key", key) == 0
        assert world.run("restore", str(world.base / f"back-{number}"), "--key", key) == 0
    other = str(note.Signer("exeat/n1", b"x" * 32).verifier)
    assert world.run("verify", "--key", other) == 1
    assert world.run("restore", str(world.base / "back-x"), "--key", other) == 1


def test_a_young_segment_waits_for_its_batch(world: World) -> None:
    now = 1_000_000_000  # the segments above were begun at 1 ns
    assert archive.prepare(world.directory, archive.Plan(age_s=3600), lambda _: False, now) == []
    made = archive.prepare(world.directory, archive.Plan(age_s=3600), lambda _: False, 3600 * now + 1)
    assert [manifest.name for manifest in made] == [f"{0:012d}-{sealed(world) - 1:012d}"]


def test_a_store_that_is_away_does_not_fill_the_disk(world: World) -> None:
    plan = archive.Plan(segments=1, age_s=0, waiting=2)
    assert len(archive.prepare(world.directory, plan, lambda _: False, 10**18)) == 2
    assert archive.prepare(world.directory, plan, lambda _: False, 10**18) == []
    assert len(archive.prepare(world.directory, plan, lambda _: True, 10**18)) == 2


def test_killed_in_the_middle_of_an_upload_it_goes_on(world: World) -> None:
    shutil.rmtree(world.directory)
    world.grow(records=6000, size=4000, segment_bytes=4 * 1024 * 1024)
    assert world.run("prepare") == 0
    world.s3.hold_after = 2
    command = [sys.executable, "-m", "exeat", "--config", str(world.config), "ledger", "archive", "run"]
    process = subprocess.Popen([*command, "--carry-only"], stderr=subprocess.PIPE)
    assert world.s3.held.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    world.s3.hold_after = -1
    world.s3.release.set()
    assert not any("manifest" in key for key in world.s3.objects("evidence"))
    sent = world.s3.parts_sent()
    assert world.run("run", "--carry-only") == 0
    batch = next(path for path in (world.directory / "archive").glob("*.tar.zst"))
    parts = -(-batch.stat().st_size // (8 * 1024 * 1024))
    assert parts >= 3
    # The two that were answered are not sent again; the third may have arrived after the kill.
    assert parts - 3 <= world.s3.parts_sent() - sent <= parts - 2
    assert world.run("verify", "--deep") == 0


def test_an_upload_that_the_server_forgot_begins_anew(world: World) -> None:
    world.run("prepare")
    (manifest,) = archive.manifests(world.directory)
    world.receipts.mkdir(parents=True)
    note = {"upload": "no-such-upload", "digest": manifest.digest.hex()}
    (world.receipts / f"{manifest.name}.evidence.upload").write_text(json.dumps(note))
    assert world.run("run") == 0
    assert world.run("verify", "--deep") == 0


@pytest.mark.parametrize(
    ("fail", "code", "word"),
    [
        (("POST", "uploads", 403, "AccessDenied"), 1, "archive.denied"),
        (("PUT", "partNumber", 507, "InsufficientStorage"), 1, "archive.full"),
        (("PUT", "partNumber", 403, "QuotaExceeded"), 1, "archive.full"),
        (("PUT", "manifests", 503, "SlowDown"), 3, "archive.unavailable"),
        (("POST", "uploadId", 500, "InternalError"), 3, "archive.unavailable"),
        (("PUT", "partNumber", 400, "BadDigest"), 1, "archive.mismatch"),
        (("POST", "uploads", 501, "NotImplemented"), 3, "archive.unavailable"),
    ],
)
def test_a_failing_server_costs_nothing(
    world: World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fail: tuple[str, str, int, str],
    code: int,
    word: str,
) -> None:
    monkeypatch.setattr("exeat.appliance.archive.store._ATTEMPTS", 1)
    world.s3.fail = fail
    assert world.run("run") == code
    assert word in capsys.readouterr().err
    assert world.run("status") == 1
    assert word in capsys.readouterr().out
    assert archive.safely_archived(world.directory, world.receipts, ["evidence"]) == 0
    world.s3.fail = None
    assert world.run("run") == 0
    assert world.run("status") == 0
    assert world.run("verify", "--deep") == 0


def test_wrong_credentials_are_named_and_never_shown(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.secret.unlink()
    credentials(world.secret, key="AKIAWRONG")
    assert world.run("run") == 1
    said = capsys.readouterr()
    assert "[archive.credentials]" in said.err
    assert SECRET not in said.err + said.out
    assert all(
        SECRET not in path.read_text(errors="replace") for path in world.state.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("mode", [0o444, 0o420, 0o604])
def test_credentials_that_others_can_read_are_refused(
    world: World, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    world.secret.chmod(mode)
    assert world.run("run") == 1
    assert "archive.credentials" in capsys.readouterr().err


def test_credentials_come_from_systemd_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(world.base))
    world.config.write_text(world.config.read_text().replace(str(world.secret), "secret"))
    assert world.run("run") == 0


def test_the_second_store_gets_its_own_while_the_first_is_away(world: World) -> None:
    world.configure(stores=("nowhere", "second"))
    assert world.run("run") == 1
    assert archive.safely_archived(world.directory, world.receipts, ["second"]) == sealed(world)
    assert archive.safely_archived(world.directory, world.receipts, ["nowhere", "second"]) == 0
    assert world.run("run") == 1
    assert list((world.directory / "archive").glob("*.tar.*"))  # kept until every store has it


def test_encryption_is_asked_for(world: World) -> None:
    world.configure(encryption="AES256")
    assert world.run("run") == 0
    for key in world.s3.objects("evidence"):
        assert world.s3.client.head_object(Bucket="evidence", Key=key)["ServerSideEncryption"] == "AES256"


def replace(world: World, part: str, content: bytes) -> None:
    key = next(key for key in world.s3.objects("evidence") if f"/{part}/" in key)
    world.s3.client.put_object(Bucket="evidence", Key=key, Body=content)


def content(world: World, part: str) -> bytes:
    key = next(key for key in world.s3.objects("evidence") if f"/{part}/" in key)
    found: bytes = world.s3.client.get_object(Bucket="evidence", Key=key)["Body"].read()
    return found


@pytest.mark.parametrize("part", ["batches", "manifests"])
def test_what_was_changed_in_the_bucket_is_found_and_not_restored(
    world: World, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("run") == 0
    good = content(world, part)
    at = len(good) // 2
    replace(world, part, good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :])
    assert world.run("verify", "--deep") == 1
    assert "PROBLEM" in capsys.readouterr().out
    assert world.run("restore", str(world.base / "back")) == 1
    assert not (world.base / "back" / "ledger").exists()


def test_a_missing_batch_is_found(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    plan = archive.Plan(segments=1, age_s=0, waiting=8)
    archive.prepare(world.directory, plan, lambda _: False, 10**18)
    assert world.run("run", "--carry-only") == 0
    key = next(key for key in world.s3.objects("evidence") if "/manifests/000000000001" in key)
    world.s3.client.delete_object(Bucket="evidence", Key=key)
    assert world.run("verify") == 1
    assert "one is missing" in capsys.readouterr().out


def test_a_missing_end_is_found_where_the_receipts_are(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("run") == 0
    key = next(key for key in world.s3.objects("evidence") if "/manifests/" in key)
    world.s3.client.delete_object(Bucket="evidence", Key=key)
    assert world.run("verify") == 1
    assert "1 batches were carried there" in capsys.readouterr().out


def test_the_bucket_of_another_ledger_is_not_overwritten(world: World) -> None:
    assert world.run("run") == 0
    mine = content(world, "manifests")
    shutil.rmtree(world.state)
    world.grow()  # the same node, made anew with another key
    with pytest.raises(StoreError, match=r"archive\.mismatch"):
        world.run("prepare") or world.carrier().run()
    assert content(world, "manifests") == mine


def test_changed_segments_are_never_signed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.directory / "seg" / f"{1:012d}.seg"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert world.run("run") == 1
    assert "exeat ledger verify" in capsys.readouterr().err
    assert archive.manifests(world.directory) == []


def test_a_segment_that_was_made_anew_as_a_whole_is_never_signed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world.directory / "seg" / f"{0:012d}.seg"
    frames = list(segment.scan(path.read_bytes()))
    frontier = segment.parse_head(frames[0]).frontier
    changed = [segment.frame(frames[0].seq, frames[0].kind, frames[0].payload)]
    for found in frames[1:]:
        if found.kind == segment.RECORD:
            payload = found.payload[:-1] + bytes((found.payload[-1] ^ 1,))
            frontier.add(payload)
            changed.append(segment.frame(found.seq, found.kind, payload))
        else:
            commit = segment.parse_commit(found)._replace(root=frontier.root())
            changed.append(segment.commit_frame(found.kind, commit))
    path.write_bytes(b"".join(changed))
    assert world.run("run") == 1
    assert "is not what was signed" in capsys.readouterr().err
    assert archive.manifests(world.directory) == []


def test_what_was_dropped_before_there_was_an_archive_is_no_obstacle(world: World) -> None:
    path = world.directory / "seg" / f"{0:012d}.seg"
    frames = list(segment.scan(path.read_bytes()))
    kept = [segment.frame(found.seq, found.kind, found.payload) for found in (frames[0], frames[-1])]
    path.write_bytes(b"".join(kept))
    assert world.run("run") == 0
    assert world.run("verify", "--deep") == 0
    assert archive.safely_archived(world.directory, world.receipts, ["evidence"]) == sealed(world)


def test_prepare_that_was_killed_begins_anew(world: World) -> None:
    folder = world.directory / "archive"
    folder.mkdir()
    name = f"{0:012d}-{sealed(world) - 1:012d}.tar.zst"
    (folder / f"{name}.tmp").write_bytes(b"half")
    (folder / name).write_bytes(b"a batch whose manifest was never written")
    assert world.run("run") == 0
    assert world.run("verify", "--deep") == 0


def test_two_runs_do_not_meet(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with archive.alone(world.receipts):
        assert world.run("run") == 1
    assert "another run" in capsys.readouterr().err


@pytest.fixture
def shared(s3: S3) -> Iterator[World]:
    """A ledger that belongs to its own user, in a folder that the users can enter."""
    with tempfile.TemporaryDirectory(prefix="exeat-archive-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        made = World(base, s3)
        made.grow()
        made.state.chmod(0o755)
        for path in ((top := made.state / "ledger"), *top.rglob("*")):
            shutil.chown(path, "exeat-ledger", "exeat-ledger")
            path.chmod(path.stat().st_mode & 0o750)
        shutil.chown(made.secret, "root", "exeat-export")
        made.secret.chmod(0o440)
        made.config.write_text(made.config.read_text().replace('export = "root"', ""))
        yield made


@pytest.mark.root
def test_root_leaves_each_half_to_its_user(shared: World) -> None:
    assert shared.run("run") == 0
    (manifest,) = (shared.directory / "archive").glob("*.manifest")
    (receipt,) = shared.receipts.glob("*.receipt")
    assert (manifest.owner(), receipt.owner()) == ("exeat-ledger", "exeat-export")
    as_export = ["setpriv", "--reuid=exeat-export", "--regid=exeat-export", "--groups=exeat-ledger"]
    key, segment = shared.directory / "keys" / "log.key", next((shared.directory / "seg").iterdir())
    assert subprocess.run([*as_export, "cat", key], capture_output=True, check=False).returncode == 1
    assert subprocess.run([*as_export, "cat", segment], capture_output=True, check=False).returncode == 0
    assert shared.run("verify") == 0


@pytest.mark.root
def test_the_carrier_leads_root_to_no_folder_of_another(shared: World) -> None:
    """Taken over, it puts a link where its receipts belong; root must not give the target away."""
    victim = shared.base / "victim"
    victim.mkdir()
    shared.receipts.parent.mkdir()
    shutil.chown(shared.receipts.parent, "exeat-export", "exeat-export")
    shared.receipts.symlink_to(victim)
    assert shared.run("run") != 0
    assert victim.owner() == "root"
    assert not list(victim.iterdir())
    shared.receipts.unlink()
    shared.receipts.parent.rmdir()
    shared.receipts.parent.symlink_to(victim)
    assert shared.run("run") != 0
    assert victim.owner() == "root"


def test_without_a_store_it_says_what_to_do(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.configure(stores=())
    assert world.run("run") == 2
    assert "[[ledger.archive]]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("endpoint", "http://storage.example.org"),
        ("endpoint", "https://user:secret@storage.example.org"),
        ("endpoint", "ftp://storage.example.org"),
        ("bucket", "Not_A_Bucket"),
        ("prefix", "../up"),
        ("prefix", "/a"),
        ("credentials", "relative/path"),
        ("encryption", "rot13"),
        ("proxy", "http://proxy.example.org:3128"),
        ("region", "no where"),
    ],
)
def test_a_wrong_configuration_is_refused(world: World, key: str, value: str) -> None:
    values: dict[str, Any] = {"name": "a", "bucket": "abc", "credentials": "/secret", key: value}
    with pytest.raises(ValueError, match=key):
        ArchiveStore(**values)


def test_members_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    for name, kind in (("../evil", tarfile.REGTYPE), ("seg/000000000000.seg", tarfile.SYMTYPE)):
        made = io.BytesIO()
        with archive.compressor(made, "gz") as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        made.seek(0)
        with pytest.raises(archive.ArchiveError, match="no place"):
            archive.unpack(made, "x.tar.gz", tmp_path / "out")
        assert not os.path.lexists(tmp_path / "out" / "seg" / "000000000000.seg")


def test_whatever_lies_where_a_receipt_belongs_is_none(tmp_path: Path) -> None:
    """The carrier has a network; the ledger's own processes look at what it leaves."""
    manifest = Manifest("exeat/n1", 0, 1, 0, 9, bytes(32), b"", "x.tar.gz", 1, bytes(32))
    path, good = archive.receipt_path(tmp_path, manifest, "s"), {"manifest": manifest.chain().hex()}

    def held() -> bool:
        found = archive.has_receipt(tmp_path, manifest, "s")
        path.unlink()
        return found

    path.write_text(json.dumps(good))
    assert held()
    os.mkfifo(path)  # would be waited for
    assert not held()
    path.symlink_to("/dev/zero")  # has no end
    assert not held()
    (tmp_path / "other").write_text(json.dumps(good))
    path.symlink_to(tmp_path / "other")
    assert not held()
    path.write_text("[" * 4000)
    assert not held()
    path.write_text(json.dumps(good) + " " * 5000)
    assert not held()


def test_an_answer_that_is_none_of_s3s_is_a_failure_of_that_store(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.configure(stores=("evidence", "second"))
    call = Bucket._call

    def strange(self: Bucket, operation: str, **arguments: Any) -> Any:
        found = call(self, operation, **arguments)
        return {} if self.name == "evidence" and operation == "create_multipart_upload" else found

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "_call", strange)
        assert world.run("run") == 1
    assert "none of S3's: KeyError('UploadId')" in capsys.readouterr().err
    assert world.run("status") == 1
    assert "FAILED: evidence: an answer that is none of S3's" in capsys.readouterr().out
    assert [path.name.split(".")[1] for path in world.receipts.glob("*.receipt")] == ["second"]
    (world.receipts / "evidence.failed").write_bytes(b"\x1b[2J\xff")  # of a carrier that was taken over
    assert world.run("status") == 1
    assert "\x1b" not in capsys.readouterr().out
    assert world.run("run") == 0


def test_lists_and_objects_without_an_end_are_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.run("run") == 0
    bucket, again = (
        world.carrier()._store,
        {"IsTruncated": True, "NextContinuationToken": "x", "NextPartNumberMarker": 1},
    )
    monkeypatch.setattr(bucket, "_call", lambda *_args, **_named: again)
    with pytest.raises(StoreError, match="without an end"):
        list(bucket.names("a"))
    with pytest.raises(StoreError, match="without an end"):
        bucket.parts("a", "b")

    class Endless:
        taken = 0

        def read(self, most: int) -> bytes:
            self.taken += most
            assert self.taken < 1 << 24
            return bytes(most)

        def close(self) -> None: ...

    body = Endless()
    monkeypatch.setattr(bucket, "read", lambda _key: Body("s", body))  # type: ignore[arg-type]
    (manifest,) = archive.manifests(world.directory)
    assert not holds(bucket, "k", Held(manifest.size, ""), manifest)
    body.taken = 0
    with pytest.raises(StoreError, match="not what its manifest says"), io.BytesIO() as file:
        _fetch(bucket, "k", manifest, file)
