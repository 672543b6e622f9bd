"""Tiles and signed checkpoints, made beside the writer by a process of its own.

The writer says over a pipe up to where the ledger is durable, and the root it has there. The
publisher reads the segments itself, computes the tree itself, and signs only what agrees with the
writer and with what it signed before; so no fault of the writer, and no change behind its back, is
ever signed over. Appends never wait for it.

Order: full tiles, partial tiles, then the checkpoint (synced, renamed, folder synced). Tiles are
not synced: they can be made anew from the segments, and a tree read from them is checked against
the checkpoint before it is gone on from.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import struct
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final

from exeat.ledger import keys, note, tiles
from exeat.ledger.clock import Wary
from exeat.ledger.files import sync_dir
from exeat.ledger.keys import KeyMissingError
from exeat.ledger.merkle import leaf_hash
from exeat.ledger.packing import Packing
from exeat.ledger.published import read_checkpoint, tile_loader
from exeat.ledger.reader import Follower, ReaderError, dropped_before, segment_of
from exeat.ledger.retention import Rules, leaves, propose
from exeat.ledger.tiles import Rows, TileError, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.ledger.note import Checkpoint
    from exeat.ledger.reader import Entry

MESSAGE: Final = struct.Struct(">Q32s")  # size, root
_RESTART_S: Final = 10.0
_REST_MS: Final = 250  # between checkpoints, however fast records come: their syncs hold up the writer's
_LOOK_S: Final = 60.0  # between looks for records that are too old
_LAST_S: Final = 5.0  # how long a shutdown waits for the last checkpoint


class PublishError(Exception):
    """Nothing more is signed: what would be signed contradicts what is known."""


class BehindError(PublishError):
    """More is signed than the writer has."""


class Publisher:
    """The tree of one ledger as far as it is published. Raises PublishError, KeyMissingError, OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._origin = keys.signer(directory).name
        self._signed = self._last_signed()
        self._stale = False  # the tiles were not those of the checkpoint
        self._rows = self._take_up()
        self._source: Iterator[Entry] = iter(())
        self._follower = Follower(directory, index=segment_of(directory, self._rows.size))

    @property
    def signed(self) -> int:
        """Size of the last signed tree."""
        return self._signed.size if self._signed else 0

    def publish(self, size: int, root: bytes) -> None:
        """Bring tiles and checkpoint to `size`, where the writer has `root`."""
        if size < self.signed:
            raise BehindError(f"the ledger has {size} records, {self.signed} are signed")
        signed = self._signed
        if signed is not None and self._rows.size < signed.size:  # the tiles are being made anew
            self._grow(signed.size, signed.root)
        self._grow(size, root)
        if signed is not None and (signed.size, signed.root) == (size, root) and not self._stale:
            return
        self._write_checkpoint(note.Checkpoint(self._origin, size, root))
        self._stale = False

    def _last_signed(self) -> Checkpoint | None:
        text = read_checkpoint(self._directory)
        if text is None:
            return None
        try:
            return note.open_checkpoint(text, *keys.known(self._directory))
        except note.NoteError as error:
            raise PublishError(f"{self._directory}/checkpoint: {error}") from None

    def _take_up(self) -> Rows:
        load = tile_loader(self._directory)
        if self._signed is not None:
            try:
                if Tree(self._signed.size, load).root() == self._signed.root:
                    return Rows.load(self._put, self._signed.size, load)
            except TileError:
                pass
            self._stale = True
            return self._from_the_lowest_row()
        return Rows(self._put)

    def _from_the_lowest_row(self) -> Rows:
        """All tiles anew; of records that were dropped from what was synced before they were."""
        dropped = dropped_before(self._directory)
        for row in (self._directory / "tile").glob("*"):
            if not dropped or row.name != "0":
                shutil.rmtree(row, ignore_errors=True)
        rows = Rows(self._put)
        try:
            for leaf in leaves(self._directory, dropped):
                rows.add(leaf)
        except TileError as error:
            raise PublishError(f"{error}, and its records were dropped: bring it back from a copy") from None
        return rows

    def _grow(self, size: int, root: bytes) -> None:
        while self._rows.size < size:
            seq, data = self._next()
            if seq > self._rows.size:
                raise PublishError(f"record {self._rows.size} is missing")
            if seq == self._rows.size:
                self._rows.add(leaf_hash(data))
        for level, number, tile in self._rows.partial():
            self._put(level, number, tile)
        if Tree(size, tile_loader(self._directory)).root() != root:
            raise PublishError(f"the records up to {size} do not make the root that was given for them")

    def _next(self) -> Entry:
        for _ in range(2):
            try:
                entry = next(self._source, None)
            except ReaderError as error:
                raise PublishError(str(error)) from None
            if entry is not None:
                return entry
            self._source = iter(self._follower.poll())
        raise PublishError(f"record {self._rows.size} is missing")

    def _put(self, level: int, number: int, tile: bytes) -> None:
        path = self._directory / tiles.path(level, number, len(tile) // 32)
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_bytes(tile)
        except FileNotFoundError:
            path.parent.mkdir(parents=True)
            temporary.write_bytes(tile)
        temporary.rename(path)
        if len(tile) == tiles.FULL:
            shutil.rmtree(path.with_name(path.name + ".p"), ignore_errors=True)

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        path = self._directory / "checkpoint"
        temporary = path.with_suffix(".tmp")
        signers = keys.signers(self._directory, time.time())  # anew each time: keys make way for others
        with temporary.open("w", encoding="utf-8") as file:
            file.write(note.sign(checkpoint.text(), *signers))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_dir(os, self._directory)
        self._signed = checkpoint


class Publishing:
    """The writer's end: a publisher process that is kept alive and told what is durable."""

    def __init__(self, directory: Path, rules: Rules) -> None:
        self._directory, self._rules = directory, rules
        self._pid = 0
        self._pipe = -1
        self._started = -_RESTART_S

    def tell(self, size: int, root: bytes) -> None:
        """Say what is durable; never waits. What does not fit into the pipe is said again later."""
        self._keep_alive()
        try:
            os.write(self._pipe, MESSAGE.pack(size, root))
        except OSError:  # full: it is behind; broken: it is dead, and started again at a later call
            return

    def close(self, size: int, root: bytes) -> None:
        """Have the last checkpoint made and wait for it, within reason."""
        self.tell(size, root)
        if self._pid == 0:  # it died just now, and is not started again so soon
            return
        os.close(self._pipe)
        deadline = time.monotonic() + _LAST_S
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                print("exeat: ledger: the last checkpoint is late; left to itself", file=sys.stderr)
                break
            time.sleep(0.005)
        self._pid = 0

    def _keep_alive(self) -> None:
        if self._pid and os.waitpid(self._pid, os.WNOHANG) != (0, 0):
            os.close(self._pipe)
            self._pid, self._pipe = 0, -1
        if self._pid == 0 and time.monotonic() - self._started >= _RESTART_S:
            self._started = time.monotonic()
            self._start()

    def _start(self) -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            _in_child(self._directory, read, self._rules)
        os.close(read)
        os.set_blocking(write, False)
        self._pid, self._pipe = pid, write


def _in_child(directory: Path, pipe: int, rules: Rules) -> None:
    """Never returns. Lets go of everything of the writer's: its lock must not outlive it."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the end of the pipe is the end: one more checkpoint
        os.dup2(pipe, 3)
        os.closerange(4, 1 << 20)
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.nice(19)
        follow(directory, 3, rules)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def follow(directory: Path, pipe: int, rules: Rules) -> None:
    """Publish what comes through `pipe`, the newest if several wait, until its end; pack in between."""
    publisher: Publisher | None = None
    packing = Packing(directory)
    looked, now = -_LOOK_S, Wary()
    given_up, said, lock = False, "", -1
    hangup = select.poll()
    hangup.register(pipe, 0)  # its end is reported all the same
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    while data := os.read(pipe, 1024 * MESSAGE.size):
        if given_up:
            continue
        try:
            if publisher is None:
                lock = _alone(directory) if lock < 0 else lock
                publisher = Publisher(directory)
            publisher.publish(*MESSAGE.unpack(data[-MESSAGE.size :]))
            if rules.any and time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                _propose(directory, rules, now)
            hangup.poll(_REST_MS)
            while packing.step(publisher.signed) and not waiting.poll(0):
                pass
        except KeyMissingError as error:  # a new one may be made
            if str(error) != said:
                said = str(error)
                print(f"exeat: ledger: no checkpoints: {error}", file=sys.stderr, flush=True)
        except PublishError as error:
            if isinstance(error, BehindError) and hangup.poll(0):
                return  # of a writer that was killed, and the next one's publisher came first
            print(f"exeat: ledger: no checkpoints any more: {error}", file=sys.stderr, flush=True)
            given_up = True


def _propose(directory: Path, rules: Rules, now: Wary) -> None:
    """What goes wrong with dropping old records is no reason to sign no more."""
    try:
        propose(directory, rules, now.now_ns())
    except Exception as error:
        print(f"exeat: ledger: no record is dropped: {error}", file=sys.stderr, flush=True)


def _alone(directory: Path) -> int:
    """Wait until the publisher of a writer that was killed has ended; the lock, held until exit."""
    fd = os.open(directory / "publish.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd
