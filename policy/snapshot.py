"""The whole truth that control sends to the gateway, ready to decide. Immutable.

Shape of the message: docs/architecture.md, hub.sock, `snapshot`; `min_epoch` and `host_local`
(list of addresses) may be left out. The caller watches freshness (`fresh_ms`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from exeat.policy.addresses import Address, Cidr, parse_address, parse_cidr
from exeat.policy.baseline import under
from exeat.policy.decide import CompiledPolicy, compile_policy, decide, decide_lookup, decide_records
from exeat.policy.document import Document, Endpoint, PolicyError
from exeat.policy.leases import Lease
from exeat.policy.model import Decision, Request, Subject, Verdict
from exeat.policy.postures import Posture
from exeat.policy.rules import Kind
from exeat.policy.scopes import parse_scope
from exeat.policy.shadow import note
from exeat.policy.usage import LeaseIndex, Overlay, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_OVERLAYS: Final = 1024
EVERYONE: Final = "*"  # in `killed`: not a project, all of them
KILLED: Final = Decision(Verdict.DENY, "kill")
# What a node knows of itself: treated as public (lab), control's endpoints, its own addresses.
Bound = tuple[str, str]  # digests of a document and of the baseline over it, "" for none
Place = tuple[tuple[Cidr, ...], frozenset[Endpoint], frozenset[Address]]


class SnapshotError(ValueError):
    """The message is not a snapshot. The receiver keeps its old one, until that is stale."""


@dataclass(frozen=True)
class Snapshot:
    generation: int
    fresh_ms: int
    policies: Mapping[str, CompiledPolicy]  # by digest, each under the baseline
    projects: Mapping[str, str]  # project -> digest
    jobs: Mapping[str, str]  # job -> digest; beats the project's
    shadows: Mapping[str, CompiledPolicy]  # by project: judged beside the one in force, never enforced
    leases: Mapping[str, Lease]
    revoked: frozenset[str]
    killed: frozenset[str]  # projects that the kill switch stops, or EVERYONE
    min_epoch: int
    _index: LeaseIndex
    _place: Place
    _compiled: Mapping[Bound, CompiledPolicy]  # everything in `policies` and `shadows`
    # Made again when missing, by policy and by whose use is counted: no part of what a snapshot is.
    _overlays: dict[tuple[int, int], Overlay] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, message: Mapping[str, Any], previous: Snapshot | None = None) -> Snapshot:
        """Raises SnapshotError. `previous` lends its compiled policies where nothing changed."""
        try:
            return _load(message, previous)
        except SnapshotError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, PolicyError) as error:
            raise SnapshotError(f"not a snapshot: {error}") from None

    @staticmethod
    def message(
        *,
        generation: int,
        fresh_ms: int,
        documents: Iterable[Document],
        projects: Mapping[str, str],
        jobs: Mapping[str, str] | None = None,
        shadows: Mapping[str, str] | None = None,
        baseline: str = "",
        shadow_baseline: str = "",
        leases: Iterable[Lease] = (),
        revoked: Iterable[str] = (),
        killed: Iterable[str] = (),
        treat_as_public: Iterable[str] = (),
        control: Iterable[str] = (),
        host_local: Iterable[str] = (),
        min_epoch: int = 0,
    ) -> dict[str, Any]:
        """The message to send; `projects`, `jobs` and `shadows` map to digests of `documents`.

        `baseline` is the digest of the document that holds for all of them, `shadow_baseline` of the
        one that holds for the shadows; "" for none.
        """
        return {
            "t": "snapshot",
            "generation": generation,
            "fresh_ms": fresh_ms,
            "policies": {document.digest: document.to_canonical_json() for document in documents},
            "projects": dict(projects),
            "jobs": dict(jobs or {}),
            "shadows": dict(shadows or {}),
            "baseline": baseline,
            "shadow_baseline": shadow_baseline,
            "leases": [lease.to_json() for lease in leases],
            "revoked": sorted(revoked),
            "killed": sorted(killed),
            "treat_as_public": list(treat_as_public),
            "control": list(control),
            "host_local": list(host_local),
            "min_epoch": min_epoch,
        }

    def restore(self, usage: Usage, spent: Mapping[str, Any]) -> None:
        """Tell new counters what the ledger says was spent before (the hub's `spent` message)."""
        for policy in self.policies.values():
            usage.define(policy.document.project, policy.document.budgets)
        usage.restore(spent)

    def to_compile(self, message: Mapping[str, Any]) -> int:
        """How many characters of policies `load` would have to compile that are not in here."""
        try:
            known = self._compiled if _place(message) == self._place else {}
            return sum(len(message["policies"][digest]) for digest, _ in _bound(message) - known.keys())
        except (KeyError, TypeError, ValueError, AttributeError):
            return 0  # `load` says what is wrong with it

    def meanwhile(self, message: Mapping[str, Any]) -> Snapshot:
        """This snapshot with the leases, revocations and kill switches of a newer message, and without the
        bindings that it no longer has: for as long as its policies are being compiled. Raises SnapshotError.
        """
        try:
            leases = [Lease.from_json(item) for item in message["leases"]]
            return replace(
                self,
                projects={
                    name: known for name, known in self.projects.items() if name in message["projects"]
                },
                jobs={name: known for name, known in self.jobs.items() if name in message["jobs"]},
                leases={lease.id: lease for lease in leases},
                revoked=frozenset(message["revoked"]),
                killed=_names(message["killed"]),
                min_epoch=max(self.min_epoch, _count(message.get("min_epoch", 0))),
                _index=LeaseIndex(leases),
                _overlays={},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"not a snapshot: {error}") from None

    def leftover(self, newer: Snapshot) -> list[object]:
        """The pieces of the policies that `newer` does not go on with."""
        gone = self._compiled.keys() - newer._compiled.keys()
        return [piece for bound in gone for piece in self._compiled[bound].pieces()]

    def policy_for(self, subject: Subject) -> CompiledPolicy | None:
        digest = self.jobs.get(subject.job) if subject.job else None
        if digest is None:
            digest = self.projects.get(subject.project)
        return None if digest is None else self.policies.get(digest)

    def document_for(self, subject: Subject) -> Document | None:
        policy = self.policy_for(subject)
        return None if policy is None else policy.document

    def stops(self, subject: Subject) -> bool:
        """Whether the kill switch is on for the subject: then everything is denied, `kill`."""
        return bool(self.killed) and (EVERYONE in self.killed or subject.project in self.killed)

    def decide(self, request: Request, now_ms: int, usage: Usage) -> Decision:
        """The answer under the policy bound to the subject; no bound policy is `meta.project`."""
        if self.stops(request.subject):
            return KILLED
        policy = self.policy_for(request.subject)
        if policy is None:
            return _unbound(request.subject)
        return decide(policy, request, now_ms, self._overlay(policy, usage))

    def may_speak_udp(self, subject: Subject, now_ms: int) -> bool:
        """Whether anything lets the subject send datagrams somewhere, at this moment."""
        document = self.document_for(subject)
        if document is None or self.stops(subject):
            return False
        if document.posture is Posture.OFF:
            return True
        rules = (*document.of_kind(Kind.ALLOW), *document.of_kind(Kind.ASK))
        return any(rule.applies(subject, "udp", now_ms) for rule in rules) or any(
            lease.serves(subject, "udp", now_ms) for lease in self.leases.values()
        )

    def goes_direct(self, subject: Subject, host: str) -> bool:
        """Whether a lease of the subject's project may take `host` past the proxy."""
        return self._index.goes_direct(subject, host)

    def decide_lookup(
        self,
        subject: Subject,
        host: str,
        now_ms: int,
        usage: Usage,
        resolved: tuple[Address, ...] = (),
    ) -> Decision:
        """May the subject resolve `host`; with `resolved`, may it have those addresses."""
        if self.stops(subject):
            return KILLED
        policy = self.policy_for(subject)
        if policy is None:
            return _unbound(subject)
        return decide_lookup(policy, subject, host, now_ms, self._overlay(policy, usage), resolved)

    def decide_records(self, subject: Subject, host: str, now_ms: int, usage: Usage) -> Decision | None:
        """The allowance under which the subject may look up other records of `host` than its addresses."""
        policy = self.policy_for(subject)
        if policy is None or self.stops(subject):
            return None
        return decide_records(policy, subject, host, now_ms, self._overlay(policy, usage))

    def shadow(self, request: Request, decided: Decision, now_ms: int, usage: Usage) -> str:
        """What a record of `decided` says of the project's shadow policy: "" if it agrees or is none.

        It is judged on the counters of the policy in force: by budgets of the same name.
        """
        policy = self._shadow_of(request.subject)
        if policy is None:
            return ""
        return note(decided, decide(policy, request, now_ms, self._overlay(policy, usage)))

    def shadow_lookup(self, subject: Subject, host: str, decided: Decision, now_ms: int, usage: Usage) -> str:
        """As `shadow`, of a lookup."""
        policy = self._shadow_of(subject)
        if policy is None:
            return ""
        return note(decided, decide_lookup(policy, subject, host, now_ms, self._overlay(policy, usage)))

    def _shadow_of(self, subject: Subject) -> CompiledPolicy | None:
        """A job that brought a policy of its own has no shadow: the project's says nothing about it.

        Nor does any policy of what the kill switch stops.
        """
        if not self.shadows or subject.job in self.jobs or self.stops(subject):
            return None
        return self.shadows.get(subject.project)

    def _overlay(self, policy: CompiledPolicy, usage: Usage) -> Overlay:
        key = (id(policy), id(usage))
        known = self._overlays.get(key)  # it holds these counters, so no others can have their id
        if known is not None:
            return known
        usage.define(policy.document.project, policy.document.budgets)
        made = Overlay(self._index, self.revoked, self.min_epoch, usage)
        if len(self._overlays) >= MAX_OVERLAYS:
            self._overlays.clear()
        self._overlays[key] = made
        return made


def _unbound(subject: Subject) -> Decision:
    known = subject.agent and subject.project
    return Decision(Verdict.DENY, "meta.project" if known else "meta.attribution")


def _place(message: Mapping[str, Any]) -> Place:
    return (
        tuple(_cidr(text) for text in message.get("treat_as_public", ())),
        frozenset(_endpoint(text) for text in message.get("control", ())),
        frozenset(parse_address(text) for text in message.get("host_local", ())),
    )


def _load(message: Mapping[str, Any], previous: Snapshot | None) -> Snapshot:
    place = _place(message)
    known = previous._compiled if previous is not None and previous._place == place else {}
    bound, texts = _bound(message), message["policies"]
    missing = {digest for pair in bound for digest in pair if digest} - texts.keys()
    if missing:
        raise SnapshotError(f"bound policies are missing: {sorted(missing)}")
    baselines = {digest: _document(digest, texts) for digest in {base for _, base in bound - known.keys()}}
    compiled = {
        pair: known.get(pair) or _compile(_document(pair[0], texts), baselines[pair[1]], place)
        for pair in bound
    }
    baseline, shadow_baseline = message["baseline"], message["shadow_baseline"]
    leases = [Lease.from_json(item) for item in message["leases"]]
    return Snapshot(
        generation=_count(message["generation"]),
        fresh_ms=_count(message["fresh_ms"]),
        policies={digest: policy for (digest, base), policy in compiled.items() if base == baseline},
        projects=dict(message["projects"]),
        jobs=dict(message["jobs"]),
        shadows={
            project: compiled[digest, shadow_baseline] for project, digest in message["shadows"].items()
        },
        leases={lease.id: lease for lease in leases},
        revoked=frozenset(message["revoked"]),
        killed=_names(message["killed"]),
        min_epoch=_count(message.get("min_epoch", 0)),
        _index=LeaseIndex(leases),
        _place=place,
        _compiled=compiled,
    )


def _bound(message: Mapping[str, Any]) -> set[Bound]:
    """Every policy that somebody is judged by, and the baseline over it."""
    enforced = (*message["projects"].values(), *message["jobs"].values())
    return {
        *((digest, message["baseline"]) for digest in enforced),
        *((digest, message["shadow_baseline"]) for digest in message["shadows"].values()),
    }


def _document(digest: str, texts: Mapping[str, str]) -> Document | None:
    """None for no digest."""
    if not digest:
        return None
    text = texts[digest]
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise SnapshotError(f"policy {digest} does not have that digest")
    return Document.from_canonical_json(text, file=f"policy {digest[:12]}")


def _compile(document: Document | None, baseline: Document | None, place: Place) -> CompiledPolicy:
    if document is None:
        raise SnapshotError("a project or job is bound to no policy")
    document = under(document, baseline)
    treat_as_public, control, host_local = place
    return compile_policy(document, treat_as_public=treat_as_public, control=control, host_local=host_local)


def _names(value: object) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise SnapshotError(f"{value!r} is not a list of names")
    return frozenset(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SnapshotError(f"{value!r} is not a whole number from 0")
    return value


def _cidr(text: str) -> Cidr:
    cidr = parse_cidr(text)
    if cidr is None:
        raise SnapshotError(f"`{text}` is not a network")
    return cidr


def _endpoint(text: str) -> Endpoint:
    scope = parse_scope(text)
    if scope.wide or scope.ports is None or len(scope.ports) != 1 or len(set(scope.ports[0])) != 1:
        raise SnapshotError(f"`{text}` is not HOST:PORT")
    port = scope.ports[0][0]
    if scope.net is not None:
        return Address(scope.net.family, scope.net.value), port
    return scope.name, port
