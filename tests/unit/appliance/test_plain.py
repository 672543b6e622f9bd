"""What others wrote, shown to a person: it cannot steer the terminal, and nothing of it is lost."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance import archives
from exeat.appliance.plain import PlainBytes, plain
from exeat.sandbox.archive_inside import Caps

if TYPE_CHECKING:
    import pytest

HOSTILE = "\x1b]0;title\x07\x9b2J\r\b\x7f\u202egpj.exe\u2066"


def test_what_can_be_seen_is_as_it_was() -> None:
    assert plain("naïve → 日本") == "naïve → 日本"
    assert PlainBytes().feed("a\tb\nç\n".encode()) == "a\tb\nç\n".encode()


def test_what_steers_a_terminal_is_shown() -> None:
    shown = r"\x1b]0;title\x07\x9b2J\r\x08\x7f\u202egpj.exe\u2066"
    assert plain(HOSTILE) == shown
    assert plain("two\nlines") == r"two\nlines"
    assert PlainBytes().feed(HOSTILE.encode()) == shown.encode()
    assert PlainBytes().feed(b"\xff\x9b", final=True) == rb"\xff\x9b"


@given(st.binary(max_size=64))
def test_pieces_make_no_difference(data: bytes) -> None:
    whole, pieces = PlainBytes(), PlainBytes()
    said = b"".join(pieces.feed(data[at : at + 1]) for at in range(len(data))) + pieces.feed(b"", final=True)
    assert said == whole.feed(data, final=True)
    assert said.decode().replace("\n", "").replace("\t", "").isprintable()


def test_the_last_words_of_an_archives_reader_do_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = {"reason": "exited", "code": 1}
    monkeypatch.setattr(archives, "Client", lambda _: SimpleNamespace(call=lambda *_, **__: answer))
    listener = threading.Thread(target=lambda: None)
    listener.start()
    job = archives.Reading(None, Caps(), 0, "x")  # type: ignore[arg-type]
    error = job._broken_off("j", bytearray(b"Traceback\n\x1b]0;title\x07done\n"), listener)
    assert str(error).isprintable()
    assert str(error).endswith("done")
