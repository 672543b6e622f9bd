"""`exeat policy check|show|decide|test|reload`; what proves things is in `policy_proofs.py`."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.commands import policy_proofs
from exeat.appliance.errors import UsageError
from exeat.appliance.policy_files import add_baseline, load_file, read_text
from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.baseline import under
from exeat.policy.cases import CasesError, Result, case_request, run_cases
from exeat.policy.decide import compile_policy, decide
from exeat.policy.document import PolicyError, load_policy
from exeat.policy.errors import MalformedError, UnitError
from exeat.policy.lint import lint
from exeat.policy.model import Decision, Subject, Verdict
from exeat.policy.reasons import short_text
from exeat.policy.units import parse_time
from exeat.policy.usage import Overlay

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from exeat.policy.document import Document

_REQUEST_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(Subject._fields, str),
    "host": str,
    "port": int,
    "proto": str,
    "resolved": list,
    "sni": (str, type(None)),
}


def register(commands: Any) -> None:
    parser = commands.add_parser("policy", help="check, show, try out and test policies")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    check = actions.add_parser("check", help="does it load?")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.set_defaults(handler=run_check)

    show = actions.add_parser("show", help="the policy with nothing left to defaults")
    show.add_argument("file", type=Path, metavar="FILE")
    show.set_defaults(handler=run_show)

    judge = actions.add_parser("decide", help="what the policy says to one request")
    judge.add_argument("--policy", type=Path, required=True, metavar="FILE")
    judge.add_argument("--request", type=Path, required=True, metavar="JSON", help="- reads standard input")
    judge.add_argument("--now", metavar="T", help="an instant like 2026-01-05T12:00:00Z (default: now)")
    judge.set_defaults(handler=run_decide)

    test = actions.add_parser("test", help="run a file of normative cases")
    test.add_argument("cases", type=Path, metavar="CASES")
    test.add_argument("--kinds", metavar="K,K", default="", help="only these kinds, like decide,load")
    test.set_defaults(handler=run_test)

    policy_proofs.register(actions)

    reload = actions.add_parser("reload", help="have the running appliance read its policy folder again")
    reload.add_argument("--as", dest="person", metavar="NAME", help="who changes it (default: root)")
    reload.add_argument("--reviewed-by", metavar="OTHER", help="the second person, where it lets more out")
    reload.set_defaults(handler=run_reload)
    for action in (check, show, judge):
        add_baseline(action)
    for action in (check, show, judge, test, reload):
        action.add_argument("--json", action="store_true", help="print JSON")


def run_check(args: argparse.Namespace) -> int:
    baseline = None if args.baseline is None else load_file(args.baseline)
    reports = [_check(path, baseline) for path in args.files]
    if args.json:
        print(json.dumps(reports))
    else:
        for report in reports:
            _print_check(report)
    return 0 if all(report["ok"] for report in reports) else 1


def _check(path: Path, baseline: Document | None) -> dict[str, Any]:
    try:
        document = load_policy(read_text(path), file=str(path), suffixes=bundled_suffixes())
    except PolicyError as error:
        place = {"line": error.line, "column": error.column}
        return {"file": str(path), "ok": False, "code": error.code, **place, "message": str(error)}
    warnings = [
        {"code": warning.code, "line": warning.line, "column": warning.column, "message": warning.message}
        for warning in (*document.warnings, *lint(under(document, baseline)))
    ]
    return {
        "file": str(path),
        "ok": True,
        "project": document.project,
        "posture": str(document.posture),
        "rules": len(document.rules),
        "digest": document.digest,
        "warnings": warnings,
    }


def _print_check(report: Mapping[str, Any]) -> None:
    if not report["ok"]:
        print(report["message"], file=sys.stderr)
        return
    summary = f"project {report['project']}, posture {report['posture']}, {report['rules']} rules"
    print(f"{report['file']}: ok, {summary}, digest {report['digest'][:12]}")
    for warning in report["warnings"]:
        place = (
            f"{report['file']}:{warning['line']}:{warning['column']}" if warning["line"] else report["file"]
        )
        print(f"{place}: warning: {warning['message']} [{warning['code']}]", file=sys.stderr)


def run_show(args: argparse.Namespace) -> int:
    document = load_file(args.file, args.baseline)
    if args.json:
        print(document.to_canonical_json())
        return 0
    print(f"# digest {document.digest}")
    print(json.dumps(document.to_json(), indent=2, sort_keys=True))
    return 0


def run_decide(args: argparse.Namespace) -> int:
    document = load_file(args.policy, args.baseline)
    try:
        now_ms = time.time_ns() // 1_000_000 if args.now is None else parse_time(args.now)
    except UnitError as error:
        raise UsageError(f"--now: {error}") from None
    fields = _request_fields(args.request)
    subject = Subject(document.project, "agent")
    try:
        decision = decide(compile_policy(document), case_request(fields, subject), now_ms, Overlay())
    except MalformedError as error:
        decision = Decision(Verdict.DENY, error.code)
    _print_decision(decision, as_json=args.json)
    return 0 if decision.allowed else 1


def _request_fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    if not isinstance(fields, dict) or "host" not in fields:
        raise UsageError(f"{path}: a request is an object with at least `host`")
    for name, value in fields.items():
        if name not in _REQUEST_TYPES:
            raise UsageError(f"{path}: unknown key `{name}`; known: {', '.join(_REQUEST_TYPES)}")
        if not isinstance(value, _REQUEST_TYPES[name]) or isinstance(value, bool):
            raise UsageError(f"{path}: `{name}` has the wrong type")
    return fields


def _print_decision(decision: Decision, *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {
                    "decision": decision.verdict,
                    "reason": decision.reason,
                    "rule": decision.rule,
                    "matched": decision.matched,
                    "budgets": decision.budgets,
                    "text": short_text(decision.reason),
                }
            )
        )
        return
    by = f" by {decision.rule}" if decision.rule else ""
    print(f"{decision.verdict}  {short_text(decision.reason)}{by} [{decision.reason}]")


def run_test(args: argparse.Namespace) -> int:
    kinds = [kind for kind in args.kinds.split(",") if kind]
    try:
        results = run_cases(read_text(args.cases), bundled_suffixes(), kinds)
    except CasesError as error:
        raise UsageError(f"{args.cases}: {error}") from None
    if not results:
        raise UsageError(f"{args.cases}: no case of the kinds {args.kinds}")
    by_kind: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_kind[result.kind].append(result)
    report = {kind: _summary(found) for kind, found in by_kind.items()}
    if args.json:
        print(json.dumps(report))
    else:
        for kind, summary in report.items():
            _print_summary(kind, summary)
    return 1 if any(result.status == "failed" for result in results) else 0


def _summary(results: list[Result]) -> dict[str, Any]:
    failed = [
        {"id": result.id, "expected": dict(result.expected), "got": dict(result.got)}
        for result in results
        if result.status == "failed"
    ]
    return {
        "total": len(results),
        "passed": sum(result.status == "passed" for result in results),
        "failed": failed,
    }


def _print_summary(kind: str, summary: Mapping[str, Any]) -> None:
    print(f"{kind:14} {summary['passed']:4}/{summary['total']}")
    for failure in summary["failed"]:
        print(f"  {failure['id']}: expected {failure['expected']}, got {failure['got']}")


def run_reload(args: argparse.Namespace) -> int:
    people = {"as": args.person, "reviewed_by": args.reviewed_by}
    given = {name: value for name, value in people.items() if value}
    reply = Client(load_config(args)).call("policy.reload", **given)
    projects = ", ".join(reply["projects"]) or "none"
    if args.json:
        said = ("projects", "changed", "shadows")
        print(json.dumps({key: reply[key] for key in said}))
        return 0
    print(f"in force: {projects}")
    if reply["shadows"]:
        print(f"judged beside, not enforced: {', '.join(reply['shadows'])}")
    return 0
