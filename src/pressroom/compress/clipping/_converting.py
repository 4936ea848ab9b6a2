"""From what was observed to a model of int8 layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from pressroom.compress.clipping._int8 import Int8Linear, multiplies_int8
from pressroom.compress.clipping._preparing import Prepared, expressions
from pressroom.compress.clipping.base import Affine, Method, check_method
from pressroom.compress.numbers import Coded, Uniform, number_format
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """What became of a layer. `inputs` are the static numbers of its inputs (None: dynamic); `input_error` and
    `weight_error` the shares of the squares that rounding loses of what was seen, and of the weights."""

    name: str
    inputs: Affine | None
    input_error: float | None
    weight_error: float

    def as_dict(self) -> dict[str, Any]:
        """For `--json`, and for files of other runtimes: `scale` and `zero` of the inputs."""
        found = self.inputs
        return {
            "name": self.name,
            "scale": None if found is None else found.scale,
            "zero": None if found is None else found.zero,
            "low": None if found is None else found.range.low,
            "high": None if found is None else found.range.high,
            "input_error": self.input_error,
            "weight_error": self.weight_error,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Converted:
    """The model of int8 layers: what is not converted is shared with the model that was prepared. `arithmetic` is
    "int8" where the sums are computed of whole numbers, "emulated" where floating point stands in for them: exact, but
    no faster."""

    model: torch.nn.Module
    layers: tuple[LayerReport, ...]
    arithmetic: Literal["int8", "emulated"]


def convert(
    prepared: Prepared,
    *,
    method: Method = "mse",
    activations: Literal["static", "dynamic"] = "static",
    symmetric: bool = False,
    bits: int = 8,
    weights: str = "int8-channel",
    dynamic: Sequence[str] = (),
) -> Converted:
    """A copy of the prepared model with its observed layers in whole numbers. The observers stop; what they saw stays,
    and can be converted again in another way.

    method, symmetric, bits: of the ranges of the inputs; for "static". weights: a format with one scale a row or one
        for the matrix, symmetric: int8-channel, int4-channel, int8-tensor, t2-channel. Their scales weigh columns by
        what was seen to enter them; so run text for dynamic inputs, too: without, int8-tensor cuts off large weights.
    dynamic: of static ones, the layers whose whole name one of these regular expressions matches are dynamic all the
        same: where a few inputs are hundreds of times as large as the others (the down projection of many language
        models), no one range serves both.

    Raises:
        RecipeError: layers saw nothing (it names them), or the arguments are not possible.
    """
    check_method(method)
    if activations not in ("static", "dynamic"):
        raise RecipeError(f"activations cannot be {activations!r}", hint="'static' or 'dynamic'.", asked=activations)
    format = number_format(weights)
    if not isinstance(format, Uniform) or not format.symmetric or isinstance(format.group, int):
        raise RecipeError(
            f"weights in {weights} cannot be summed as whole numbers",
            hint="Take a symmetric format with a scale a row or one for all, such as int8-channel or int8-tensor.",
            asked=weights,
        )
    if not 2 <= bits <= 8:
        raise RecipeError(f"inputs of {bits} bits do not go into int8", hint="Ask for 2 to 8.", asked=bits)
    patterns = expressions(dynamic, "dynamic")
    prepared.close()
    if activations == "static" and prepared.unseen:
        shown = ", ".join(prepared.unseen[:5])
        raise RecipeError(
            f"{len(prepared.unseen)} of {len(prepared.observers)} layers saw nothing: {shown}",
            hint="Run text through the model between prepare and convert, or skip these layers.",
            layers=list(prepared.unseen),
        )
    # Parameters and buffers are shared; only the modules are new.
    memo = {id(one): one for one in (*prepared.model.parameters(), *prepared.model.buffers())}
    model = copy.deepcopy(prepared.model, memo)
    reports = []
    for name, layer in prepared.layers.items():
        observer = prepared.observers[name]
        inputs = None
        if activations == "static" and not any(one.fullmatch(name) for one in patterns):
            inputs = observer.scale_and_zero(method, bits=bits, symmetric=symmetric)
        key = name, format, observer.seen
        if key not in prepared.rounded:
            prepared.rounded[key] = _rounded(layer, format, name, prepared.moments(name))
        coded, lost = prepared.rounded[key]
        bias = None if layer.bias is None else layer.bias.detach()
        made = Int8Linear(coded, inputs, bias).to(layer.weight.device)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
        reports.append(
            LayerReport(
                name=name,
                inputs=inputs,
                input_error=None if inputs is None else observer.error(inputs),
                weight_error=lost,
            )
        )
    device = next(iter(prepared.layers.values())).weight.device.type
    return Converted(model=model, layers=tuple(reports), arithmetic="int8" if multiplies_int8(device) else "emulated")


def _rounded(
    layer: torch.nn.Linear, format: Uniform, name: str, importance: NDArray[np.float32] | None
) -> tuple[Coded, float]:
    """The weights of a layer as whole numbers, and the share of their squares that is lost."""
    given: NDArray[np.float32] = layer.weight.detach().float().cpu().numpy()
    if not format.fits(given.shape[1]):
        raise RecipeError(
            f"{name} has rows of {given.shape[1]} weights, which {format.name} does not take",
            hint="Skip the layer: prepare(model, skip=[…]).",
            layer=name,
            columns=given.shape[1],
        )
    bound = format.bound(given, importance)
    data = bound.encode(given, importance)
    whole = float((given.astype("f8") ** 2).sum())
    lost = float(((given.astype("f8") - bound.decode(data)) ** 2).sum()) / whole if whole else 0.0
    return bound.coded(data), lost
