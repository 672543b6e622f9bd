"""`[oidc]`: people who sign in to the console with an OpenID provider's word for who they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from exeat.appliance.ledger_config import Secret, safe_url
from exeat.appliance.sections import Section, endpoint


class OidcSection(Section):
    """`issuer` is the provider's https:// URL, as it stands in its tokens; without one nobody signs in so.

    `hosts` maps each host name of the provider to ADDRESS:PORT: nothing is looked up. `secret` is a file
    with the client's secret. The text of `claim` is the name of an account that is there already (`exeat
    user add`): the provider says who somebody is, never what they may. `ca`: a PEM file in place of the
    machine's own. `title`: on the button.
    """

    issuer: str = ""
    client_id: Annotated[str, Field(max_length=256)] = ""
    secret: Secret | None = None
    hosts: dict[str, str] = Field(default_factory=dict)
    claim: Annotated[str, Field(pattern=r"^[A-Za-z0-9_:/.-]{1,128}$")] = "preferred_username"
    ca: Path | None = None
    title: Annotated[str, Field(max_length=40)] = "single sign-on"

    @field_validator("issuer")
    @classmethod
    def _issuer(cls, value: str) -> str:
        if value and not safe_url(value).startswith("https://"):
            raise ValueError(f"`{value}` is not https://")
        return value

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: dict[str, str]) -> dict[str, str]:
        for place in value.values():
            endpoint(place)
        return value

    @model_validator(mode="after")
    def _whole(self) -> OidcSection:
        if self.issuer:
            if not self.client_id or self.secret is None:
                raise ValueError("issuer needs client_id and secret")
            if urlsplit(self.issuer).hostname not in self.hosts:
                raise ValueError(f"hosts must say where {urlsplit(self.issuer).hostname} is: ADDRESS:PORT")
        return self
