"""Runs a file of normative cases against this core. Pure: text in, results out.

The file's format is explained at its head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from exeat.policy import leases as lease_flow
from exeat.policy.addresses import parse_address
from exeat.policy.admin import Actor, authorize
from exeat.policy.baseline import under
from exeat.policy.decide import CompiledPolicy, compile_policy, decide
from exeat.policy.document import Document, PublicSuffixes, load_policy
from exeat.policy.errors import MalformedError, PolicyError, UnitError
from exeat.policy.leases import Lease, Narrowing, Outcome
from exeat.policy.model import Decision, Request, Sni, Subject
from exeat.policy.postures import HOUR_MS
from exeat.policy.proof_cases import ProofCases
from exeat.policy.scopes import Scope, parse_ports, parse_scope
from exeat.policy.units import (
    format_time,
    parse_count,
    parse_duration,
    parse_rate_count,
    parse_rate_size,
    parse_rate_usd,
    parse_size,
    parse_time,
    parse_usd,
)
from exeat.policy.usage import Overlay

Case = Mapping[str, Any]
FAR_FUTURE = "2100-01-01T00:00:00Z"


class _CasesLoader(yaml.SafeLoader):
    """Instants stay the text that they are."""


_CasesLoader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class CasesError(ValueError):
    """The cases file itself cannot be used."""


@dataclass(frozen=True, slots=True)
class Result:
    id: str
    kind: str
    status: str  # passed | failed
    expected: Mapping[str, Any]
    got: Mapping[str, Any]


def run_cases(text: str, suffixes: PublicSuffixes, kinds: Iterable[str] = ()) -> list[Result]:
    """Every case, or those of `kinds`. Raises CasesError if the text is not a file of cases."""
    return run_read_cases(read_cases(text), suffixes, kinds)


def read_cases(text: str) -> Any:
    """The file as data, for `run_read_cases`. Raises CasesError."""
    try:
        return yaml.load(text, Loader=_CasesLoader)  # noqa: S506 - a SafeLoader, with less
    except yaml.YAMLError as error:
        raise CasesError(f"not a file of cases: {error!r}") from None


def run_read_cases(data: Any, suffixes: PublicSuffixes, kinds: Iterable[str] = ()) -> list[Result]:
    """`run_cases` of a file that has been read before."""
    try:
        runner = _Runner(data, suffixes)
        wanted = frozenset(kinds)
        cases = [case for case in data["cases"] if not wanted or _kind(case) in wanted]
        return [runner.run(case) for case in cases]
    except (KeyError, TypeError, AttributeError) as error:
        raise CasesError(f"not a file of cases: {error!r}") from None


def _kind(case: Case) -> str:
    return str(case.get("kind", "decide"))


class _FixedCounters:
    """The counters a case states, whatever the time; corrupt ones included."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def used(self, project: str, budget: str, counter: str, window_ms: int, now_ms: int) -> object:
        return self._state.get("budgets", {}).get(budget, {}).get(counter, 0)

    def lease_uses(self, lease_id: str) -> int:
        return int(self._state.get("lease_uses", {}).get(lease_id, 0))

    def lease_bytes(self, lease_id: str) -> int:
        return int(self._state.get("lease_bytes", {}).get(lease_id, 0))


class _Runner:
    def __init__(self, data: Mapping[str, Any], suffixes: PublicSuffixes) -> None:
        self._data = data
        self._suffixes = suffixes
        self._now = data.get("defaults", {}).get("now", "2026-01-05T12:00:00Z")
        self._compiled: dict[tuple[str, str], CompiledPolicy] = {}
        self._kinds: dict[str, Callable[[Case], dict[str, Any]]] = {
            "decide": self._decide,
            "load": self._load,
            "unit": _unit,
            "flow": _flow,
            "admin": _admin,
            **ProofCases(self._document, case_lease, suffixes, self._now).kinds(),
        }

    def run(self, case: Case) -> Result:
        kind, expected = _kind(case), dict(case["expect"])
        judge = self._kinds.get(kind)
        try:
            got = judge(case) if judge is not None else {"unusable": f"unknown kind {kind}"}
        except (KeyError, TypeError, ValueError, AttributeError, PolicyError) as error:
            got = {"unusable": repr(error)}  # this case fails; the others still run
        passed = "unusable" not in got and all(_agrees(key, value, got) for key, value in expected.items())
        return Result(str(case["id"]), kind, "passed" if passed else "failed", expected, got)

    def _load(self, case: Case) -> dict[str, Any]:
        try:
            document = load_policy(case["doc"], file=case["id"], suffixes=self._suffixes)
        except PolicyError as error:
            return {"error": error.code, "message": str(error)}
        return {"ok": True, "error": None, "warning": [warning.code for warning in document.warnings]}

    def _document(self, name: str) -> Document:
        """A policy of the file by name, or the text of one."""
        text = self._data.get("policies", {}).get(name, name)
        return load_policy(text, file=name.partition("\n")[0], suffixes=self._suffixes)

    def _policy(self, case: Case) -> CompiledPolicy:
        names = (case["policy"], case.get("baseline", ""))
        if names not in self._compiled:
            baseline = self._document(names[1]) if names[1] else None
            self._compiled[names] = compile_policy(under(self._document(names[0]), baseline))
        return self._compiled[names]

    def _decide(self, case: Case) -> dict[str, Any]:
        state = case.get("state", {})
        named = [
            self._data["leases"][item] if isinstance(item, str) else item for item in case.get("leases", ())
        ]
        overlay = Overlay.of(
            map(case_lease, named),
            usage=_FixedCounters(state),
            revoked=state.get("revoked", ()),
            min_epoch=state.get("min_epoch", 0),
        )
        try:
            request = case_request(case["request"])
        except MalformedError as error:
            return {"decision": "deny", "reason": error.code}
        decision = decide(self._policy(case), request, parse_time(case.get("now", self._now)), overlay)
        return _shown(decision)


def _shown(decision: Decision) -> dict[str, Any]:
    spoken = {
        "raw": decision.raw,
        "ech": decision.ech,
        "direct": decision.direct,
        "records": decision.records,
    }
    return {"decision": str(decision.verdict), "reason": decision.reason, "rule": decision.rule, **spoken}


def _agrees(key: str, value: object, got: Mapping[str, Any]) -> bool:
    if key == "warning":
        return value in got.get("warning", ())
    return bool(got.get(key) == value)


def case_request(fields: Mapping[str, Any], subject: Subject | None = None) -> Request:
    """A request from plain JSON values; hosts are wire forms. Raises MalformedError."""
    base = subject or Subject("p", "a1", node="n1")
    sni = fields.get("sni", Sni.UNSEEN)
    return Request(
        subject=base._replace(**{name: fields[name] for name in Subject._fields if name in fields}),
        host=fields["host"],
        port=fields.get("port", 443),
        proto=fields.get("proto", "tcp"),
        resolved=tuple(parse_address(str(text)) for text in fields.get("resolved", ())),
        sni=Sni.ABSENT if sni is None else sni,
    )


_LEASE_FIELDS = (
    *("id", "project", "private", "raw", "ech", "direct", "records", "job"),
    *("issuer", "epoch", "max_uses", "max_bytes", "budget"),
)


def case_lease(fields: Mapping[str, Any]) -> Lease:
    """A lease as the cases write it: instants as text, scopes alone or in lists."""
    simple = {name: fields[name] for name in _LEASE_FIELDS if name in fields}
    return Lease(
        **{"project": "p", **simple},
        to=_scopes(fields["to"]),
        ports=parse_ports(map(str, _listed(fields.get("ports", "443")))),
        protocols=tuple(_listed(fields.get("proto", "tcp"))),
        except_=_scopes(fields.get("except", [])),
        agents=frozenset(_listed(fields.get("agents", []))),
        nodes=frozenset(_listed(fields.get("nodes", []))),
        nbf_ms=parse_time(fields["nbf"]) if "nbf" in fields else 0,
        exp_ms=parse_time(fields.get("exp", FAR_FUTURE)),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _scopes(value: Any) -> tuple[Scope, ...]:
    return tuple(parse_scope(text) for text in _listed(value))


_UNITS: dict[str, Callable[[str], int | tuple[int, int]]] = {
    "size": parse_size,
    "duration": parse_duration,
    "count": parse_count,
    "usd": parse_usd,
    "rate_size": parse_rate_size,
    "rate_count": parse_rate_count,
    "rate_usd": parse_rate_usd,
    "time": parse_time,
}


def _unit(case: Case) -> dict[str, Any]:
    try:
        value = _UNITS[case["fn"]](str(case["in"]))
    except UnitError as error:
        return {"error": error.code}
    return {"value": list(value) if isinstance(value, tuple) else value}


def _admin(case: Case) -> dict[str, Any]:
    request = case["request"]
    actor = Actor(str(request["actor"]["id"]), str(request["actor"]["role"]))
    return _shown(authorize(actor, request["action"], request.get("ctx", {})))


def _flow(case: Case) -> dict[str, Any]:
    cfg = case["cfg"]
    draft = case_lease(
        {"id": "L", **{k: v for k, v in cfg.items() if k not in ("ttl", "max_ttl", "approvals")}}
    )
    draft = replace(
        draft,
        requester=cfg["requester"],
        on_behalf_of=cfg.get("on_behalf_of", ""),
        approvals_needed=cfg.get("approvals", 1),
        ttl_ms=parse_duration(cfg["ttl"]) if "ttl" in cfg else lease_flow.DEFAULT_TTL_MS,
        max_ttl_ms=parse_duration(cfg["max_ttl"]) if "max_ttl" in cfg else draft.max_ttl_ms,
        request_ttl_ms=parse_duration(cfg.get("request_ttl", f"{HOUR_MS}ms")),
    )
    outcome = Outcome(draft, "ok")
    for step in case["steps"]:
        outcome = _flow_step(outcome.lease, step, cfg)
    lease = outcome.lease
    return {"state": lease.state.upper(), "reason": outcome.reason, "exp": format_time(lease.exp_ms)}


def _flow_step(lease: Lease, step: Mapping[str, Any], cfg: Mapping[str, Any]) -> Outcome:
    now_ms = parse_time(step["at"])
    who = step.get("actor", {"id": cfg["requester"], "role": "agent"})
    actor = Actor(str(who["id"]), str(who["role"]))
    match step["ev"]:
        case "request":
            return lease_flow.request(lease, now_ms)
        case "approve":
            return lease_flow.approve(lease, actor, now_ms, _narrowing(step))
        case "deny":
            return lease_flow.deny(lease, actor, now_ms)
        case "renew":
            increment = parse_duration(step["increment"]) if "increment" in step else None
            return lease_flow.renew(lease, actor, now_ms, increment)
        case "revoke":
            return lease_flow.revoke(lease, actor, now_ms, step.get("pending", cfg.get("nodes", ())))
        case "ack":
            return lease_flow.acknowledge(lease, str(step.get("node", actor.id)), now_ms)
        case "exhaust":
            return lease_flow.exhaust(lease, now_ms)
        case "tick":
            return Outcome(lease_flow.settle(lease, now_ms), "ok")
        case other:
            raise KeyError(f"unknown event {other}")


def _narrowing(step: Mapping[str, Any]) -> Narrowing:
    return Narrowing(
        to=_scopes(step["to"]) if "to" in step else None,
        ports=parse_ports(map(str, _listed(step["ports"]))) if "ports" in step else None,
        except_=_scopes(step.get("except", [])),
        ttl_ms=parse_duration(step["ttl"]) if "ttl" in step else None,
        max_bytes=step.get("max_bytes"),
        max_uses=step.get("max_uses"),
        raw=step.get("raw"),
        ech=step.get("ech"),
        direct=step.get("direct"),
        records=step.get("records"),
    )
