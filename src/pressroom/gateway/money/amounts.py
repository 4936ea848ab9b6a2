"""Amounts and budgets as people write and read them: `5usd/day`, `2M tokens/month`, `key:alice`."""

from __future__ import annotations

import re

from pressroom.gateway.money.base import Budget, Period, Scope, Unit
from pressroom.kernel.errors import PressroomError

#: Nano-dollars in a dollar.
NANO = 10**9
#: The largest budget: sums of such still fit into the database's 64 bits.
MOST = {Unit.USD: 10**9 * NANO, Unit.TOKENS: 10**15}

_EXAMPLES = "5usd/day, 0.50usd/month, 100usd, 2M tokens/month, 500k tokens/day"
_AMOUNT = re.compile(
    r"(?P<number>[0-9]{1,24}(?:\.[0-9]{1,24})?)\s*(?P<times>[kKMB]?)\s*(?P<unit>usd|tokens?)"
    r"(?:\s*/\s*(?P<period>[a-z]+))?",
    re.ASCII,
)
_LIMIT = re.compile(r"(?P<unit>usd|tokens?)(?:\s*/\s*(?P<period>[a-z]+))?", re.ASCII)
_TIMES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,199}")
_WORDS = {Period.DAY: " a day", Period.MONTH: " a month", Period.TOTAL: " in all"}


class BudgetError(PressroomError):
    """A budget, or the amount of one, is not well written."""

    code = "budget"


def parse_budget(whose: str, text: str) -> Budget:
    """`key:alice` and `5usd/day` as a budget; without a period it is for all time. Raises BudgetError."""
    scope, name = parse_scope(whose)
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise _not_an_amount(text)
    unit, period = _unit(found["unit"]), _period(text, found["period"])
    if found["times"] and unit is Unit.USD:
        raise BudgetError(
            f"{_quoted(text)}: money has no {found['times']!r}",
            hint=f"Write the dollars out: {_EXAMPLES}.",
            asked=text[:200],
        )
    whole, _, decimals = found["number"].partition(".")
    # Whole numbers all the way: a Decimal rounds at 28 digits.
    many = int(whole + decimals) * _TIMES[found["times"]] * (NANO if unit is Unit.USD else 1)
    amount, rest = divmod(many, 10 ** len(decimals))
    if rest:
        finest = "0.000000001 usd (9 decimals)" if unit is Unit.USD else "one token"
        raise BudgetError(
            f"{_quoted(text)} is finer than {finest}", hint=f"Write, for example, {_EXAMPLES}.", asked=text[:200]
        )
    if amount > MOST[unit]:
        raise BudgetError(
            f"{_quoted(text)} is more than {amount_text(MOST[unit], unit)}, the largest budget",
            hint="Remove the budget instead, where nothing is to be bounded: press budget remove.",
            asked=text[:200],
        )
    return Budget(scope=scope, name=name, unit=unit, period=period, amount=amount)


def parse_scope(whose: str) -> tuple[Scope, str]:
    """`key:alice`, `team:research`, `deployment:chat` or `all`. Raises BudgetError."""
    word, colon, name = whose.partition(":")
    if word == Scope.ALL and not colon:
        return Scope.ALL, ""
    if word not in list(Scope) or word == Scope.ALL:
        raise BudgetError(
            f"{_quoted(whose)} does not say whose budget",
            hint="It is key:NAME, team:NAME, deployment:NAME, or all.",
            asked=whose[:200],
        )
    if not _NAME.fullmatch(name):
        raise BudgetError(
            f"{_quoted(name)} in {_quoted(whose)} cannot be the name of a {word}",
            hint="Letters, digits, '.', '_', '@', '/' and '-', beginning with a letter or a digit: key:alice.",
            asked=whose[:200],
        )
    return Scope(word), name


def parse_limit(text: str) -> tuple[Unit, Period]:
    """Which of several budgets: `usd/day`, `tokens/month`, `usd` (for all time). Raises BudgetError."""
    found = _LIMIT.fullmatch(text.strip())
    if found is None:
        raise BudgetError(
            f"{_quoted(text)} does not say which budget",
            hint="It is usd or tokens, with /day, /month or nothing behind it: usd/day.",
            asked=text[:200],
        )
    return _unit(found["unit"]), _period(text, found["period"])


def amount_text(amount: int, unit: Unit) -> str:
    """`0.25 USD`, `1,500 tokens`: exact."""
    if unit is Unit.TOKENS:
        return f"{amount:,} token{'' if amount == 1 else 's'}"
    sign, (dollars, nano) = "-" if amount < 0 else "", divmod(abs(amount), NANO)
    decimals = f"{nano:09}".rstrip("0")
    # Money has two decimals, or as many as it needs.
    return f"{sign}{dollars:,}.{decimals:0<2} USD" if decimals else f"{sign}{dollars:,} USD"


def short_text(amount: int, unit: Unit) -> str:
    """The same for a table: money cut off after four decimals where it has more before them."""
    short = amount - amount % (NANO // 10**4)
    return amount_text(short if unit is Unit.USD and short else amount, unit)


def budget_text(budget: Budget) -> str:
    """`the budget of key alice, 5 USD a day`."""
    of = "of all" if budget.scope is Scope.ALL else f"of {budget.scope} {budget.name}"
    return f"the budget {of}, {amount_text(budget.amount, budget.unit)}{_WORDS[budget.period]}"


def written(budget: Budget) -> str:
    """As one would give it to `press budget set`: `5usd/day`."""
    if budget.unit is Unit.TOKENS:
        text = f"{budget.amount}tokens"
    else:
        text = amount_text(budget.amount, budget.unit).replace(",", "").replace(" USD", "usd")
    return text if budget.period is Period.TOTAL else f"{text}/{budget.period}"


def _unit(word: str) -> Unit:
    return Unit.USD if word == "usd" else Unit.TOKENS


def _period(text: str, word: str | None) -> Period:
    if word is None:
        return Period.TOTAL
    if word not in list(Period):
        raise BudgetError(
            f"{_quoted(text)}: there is no period {word!r}",
            hint="It is /day, /month, or nothing behind it for all time.",
            asked=text[:200],
        )
    return Period(word)


def _not_an_amount(text: str) -> BudgetError:
    stripped = text.strip().lower()
    if stripped.startswith(("-", "+")):
        because = "an amount has no sign"
    elif stripped.startswith(("nan", "inf")) or re.match(r"[0-9.]+e[0-9+-]", stripped):
        because = "an amount is written in plain digits"
    elif re.match(r"[0-9][0-9._ ]*[,_ ][0-9]", stripped):
        because = "digits are not grouped"
    elif re.fullmatch(r"[0-9.]+\s*[kmb]?(\s*/.*)?", stripped):
        because = "it does not say usd or tokens"
    else:
        because = "it is no amount"
    return BudgetError(f"{_quoted(text)}: {because}", hint=f"Write, for example, {_EXAMPLES}.", asked=text[:200])


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
