"""Random octets: as many as were asked for, from the system, none of them twice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from exeat.dns.noise import BLOCK, Noise

if TYPE_CHECKING:
    import pytest


def test_each_octet_is_handed_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    real = os.urandom

    def urandom(size: int) -> bytes:
        made.append(real(size))
        return made[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    noise, sizes = Noise(), [0, 1, 2, 255, 257, BLOCK, 3, *([57] * 200), BLOCK]
    taken = [noise.take(size) for size in sizes]
    assert [len(each) for each in taken] == sizes
    rest = b"".join(made)
    for each in taken:  # in order, and nothing again: what is left over at a block's end is dropped
        start = rest.index(each)
        assert start < BLOCK
        rest = rest[start + len(each) :]
