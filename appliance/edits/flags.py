"""What a person must look at before it is merged (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.appliance.edits.tree import Kind

if TYPE_CHECKING:
    from exeat.appliance.edits.tree import Node

FLAGS: Final = {
    "special": "a device, fifo or socket; with leave it is left out, never made",
    "setid": "a set-user-id, set-group-id or sticky bit",
    "wider": "others may do more with it than before, or may write to what is new",
    "link": "a link that may lead out of the folder",
    "git": "part of a repository's own data: hooks and settings run programs",
    "ci": "runs by itself, on a build server or in a shell or editor",
    "executable": "a file that can be run and could not before",
    "name": "a name with control characters, or not UTF-8",
    "secret": "looks like a password, key or token",
}
_SETID: Final = 0o7000
_GIT: Final = frozenset({".git", ".gitmodules", ".gitattributes", ".gitconfig"})
_CI: Final = frozenset(
    [
        *(".github", ".gitlab", ".gitlab-ci.yml", ".circleci", ".travis.yml", ".buildkite", ".drone.yml"),
        *(".woodpecker", ".woodpecker.yml", ".forgejo", ".gitea", ".teamcity", ".semaphore"),
        *(".azure-pipelines", "azure-pipelines.yml", "bitbucket-pipelines.yml", "jenkinsfile"),
        *("appveyor.yml", ".appveyor.yml", "cloudbuild.yaml", "buildspec.yml", ".pre-commit-config.yaml"),
        *(".husky", ".envrc", ".vscode", ".idea", ".devcontainer"),
        *(".profile", ".bashrc", ".bash_profile", ".zshrc", ".ssh"),
    ]
)


def flags_of(path: bytes, old: Node | None, new: Node | None) -> frozenset[str]:
    """Which of FLAGS a change is, from its path and what was and will be there."""
    found = set(_by_name(path))
    if new is not None:
        found |= _by_node(path, old, new)
    return frozenset(found)


def _by_name(path: bytes) -> set[str]:
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return {"name"}
    found = set() if text.isprintable() else {"name"}
    # Some file systems fold case, and the copy that matters may lie on one of them.
    parts = {part.casefold() for part in text.split("/")}
    return found | ({"git"} if parts & _GIT else set()) | ({"ci"} if parts & _CI else set())


def _by_node(path: bytes, old: Node | None, new: Node) -> set[str]:
    found = set()
    if new.kind is Kind.SPECIAL:
        found.add("special")
    if new.kind is Kind.LINK and leads_out(path, new.target):
        found.add("link")
    if new.kind is not Kind.LINK and new.mode & _SETID & ~(old.mode if old else 0):
        found.add("setid")
    if new.kind in (Kind.FILE, Kind.FOLDER) and new.mode & ~(old.mode if old else 0o755) & 0o077:
        found.add("wider")
    could = old is not None and old.kind is Kind.FILE and old.mode & 0o111
    if new.kind is Kind.FILE and new.mode & 0o111 and not could:
        found.add("executable")
    return found


def leads_out(path: bytes, target: bytes) -> bool:
    """May a link at `path` lead outside, going by its text?

    The folders above it are no links. What it goes through may be: a way up after that may lead anywhere.
    """
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    ups = next((number for number, part in enumerate(parts) if part != b".."), len(parts))
    return target.startswith(b"/") or b".." in parts[ups:] or ups > path.count(b"/")
