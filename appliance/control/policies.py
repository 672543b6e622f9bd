"""The policies in force: the folder's documents, and those that single jobs brought along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exeat.appliance.errors import RefusedError
from exeat.appliance.public_suffixes import BundledSuffixes
from exeat.policy.document import Document, PolicyError, load_policy
from exeat.policy.widens import widens

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exeat.appliance.control.store import Store


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
    """Documents by digest, and which project or job is judged by which."""

    def __init__(self, folder: Path, store: Store, shadow_folder: Path | None = None) -> None:
        self._folder = folder
        self._shadow_folder = shadow_folder
        self._store = store
        self._suffixes = BundledSuffixes()
        self.documents: dict[str, Document] = {}
        self.projects: dict[str, str] = {}
        self.jobs: dict[str, str] = {}
        self.shadows: dict[str, str] = {}
        self.error = ""

    def read(self, now_ms: int) -> list[Change]:
        """Read the folder: what would change. Raises RefusedError with file:line; nothing changes."""
        loaded = self._load_folder(self._folder)
        removed = [Change(project, None, True) for project in self.projects if project not in loaded]
        return [self._change(document, now_ms) for document in loaded.values()] + removed

    def read_shadows(self) -> list[Change]:
        """Read the folder of shadow policies, if there is one. As `read`."""
        loaded = self._load_folder(self._shadow_folder) if self._shadow_folder is not None else {}
        removed = [Change(project, None, True, shadow=True) for project in self.shadows.keys() - loaded]
        return removed + [
            Change(project, document, self.shadows.get(project) != document.digest, shadow=True)
            for project, document in loaded.items()
        ]

    def _change(self, document: Document, now_ms: int) -> Change:
        known = self.documents.get(self.projects.get(document.project, ""))
        if known is not None and known.digest == document.digest:
            return Change(document.project, document, False)
        # A project that was not there before could do nothing.
        found = widens(known or Document(document.project), document, now_ms=now_ms)
        return Change(document.project, document, True, str(found) if found else "")

    def apply(self, changes: Iterable[Change]) -> None:
        """Put in force what `read` gave."""
        for change in changes:
            bound = self.shadows if change.shadow else self.projects
            if change.document is None:
                del bound[change.project]
            else:
                self.documents[change.digest] = change.document
                bound[change.project] = change.digest
        self._drop_unused()

    def _load_folder(self, folder: Path) -> dict[str, Document]:
        """The documents of a folder by project."""
        try:
            loaded = self._parse_folder(folder)
        except (PolicyError, OSError, UnicodeDecodeError) as error:
            self.error = str(error)
            raise RefusedError("policy.invalid", str(error)) from None
        self.error = ""
        return loaded

    def _parse_folder(self, folder: Path) -> dict[str, Document]:
        loaded: dict[str, tuple[Path, Document]] = {}
        for file in sorted(folder.glob("*.yaml")):
            document = self._parse(file.read_text(encoding="utf-8"), str(file))
            if document.project in loaded:
                other = loaded[document.project][0]
                raise RefusedError(
                    "policy.duplicate", f"{file}: project `{document.project}` is already in {other}"
                )
            loaded[document.project] = (file, document)
        return {project: document for project, (_, document) in loaded.items()}

    def _parse(self, text: str, file: str) -> Document:
        return load_policy(text, file=file, suffixes=self._suffixes)

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
        try:
            document = self._parse(text, file)
        except PolicyError as error:
            raise RefusedError("policy.invalid", str(error)) from None
        if isinstance(project, str) and project and project != document.project:
            raise RefusedError(
                "project.mismatch", f"{file} is for project `{document.project}`, not `{project}`"
            )
        self.documents[document.digest] = document
        self._store.save_document(document.digest, document.to_canonical_json())
        return document.project, document.digest

    def bind(self, job: str, digest: str) -> None:
        """Judge `job` by its own document (no-op when it brought none)."""
        if not digest:
            return
        if digest not in self.documents:
            body = self._store.load_document(digest)
            if body is None:
                return  # nothing binds: the job is denied everything
            self.documents[digest] = Document.from_canonical_json(body)
        self.jobs[job] = digest

    def unbind(self, job: str) -> None:
        self.jobs.pop(job, None)
        self._drop_unused()

    def _drop_unused(self) -> None:
        used = {*self.projects.values(), *self.jobs.values(), *self.shadows.values()}
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
