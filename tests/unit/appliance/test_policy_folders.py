"""The folder of policies with a baseline in it: what a change of either lets out, and who is bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from exeat.appliance.cli import main
from exeat.appliance.config import load
from exeat.appliance.control.policies import Policies
from exeat.appliance.control.policy_versions import Versions
from exeat.appliance.documents import Documents
from exeat.appliance.errors import RefusedError
from exeat.policy.model import Request, Subject
from exeat.policy.snapshot import Snapshot
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_767_614_400_000
P = "egress: v1\nproject: p\nallow: [{id: a, to: .example.org, ports: [443, 22]}]\n"
Q = "egress: v1\nproject: q\nposture: public\n"
BASE = "egress: v1\nproject: baseline\ndeny: [{id: no, to: x.example.org}]\n"
CEILING = 'ceiling: [{to: "*", broad: true}]\n'


class Folders:
    """Control's policies on their own."""

    def __init__(self, folder: Path) -> None:
        self.live, self.shadow = folder / "live", folder / "shadow"
        for each in (self.live, self.shadow):
            each.mkdir()
        self.policies = Policies(
            self.live, Documents(folder / "documents"), Versions(folder / "versions"), self.shadow
        )

    def write(self, *texts: str, shadow: bool = False) -> None:
        for text in texts:
            name = text.split("project: ")[1].split("\n")[0]
            ((self.shadow if shadow else self.live) / f"{name}.yaml").write_text(text)

    def changes(self) -> dict[str, tuple[bool, str]]:
        """What a reload would change: by project, whether it does and what it widens; then apply it."""
        found = [*self.policies.read(NOW), *self.policies.read_shadows()]
        self.policies.apply(found)
        return {
            f"{'shadow ' if change.shadow else ''}{change.project}": (change.changed, change.widens)
            for change in found
        }

    def snapshot(self) -> Snapshot:
        return Snapshot.load(Snapshot.message(generation=1, fresh_ms=1, **self.policies.bindings()))

    def says(self, host: str, port: int = 443, project: str = "p", job: str = "") -> tuple[str, str]:
        """The reason, and what a shadow says."""
        request, usage = Request(Subject(project, "a", job), host, port), Usage()
        made = self.snapshot()
        decision = made.decide(request, NOW, usage)
        return f"{decision.reason} {decision.rule}".strip(), made.shadow(request, decision, NOW, usage)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path)
    made.write(P, Q, BASE)
    made.changes()
    return made


def test_it_holds_for_every_project_and_binds_none(folders: Folders) -> None:
    assert set(folders.policies.projects) == {"p", "q"}
    assert folders.says("x.example.org") == ("rule.deny baseline/no", "")
    assert folders.says("x.example.org", project="q")[0] == "rule.deny baseline/no"
    assert folders.says("y.example.org")[0] == "rule.allow a"
    assert folders.says("y.example.org", project="baseline")[0] == "meta.project"
    assert folders.changes() == {"p": (False, ""), "q": (False, ""), "baseline": (False, "")}
    with pytest.raises(RefusedError, match="baseline"):
        folders.policies.choose("baseline", None, None)
    with pytest.raises(RefusedError, match="is none"):
        folders.policies.choose(None, BASE, "b.yaml")


def test_it_holds_for_a_job_that_brings_its_own_policy(folders: Folders) -> None:
    project, digest = folders.policies.choose(None, P.replace("[443, 22]", "443"), "own.yaml")
    folders.policies.bind("j1", digest)
    assert project == "p"
    assert folders.says("x.example.org", job="j1")[0] == "rule.deny baseline/no"
    folders.write("egress: v1\nproject: p\n", "egress: v1\nproject: q\n", BASE.replace("deny", "ask"))
    assert "project p: allow: x.example.org:443" in folders.changes()["baseline"][1]


def test_narrowing_it_needs_nobody_widening_it_is_seen(folders: Folders) -> None:
    folders.write(BASE + CEILING)
    assert folders.changes()["baseline"] == (True, "")
    assert folders.says("y.example.org", 22)[0] == "ceiling.exceeded"
    folders.write(BASE)
    changed, widens = folders.changes()["baseline"]
    assert changed
    assert "project p: allow:" in widens
    (folders.live / "baseline.yaml").unlink()
    changed, widens = folders.changes()["baseline"]
    assert "x.example.org" in widens
    assert folders.says("x.example.org")[0] == "rule.allow a"
    assert "baseline" not in folders.changes()


def test_a_project_is_judged_under_the_baseline_that_comes_with_it(folders: Folders) -> None:
    folders.write(P.replace("[443, 22]", "[443, 22, 25]"), BASE + CEILING)
    assert folders.changes() == {"p": (True, ""), "q": (False, ""), "baseline": (True, "")}
    folders.write(P.replace("[443, 22]", "[443, 22, 25]"), BASE)
    found = folders.changes()
    assert (found["p"], found["baseline"][0]) == ((False, ""), True)
    assert "allow instead of none" in found["baseline"][1]


def test_a_shadow_is_judged_under_the_baseline_too(folders: Folders) -> None:
    folders.write(P.replace(".example.org", "y.example.org"), shadow=True)
    assert folders.changes()["shadow p"] == (True, "")
    assert folders.says("z.example.org") == ("rule.allow a", "shadow: deny posture.default_deny")
    assert folders.says("x.example.org") == ("rule.deny baseline/no", "")
    assert folders.says("z.example.org", project="q")[1] == ""


def test_a_shadow_baseline_is_tried_on_every_project(folders: Folders) -> None:
    folders.write(BASE.replace("x.example.org", "y.example.org"), shadow=True)
    assert folders.changes()["shadow baseline"] == (True, "")
    assert folders.policies.shadow_names == ["baseline"]
    for project, allowed in (("p", "rule.allow a"), ("q", "posture.public")):
        assert folders.says("y.example.org", project=project) == (
            allowed,
            "shadow: deny rule.deny baseline/no",
        )
    assert folders.says("x.example.org")[1] == "shadow: allow rule.allow a"
    (folders.shadow / "baseline.yaml").unlink()
    assert folders.changes()["shadow baseline"] == (True, "")
    assert folders.says("y.example.org") == ("rule.allow a", "")


def test_a_policy_that_counts_over_longer_than_records_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies, config = tmp_path / "policies", tmp_path / "exeat.toml"
    policies.mkdir()
    (policies / "q.yaml").write_text(Q + "budgets: {default: {bytes_up: 1GB/40d}}\n")
    where = f'[policy]\ndir = "{policies}"\n[paths]\nstate_dir = "{tmp_path}"\n[ledger]\n'
    for kept, code in (("", 0), ("keep_days = 400\n", 2), ("keep_bytes = 9\nkeep_at_least_days = 40\n", 0)):
        config.write_text(where + kept)
        assert main(["--config", str(config), "config", "check"]) == code
    config.write_text(where + "keep_bytes = 9\n")
    assert main(["--config", str(config), "config", "check"]) == 2
    assert f"{policies}/q.yaml: budget `default` is counted over 40 days" in (told := capsys.readouterr().err)
    assert "set `[ledger] keep_at_least_days` to 40 or more" in told
    in_force = Policies.of(load(config))
    with pytest.raises(RefusedError) as caught:
        in_force.read(NOW)
    assert caught.value.code == "policy.outlives_ledger"
    assert in_force.error == str(caught.value)
    with pytest.raises(RefusedError, match="40 days"):
        in_force.choose(None, (policies / "q.yaml").read_text(), "own.yaml")
