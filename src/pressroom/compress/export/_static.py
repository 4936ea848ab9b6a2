"""One scale for all that enters a layer, from what entered it on a text: where to cut it off costs least."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.weights import Weights

_WINDOW = 512


def static_scales(
    source: Weights, text: str, *, tokens: int, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, float]:
    """The scale of the inputs of each linear layer, by its name in the file: 8 bits around zero, cut off where the mean
    squared error is least. Runs the model in PyTorch, in float32, on the first `tokens` tokens of the text.

    Raises:
        RecipeError: the text is too short, or nothing entered a layer. MissingDependencyError: a library is missing.
    """
    from pressroom.compress.clipping import prepare
    from pressroom.compress.export._tokenizer_files import tokenizer_of
    from pressroom.compress.models import load

    found = tokenizer_of(source.value).encode(text, add_special_tokens=False).ids[:tokens]
    window = min(_WINDOW, int(source.value(f"{source.architecture}.context_length", _WINDOW)))
    windows = [found[at : at + window] for at in range(0, len(found) - window + 1, window)]
    if not windows:
        raise RecipeError(
            f"the calibration text has {len(found)} tokens, and a window takes {window}", hint="Take a longer one."
        )
    import torch

    bridge = load(source)
    with prepare(bridge.model) as prepared, torch.inference_mode():
        for number, each in enumerate(windows, start=1):
            bridge.model(torch.tensor([each]))
            if on_progress is not None:
                on_progress(number, len(windows))
    if prepared.unseen:
        raise RecipeError(
            f"nothing entered {', '.join(prepared.unseen[:5])}", hint="Take another text.", tensors=prepared.unseen
        )
    places = {one.name: bridge.places[one.name].parameter.removesuffix(".weight") for one in source.linears}
    return {
        name: float(prepared.observers[place].scale_and_zero("mse", symmetric=True).scale)
        for name, place in places.items()
    }
