"""`[[notify]]`: who is told of what, beside the console."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from exeat.appliance.ledger_config import ProxyUrl, Secret, safe_url
from exeat.appliance.sections import LABEL, Project, Section, endpoint
from exeat.policy.addresses import parse_address
from exeat.policy.errors import MalformedError
from exeat.policy.names import parse_host

# What can be told: topics of the event journal that are records of the ledger.
NOTIFIED: Final = ("requests", "leases", "jobs", "policy", "admin", "alerts")
_MAIL: Final = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,253}", re.ASCII)


def _place(text: str) -> str:
    if text.startswith("mailto:"):
        if not _MAIL.fullmatch(text.removeprefix("mailto:")):
            raise ValueError(f"`{text}` is not mailto:NAME@DOMAIN")
        return text
    return text if text == "slack" else safe_url(text)


def _link(text: str) -> str:
    return safe_url(text).rstrip("/") if text else text


def _topics(value: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in value if name not in NOTIFIED]
    if unknown or not value:
        raise ValueError(f"topics are some of {', '.join(NOTIFIED)}")
    return value


def _server(text: str) -> str:
    if text:
        mail_server(text)
    return text


def mail_server(text: str) -> tuple[str, int, str]:
    """ADDRESS:PORT#NAME as (address text, port, name in its certificate); "" as a name is this machine."""
    place, _, name = text.partition("#")
    address, port = endpoint(place)
    if name:
        try:
            parse_host(name)
        except MalformedError as error:
            raise ValueError(f"`{text}`: after # comes the name in its certificate ({error})") from None
        return address, port, name
    if not (address.startswith("127.") or parse_address(address).value == 1):
        raise ValueError(f"`{text}`: ADDRESS:PORT#NAME, for STARTTLS; without a name only this machine")
    return address, port, ""


class Notify(Section):
    """`to` is an https:// webhook, `slack`, or mailto:NAME@DOMAIN by way of `smtp`.

    `secret` is a file with the key that signs a webhook, or for `slack` with the hook's URL, which is one.
    `smtp` is ADDRESS:PORT#NAME of a mail server, `sender` the mail's From, `credentials` a file with
    NAME:PASSWORD. `link` is where the console is.
    """

    name: Annotated[str, Field(pattern=LABEL)]
    to: Annotated[str, AfterValidator(_place)]
    topics: Annotated[tuple[str, ...], AfterValidator(_topics)] = ("requests", "admin", "alerts")
    projects: tuple[Project, ...] = ()
    link: Annotated[str, AfterValidator(_link)] = ""
    secret: Secret | None = None
    proxy: ProxyUrl = ""
    ca: Path | None = None
    smtp: Annotated[str, AfterValidator(_server)] = ""
    sender: Annotated[str, Field(pattern=_MAIL.pattern)] | None = None
    credentials: Secret | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.to.startswith("mailto:") and not (self.smtp and self.sender):
            raise ValueError(f"`{self.name}`: mail needs `smtp` and `sender`")
        if self.to == "slack" and self.secret is None:
            raise ValueError(f"`{self.name}`: slack needs `secret`, a file with the URL of its hook")
        if not self.to.startswith("mailto:") and (self.smtp or self.sender or self.credentials):
            raise ValueError(f"`{self.name}`: `smtp`, `sender` and `credentials` are for mailto:")
        return self


def distinct(value: tuple[Notify, ...]) -> tuple[Notify, ...]:
    if len({each.name for each in value}) < len(value):
        raise ValueError("two of the same name")
    return value
