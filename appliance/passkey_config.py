"""`[passkeys]`: decisions that a person makes with an authenticator, which control checks itself."""

from __future__ import annotations

import re
from typing import Final

from pydantic import field_validator, model_validator

from exeat.appliance.sections import Section

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_ORIGIN: Final = re.compile(r"https://[a-z0-9.-]+(:[0-9]{1,5})?|http://localhost(:[0-9]{1,5})?", re.ASCII)


class PasskeySection(Section):
    """`rp_id` is the host name by which browsers call the console (no address: WebAuthn level 3, section
    5.1.3), `origins` are that with scheme and port. Without them no decision needs a passkey."""

    rp_id: str = ""
    origins: tuple[str, ...] = ()

    @field_validator("rp_id")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and (not _NAME.fullmatch(value) or value.replace(".", "").isdecimal()):
            raise ValueError(f"`{value}` is not a host name")
        return value

    @field_validator("origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not _ORIGIN.fullmatch(text):
                raise ValueError(f"`{text}` is not https://NAME[:PORT] (or http://localhost[:PORT])")
        return value

    @model_validator(mode="after")
    def _both(self) -> PasskeySection:
        if bool(self.rp_id) != bool(self.origins):
            raise ValueError("rp_id and origins: both or neither")
        return self
