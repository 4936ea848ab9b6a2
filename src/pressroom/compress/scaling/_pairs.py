"""Where a scale can be moved from one tensor to another and the model stays the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.weights import Weights

    Floats = NDArray[np.float32]

#: Whose layers are a norm before attention and a norm before a gated feed-forward network, each read by nothing else.
ARCHITECTURES = ("llama", "mistral3", "qwen2", "qwen3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """`before` are the tensors whose rows (or, of a norm or a bias, entries) give the inputs of `after`, whose columns
    are multiplied by what `before` is divided by.

    heads: where several columns of `after` read one row of `before`, as heads of attention share values: (heads of
    values, how often each is read, columns of a head); else None.
    """

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    heads: tuple[int, int, int] | None = None

    def shared(self, columns: Floats) -> Floats:
        """The mean over the columns that read one row."""
        if self.heads is None:
            return columns
        heads, often, size = self.heads
        mean: Floats = columns.reshape(heads, often, size).mean(axis=1, dtype=np.float64).astype(np.float32)
        return mean.reshape(-1)

    def spread(self, rows: Floats) -> Floats:
        """For each column of `after` what belongs to the row that it reads."""
        if self.heads is None:
            return rows
        heads, often, size = self.heads
        return np.repeat(rows.reshape(heads, 1, size), often, axis=1).reshape(-1)


def check_architecture(source: Weights) -> None:
    """Raises RecipeError where it is not known which tensors read which."""
    if source.architecture not in ARCHITECTURES:
        raise RecipeError(
            f"{source.called} is of the architecture {source.architecture!r}, whose scales cannot be moved",
            hint=f"Known are {', '.join(ARCHITECTURES)}.",
            architecture=source.architecture,
        )


def pairs(source: Weights) -> list[Pair]:
    """All pairs of a file, layer by layer. A feed-forward network of experts has none: its router reads the norm, too.

    Raises:
        RecipeError: the architecture is not known.
    """
    check_architecture(source)
    found = []
    tensors = source.tensors
    layers = sorted({tensor.layer for tensor in source.linears if tensor.layer is not None})
    for layer in layers:

        def there(*parts: str, layer: int = layer) -> tuple[str, ...]:
            return tuple(name for part in parts if (name := f"blk.{layer}.{part}") in tensors)

        norm, reads = there("attn_norm.weight"), there(*(f"attn_{one}.weight" for one in ("q", "k", "v", "qkv")))
        if norm and reads:
            found.append(Pair(name=f"blk.{layer}.attn_norm", before=norm + there("attn_norm.bias"), after=reads))
        values, output = there("attn_v.weight"), there("attn_output.weight")
        heads = _heads(source, values, output)
        if heads is not None and not there("attn_sub_norm.weight"):
            before = values + there("attn_v.bias")
            found.append(Pair(name=f"blk.{layer}.attn_v", before=before, after=output, heads=heads))
        if there("ffn_gate_inp.weight"):
            continue
        norm, reads = there("ffn_norm.weight"), there("ffn_gate.weight", "ffn_up.weight")
        if norm and len(reads) == 2:
            found.append(Pair(name=f"blk.{layer}.ffn_norm", before=norm + there("ffn_norm.bias"), after=reads))
            up, down = there("ffn_up.weight", "ffn_up.bias"), there("ffn_down.weight")
            # The product of gate and up is linear in up.
            if down:
                found.append(Pair(name=f"blk.{layer}.ffn_up", before=up, after=down))
    return found


def _heads(source: Weights, values: tuple[str, ...], output: tuple[str, ...]) -> tuple[int, int, int] | None:
    if not values or not output:
        return None
    rows, columns = source.tensors[values[0]].rows, source.tensors[output[0]].columns
    given = source.value(f"{source.architecture}.attention.head_count_kv")
    if given is None:
        given = source.value(f"{source.architecture}.attention.head_count")
    layer = source.tensors[values[0]].layer
    count = given[layer] if isinstance(given, list | tuple) and layer is not None else given
    if not isinstance(count, int) or count < 1 or rows % count or columns % rows:
        return None
    return count, columns // rows, rows // count


def factors(found: Iterable[tuple[Pair, Floats]]) -> Mapping[str, tuple[Floats | None, Floats | None]]:
    """What each tensor is multiplied with: (for each row, for each column), None where it is not. For pairs with the
    scales of their columns, as `spread` gives them before."""
    rows: dict[str, Floats] = {}
    columns: dict[str, Floats] = {}
    for pair, scales in found:
        for name in pair.before:
            rows[name] = np.float32(1) / scales
        for name in pair.after:
            columns[name] = pair.spread(scales)
    return {name: (rows.get(name), columns.get(name)) for name in {**rows, **columns}}
