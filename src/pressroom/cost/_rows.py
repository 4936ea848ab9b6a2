"""The ledger's rows as this part reads them, by the names of their columns: a row a request, and rows that correct what
one cost, with amounts that may be negative.

The gateway writes the table, and is a layer above: what is here are the columns that money depends on.
"""

from __future__ import annotations

from fractions import Fraction

import sqlalchemy as sa

from pressroom.cost.base import Price

_PICO_IN_NANO = 1_000
_DAY_S = 86_400
# No request has more tokens: products with a price stay within 64 bits whatever a row says.
_MOST_TOKENS = 2**31 - 1
TABLE = "ledger"
#: What `kind` is of a row that is a request's.
REQUEST = "request"
#: What `counted` is where no engine worked.
NOT_WORKED = "none"

ledger = sa.table(
    TABLE,
    sa.column("number", sa.BigInteger),
    sa.column("id", sa.String),
    sa.column("kind", sa.String),
    sa.column("corrects", sa.String),
    sa.column("at", sa.Float),
    sa.column("key", sa.String),
    sa.column("team", sa.String),
    sa.column("user", sa.String),
    sa.column("tag", sa.String),
    sa.column("model", sa.String),
    sa.column("branch", sa.String),
    sa.column("ref", sa.String),
    sa.column("digest", sa.String),
    sa.column("engine", sa.String),
    sa.column("language", sa.String),
    sa.column("cache", sa.String),
    sa.column("counted", sa.String),
    sa.column("prompt_tokens", sa.BigInteger),
    sa.column("cached_tokens", sa.BigInteger),
    sa.column("completion_tokens", sa.BigInteger),
    sa.column("nano_usd", sa.BigInteger),
    sa.column("total_s", sa.Float),
    sa.column("tries", sa.Integer),
)
rows = ledger.c


def day_of(dialect: str) -> sa.ColumnElement[int]:
    """The day of a row, counted from the beginning of the epoch in UTC."""
    days = rows.at / _DAY_S
    # SQLite cuts in a cast and may be built without floor(); PostgreSQL rounds in a cast.
    return sa.cast(sa.func.floor(days) if dialect == "postgresql" else days, sa.BigInteger)


def nano_at(price: Price, ratio: Fraction = Fraction(1)) -> sa.ColumnElement[int]:
    """What a row would cost at `price` if its text had `ratio` times as many tokens: the same as `Price.nano` of its
    counts (each rounded up where the ratio makes a part of a token), for the database to sum."""
    prompt, completion = _scaled(rows.prompt_tokens, ratio), _scaled(rows.completion_tokens, ratio)
    cached = _scaled(rows.cached_tokens, ratio)
    cached = sa.case((cached > prompt, prompt), else_=cached)

    def at(prompt_price: int, completion_price: int, cached_price: int) -> sa.ColumnElement[int]:
        pico = (
            (prompt - cached) * _big(prompt_price)
            + cached * _big(cached_price)
            + completion * _big(completion_price)
            + _big(_PICO_IN_NANO - 1)
        )
        return pico // _big(_PICO_IN_NANO)

    tokens = at(price.prompt, price.completion, price.cached)
    if price.tiers:
        steps = [
            (prompt > _big(tier.above), at(tier.prompt, tier.completion, tier.cached)) for tier in reversed(price.tiers)
        ]
        tokens = sa.case(*steps, else_=tokens)
    return tokens + _big(price.request_nano)


def _scaled(tokens: sa.ColumnElement[int], ratio: Fraction) -> sa.ColumnElement[int]:
    # In 64 bits, whatever the column has: PostgreSQL multiplies in the wider of two types, and no wider.
    wide: sa.ColumnElement[int] = sa.cast(tokens, sa.BigInteger)
    if ratio != 1:
        wide = (wide * _big(ratio.numerator) + _big(ratio.denominator - 1)) // _big(ratio.denominator)
    return sa.case((wide > _big(_MOST_TOKENS), _big(_MOST_TOKENS)), else_=wide)


def _big(number: int) -> sa.ColumnElement[int]:
    return sa.literal(number, sa.BigInteger)
