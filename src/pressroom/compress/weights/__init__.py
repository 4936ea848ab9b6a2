"""The weights' file of a model: read without a copy, and written again with some of its tensors in other formats.

    with open_weights(path) as source:
        plan = check(source, {tensor.name: "q4_0" for tensor in source.linears})
        changed = {
            item.tensor.name: Changed(item.format, encoder(item))   # called when its turn comes, in the file's order
            for item in plan.changed
        }
        write(target, source, changed)

`rebuild` writes another model: tensors of other shapes, fewer or more of them, and other metadata.

Files are GGUF. What is not asked for stays as it is, byte for byte; what cannot be done is said before any work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.weights._comparing import same
    from pressroom.compress.weights._planning import Plan, Planned, check
    from pressroom.compress.weights._reading import Weights, open_weights, readable
    from pressroom.compress.weights._rebuilding import New, float_format, rebuild, sketch
    from pressroom.compress.weights._roles import Role, Tensor
    from pressroom.compress.weights._writing import Changed, write

__all__ = [
    "Changed",
    "New",
    "Plan",
    "Planned",
    "Role",
    "Tensor",
    "Weights",
    "check",
    "float_format",
    "open_weights",
    "readable",
    "rebuild",
    "same",
    "sketch",
    "write",
]

__getattr__ = _lazily(
    __name__,
    {
        "Changed": "_writing",
        "New": "_rebuilding",
        "Plan": "_planning",
        "Planned": "_planning",
        "Role": "_roles",
        "Tensor": "_roles",
        "Weights": "_reading",
        "check": "_planning",
        "float_format": "_rebuilding",
        "open_weights": "_reading",
        "readable": "_reading",
        "rebuild": "_rebuilding",
        "same": "_comparing",
        "sketch": "_rebuilding",
        "write": "_writing",
    },
)
