"""What all sections of the configuration share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from exeat.policy.addresses import Cidr, format_address, parse_address, parse_cidr
from exeat.policy.errors import MalformedError
from exeat.policy.names import parse_authority

LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Project = Annotated[str, Field(pattern=LABEL)]
AGENT = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Agent = Annotated[str, Field(pattern=AGENT)]


class Section(BaseModel):
    """Unknown keys are errors; nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def endpoint(text: str) -> tuple[str, int]:
    """ADDRESS:PORT as (address text, port); a name is refused, for nothing here may be looked up."""
    try:
        host, port = parse_authority(text.encode())
    except MalformedError as error:
        raise ValueError(f"`{text}` is not ADDRESS:PORT ({error})") from None
    if isinstance(host, str):
        raise ValueError(f"`{text}`: an address, never a name")
    return format_address(host), port


def _checked_endpoints(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        endpoint(text)
    return value


# ADDRESS:PORT, checked; `endpoints` takes them apart.
Endpoints = Annotated[tuple[str, ...], AfterValidator(_checked_endpoints)]


def endpoints(texts: Endpoints) -> tuple[tuple[str, int], ...]:
    """(address text, port) of each."""
    return tuple(endpoint(text) for text in texts)


def source_cidr(text: str) -> Cidr | None:
    """A CIDR, or an address as the CIDR that holds only it."""
    if "/" in text:
        return parse_cidr(text)
    try:
        address = parse_address(text)
    except MalformedError:
        return None
    return Cidr(address.family, address.value, 32 if address.family == 4 else 128)
