"""Folders that jobs have by policy or lease: judged before the job starts, and for as long as it runs.

A mount cannot be taken out of a running container, nor be made read-only in it, without root's hand in the
job's own namespaces. So what ends is the job: within a tick of control, as soon as its policy and leases
no longer give it what it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.errors import RefusedError
from exeat.policy.errors import ScopeError
from exeat.policy.files import SCHEME, Access, FileScope, decide_file, parse_file_scope
from exeat.policy.model import Decision, Subject, Verdict
from exeat.policy.reasons import short_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exeat.appliance.control.leases import Leases
    from exeat.appliance.control.policies import Policies
    from exeat.ledger.ipc import Message

MAX_SCOPES: Final = 16  # of one job


def is_file(to: object) -> bool:
    """Is it meant to be a file scope, and not a place in a network?"""
    return isinstance(to, str) and to.startswith(SCHEME)


class Files:
    """`roots`: folders below which all that jobs may have lies."""

    def __init__(
        self, node: str, roots: Sequence[Path], leases: Leases, policies: Policies, now_ms: Callable[[], int]
    ) -> None:
        self._node, self._roots = node, [str(root) for root in roots]
        self._leases, self._policies, self._now_ms = leases, policies, now_ms

    def decide(self, subject: Subject, scope: FileScope) -> Decision:
        document = self._policies.judging_files(subject.project, subject.job)
        if document is None:
            return Decision(Verdict.DENY, "meta.project")
        if not self._below_roots(scope):
            return Decision(Verdict.DENY, "file.outside")
        return decide_file(document, self._leases.of_files(), subject, scope, self._now_ms())

    def _below_roots(self, scope: FileScope) -> bool:
        return any(FileScope(root, scope.access).covers(scope) for root in self._roots)

    def why(self, project: str, agent: str, text: str) -> dict[str, Any]:
        """As `lease_rows.why` says it of a place. Raises RefusedError."""
        scope = parsed(text)
        decision = self.decide(Subject(project, agent, "", "", self._node), scope)
        asks = decision.verdict is Verdict.ASK
        return {
            "to": str(scope),
            "verdict": str(decision.verdict),
            "reason": decision.reason,
            "rule": decision.rule,
            "text": short_text(decision.reason),
            "leasable": asks,
            "next": f"exeat lease request --project {project} {scope}" if asks else "",
        }

    def admit(self, subject: Subject, scopes: Sequence[str]) -> dict[str, str]:
        """By scope the lease that gives it, "" where a rule does. Raises RefusedError."""
        found = {}
        for text in scopes:
            decision = self.decide(subject, parsed(text))
            if not decision.allowed:
                advice = "; `exeat why` says what would change it" if decision.verdict is Verdict.ASK else ""
                raise RefusedError(decision.reason, f"{text}: {short_text(decision.reason)}{advice}")
            found[text] = decision.lease
        return found

    def check_mounts(self, subject: Subject, mounts: object, root: str) -> None:
        """What root gives a job needs no leave, but `deny` holds for it, too. Raises RefusedError."""
        listed = mounts if isinstance(mounts, list) else []
        pairs = [(each.get("path"), each.get("mode")) for each in listed if isinstance(each, dict)]
        for path, mode in [*pairs, (root or None, Access.RO)]:
            if not isinstance(path, str) or mode not in tuple(Access):
                continue  # the warden says what is wrong with it
            decision = self.decide(subject, FileScope(path, Access(mode)))
            if decision.reason == "rule.deny":
                raise RefusedError("rule.deny", f"{path}: {short_text('rule.deny')} ({decision.rule})")

    async def request(self, message: Message, requester: str) -> dict[str, Any]:
        """A person asks for a lease. Raises RefusedError."""
        scope = parsed(str(message.get("to")))
        if not self._below_roots(scope):
            raise RefusedError("file.outside", f"{scope}: {short_text('file.outside')}")
        return await self._leases.request_file(str(scope), message, requester)


def parsed(text: str) -> FileScope:
    """Raises RefusedError."""
    try:
        return parse_file_scope(text)
    except ScopeError as error:
        raise RefusedError(error.code, str(error)) from None


def scopes_of(raw: object) -> list[str]:
    """Those of a request, each as it is kept. Raises RefusedError."""
    if raw is None:
        return []
    if not isinstance(raw, list) or len(raw) > MAX_SCOPES or not all(isinstance(each, str) for each in raw):
        raise RefusedError("file.scope", f"scopes is a list of at most {MAX_SCOPES} file scopes")
    return [str(parsed(each)) for each in dict.fromkeys(raw)]


def mounts_of(scopes: Sequence[str]) -> list[dict[str, str]]:
    """As the warden takes them."""
    return [{"path": scope.path, "mode": str(scope.access)} for scope in map(parsed, scopes)]
