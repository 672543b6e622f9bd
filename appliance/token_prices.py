"""What a model's tokens are estimated to cost, by the table of `genai-prices` (an extra, `exeat[tokens]`).

For flows that are looked into: from bytes alone nobody knows tokens. The table is the one that was
installed; nothing is ever fetched. Its digest stands in the record beside the sum, as that of
`[[prices]]` does for bytes.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from exeat.ledger.records import printable

PACKAGE: Final = "genai_prices"
INSTALL: Final = "pip install 'exeat[tokens]'"
_NANO: Final = 1_000_000_000
_MODEL_BYTES: Final = 200
_MOST: Final = (1 << 64) - 1  # what a record can hold


class TokensUnpricedError(Exception):
    """The text says why, and what can be done."""


class Tokens(NamedTuple):
    """One answer of a model, as its provider counts it.

    Of the `into` tokens `read` came from the provider's cache, and `written` were put there.
    """

    model: str
    into: int
    out: int
    read: int = 0
    written: int = 0


class TokenCost(NamedTuple):
    """`tariff` is the SHA-256 in hex of the price table."""

    nano_usd: int
    tariff: str


def token_cost(host: str, tokens: Tokens, at_ms: int) -> TokenCost:
    """What it costs at this provider (by the name that was asked for), at a time since 1970; rounded up.

    Raises TokensUnpricedError where provider or model is not in the table, or the counts make no sense.
    """
    tariff = table_digest()
    from genai_prices import Usage, calc_price

    usage = Usage(
        input_tokens=tokens.into,
        output_tokens=tokens.out,
        cache_read_tokens=tokens.read,
        cache_write_tokens=tokens.written,
    )
    try:
        found = calc_price(
            usage,
            tokens.model,
            provider_api_url=f"https://{host}/",
            genai_request_timestamp=datetime.fromtimestamp(at_ms / 1000, UTC),
        )
    except (LookupError, ValueError) as error:
        raise TokensUnpricedError(printable(str(error), _MODEL_BYTES)) from None
    numerator, denominator = found.total_price.as_integer_ratio()
    return TokenCost(min(_MOST, -(-numerator * _NANO // denominator)), tariff)


@cache
def table_digest() -> str:
    """SHA-256 in hex of the table's file, `genai_prices/data.py`. Raises TokensUnpricedError without it."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise TokensUnpricedError(f"no table of token prices is installed: {INSTALL}")
    return hashlib.sha256(Path(found.origin).with_name("data.py").read_bytes()).hexdigest()


def record_fields(tokens: Tokens, cost: TokenCost, bytes_cost: tuple[int, str] | None) -> dict[str, Any]:
    """Fields of the `close` record of a flow with one such answer.

    `bytes_cost` is (nano-USD, digest of the prices). With both, `tariff` is the SHA-256 of the two digests
    in hex, bytes first; `detail` says the tokens.
    """
    nano, tariff = cost.nano_usd, cost.tariff
    if bytes_cost is not None:
        nano = min(_MOST, nano + bytes_cost[0])
        tariff = hashlib.sha256(f"{bytes_cost[1]}{tariff}".encode()).hexdigest()
    model = printable(tokens.model, _MODEL_BYTES)
    detail = (
        f"tokens in {tokens.into} out {tokens.out} read {tokens.read} written {tokens.written} by {model}"
    )
    return {"cost_nano_usd": nano, "tariff": tariff, "detail": detail}
