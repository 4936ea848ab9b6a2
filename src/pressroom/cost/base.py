"""Money as whole numbers, and the price of a token."""

from __future__ import annotations

from dataclasses import dataclass

#: Nano-dollars in a dollar. Amounts are whole numbers of these.
NANO = 10**9
_PICO_IN_NANO = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a model costs, in pico-dollars (10^-12 USD) for a token and nano-dollars for a request. One dollar for a
    million tokens is 1,000,000 pico-dollars a token; vendors' prices are whole numbers of these.

    `source` says where it is from (`genai-prices 0.2.3: openai/gpt-4o-mini`), `since` the day it holds from.
    """

    prompt: int = 0
    completion: int = 0
    #: For prompt tokens that the vendor had in its cache; the price of a prompt token where it is not lower.
    cached: int = 0
    request_nano: int = 0
    source: str = ""
    since: str = ""

    @property
    def free(self) -> bool:
        """Whether nothing is to be paid by the token."""
        return not (self.prompt or self.completion or self.request_nano)

    def nano(self, *, prompt: int, completion: int, cached: int = 0) -> int:
        """What so many tokens come to, in nano-dollars: exact in pico-dollars, rounded up once. `prompt` includes the
        `cached` ones."""
        if not (self.prompt or self.completion or self.request_nano):
            return 0
        pico = (prompt - cached) * self.prompt + cached * self.cached + completion * self.completion
        return self.request_nano - (-pico // _PICO_IN_NANO)
