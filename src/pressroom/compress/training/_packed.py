"""Linear layers that keep their frozen weights in a number format of few bits, and unpack them to compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from pressroom.compress.numbers import NumberFormat


class PackedLinear(nn.Linear):
    """A frozen linear layer. Gradients pass through it to its input; its weights are unpacked again for that, so that
    no pass holds them."""

    packed: Tensor

    def __init__(self, layer: nn.Linear, form: NumberFormat) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        rows = layer.weight.detach().cpu().numpy()
        self.form = form.bound(rows)
        packed = torch.from_numpy(np.array(self.form.encode(rows))).to(layer.weight.device)
        self.register_buffer("packed", packed, persistent=False)
        self.register_parameter("bias", layer.bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights as float32, anew at every call."""
        values = torch.from_numpy(self.form.decode(self.packed.cpu().numpy()))
        return values.to(self.packed.device)

    def forward(self, input: Tensor) -> Tensor:
        """As any linear layer."""
        found: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return found if self.bias is None else found + self.bias

    def plain(self) -> nn.Linear:
        """A layer of the unpacked weights."""
        weight = self.weight
        found = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        found.weight = nn.Parameter(weight, requires_grad=False)
        found.register_parameter("bias", self.bias)
        return found


class _Product(torch.autograd.Function):
    """The input times the weights, of which only the packed ones are kept for the way back."""

    @staticmethod
    def forward(context: Any, input: Tensor, layer: PackedLinear) -> Tensor:
        context.layer, context.type = layer, input.dtype
        return torch.nn.functional.linear(input, layer.weight.to(input.dtype))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        weight = context.layer.weight.to(gradients[0].dtype)
        return (gradients[0] @ weight).to(context.type), None
