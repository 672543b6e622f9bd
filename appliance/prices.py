"""`[[prices]]`: what traffic to some destinations is estimated to cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from exeat.appliance.sections import LABEL, Section
from exeat.policy.errors import MalformedError
from exeat.policy.scopes import parse_scope
from exeat.policy.tariff import Price, Tariff

_Nano = Annotated[int, Field(ge=0, le=10**15)]  # a million dollars


class PriceSection(Section):
    """In nano-USD, so that 0.09 USD per GB is 90_000_000. The first entry that fits a flow counts."""

    name: Annotated[str, Field(pattern=LABEL)]
    to: Annotated[tuple[str, ...], Field(min_length=1)]
    out_per_gb: _Nano = 0
    in_per_gb: _Nano = 0
    per_flow: _Nano = 0

    @field_validator("to")
    @classmethod
    def _scopes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                parse_scope(text)
            except MalformedError as error:
                raise ValueError(f"`{text}` is no scope ({error})") from None
        return value


def tariff(sections: tuple[PriceSection, ...]) -> Tariff | None:
    """None where nothing is priced."""
    prices = tuple(
        Price(
            each.name,
            tuple(parse_scope(text) for text in each.to),
            each.out_per_gb,
            each.in_per_gb,
            each.per_flow,
        )
        for each in sections
    )
    return Tariff(prices) if prices else None
