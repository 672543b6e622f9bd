"""Text of others as a person's terminal may have it: what would steer the terminal is shown, not sent."""

from __future__ import annotations

import codecs


def plain(text: str, keep: str = "") -> str:
    """`text` with all that cannot be seen (controls, directions, lone surrogates) as escapes, but `keep`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


class PlainBytes:
    """The same of a stream that should be UTF-8, piece by piece. Lines and tabs stay."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        """What of it can be shown now."""
        return plain(self._decoder.decode(data, final), "\n\t").encode()
