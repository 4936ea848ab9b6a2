"""A linear layer of whole numbers: int8 weights and int8 inputs, multiplied as such."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.clipping.base import Affine
    from pressroom.compress.numbers import Coded

#: Whole numbers up to this are exact in float32.
_EXACT = 1 << 24
_MOST = 127 * 128


@cache
def multiplies_int8(device: str = "cpu") -> bool:
    """Whether this build of torch multiplies int8 matrices on such a device to int32, and rightly."""
    first = torch.arange(-24, 24, dtype=torch.int8, device=device).reshape(3, 16).repeat(8, 1)
    second = torch.arange(-64, 64, dtype=torch.int8, device=device).reshape(8, 16)
    try:
        found = torch._int_mm(first, second.t())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool(torch.equal(found, first.int() @ second.int().t()))


class Int8Linear(torch.nn.Module):
    """y = (x - zero) W * scales + bias, where x and W are int8.

    The inputs are rounded to `inputs`, whose scale was found before ("static"), or each row of them to its own largest
    ("dynamic", `inputs` None). The sums are int32, exact, as torch._int_mm gives them; where this build has no such
    product they are computed in floating point, exactly too, and `arithmetic` says so.

    Raises:
        RecipeError: the weights have other scales than one for each row, or one for all; or codes beyond int8.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    sums: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weights: Coded, inputs: Affine | None, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        rows, columns = weights.codes.shape
        if weights.zeros is not None or weights.scales.shape not in ((rows, 1), (1, 1)):
            raise RecipeError(
                "whole numbers are summed along a row, which must have one scale and no zero of its own",
                hint="Take weights such as int8-channel, int4-channel or int8-tensor.",
                scales=list(weights.scales.shape),
            )
        if inputs is not None and not -128 <= inputs.lowest <= inputs.highest <= 127:
            raise RecipeError(
                f"inputs with codes from {inputs.lowest} to {inputs.highest} are not int8", hint="Take 8 bits or fewer."
            )
        self.in_features, self.out_features = columns, rows
        self.inputs = inputs
        self.register_buffer("weight", torch.from_numpy(weights.codes.copy()))
        self.register_buffer("scales", torch.from_numpy(weights.scales[:, 0].copy()))
        self.register_buffer("sums", self.weight.sum(dim=1, dtype=torch.int32))
        self.bias = bias

    @property
    def arithmetic(self) -> str:
        """What the products are computed with."""
        return "int8" if multiplies_int8(self.weight.device.type) else "emulated"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features).float()
        if self.inputs is None:
            scale = flat.abs().amax(dim=1, keepdim=True) / 127
            codes = torch.where(scale > 0, flat / scale, 0).round().to(torch.int8)
            sums = self._multiplied(codes)
            y = sums.float() * scale * self.scales
        else:
            found = self.inputs
            if found.scale > 0:
                codes = torch.clamp(torch.round(flat / found.scale) + found.zero, found.lowest, found.highest)
            else:
                codes = torch.full_like(flat, found.zero)
            sums = self._multiplied(codes.to(torch.int8))
            if found.zero:
                sums = sums - found.zero * self.sums
            y = sums.float() * (found.scale * self.scales)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _multiplied(self, codes: torch.Tensor) -> torch.Tensor:
        if multiplies_int8(self.weight.device.type):
            return torch._int_mm(codes, self.weight.t())
        exact = torch.float32 if self.in_features * _MOST < _EXACT else torch.float64
        return (codes.to(exact) @ self.weight.t().to(exact)).to(torch.int32)

    def extra_repr(self) -> str:
        how = "dynamic" if self.inputs is None else f"static, scale {self.inputs.scale:.3g}, zero {self.inputs.zero}"
        return f"{self.in_features}, {self.out_features}, {how}, {self.arithmetic}"
