"""`exeat ledger why SEQ`: a recorded decision, explained and made again from what was in force then."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from exeat.appliance.documents import DocumentError, Documents
from exeat.appliance.errors import NotReachableError, UsageError
from exeat.appliance.ledger_proofs import number
from exeat.appliance.ledger_text import as_json, line
from exeat.appliance.ledger_why_budgets import BudgetUse, used_before
from exeat.ledger.in_force import InForce, Story, snapshot_parts, story
from exeat.ledger.reader import ReaderError, dropped_before
from exeat.ledger.records import Kind, Record, RecordError
from exeat.policy.addresses import from_packed
from exeat.policy.again import Again, Recorded, Result, decide_again
from exeat.policy.errors import MalformedError
from exeat.policy.model import Decision, Request, Sni, Subject, Verdict
from exeat.policy.names import parse_host
from exeat.policy.reasons import short_text
from exeat.policy.snapshot import Snapshot, SnapshotError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

_NOTHING = Decision(Verdict.DENY, "")


class _Answer(NamedTuple):
    """`again` beside what it was judged by, and what the budget that decided had used by the records."""

    again: Again
    found: InForce
    snapshot: Snapshot | None = None
    budget: Sequence[BudgetUse] = ()


def register(actions: Any, directories: Callable[[argparse.Namespace], list[Path]]) -> list[Any]:
    """Add the action; `directories` finds the ledgers."""

    def run(args: argparse.Namespace) -> int:
        found = directories(args)
        if len(found) > 1:
            raise UsageError(f"several ledgers here: {', '.join(map(str, found))}")
        return run_why(found[0], args)

    parser = actions.add_parser("why", help="was this decided rightly? makes a recorded decision again")
    parser.add_argument("seq", type=number, metavar="SEQ", help="the record's number")
    parser.set_defaults(handler=run)
    return [parser]


def run_why(directory: Path, args: argparse.Namespace) -> int:
    told = _story(directory, args.seq)
    recorded = _recorded(told.record)
    documents = Documents(directory.parent.parent / "control" / "documents")
    if isinstance(recorded, str):
        answer = _Answer(_unknown(recorded), told.in_force(by_generation=True))
    else:
        answer = explain(told, recorded, documents, complete=not dropped_before(directory))
        answer = answer._replace(budget=_budget(directory, told, recorded, answer.snapshot))
    print(json.dumps(_json(told, answer)) if args.json else _text(told, answer))
    return 0 if answer.again.result is Result.SAME else 1


def _budget(
    directory: Path, told: Story, recorded: Recorded, snapshot: Snapshot | None
) -> Sequence[BudgetUse]:
    try:
        return used_before(directory, told.seq, recorded, snapshot) if snapshot is not None else ()
    except (ReaderError, OSError, ValueError) as error:
        raise NotReachableError(f"{directory}: {error}: run `exeat ledger verify`") from None


def _story(directory: Path, seq: int) -> Story:
    try:
        told, oldest = story(directory, seq), dropped_before(directory)
    except (ReaderError, OSError) as error:
        raise NotReachableError(f"{directory}: {error}: run this as root") from None
    except RecordError as error:
        raise NotReachableError(f"{directory}: {error}: run `exeat ledger verify`") from None
    if told is None:
        there = f"it was dropped, the oldest is {oldest}" if seq < oldest else "there is none yet"
        raise UsageError(f"no record {seq}: {there}")
    if told.record.kind not in (Kind.OPEN, Kind.DENY, Kind.DNS):
        raise UsageError(f"record {seq} is of kind {told.record.kind.label}: it decides on no flow or lookup")
    return told


def _recorded(record: Record) -> Recorded | str:
    """The decision that a record tells of; or why it is none that could be made again."""
    dest = record.dest
    if dest is None:
        return "it stands for refusals of several destinations"
    lookup = record.kind is Kind.DNS
    try:
        host, verdict = parse_host(dest.host), Verdict(record.decision)
        resolved = (from_packed(dest.ip),) if dest.ip else ()
    except (MalformedError, ValueError):
        return f"{record.reason_code}: it was refused before it had a destination"
    sni = dest.sni or (Sni.ABSENT if record.reason_code == "sni.missing" else Sni.UNSEEN)
    subject = Subject(record.project, record.agent, record.job, record.episode, record.node)
    port, proto = (443, "tcp") if lookup else (dest.port, dest.protocol)
    return Recorded(
        Request(subject, host, port, proto, resolved, sni),
        record.t_real_ns // 1_000_000,
        verdict,
        record.reason_code,
        record.rule_id,
        record.lease_id,
        lookup=lookup,
        direct=record.name_source == "direct",
    )


def explain(told: Story, recorded: Recorded, documents: Documents, *, complete: bool) -> _Answer:
    """Make it again by what held for its snapshot, or, for a change was on its way, by what stands before it.

    `complete`: no records were dropped.
    """
    answers = []
    for by_generation in (True, False):
        found = told.in_force(by_generation=by_generation)
        answers.append(_again(told, recorded, documents, found))
        if answers[-1].again.result is Result.SAME:
            return answers[-1]
    again, found = answers[0].again, answers[0].found
    lacking = _lacking(found, recorded, complete=complete)
    if again.result is Result.DIFFERS and lacking:
        again = again._replace(result=Result.UNKNOWN, why=lacking)
    return answers[0]._replace(again=again)


def _again(told: Story, recorded: Recorded, documents: Documents, found: InForce) -> _Answer:
    digest, project = told.record.policy_digest.hex(), told.record.project
    try:
        known = [documents.load(each) for each in filter(None, (digest, found.baseline))]
        message = Snapshot.message(
            generation=told.record.generation,
            fresh_ms=0,
            documents=known,
            projects={project: digest} if digest else {},
            baseline=found.baseline,
            **snapshot_parts(found),
        )
        snapshot = Snapshot.load(message)
    except (DocumentError, SnapshotError) as error:
        return _Answer(_unknown(str(error)), found)
    again = decide_again(snapshot, recorded)
    bound = found.judges(project, told.record.job)
    if again.result is Result.SAME and digest not in (bound or {""}):
        named = f"names policy {digest}" if digest else "names no policy"
        in_force = " or ".join(sorted(bound)) or "none"
        why = f"the record {named}, and by the ledger it was {in_force} that was in force"
        again = again._replace(result=Result.DIFFERS, why=why)
    return _Answer(again, found, snapshot)


def _lacking(found: InForce, recorded: Recorded, *, complete: bool) -> str:
    """What the ledger does not tell and may be why another decision comes out."""
    if found.place is None:
        return "no record says what the node's own addresses and doors were"
    if found.unknown:
        return f"the records of {', '.join(sorted(found.unknown))} do not hold those leases"
    if not complete and recorded.lease and recorded.lease not in found.leases:
        return f"the records of lease {recorded.lease} were dropped"
    return ""


def _unknown(why: str) -> Again:
    return Again(Result.UNKNOWN, _NOTHING, why=why)


# --- showing it


def _said(verdict: str, reason: str, rule: str) -> str:
    by = f" by {rule}" if rule else ""
    return f"{verdict}{by}: {short_text(reason)} [{reason}]"


def _json(told: Story, answer: _Answer) -> dict[str, Any]:
    again, record = answer.again, told.record
    now = again.decision
    return {
        "result": str(again.result),
        "why": again.why,
        "supposed": list(again.supposed),
        "record": as_json(told.seq, record),
        "now": {
            "verdict": str(now.verdict),
            "reason": now.reason,
            "rule": now.rule,
            "matched": list(now.matched),
        }
        if now.reason
        else None,
        "policy": record.policy_digest.hex(),
        "policy_since": answer.found.since.get(record.policy_digest.hex()),
        "baseline": answer.found.baseline,
        "leases": sorted(
            lease.id for lease in answer.found.leases.values() if lease.project == record.project
        ),
        "killed": sorted(answer.found.killed),
        "budget": [each._asdict() for each in answer.budget],
    }


def _text(told: Story, answer: _Answer) -> str:
    again, record, found = answer.again, told.record, answer.found
    digest = record.policy_digest.hex()
    since = f", in force since record {found.since[digest]}" if digest in found.since else ""
    subject = f"project {record.project or '-'}, agent {record.agent or '-'}, job {record.job or '-'}"
    lines = [
        line(told.seq, record),
        f"  asked by   {subject}{f', by way of {record.src}' if record.src else ''}",
        f"  policy     {digest or 'none'}{since}",
        f"  baseline   {found.baseline or 'none'}",
        f"  recorded   {_said(record.decision, record.reason_code, record.rule_id)}",
    ]
    if again.decision.reason:
        now = again.decision
        lines.append(f"  made again {_said(str(now.verdict), now.reason, now.rule)}")
    lines += [f"  supposing that {words}" for words in again.supposed]
    lines += [
        f"  used       {each.used} of {each.limit} {each.counter} in {each.window_ms // 1000} s of records"
        for each in answer.budget
    ]
    lines.append(f"{again.result}{': ' if again.why else ''}{again.why}")
    return "\n".join(lines)
