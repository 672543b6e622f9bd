"""The templates that come along are sound, and one that is not is refused with what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from exeat.appliance import template
from exeat.appliance.errors import UsageError
from exeat.appliance.limits import TIME, parse_limits
from exeat.appliance.public_suffixes import BundledSuffixes
from exeat.policy.document import load_policy
from exeat.sandbox import limits
from exeat.sandbox.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
template: v1
name: mine
about: of my own
profile: strict
policy: "egress: v1"
"""


def test_which_there_are() -> None:
    assert template.names() == [
        "ai-provider",
        "browser",
        "code-executor",
        "integration-test",
        "policy-sandbox",
    ]


@pytest.mark.parametrize("name", template.names())
def test_each_is_sound(name: str) -> None:
    loaded = template.load(name)
    assert loaded.name == name
    document = load_policy(loaded.policy, file=name, suffixes=BundledSuffixes())
    assert (document.project, document.to_json()["posture"]) == (name, "allowlist")
    asked = parse_limits(loaded.limits)
    assert {"memory", "pids", "tmp", "work", TIME} <= asked.keys(), "a template bounds all that can be filled"
    del asked[TIME]
    limits.parse_limits(asked, Limits())  # an unconfigured node gives as much


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("template: v1", "template: v2"), "template: Input should be 'v1'"),
        (("name: mine", "name: Mine"), "name: "),
        (("profile: strict", "profile: none"), "profile: "),
        (("about: of my own", "about: x\ncolour: red"), "colour: Extra inputs"),
        (("about: of my own", "about: x\nlimits: memory=1,disk=2"), "limits: "),
        (("about: of my own", "about: [x"), "template "),
        (('policy: "egress: v1"', ""), "policy: Field required"),
    ],
)
def test_one_that_is_not_says_why(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert template.load(str(path)).argv(["a", "b"]) == ["a", "b"]
    path.write_text(GOOD.replace(*change))
    with pytest.raises(UsageError) as caught:
        template.load(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing", "../templates/browser.yaml", ".", "/etc"])
def test_one_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError):
        template.load(name)


def test_a_shell_text_gets_the_command_as_arguments(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + "shell: echo $1\n")
    assert template.load(str(path)).argv(["; reboot"]) == ["/bin/sh", "-c", "echo $1", "mine", "; reboot"]


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD + "#" * template.MAX_BYTES)
    with pytest.raises(UsageError, match="more than"):
        template.load(str(tmp_path / "mine.yaml"))
