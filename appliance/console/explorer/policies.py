"""What a policy says before it is in force: does it load, what would it newly let out, what would have been.

Runs in a worker: a comparison of two policies takes as long as they are large.
"""

from __future__ import annotations

import difflib
import time
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.commands.policy_proofs import observation
from exeat.appliance.console.explorer.asked import AskError, Place
from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.ledger.reader import Follower
from exeat.ledger.records import decode
from exeat.ledger.since import first_segment
from exeat.policy.addresses import parse_cidr
from exeat.policy.authority import Level
from exeat.policy.baseline import under
from exeat.policy.decide import compile_policy
from exeat.policy.document import Document, PolicyError, load_policy
from exeat.policy.errors import ScopeError
from exeat.policy.files import files_widened
from exeat.policy.leases import Lease
from exeat.policy.lint import lint
from exeat.policy.reach import reach
from exeat.policy.scopes import parse_scope
from exeat.policy.trial import run_trial
from exeat.policy.widens import differences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.policy.trial import Observation

WITNESSES: Final = 20
_CHANGES: Final = 200
_COMPARED: Final = 200_000  # characters


def check(_place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """Does it load? Where not, the line, column and code; where so, what hardly means what it says."""
    try:
        document = load_policy(str(args["text"]), file="policy", suffixes=bundled_suffixes())
    except PolicyError as error:
        at = {"line": error.line, "column": error.column}
        return {"ok": False, "problem": {"code": error.code, **at, "message": str(error)}}
    warnings = [
        {"code": each.code, "line": each.line, "column": each.column, "message": each.message}
        for each in (*document.warnings, *lint(_under(document, args)))
    ]
    about = {"project": document.project, "posture": str(document.posture), "rules": len(document.rules)}
    return {"ok": True, **about, "digest": document.digest, "warnings": warnings}


def diff(_place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """Flows that the text would let out and the document in force (canonical `before`) does not."""
    document = _loaded(args)
    text = args.get("before")
    before = Document.from_canonical_json(text) if text else Document(document.project)
    found = differences(_under(before, args), _under(document, args), now_ms=time.time_ns() // 1_000_000)
    witnesses = [{**witness.to_json(), "text": str(witness)} for witness in found[:WITNESSES]]
    folder = files_widened(_under(before, args), _under(document, args))
    return {
        "widens": bool(found or folder),
        "files": folder,
        "witnesses": witnesses,
        "more": max(0, len(found) - WITNESSES),
        "lines": _lines(str(args.get("old_text") or ""), str(args["text"])),
    }


def _lines(old: str, new: str) -> list[str]:
    """What was written otherwise, as a unified diff."""
    if max(len(old), len(new)) > _COMPARED:
        return ["the texts are too long to be compared line by line"]
    found = difflib.unified_diff(old.splitlines(), new.splitlines(), "in force", "new", n=2, lineterm="")
    return list(found)[:_CHANGES]


def trial(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """What was recorded since `since` (ms), judged again by the text."""
    nets = [net for text in args.get("treat_as_public") or () if (net := parse_cidr(text)) is not None]
    policy = compile_policy(_under(_loaded(args), args), treat_as_public=nets)
    found = run_trial(policy, _observations(place, int(args["since"])))
    changes = [change.to_json() for change in found.changes[:_CHANGES]]
    more = max(0, len(found.changes) - _CHANGES)
    return {"replayed": found.replayed, "skipped": found.skipped, "changes": changes, "more": more}


def preview(_place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """A flow that a lease would newly let out, under the document in force (canonical `policy`)."""
    document = _under(Document.from_canonical_json(str(args["policy"])), args)
    try:
        scopes = tuple(
            parse_scope(f"{to}:{port}") for to in args["to"] for port in (args["ports"] or ["any"])
        )
    except ScopeError as error:
        raise AskError(error.code, str(error)) from None
    speech = set(args["speech"])
    wanted = Lease(
        "wanted",
        document.project,
        scopes,
        protocols=tuple(args["protocols"]),
        raw="raw" in speech,
        ech="ech" in speech,
        direct="direct" in speech,
        records="records" in speech,
    )
    found = reach(document, wanted, now_ms=time.time_ns() // 1_000_000)
    if found.witness is None:
        return {"text": "as things stand no lease can open it: the ceiling or a rule denies it"}
    place = f"{found.witness.host}:{found.witness.port}/{found.witness.request.proto}"
    if found.witness.level is Level.ALLOW:
        return {"text": f"part of it is let out already, for example {place}"}
    return {"text": f"newly lets out, for example, {place}"}


def _observations(place: Place, since_ms: int) -> Iterator[Observation]:
    first = first_segment(place.directory, since_ms * 1_000_000)
    for _, data in Follower(place.directory, index=first).poll():
        seen = observation(decode(data))
        if seen is not None and seen.at_ms >= since_ms:
            yield seen


def _loaded(args: dict[str, Any]) -> Document:
    try:
        return load_policy(str(args["text"]), file="policy", suffixes=bundled_suffixes())
    except PolicyError as error:
        raise AskError("policy.invalid", str(error)) from None


def _under(document: Document, args: dict[str, Any]) -> Document:
    baseline = args.get("baseline")
    return under(document, Document.from_canonical_json(baseline)) if baseline else document
