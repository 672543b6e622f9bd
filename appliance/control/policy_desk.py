"""Policies as people change them while the appliance runs: the folder read again, or a text from the console.

What would let more out takes a second person. A text from the console that needs one waits as a proposal:
the second person agrees to exactly that text, over exactly the policy it was made from.
"""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from exeat.appliance.control.policies import Change
from exeat.appliance.control.policy_versions import Version, VersionError
from exeat.appliance.control.verbs import Verb, Verbs, actor, may
from exeat.appliance.errors import RefusedError
from exeat.appliance.sections import LABEL
from exeat.ledger.records import printable
from exeat.policy.admin import Actor, authorize
from exeat.policy.baseline import BASELINE
from exeat.policy.lint import lint
from exeat.policy.posture_edit import with_posture
from exeat.policy.postures import Posture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exeat.appliance.control.evidence import Evidence
    from exeat.appliance.control.policies import Policies
    from exeat.appliance.control.resolvers import ResolverList
    from exeat.ledger.ipc import Message

MOST_TEXT: Final = 1 << 20  # characters of one policy
_LISTED: Final = 200  # versions
_P = ParamSpec("_P")
_T = TypeVar("_T")


class PolicyDesk:
    """`publish` tells the gateway of what is in force, `publish_resolvers` the guard of the resolvers."""

    def __init__(
        self,
        policies: Policies,
        resolvers: ResolverList,
        evidence: Evidence,
        *,
        now_ms: Callable[[], int],
        publish: Callable[[], None],
        publish_resolvers: Callable[[], None],
        refused: Callable[[str], None],
    ) -> None:
        """`refused` counts a change that was not made, by project; "" for the folder as a whole."""
        self._policies, self._versions, self._resolvers = policies, policies.versions, resolvers
        self._evidence, self._now_ms = evidence, now_ms
        self._publish, self._publish_resolvers, self._refused = publish, publish_resolvers, refused
        self._changing = asyncio.Lock()  # what is compared is what is in force until it is replaced

    def verbs(self) -> Verbs:
        changes: Verbs = {
            "policy.reload": self._reload,
            "policy.set": self._set,
            "policy.posture": self._posture,
            "policy.revert": self._revert,
            "policy.remove": self._remove,
            "policy.agree": self._agree,
            "policy.withdraw": self._withdraw,
        }
        return {
            "policy.ls": self._ls,
            "policy.show": self._show,
            "policy.versions": self._all_versions,
            **{name: self._counted(verb) for name, verb in changes.items()},
        }

    def _counted(self, verb: Verb) -> Verb:
        async def change(message: Message, fds: list[int]) -> dict[str, Any]:
            try:
                return await verb(message, fds)
            except RefusedError:
                project = str(message.get("project") or "")
                self._refused(project if project in self._policies.projects else "")
                raise

        return change

    def record(self, change: Change, who: str, verdict: str, detail: str = "") -> bytes:
        """The ledger's record of a policy that comes into force."""
        return self._evidence.policy(
            project=change.project,
            digest=change.digest,
            actor=who,
            verdict="shadow" if change.shadow else verdict,
            detail=detail or change.widens or ("removed" if not change.digest else ""),
        )

    # -- the folder

    async def _reload(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """Put the folder in force; what widens needs a second person."""
        async with self._changing:
            who = actor(message)
            changes = await asyncio.to_thread(self._policies.read, self._now_ms())
            changes += await asyncio.to_thread(self._policies.read_shadows)
            names = await asyncio.to_thread(self._resolvers.read)
            for change in changes:
                if change.widens:
                    what = f"project {change.project} would let more out: {change.widens}"
                    _need_second_person(what, who, message.get("reviewed_by"))
            if names.widens:
                what = f"resolvers_file would no longer refuse {names.widens}"
                _need_second_person(what, who, message.get("reviewed_by"))
            self._policies.keep(changes)
            effective = [change for change in changes if change.changed]
            records = [self.record(c, who.id, "widens" if c.widens else "narrows") for c in effective]
            records += [self._resolvers.record(names, who.id, self._evidence)] if names.changed else []
            if records:
                await self._evidence.write(*records)
            self._policies.apply(changes)
            self._resolvers.apply(names)
            warn(effective)
            if names.changed:
                self._publish_resolvers()
            self._publish()
            return {
                "projects": sorted(self._policies.projects),
                "changed": [c.project for c in effective],
                "shadows": self._policies.shadow_names,
            }

    # -- looking

    async def _ls(self, _message: Message, _fds: list[int]) -> dict[str, Any]:
        names = [*sorted(self._policies.projects), *([BASELINE] if self._policies.baseline else [])]
        proposals = _kept(self._versions.proposals)
        rows = [self._row(name) for name in names]
        for row in rows:
            row["proposed"] = row["project"] in proposals
        new = [_proposal(version) for name, version in proposals.items() if name not in names]
        return {"policies": rows, "proposals": new, "error": self._policies.error}

    def _row(self, project: str) -> dict[str, Any]:
        document, file = self._policies.in_force(project), self._policies.file_of(project)
        if document is None:
            raise RefusedError("project.unknown", f"no policy for project `{project}`")
        return {
            "project": project,
            "digest": document.digest,
            "posture": str(document.posture),
            "rules": len(document.rules),
            "file": str(file) if file else "",  # "": set through the console
        }

    async def _show(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """The text in force, and the documents to compare another one with."""
        project = _project(message)
        row, document = self._row(project), self._policies.in_force(project)
        baseline = self._policies.in_force(BASELINE) if project != BASELINE else None
        proposal = _kept(self._versions.proposal, project)
        return {
            "policy": {
                **row,
                **self._text(project, row["digest"]),
                "canonical": document.to_canonical_json() if document is not None else "",
                "baseline": baseline.to_canonical_json() if baseline is not None else "",
                "proposal": None if proposal is None else _proposal(proposal),
            }
        }

    def _text(self, project: str, digest: str) -> dict[str, Any]:
        """What was written; `changed` if the file is not any more what is in force."""
        file = self._policies.file_of(project)
        try:
            if file is None:
                return {"text": _kept(self._versions.current)[project].text, "changed": False}
            text = file.read_text(encoding="utf-8")
            return {"text": text, "changed": self._policies.parse(text, str(file)).digest != digest}
        except (OSError, UnicodeDecodeError, KeyError, RefusedError):
            return {"text": "", "changed": True}

    async def _all_versions(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """Newest first."""
        found = _kept(self._versions.all, _project(message))
        return {"versions": [asdict(version) for version in reversed(found[-_LISTED:])]}

    # -- changing

    async def _set(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        text = message.get("text")
        if not isinstance(text, str) or not text or len(text) > MOST_TEXT:
            raise RefusedError("policy.invalid", f"a policy is a text of at most {MOST_TEXT} characters")
        async with self._changing:
            return await self._change(message, text)

    async def _posture(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """The same text with another posture."""
        async with self._changing:
            project = _project(message)
            self._only_ours(project)
            posture = str(message.get("posture"))
            if posture not in tuple(Posture):
                raise RefusedError("posture.unknown", f"`{posture}` is none of {', '.join(Posture)}")
            text = self._text(project, self._row(project)["digest"])["text"]
            return await self._change(message, with_posture(text, posture))

    async def _revert(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """A text of before, as a new version."""
        async with self._changing:
            project, digest = _project(message), message.get("digest")
            found = [
                each for each in _kept(self._versions.all, project) if each.digest == digest and each.text
            ]
            if not found:
                raise RefusedError("policy.no_version", f"project `{project}` never had that policy")
            return await self._change(message, found[-1].text)

    async def _change(self, message: Message, text: str) -> dict[str, Any]:
        project, who = _project(message), actor(message)
        may(message, "policy.update", {"widens": False})
        document = self._policies.parse(text, "policy")
        if document.project != project:
            raise RefusedError(
                "project.mismatch", f"the text is for project `{document.project}`, not `{project}`"
            )
        self._only_ours(project)
        base = self._digest(project)
        _fresh(project, base, message.get("base"))
        change = await asyncio.to_thread(self._policies.change, document, self._now_ms())
        version = Version(
            project=project,
            number=_kept(self._versions.next_number, project),
            text=text,
            digest=document.digest,
            base=base,
            by=who.id,
            at_ms=self._now_ms(),
            note=printable(str(message.get("note") or ""), 512),
            widens=change.widens,
        )
        if change.widens and not authorize(who, "policy.update", {"widens": True}).allowed:
            _kept(self._versions.propose, version)
            return {"state": "proposed", "version": asdict(version)}
        return await self._enforce(change, version)

    async def _agree(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """The second person's word, to the proposal with this digest."""
        async with self._changing:
            project, who = _project(message), actor(message)
            proposal = self._proposed(project, message.get("digest"))
            may(message, "policy.update", {"widens": True, "reviewers": [proposal.by]})
            self._only_ours(project)
            _fresh(project, self._digest(project), proposal.base)
            document = self._policies.parse(proposal.text, "policy")
            change = await asyncio.to_thread(self._policies.change, document, self._now_ms())
            number, now = _kept(self._versions.next_number, project), self._now_ms()
            agreed = replace(proposal, number=number, agreed_by=who.id, at_ms=now, widens=change.widens)
            return await self._enforce(change, agreed)

    async def _withdraw(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """By whoever may change policies; nothing was in force."""
        async with self._changing:
            project = _project(message)
            may(message, "policy.update", {"widens": False})
            self._proposed(project, message.get("digest"))
            _kept(self._versions.withdraw, project)
            return {}

    async def _remove(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """The project has no policy from now on: nothing of it passes. A baseline cannot go this way."""
        async with self._changing:
            project = _project(message)
            who = may(message, "policy.update", {"widens": False})
            self._only_ours(project)
            if project == BASELINE:
                raise RefusedError("policy.baseline", "set a baseline that says nothing: others depend on it")
            base = self._row(project)["digest"]
            _fresh(project, base, message.get("base"))
            number = _kept(self._versions.next_number, project)
            version = Version(project, number, "", "", base, who, at_ms=self._now_ms())
            return await self._enforce(Change(project, None, True), version)

    async def _enforce(self, change: Change, version: Version) -> dict[str, Any]:
        """The ledger first, then the version that a restart begins with, then the gateway."""
        self._policies.keep([change])
        if change.changed:
            agreed = f"agreed by {version.agreed_by}: " if version.agreed_by else ""
            detail = f"{agreed}{change.widens}" if change.widens else ""
            verdict = "widens" if change.widens else "narrows"
            await self._evidence.write(self.record(change, version.by, verdict, detail))
        _kept(self._versions.add, version)
        self._policies.apply([change])
        warn([change])
        self._publish()
        return {"state": "in_force", "version": asdict(version)}

    def _digest(self, project: str) -> str:
        document = self._policies.in_force(project)
        return document.digest if document is not None else ""

    def _only_ours(self, project: str) -> None:
        file = self._policies.file_of(project)
        if file is not None:
            raise RefusedError(
                "policy.elsewhere", f"{file} holds it: change that, then `exeat policy reload`"
            )

    def _proposed(self, project: str, digest: object) -> Version:
        proposal = _kept(self._versions.proposal, project)
        if proposal is None or proposal.digest != digest:
            raise RefusedError("policy.no_proposal", f"project `{project}` has no such proposal any more")
        return proposal


def _kept(ask: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    try:
        return ask(*args, **kwargs)
    except (OSError, VersionError) as error:
        raise RefusedError("policy.not_kept", f"versions of policies: {error}") from None


def _project(message: Message) -> str:
    """Raises RefusedError for what no project is called."""
    name = str(message.get("project") or "")
    if not re.fullmatch(LABEL, name):
        raise RefusedError("project.unknown", "no project is called that")
    return name


def _fresh(project: str, now: str, base: object) -> None:
    if base != now:
        raise RefusedError("review.stale", f"the policy of {project} is another by now: look again")


def _proposal(version: Version) -> dict[str, Any]:
    return {**asdict(version), "state": "proposed"}


def _need_second_person(what: str, who: Actor, reviewer: object) -> None:
    context = {"widens": True, "reviewers": [who.id, *([reviewer] if reviewer else [])]}
    decision = authorize(who, "policy.update", context)
    if not decision.allowed:
        raise RefusedError(
            decision.reason,
            f"{what}; a second person must agree: exeat policy reload --as NAME --reviewed-by OTHER",
        )


def warn(changes: Iterable[Change]) -> None:
    """Say what in the policies that came into force hardly means what it says."""
    for change in changes:
        document = change.document
        for warning in (*document.warnings, *lint(document)) if document is not None else ():
            whose = f"{'shadow ' if change.shadow else ''}policy of {change.project}"
            text = f"{whose}: {warning.message} [{warning.code}]"
            print(f"control: warning: {text}", file=sys.stderr, flush=True)
