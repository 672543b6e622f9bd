"""The edits that are kept on this node: STATE/edits/<job>, root's alone."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from exeat.appliance.edits.tree import EditError, Tree
from exeat.sandbox.names import SpecError, parse_name

_TICK_S = 0.02  # more than one of the kernel's, in whose steps ctime goes


@dataclass(frozen=True, slots=True)
class Edit:
    """What a job did to `folder`, which belongs to `uid`. `since_ns`: when it began (ctime's clock)."""

    job: str
    path: Path
    folder: Path
    uid: int
    since_ns: int

    def trees(self) -> tuple[Tree, Tree]:
        """The layer, and the folder with its owner's rights. Raises OSError."""
        return Tree((self.path / "upper").resolve()), Tree(self.folder, self.uid)

    def now_ns(self) -> int:
        """The present moment by the clock that ctime has: later than all that was changed before."""
        time.sleep(_TICK_S)
        probe = self.path / "probe"
        probe.touch()
        return probe.stat().st_ctime_ns

    def began(self, since_ns: int) -> None:
        """Compare with the folder as it was then, from now on."""
        about = {"folder": str(self.folder), "uid": self.uid, "since_ns": since_ns}
        (self.path / "new.json").write_text(json.dumps(about))
        (self.path / "new.json").rename(self.path / "edit.json")

    def drop(self) -> None:
        """Not shutil.rmtree: a job may leave folders nested deeper than Python recurses."""
        command = ("rm", "-rf", "--one-file-system", "--", str(self.path))
        if subprocess.run(command, check=False, capture_output=True).returncode:
            raise EditError("edit.drop", f"{self.path} cannot be removed")


def load(state_dir: Path, job: str) -> Edit:
    """Raises EditError(edit.unknown), also for what was not changed."""
    try:
        path = state_dir / "edits" / parse_name(job)
        said = path / "edit.json"
        about = json.loads(said.read_text())
        since_ns = int(about.get("since_ns", said.stat().st_ctime_ns))
        return Edit(job, path, Path(about["folder"]), int(about["uid"]), since_ns)
    except (SpecError, FileNotFoundError):
        raise EditError("edit.unknown", f"no changes of {job!a} are kept: see `exeat job edits`") from None


def kept(state_dir: Path) -> list[Edit]:
    """All of them, oldest first."""
    try:
        names = [path.name for path in (state_dir / "edits").iterdir()]
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        try:
            found.append(load(state_dir, name))
        except EditError:  # it is being removed
            continue
    return sorted(found, key=lambda edit: edit.since_ns)
