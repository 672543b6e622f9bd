"""What goes in and out of the routes of policies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from exeat.appliance.console.explored import Moment
from exeat.appliance.console.models import Body, Out, Text
from exeat.appliance.console.routes.passkeys import Assertion

_Source = Annotated[str, Field(min_length=1, max_length=500_000, description="the policy's YAML")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PolicyRow(Out):
    """`source` file: it stands in a file of the node and is changed there. `proposed`: a text waits for a
    second person."""

    project: str
    digest: str
    posture: str
    rules: int
    source: Literal["file", "console"]
    file: str
    editable: bool
    proposed: bool


class Version(Out):
    """A text: of before, in force, or waiting for a second person. `widens` is a flow it newly lets out."""

    number: int
    digest: str
    base: str
    by: str
    agreed_by: str
    at_ms: int
    note: str
    widens: str
    text: str
    current: bool


class Proposal(Version):
    project: str


class Policies(Out):
    """`proposals` are those for projects that have no policy yet; `error`: the folder cannot be loaded."""

    items: list[PolicyRow]
    proposals: list[Proposal]
    error: str


class Policy(Out):
    """`changed`: the file was written again since and is not in force. `version` is the ETag."""

    project: str
    version: str
    digest: str
    posture: str
    rules: int
    source: Literal["file", "console"]
    file: str
    editable: bool
    text: str
    changed: bool
    proposal: Proposal | None


class Versions(Out):
    items: list[Version]


class Draft(Body):
    text: _Source


class Trial(Body):
    """`since`: ms since 1970; a week ago if left out."""

    text: _Source
    since: Moment | None = None


class Finding(Out):
    code: str
    line: int
    column: int
    message: str


class Checked(Out):
    """`problems` say why it does not load, `warnings` what hardly means what it says."""

    ok: bool
    project: str
    digest: str
    posture: str
    rules: int
    problems: list[Finding]
    warnings: list[Finding]


class Diff(Out):
    """`witness`: flows that it would newly let out; `changes`: lines, as a unified diff."""

    widens: bool
    witness: list[str]
    more: int
    changes: list[str]


class TrialRow(Out):
    """Recorded traffic that would be answered otherwise; `breaking`: let out before, and not any more."""

    kind: str
    project: str
    agent: str
    host: str
    port: int
    proto: str
    before: str
    before_reason: str
    after: str
    after_reason: str
    after_rule: str
    breaking: bool
    flows: int
    first: str


class Tried(Out):
    since_ms: int
    decided: int
    skipped: int
    changed: list[TrialRow]
    more: int


class Put(Body):
    text: _Source
    note: Text = ""


class Set(Out):
    """`in_force`, or `proposed`: a second person has to agree."""

    state: Literal["in_force", "proposed"]
    version: str
    digest: str
    widens: str


class Revert(Body):
    """`digest` of the version to go back to."""

    digest: _Digest
    note: Text = ""


class Named(Body):
    """`digest` of the proposal."""

    digest: _Digest


class Agree(Named):
    assertion: Assertion | None = None


class PostureBody(Body):
    posture: Literal["public", "allowlist", "custom", "off"]
    note: Text = ""


class PostureOut(Out):
    """`enforced`: nothing of the project gets out past the policy, as far as exeat can know; `label` says it
    in words, with what is not enforced."""

    project: str
    version: str
    posture: str
    choices: list[str]
    editable: bool
    enforced: bool
    label: str
