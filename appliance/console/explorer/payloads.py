"""What an agent says it wants to send, looked at before a person decides. Runs in a worker.

The text is looked through for secrets and forgotten: what stays is its size, its hash and what kind of
secret is in which line.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.console.explorer.asked import AskError
from exeat.appliance.edits.leaks import MISSING, available, hidden, leaks

if TYPE_CHECKING:
    from exeat.appliance.console.explorer.asked import Place

MOST_BYTES: Final = 1 << 20
_SHOWN_LINES: Final = 12
_SHOWN_CHARACTERS: Final = 200
_HITS: Final = 50
_REDACTED: Final = "[a secret was here]"


def classify(_place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """`name`, and `content` in base64: what is in it, with the beginning to look at, secrets left out."""
    try:
        content = base64.b64decode(str(args["content"]), validate=True)
    except ValueError:  # binascii.Error is one, and so is what is not ASCII
        raise AskError("payload.encoding", "`content` is not base64") from None
    if len(content) > MOST_BYTES:
        raise AskError("payload.size", f"at most {MOST_BYTES} bytes are looked at: give the beginning")
    name = str(args.get("name") or "")
    found: dict[str, Any] = {
        "name": name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return {
            **found,
            "text": False,
            "looked": False,
            "note": "no text: not looked into",
            "hits": [],
            "head": [],
        }
    hits, whole = leaks(name, lines, frozenset())
    if covered := hidden(name, lines):
        found["name"] = _REDACTED if name in covered else name
    head = [_REDACTED if line in covered else line[:_SHOWN_CHARACTERS] for line in lines[:_SHOWN_LINES]]
    return {
        **found,
        "text": True,
        "looked": whole,
        "note": "" if whole else MISSING if not available() else "some lines are too long and were not read",
        "hits": [{"line": hit.line, "kind": hit.kind} for hit in hits[:_HITS]],
        "more": max(0, len(hits) - _HITS),
        # Without something to find secrets with, nothing of the text is shown.
        "head": head if available() else [],
    }
