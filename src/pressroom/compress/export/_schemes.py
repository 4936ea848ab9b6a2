"""Schemes of compressed-tensors that vLLM has kernels for, and what a model's shapes allow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from pressroom.kernel import RecipeError

_WRITTEN = re.compile(r"(w8a16|w8a8|w8a8-static|w4a16)(?:-g(\d+))?")
_GROUPS = (128, 64, 32)
#: A row of weights and the rows of a layer must be multiples of it for vLLM's kernels on a CPU.
MULTIPLE = 32
SCHEMES = ("w8a8", "w8a8-static", "w8a16", "w4a16", *(f"w4a16-g{size}" for size in _GROUPS))


class Linear(Protocol):
    """A linear layer's weights: their name, and their shape (outputs, inputs)."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Scheme:
    """`bits` of a weight; a scale for `group` columns of a row (0: the whole row). `activations`: "" (16 bits),
    "dynamic" (8 bits, scaled by each token) or "static" (8 bits, a scale that is given)."""

    name: str
    bits: int
    group: int
    activations: str

    @property
    def packed(self) -> bool:
        """Whether codes are packed into words, or kept a byte each."""
        return not self.activations


def scheme_of(name: str, linears: Iterable[Linear]) -> Scheme:
    """The scheme of that name, with the largest group that all layers can be cut into where none is said.

    Raises:
        RecipeError: there is none of that name, or the shapes do not divide: it names the layers.
    """
    found = _WRITTEN.fullmatch(name.strip().lower())
    if found is None or (found[2] and found[1] != "w4a16"):
        raise RecipeError(
            f"there is no scheme {name!r} for vLLM",
            hint=f"Take one of {', '.join(SCHEMES)}.",
            asked=name,
            known=list(SCHEMES),
        )
    layers = list(linears)
    if found[1] != "w4a16":
        activations = {"w8a8": "dynamic", "w8a8-static": "static"}.get(found[1], "")
        return Scheme(found[1], 8, 0, activations)
    if found[2]:
        group = int(found[2])
        if group not in _GROUPS:
            raise RecipeError(f"groups of {group} are not possible", hint="Take 128, 64 or 32.", asked=group)
        wrong = [one for one in layers if one.shape[1] % group]
    else:
        group = next((size for size in _GROUPS if not any(one.shape[1] % size for one in layers)), _GROUPS[-1])
        wrong = [one for one in layers if one.shape[1] % group]
    if wrong:
        raise RecipeError(
            f"groups of {group} do not divide the rows of {_named(wrong)}",
            hint=f"Take a smaller group: {', '.join(f'w4a16-g{size}' for size in _GROUPS if size < group)}."
            if group > _GROUPS[-1]
            else "Take w8a8 or w8a16, which have a scale a row.",
            tensors=[one.name for one in wrong],
        )
    return Scheme(f"w4a16-g{group}", 4, group, "")


def check_multiples(scheme: Scheme, linears: Iterable[Linear]) -> None:
    """Raises RecipeError where a layer has shapes that vLLM's packed kernels do not take, naming all of them."""
    wrong = [one for one in linears if scheme.packed and (one.shape[1] % MULTIPLE or one.shape[0] % MULTIPLE)]
    if wrong:
        raise RecipeError(
            f"vLLM's kernels for {scheme.name} want multiples of {MULTIPLE}, which are not those of {_named(wrong)}",
            hint="Take w8a8.",
            tensors=[one.name for one in wrong],
        )


def _named(tensors: list[Linear]) -> str:
    shown = ", ".join(f"{one.name} {list(one.shape)}" for one in tensors[:5])
    return shown + (f" and {len(tensors) - 5} more" if len(tensors) > 5 else "")
