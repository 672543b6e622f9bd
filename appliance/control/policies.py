"""The policies in force: the folder's documents, and those that single jobs brought along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from exeat.appliance.control.policy_versions import VersionError, Versions
from exeat.appliance.documents import DocumentError, Documents
from exeat.appliance.errors import RefusedError
from exeat.appliance.public_suffixes import BundledSuffixes
from exeat.policy.baseline import BASELINE, files_under, under
from exeat.policy.document import Document, PolicyError, load_policy
from exeat.policy.files import files_widened
from exeat.policy.memory import memory_of
from exeat.policy.widens import widens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exeat.appliance.config import Config


@dataclass(frozen=True)
class Change:
    """A project's policy as it would be; `document` None removes it. `widens` says by what flow; a
    `shadow` never does, it is not enforced."""

    project: str
    document: Document | None
    changed: bool
    widens: str = ""
    shadow: bool = False

    @property
    def digest(self) -> str:
        return self.document.digest if self.document is not None else ""


class Policies:
    """Documents by digest, and which project or job is judged by which.

    The document of project `baseline` binds nobody: it holds for all others (`policy.baseline`).
    """

    def __init__(
        self,
        folder: Path,
        kept: Documents,
        versions: Versions,
        shadow_folder: Path | None = None,
        ledger_days: int = 0,
    ) -> None:
        """`ledger_days`: what is counted is forgotten once it is older (0: never). `versions`: what was set
        through the console; a project is either there or in the folder."""
        self._folder = folder
        self.versions = versions
        self._files: dict[str, Path] = {}  # as the folder was read last
        self._ledger_days = ledger_days
        self._shadow_folder = shadow_folder
        self._kept = kept
        self._suffixes = BundledSuffixes()
        self.documents: dict[str, Document] = {}
        self.projects: dict[str, str] = {}
        self.jobs: dict[str, str] = {}
        self.shadows: dict[str, str] = {}
        self.baseline = ""
        self.shadow_baseline = ""
        self.error = ""

    @classmethod
    def of(cls, config: Config) -> Self:
        """Those of the configured folders, none in force yet."""
        documents = Documents(config.state_dir / "control" / "documents")
        kept = config.ledger
        days = kept.keep_at_least_days if kept.keep_days or kept.keep_bytes else 0
        versions = Versions(config.state_dir / "control" / "policies")
        return cls(config.policy.dir, documents, versions, config.policy.shadow, days)

    def read(self, now_ms: int) -> list[Change]:
        """Read the folder: what would change. Raises RefusedError with file:line; nothing changes."""
        loaded = self._load_folder(self._folder, self.versions)
        before, after = self.documents.get(self.baseline), loaded.pop(BASELINE, None)
        removed = [Change(project, None, True) for project in self.projects if project not in loaded]
        changes = [self._change(document, before, after, now_ms) for document in loaded.values()]
        return changes + removed + self._change_baseline(before, after, loaded, now_ms)

    def read_shadows(self) -> list[Change]:
        """Read the folder of shadow policies, if there is one. As `read`."""
        loaded = self._load_folder(self._shadow_folder) if self._shadow_folder is not None else {}
        known = self.shadows | ({BASELINE: self.shadow_baseline} if self.shadow_baseline else {})
        removed = [Change(project, None, True, shadow=True) for project in known.keys() - loaded]
        return removed + [
            Change(project, document, known.get(project) != document.digest, shadow=True)
            for project, document in loaded.items()
        ]

    def change(self, document: Document, now_ms: int) -> Change:
        """What this one document would change, and nothing else."""
        baseline = self.documents.get(self.baseline)
        if document.project != BASELINE:
            return self._change(document, baseline, baseline, now_ms)
        loaded = {project: self.documents[digest] for project, digest in self.projects.items()}
        return self._change_baseline(baseline, document, loaded, now_ms)[0]

    def file_of(self, project: str) -> Path | None:
        """Where the folder had it when it was read last."""
        return self._files.get(project)

    def in_force(self, project: str) -> Document | None:
        """Of a project, or the baseline."""
        digest = self.baseline if project == BASELINE else self.projects.get(project, "")
        return self.documents.get(digest)

    def parse(self, text: str, file: str) -> Document:
        """Raises RefusedError, with `file`, line and column where the text is wrong."""
        try:
            return self._parse(text, file)
        except PolicyError as error:
            raise RefusedError("policy.invalid", str(error)) from None

    def _change(
        self, document: Document, before: Document | None, after: Document | None, now_ms: int
    ) -> Change:
        """The project's change, under the baseline that was and the one that will be."""
        known = self.documents.get(self.projects.get(document.project, ""))
        if known is not None and known.digest == document.digest:
            return Change(document.project, document, False)
        # A project that was not there before could do nothing.
        was = under(known or Document(document.project), before)
        return Change(document.project, document, True, _widens(was, under(document, after), now_ms))

    def _change_baseline(
        self, before: Document | None, after: Document | None, loaded: Mapping[str, Document], now_ms: int
    ) -> list[Change]:
        """The baseline's change, judged by every document that stays as it is."""
        digest = after.digest if after is not None else ""
        if digest == self.baseline:
            return [Change(BASELINE, after, False)] if after is not None else []
        stays = {document.digest for document in loaded.values()} & {*self.projects.values()}
        for document in (self.documents[digest] for digest in sorted(stays | {*self.jobs.values()})):
            if found := _widens(under(document, before), under(document, after), now_ms):
                return [Change(BASELINE, after, True, f"project {document.project}: {found}")]
        return [Change(BASELINE, after, True)]

    def keep(self, changes: Iterable[Change]) -> None:
        """Keep the documents of what is about to be put in force. Raises RefusedError; nothing changes."""
        for change in changes:
            if change.document is not None:
                self._keep(change.document)

    def _keep(self, document: Document) -> None:
        try:
            self._kept.keep(document)
        except OSError as error:
            raise RefusedError(
                "policy.not_kept", f"policy of {document.project} cannot be kept for later: {error}"
            ) from None

    def apply(self, changes: Iterable[Change]) -> None:
        """Put in force what `read` gave."""
        for change in changes:
            bound = self.shadows if change.shadow else self.projects
            if change.document is not None:
                self.documents[change.digest] = change.document
            if change.project == BASELINE:
                self._bind_baseline(change)
            elif change.document is None:
                del bound[change.project]
            else:
                bound[change.project] = change.digest
        self._drop_unused()

    def _bind_baseline(self, change: Change) -> None:
        if change.shadow:
            self.shadow_baseline = change.digest
        else:
            self.baseline = change.digest

    @property
    def shadow_names(self) -> list[str]:
        """The shadows there are, as people name them."""
        return sorted([*self.shadows, *([BASELINE] if self.shadow_baseline else [])])

    @property
    def all_projects(self) -> set[str]:
        """Those of the folder and those of jobs that brought a policy of their own."""
        return {*self.projects, *(self.documents[digest].project for digest in self.jobs.values())}

    def bindings(self) -> dict[str, Any]:
        """Who is judged by what, as `Snapshot.message` takes it. A shadow baseline is tried on every
        project, with the project's own document where it has no shadow."""
        tried = self.projects if self.shadow_baseline else {}
        return {
            "documents": self.documents.values(),
            "projects": self.projects,
            "jobs": self.jobs,
            "shadows": {**tried, **self.shadows},
            "baseline": self.baseline,
            "shadow_baseline": self.shadow_baseline or self.baseline,
        }

    def _load_folder(self, folder: Path, versions: Versions | None = None) -> dict[str, Document]:
        """The documents of a folder by project, with those that were set through the console."""
        try:
            loaded = self._parse_folder(folder)
            if versions is not None:
                self._files = {project: file for project, (file, _) in loaded.items()}
                loaded |= self._parse_versions(versions)
        except RefusedError as error:
            self.error = str(error)
            raise
        except (PolicyError, OSError, UnicodeDecodeError, VersionError) as error:
            self.error = str(error)
            raise RefusedError("policy.invalid", str(error)) from None
        self.error = ""
        return {project: document for project, (_, document) in loaded.items()}

    def _parse_versions(self, versions: Versions) -> dict[str, tuple[Path, Document]]:
        loaded = {}
        for project, version in versions.current().items():
            file = f"version {version.number} of {project}, set through the console"
            if project in self._files:
                raise RefusedError(
                    "policy.duplicate",
                    f"{self._files[project]}: project `{project}` also has {file}: remove the file, or have"
                    " the console remove that",
                )
            loaded[project] = (Path(file), self._parse(version.text, file))
        return loaded

    def _parse_folder(self, folder: Path) -> dict[str, tuple[Path, Document]]:
        loaded: dict[str, tuple[Path, Document]] = {}
        for file in sorted(folder.glob("*.yaml")):
            document = self._parse(file.read_text(encoding="utf-8"), str(file))
            if document.project in loaded:
                other = loaded[document.project][0]
                raise RefusedError(
                    "policy.duplicate", f"{file}: project `{document.project}` is already in {other}"
                )
            loaded[document.project] = (file, document)
        return loaded

    def _parse(self, text: str, file: str) -> Document:
        document = load_policy(text, file=file, suffixes=self._suffixes)
        memory = memory_of(document)
        if 0 < self._ledger_days < memory.days:
            raise RefusedError(
                "policy.outlives_ledger",
                f"{file}: {memory.what} is counted over {memory.days} days, and records are only sure to be"
                f" kept for {self._ledger_days}: set `[ledger] keep_at_least_days` to {memory.days} or more",
            )
        return document

    def choose(self, project: object, text: object, file: object) -> tuple[str, str]:
        """What a new job is judged by: (project, digest of its own policy or "")."""
        if isinstance(text, str):
            return self._own(project, text, str(file or "policy"))
        if not isinstance(project, str) or not project:
            if len(self.projects) == 1:
                return next(iter(self.projects)), ""
            raise RefusedError("project.missing", "name a project with --project, or a policy with --policy")
        if project not in self.projects:
            known = ", ".join(sorted(self.projects)) or "none"
            raise RefusedError("project.unknown", f"no policy for project `{project}` (there are: {known})")
        return project, ""

    def _own(self, project: object, text: str, file: str) -> tuple[str, str]:
        document = self.parse(text, file)
        if isinstance(project, str) and project and project != document.project:
            raise RefusedError(
                "project.mismatch", f"{file} is for project `{document.project}`, not `{project}`"
            )
        if document.project == BASELINE:
            raise RefusedError("project.reserved", f"{file}: `{BASELINE}` holds for projects, it is none")
        self._keep(document)
        self.documents[document.digest] = document
        return document.project, document.digest

    def bind(self, job: str, digest: str) -> None:
        """Judge `job` by its own document (no-op when it brought none)."""
        if not digest:
            return
        if digest not in self.documents:
            try:
                self.documents[digest] = self._kept.load(digest)
            except DocumentError:
                return  # nothing binds: the job is denied everything
        self.jobs[job] = digest

    def unbind(self, job: str) -> None:
        self.jobs.pop(job, None)
        self._drop_unused()

    def _drop_unused(self) -> None:
        used = {*self.projects.values(), *self.jobs.values(), *self.shadows.values()}
        used |= {self.baseline, self.shadow_baseline}
        self.documents = {digest: doc for digest, doc in self.documents.items() if digest in used}

    def known(self, project: object) -> Document:
        """The document of a project by name, of the folder's or of a running job's own."""
        if isinstance(project, str) and project not in self.projects:
            for digest in self.jobs.values():
                if self.documents[digest].project == project:
                    return self.documents[digest]
        name, _ = self.choose(project, None, None)
        return self.documents[self.projects[name]]

    def hold_ms(self, project: str, digest: str) -> int:
        """How long a flow of this job waits for a person."""
        return self.documents[digest or self.projects[project]].hold_ms

    def document_of(self, project: str, job: str) -> Document | None:
        digest = self.jobs.get(job) or self.projects.get(project, "")
        return self.documents.get(digest)

    def judging_files(self, project: str, job: str) -> Document | None:
        """The document of the job, or of the project, under the baseline, to ask it about folders."""
        document = self.document_of(project, job)
        return None if document is None else files_under(document, self.documents.get(self.baseline))


def _widens(before: Document, after: Document, now_ms: int) -> str:
    """A flow or a folder that is newly given; "" if there is none."""
    return str(widens(before, after, now_ms=now_ms) or "") or files_widened(before, after)
