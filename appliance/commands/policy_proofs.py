"""`exeat policy diff|reach|trial|shadow|schema`: questions about what a policy lets out, answered offline."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.errors import UsageError
from exeat.appliance.policy_files import add_baseline, load_file
from exeat.ledger.reader import ReaderError, read, read_records
from exeat.ledger.records import Kind, Record, RecordError, decode
from exeat.policy.addresses import from_packed, parse_cidr
from exeat.policy.decide import compile_policy
from exeat.policy.errors import MalformedError, ScopeError, UnitError
from exeat.policy.files import files_widened
from exeat.policy.leases import Lease
from exeat.policy.model import Request, Sni, Subject, Verdict
from exeat.policy.names import recorded_host
from exeat.policy.reach import reach
from exeat.policy.reasons import short_text
from exeat.policy.schema import SCHEMA
from exeat.policy.scopes import HTTPS, parse_scope
from exeat.policy.shadow import parse_note
from exeat.policy.trial import Change, Observation, Trial, read_shadow, run_trial
from exeat.policy.units import parse_time
from exeat.policy.widens import differences

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator


SHOWN = 5  # witnesses that are printed


def register(actions: Any) -> None:
    diff = actions.add_parser("diff", help="does B let out anything that A does not? (exit 1: yes)")
    diff.add_argument("a", type=Path, metavar="A")
    diff.add_argument("b", type=Path, metavar="B")
    diff.set_defaults(handler=run_diff)

    ways = actions.add_parser("reach", help="can anyone get there under this policy? (exit 1: nobody)")
    ways.add_argument("file", type=Path, metavar="FILE")
    ways.add_argument("scopes", nargs="+", metavar="SCOPE", help="like .example.org or 10.0.0.0/8:22")
    ways.add_argument("--raw", action="store_true", help="speaking anything, TLS or not")
    ways.add_argument("--ech", action="store_true", help="with a hidden server name")
    ways.add_argument("--direct", action="store_true", help="past the proxy, through a pinhole")
    ways.add_argument("--records", action="store_true", help="looking up TXT, MX and the like")
    ways.set_defaults(handler=run_reach)

    trial = actions.add_parser("trial", help="replay recorded traffic: what would change? (exit 1: breaks)")
    trial.add_argument("file", type=Path, metavar="NEW")
    trial.add_argument("--from", dest="ledger", type=Path, required=True, metavar="LEDGER_DIR")
    trial.add_argument("--treat-as-public", action="append", default=[], metavar="CIDR", help="as in [lab]")
    trial.set_defaults(handler=run_trial_command)

    shadow = actions.add_parser("shadow", help="where did the shadow policies differ? (exit 1: they break)")
    shadow.add_argument("--from", dest="ledger", type=Path, required=True, metavar="LEDGER_DIR")
    shadow.set_defaults(handler=run_shadow)

    schema = actions.add_parser("schema", help="the JSON Schema of a policy file, for editors")
    schema.set_defaults(handler=run_schema)

    for action in (diff, ways, trial):
        add_baseline(action)
    diff.add_argument(
        "--new-baseline", type=Path, metavar="FILE", help="the baseline over B, if it is another than over A"
    )
    for action in (diff, ways):
        action.add_argument("--now", metavar="T", help="an instant like 2026-01-05T12:00:00Z (default: now)")
    for action in (diff, ways, trial, shadow, schema):
        action.add_argument("--json", action="store_true", help="print JSON")


def _now_ms(args: argparse.Namespace) -> int:
    try:
        return time.time_ns() // 1_000_000 if args.now is None else parse_time(args.now)
    except UnitError as error:
        raise UsageError(f"--now: {error}") from None


def run_diff(args: argparse.Namespace) -> int:
    a = load_file(args.a, args.baseline)
    b = load_file(args.b, args.new_baseline or args.baseline)
    found, folder = differences(a, b, now_ms=_now_ms(args)), files_widened(a, b)
    if args.json:
        witnesses = [witness.to_json() for witness in found]
        print(json.dumps({"widens": bool(found or folder), "witnesses": witnesses, "files": folder}))
    elif not (found or folder):
        print(f"{args.b} lets out nothing that {args.a} does not")
    else:
        print(f"{args.b} lets out more than {args.a}, for example")
        for witness in found[:SHOWN]:
            print(f"  {witness}")
        if folder:
            print(f"  {folder}")
        if len(found) > SHOWN:
            print(f"  and {len(found) - SHOWN} more kinds of flows (--json shows all)")
    return 1 if found or folder else 0


def run_reach(args: argparse.Namespace) -> int:
    try:
        scopes = tuple(parse_scope(text) for text in args.scopes)
    except ScopeError as error:
        raise UsageError(str(error)) from None
    document = load_file(args.file, args.baseline)
    wanted = Lease(
        id="wanted",
        project=document.project,
        to=scopes,
        ports=HTTPS,
        protocols=("tcp", "udp"),
        raw=args.raw,
        ech=args.ech,
        direct=args.direct,
        records=args.records,
    )
    found = reach(document, wanted, now_ms=_now_ms(args))
    if args.json:
        via = None if found.via is None else str(found.via)
        witness = found.witness and found.witness.to_json()
        print(json.dumps({"reachable": found.reachable, "via": via, "witness": witness}))
    elif found.via is None:
        print("nobody can get there, not even with a lease")
    else:
        print(f"{found.via}: {found.witness}")
    return 0 if found.reachable else 1


def run_schema(args: argparse.Namespace) -> int:
    print(json.dumps(SCHEMA, indent=None if args.json else 2))
    return 0


def run_trial_command(args: argparse.Namespace) -> int:
    public = [parse_cidr(text) for text in args.treat_as_public]
    if None in public:
        raise UsageError("--treat-as-public: not a network")
    document = load_file(args.file, args.baseline)
    policy = compile_policy(document, treat_as_public=[net for net in public if net is not None])
    return _report(args, lambda seen: run_trial(policy, seen), "replayed")


def run_shadow(args: argparse.Namespace) -> int:
    return _report(args, read_shadow, "read")


def _report(
    args: argparse.Namespace, judge: Callable[[Iterator[Observation]], Trial], what_was_done: str
) -> int:
    try:
        trial = judge(observations(args.ledger))
    except (OSError, ReaderError, RecordError) as error:
        raise UsageError(f"{args.ledger}: {error}") from None
    if trial.replayed + trial.skipped == 0:
        raise UsageError(f"{args.ledger}: no recorded flows or lookups")
    if args.json:
        changes = [change.to_json() for change in trial.changes]
        print(json.dumps({"replayed": trial.replayed, "skipped": trial.skipped, "changes": changes}))
    else:
        _print_trial(trial, what_was_done)
    return 1 if trial.breaking else 0


def _print_trial(trial: Trial, what_was_done: str) -> None:
    for change in trial.changes:
        print(_line(change))
    breaks = sum(change.breaking for change in trial.changes)
    print(
        f"{trial.replayed} recorded decisions {what_was_done}, {len(trial.changes)} kinds change,"
        f" {breaks} break;"
        f" {trial.skipped} not about this policy"
    )


def _line(change: Change) -> str:
    said = change.to_json()
    mark = "BREAKING " if change.breaking else ""
    place = said["host"] if said["kind"] == "lookup" else f"{said['host']}:{said['port']}"
    by = f" by {said['now_rule']}" if said["now_rule"] else ""
    why = f"{short_text(said['now_reason'])}{by} [{said['now_reason']}]"
    return (
        f"{mark}{said['was']} -> {said['now']}: {said['kind']} {place} of {said['agent']},"
        f" {change.count} times since {said['first']}: {why}"
    )


def observations(folder: Path) -> Iterator[Observation]:
    """The decisions in a ledger folder, or in the folder of several; records of other kinds pass by."""
    one = (folder / "seg").is_dir()
    records = (decode(data) for _, data in read(folder)) if one else (r for _, r in read_records(folder))
    for record in records:
        seen = observation(record)
        if seen is not None:
            yield seen


def observation(record: Record) -> Observation | None:
    """The decision a record tells of, if it is one that a policy could change."""
    dest = record.dest
    if record.kind not in (Kind.OPEN, Kind.DENY, Kind.DNS) or dest is None or not dest.host:
        return None
    lookup = record.kind is Kind.DNS
    try:
        host = recorded_host(dest.host)
        verdict = Verdict(record.decision)
        resolved = (from_packed(dest.ip),) if dest.ip else ()
    except (MalformedError, ValueError):
        return None  # refused before it was a host: no policy changes that
    subject = Subject(record.project, record.agent, record.job, record.episode, record.node)
    request = Request(
        subject,
        host,
        443 if lookup else dest.port,
        "tcp" if lookup else dest.protocol,
        resolved,
        dest.sni or Sni.UNSEEN,
    )
    return Observation(
        request,
        record.t_real_ns // 1_000_000,
        verdict,
        record.reason_code,
        record.rule_id,
        leased=bool(record.lease_id),
        lookup=lookup,
        times=max(record.count, 1),
        shadow=parse_note(record.detail),
    )
