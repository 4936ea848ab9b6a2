"""Does an engine say what the model says? Its distributions of the first token beside a reference's, on fixed prompts.

An engine that computes wrongly looks like a stupid model: a rope scaling it does not know, a kernel that is broken on
this processor, a quantisation gone bad. So it is asked what it thinks comes after each prompt, and that is compared
with what the model's own library says of the same tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom.engines._load import engine_class
from pressroom.engines._parity_asking import Asking, NoLogprobsError
from pressroom.engines._parity_figures import divergence, largest_difference, likeliest
from pressroom.engines._parity_prompts import PROMPTS, PROMPTS_VERSION
from pressroom.engines._parity_reference import ParityReference, kept_reference, parity_reference
from pressroom.engines.base import Endpoint
from pressroom.kernel import CapabilityError, EngineError, MissingDependencyError

__all__ = [
    "PROMPTS",
    "PROMPTS_VERSION",
    "Parity",
    "ParityReference",
    "Prompted",
    "check_parity",
    "kept_reference",
    "parity_reference",
]

# Mean divergence in nats up to which two are equal up to rounding, and up to which they are close. docs/parity.md has
# the measurements: other arithmetic on the same weights gives 0.000 to 0.003, weights rounded again to 8 bits 0.006, a
# rope base that is a tenth of the right one 0.04, and 4-bit weights that spoiled a small model 0.3.
EQUAL = 0.005
CLOSE = 0.15
# An engine may be right on average and wrong on one kind of prompt: no prompt may be further off than this many times.
_WORST = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompted:
    """One prompt: its tokens, the bound of the divergence in nats, and the likeliest next token of either side with its
    probability."""

    prompt: str
    tokens: int
    kl: float
    expected: int
    expected_probability: float
    found: int
    found_probability: float

    @property
    def agrees(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How near an engine is to a reference: mean and largest divergence D(reference ‖ engine) over the prompts in nats,
    and on which share of them both find the same token likeliest.

    The divergences are lower bounds: engines name their likeliest tokens only, so all others count as one (see
    `_parity_figures`). `repeats` is the most that the probability of a token changed when one prompt was asked again, 0
    where answers are the same to the bit. Where nothing could be compared the figures are None, and `reason` says why.
    """

    kl_mean: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None
    repeats: float | None = None
    prompts: tuple[Prompted, ...] = ()
    how: str = ""
    reference: str = ""
    reason: str = ""

    @property
    def verdict(self) -> str:
        """`equal` (up to rounding), `close`, `different`, or `unchecked`."""
        if self.kl_mean is None or self.kl_max is None:
            return "unchecked"
        for word, bound in (("equal", EQUAL), ("close", CLOSE)):
            if self.kl_mean <= bound and self.kl_max <= _WORST * bound:
                return word
        return "different"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the verdict."""
        return {"verdict": self.verdict, **dataclasses.asdict(self)}


def check_parity(
    endpoint: Endpoint,
    model: Path | None,
    *,
    engine: str,
    prompts: Sequence[str] = PROMPTS,
    reference: ParityReference | Path | Callable[[], ParityReference] | None = None,
    timeout_s: float = 300.0,
) -> Parity:
    """Compare what the running engine at `endpoint` says after each prompt with the reference.

    The reference is computed from `model`, the weights that the engine runs (see `parity_reference`, which takes a
    second copy of them in memory for a while), or is `reference`: the weights of another model with the same tokenizer,
    distributions that were kept, or a function that gives them, called once the engine is known to answer. Prompts go
    to the engine as the reference's tokens, so that the model alone is compared and not the tokenizer; those that do
    not fit into its context are left out.

    An engine that gives no logprobs, has no weights, or whose reference needs a library that is not installed is
    `unchecked`, with the reason.

    Raises:
        EngineError: the engine does not answer, or the reference's process fails.
        CapabilityError: the reference has another vocabulary.
    """
    capabilities = endpoint.capabilities or engine_class(engine).capabilities
    if not (capabilities.completions and capabilities.logprobs):
        return Parity(reason=f"{engine} gives no logprobs of completions with this model")
    source = reference or model
    if source is None:
        return Parity(reason=f"{engine} runs no weights that there could be a reference for")
    asking = Asking(endpoint, engine=engine, timeout_s=timeout_s)
    try:
        asking.try_out()
        if isinstance(source, ParityReference):
            found = source
        else:
            found = parity_reference(source, prompts=prompts) if isinstance(source, Path) else source()
        if len(found.expected) != len(prompts):
            raise EngineError(
                f"the reference has {len(found.expected)} prompts, and {len(prompts)} were asked for",
                hint="It was kept for other prompts: compute it anew.",
            )
        return _compared(asking, found, prompts, context=endpoint.context)
    except NoLogprobsError as error:
        return Parity(reason=error.message)
    except MissingDependencyError as error:
        return Parity(reason=f"{error.message}. {error.hint}")


def _compared(asking: Asking, reference: ParityReference, prompts: Sequence[str], *, context: int) -> Parity:
    rows: list[Prompted] = []
    repeats = 0.0
    named = 0
    for prompt, expected in zip(prompts, reference.expected, strict=True):
        if context and len(expected.tokens) >= context:
            continue
        found = asking.first_token(expected.tokens, likely=expected.likeliest)
        if max(found) >= reference.vocabulary:
            raise CapabilityError(
                f"the engine names the token {max(found)}, and the reference knows {reference.vocabulary} tokens",
                hint="They have different tokenizers: take a reference of the same family.",
            )
        if not rows:
            repeats = largest_difference(found, asking.first_token(expected.tokens, likely=expected.likeliest))
        named = max(named, len(found))
        ours, theirs = likeliest(expected.likeliest), likeliest(found)
        rows.append(
            Prompted(
                prompt=prompt,
                tokens=len(expected.tokens),
                kl=divergence(expected.likeliest, found),
                expected=ours,
                expected_probability=math.exp(expected.likeliest[ours]),
                found=theirs,
                found_probability=math.exp(found[theirs]),
            )
        )
    if not rows:
        return Parity(reason=f"no prompt fits into a context of {context} tokens")
    left_out = len(prompts) - len(rows)
    return Parity(
        kl_mean=math.fsum(row.kl for row in rows) / len(rows),
        kl_max=max(row.kl for row in rows),
        top1_agreement=sum(row.agrees for row in rows) / len(rows),
        repeats=repeats,
        prompts=tuple(rows),
        how=f"D(reference ‖ engine) of the first token after {len(rows)} fixed prompts (version {PROMPTS_VERSION}), a "
        f"lower bound from the engine's {named:,} likeliest tokens"
        + (f"; {left_out} left out, which are longer than its context" if left_out else ""),
        reference=reference.by,
    )
