"""Token prices: the installed table, integers rounded up, its digest, and what a record holds of them."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import genai_prices
import pytest

from exeat.appliance import token_prices
from exeat.appliance.token_prices import TokenCost, Tokens, TokensUnpricedError, record_fields, token_cost
from exeat.ledger.records import Kind, Record, decode, encode

NEW_YEAR_MS = 1_767_225_600_000
TABLE = Path(genai_prices.__file__).with_name("data.py")


@pytest.mark.parametrize(
    ("host", "tokens", "wanted"),
    [
        # USD for a million tokens: https://openai.com/api/pricing (2.50 in, 1.25 cached, 10 out)
        ("api.openai.com", Tokens("gpt-4o", 1000, 100), 3_500_000),
        ("api.openai.com", Tokens("gpt-4o", 1000, 100, 400), 3_000_000),
        # https://www.anthropic.com/pricing (3 in, 3.75 written to the cache, 0.30 read from it, 15 out)
        ("api.anthropic.com", Tokens("claude-sonnet-4-5", 1000, 5, 400), 1_995_000),
        ("api.anthropic.com", Tokens("claude-sonnet-4-5", 1000, 0, 0, 1000), 3_750_000),
        ("api.openai.com", Tokens("gpt-4o", 0, 0), 0),
    ],
)
def test_tokens_cost_what_the_table_says(host: str, tokens: Tokens, wanted: int) -> None:
    digest = hashlib.sha256(TABLE.read_bytes()).hexdigest()
    assert token_cost(host, tokens, NEW_YEAR_MS) == TokenCost(wanted, digest)


@pytest.mark.parametrize(
    ("host", "tokens", "why"),
    [
        ("llm.example.org", Tokens("gpt-4o", 1, 1), "provider"),
        ("api.openai.com", Tokens("no-such-model", 1, 1), "model"),
        ("api.openai.com", Tokens("gpt-4o", 10, 1, 400), "cache_read_tokens"),
        ("api.openai.com", Tokens("\x1b[31m\u202e", 1, 1), "model"),
    ],
)
def test_what_has_no_price_is_said(host: str, tokens: Tokens, why: str) -> None:
    with pytest.raises(TokensUnpricedError, match=why) as caught:
        token_cost(host, tokens, NEW_YEAR_MS)
    assert str(caught.value).isprintable()


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    token_prices.table_digest.cache_clear()
    monkeypatch.setattr(token_prices, "find_spec", lambda _name: None)
    with pytest.raises(TokensUnpricedError, match=r"pip install 'exeat\[tokens\]'"):
        token_cost("api.openai.com", Tokens("gpt-4o", 1, 1), NEW_YEAR_MS)
    monkeypatch.setattr(token_prices, "find_spec", importlib.util.find_spec)
    assert token_prices.table_digest()


def test_a_record_holds_both_sums_and_says_from_what() -> None:
    tokens = Tokens("model\nforged", 10, 20, 5, 1)
    alone = record_fields(tokens, TokenCost(7, "a" * 64), None)
    both = record_fields(tokens, TokenCost(7, "a" * 64), (3, "b" * 64))
    assert (alone["cost_nano_usd"], alone["tariff"]) == (7, "a" * 64)
    digest = hashlib.sha256(("b" * 64 + "a" * 64).encode()).hexdigest()
    assert (both["cost_nano_usd"], both["tariff"]) == (10, digest)
    record = Record(Kind.CLOSE, flow=bytes(16), **both)
    assert decode(encode(record)) == record
    assert record.detail == "tokens in 10 out 20 read 5 written 1 by model\\u000aforged"


def test_no_sum_is_more_than_a_record_holds() -> None:
    tokens, most = Tokens("m", 1, 1), (1 << 64) - 1
    fields = record_fields(tokens, TokenCost(most, "a" * 64), (most, "b" * 64))
    assert encode(Record(Kind.CLOSE, flow=bytes(16), **fields))
