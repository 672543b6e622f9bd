"""Templates of jobs: a system call profile, limits, variables and a policy under one name.

Those that come along are the files of `appliance/templates/`; one of your own is a path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from exeat.appliance.errors import UsageError
from exeat.appliance.limits import parse_limits
from exeat.appliance.sections import Section
from exeat.sandbox.spec import Profile

FOLDER: Final = Path(__file__).parent / "templates"
MAX_BYTES: Final = 64 * 1024


def _limits(text: str) -> str:
    parse_limits(text)
    return text


class Template(Section):
    """`policy` is a whole document, which holds for a job that names neither project nor policy.

    With `shell` the job runs this text, and its command is the text's arguments.
    """

    template: Literal["v1"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
    about: Annotated[str, Field(max_length=200)]
    profile: Profile
    limits: Annotated[str, AfterValidator(_limits)] = ""
    env: dict[str, str] = Field(default_factory=dict)
    shell: str = ""
    policy: str

    def argv(self, command: list[str]) -> list[str]:
        return ["/bin/sh", "-c", self.shell, self.name, *command] if self.shell else command


def names() -> list[str]:
    """The templates that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def text_of(name: str) -> str:
    """The file of a template: `name` is one of `names()`, or a path with a slash. Raises UsageError."""
    if "/" not in name and name not in names():
        there = ", ".join(names())
        raise UsageError(f"no template `{name}` (there are: {there}; one of your own is a path with a /)")
    path = Path(name) if "/" in name else FOLDER / f"{name}.yaml"
    try:
        with path.open(encoding="utf-8") as handle:
            text = handle.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path}: more than {MAX_BYTES} characters")
    return text


def load(name: str) -> Template:
    """Raises UsageError, which says what is wrong with it."""
    try:
        return Template.model_validate(yaml.safe_load(text_of(name)))
    except yaml.YAMLError as error:
        raise UsageError(f"template {name}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"template {name}: {where}: {first['msg']}") from None
