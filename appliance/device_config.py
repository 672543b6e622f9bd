"""`[[device]]`: character devices and fifos of this machine that can be lent to jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from exeat.appliance.sections import Section
from exeat.sandbox.device import NAME, Device, Mode


class DeviceSection(Section):
    """`mode` is read (a microphone, a camera) or write (a loudspeaker), from the job's side."""

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    path: Path
    mode: Mode = Mode.READ

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"`{value}`: the path of a device is absolute")
        return value


def devices(sections: tuple[DeviceSection, ...]) -> tuple[Device, ...]:
    """As the warden takes them."""
    return tuple(Device(each.name, str(each.path), each.mode) for each in sections)
