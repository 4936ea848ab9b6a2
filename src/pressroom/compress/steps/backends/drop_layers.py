"""Whole blocks taken out of a model: those that are named, or those that it misses least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pressroom.compress.steps.base import Job, Outline, Report, Stage, Step
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.calibrate import Blocks
    from pressroom.compress.weights import Weights

_BY = ("loss", "influence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(Step):
    """Leave blocks out; those behind them move up. The file gets smaller and the model faster by their share."""

    stage: ClassVar[Stage] = Stage.STRUCTURE
    kind: ClassVar[str] = "pruned"
    options: ClassVar[Mapping[str, str]] = {
        "layers": "the numbers of the blocks that go, from 0",
        "count": "instead of layers: how many go",
        "by": "how they are chosen: loss, one after the other that without which the model's answers change least; or "
        "influence, those that change least what runs through them (arXiv 2403.03853), which is quicker and worse",
        "shortlist": "by loss, of how many that have the least influence each is tried",
        "sample": "the tokens that they are chosen on, at most those of the calibration",
    }

    layers: tuple[int, ...] = ()
    count: int = 0
    by: str = "loss"
    shortlist: int = 10
    sample: int = 1024

    @property
    def calibrates(self) -> bool:
        """Where blocks are named nothing is measured."""
        return not self.layers

    def wrong(self) -> list[str]:
        found = []
        if bool(self.layers) == bool(self.count):
            found.append("layers or count: one of them says which blocks go, and only one")
        if len(set(self.layers)) != len(self.layers) or any(layer < 0 for layer in self.layers):
            found.append(f"layers = {list(self.layers)} are not different numbers from 0 on")
        if self.count < 0:
            found.append(f"count = {self.count} is below 0")
        if self.by not in _BY:
            found.append(f"by = {self.by!r} is none of {', '.join(_BY)}")
        if self.shortlist < 1:
            found.append(f"shortlist = {self.shortlist} is not 1 or more")
        if not 512 <= self.sample <= 1 << 20:
            found.append(f"sample = {self.sample} is not from 512 to {1 << 20:,}")
        return found

    def check(self, source: Weights) -> None:
        import importlib.util

        from pressroom.kernel import MissingDependencyError

        count = _blocks(source)
        going = len(self.layers) or self.count
        beyond = [layer for layer in self.layers if layer >= count]
        if beyond:
            raise RecipeError(
                f"{source.called} has no layers {', '.join(map(str, beyond))}",
                hint=f"It has {count}: 0 to {count - 1}.",
                layers=beyond,
            )
        if going >= count:
            raise RecipeError(
                f"{going} layers of {source.called} cannot go: it has {count}", hint=f"Take out {count - 1} at most."
            )
        odd = [key for key in _unsliced(source) if source.value(key)]
        if odd:
            raise RecipeError(
                f"{source.called} says {', '.join(odd)}, so that a block is not like another by its number alone",
                hint="Blocks of such models cannot be taken out here.",
                keys=odd,
            )
        if self.calibrates and importlib.util.find_spec("xllamacpp") is None:
            raise MissingDependencyError(
                "to find out which layers a model misses least needs the library 'xllamacpp', which is not installed",
                hint="Install it with: pip install xllamacpp; or name the layers.",
                library="xllamacpp",
            )

    def outline(self, source: Weights) -> Outline | None:
        if self.layers:
            return _without(source, self.layers)
        if len({_shapes(source, layer) for layer in range(_blocks(source))}) > 1:
            return None  # what is left hangs on which of them go
        return _without(source, tuple(range(_blocks(source) - self.count, _blocks(source))))

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        from pressroom.compress.weights import rebuild

        layers, found = self.layers, None
        if not layers:
            found = self._chosen(source, job)
            layers = tuple(layer for layer, _ in found.dropped)
        outline = _without(source, layers)
        rebuild(target, source, cast("dict[str, str]", outline.tensors), metadata=outline.metadata)
        gone = ",".join(str(layer) for layer in sorted(layers))
        figures: dict[str, tuple[float | int | str, str, str]] = {
            "layers": (_blocks(source) - len(layers), "", f"blocks that are left of {_blocks(source)}"),
            "layers_dropped": (gone, "", "the numbers of the blocks that were taken out"),
        }
        lines: list[dict[str, Any]] = []
        if found is not None:
            how = f"mean over {found.tokens} tokens of the calibration text of KL(whole model, without these blocks)"
            figures["dropping_kl"] = (round(found.dropped[-1][1], 6), "nats", how)
            lines = [
                {"layer": layer, "kl": round(kl, 6), "influence": round(found.influence[layer], 6)}
                for layer, kl in found.dropped
            ]
        return Report(figures=figures, tensors=lines, notes=[f"Layers {gone} were taken out."])

    def _chosen(self, source: Weights, job: Job) -> Blocks:
        from pressroom.compress.calibrate import least_blocks

        return least_blocks(
            source.path,
            job.text,
            layers=_blocks(source),
            count=self.count,
            by=cast("Literal['influence', 'loss']", self.by),
            tokens=min(self.sample, job.tokens),
            shortlist=self.shortlist,
            threads=job.threads,
            on_progress=lambda done, total: job.progress("trying without layers", done, total, "models"),
        )


def _blocks(source: Weights) -> int:
    """How many blocks there are, by their tensors. Raises RecipeError where that is not what the metadata say."""
    layers = {tensor.layer for tensor in source.tensors.values() if tensor.layer is not None}
    said = source.value(f"{source.architecture}.block_count")
    if not layers or layers != set(range(len(layers))) or said != len(layers):
        raise RecipeError(
            f"{source.called} has tensors of {len(layers)} blocks, and its metadata say {said}",
            hint="Blocks of such models cannot be taken out here.",
        )
    return len(layers)


def _shapes(source: Weights, layer: int) -> frozenset[tuple[str, tuple[int, ...]]]:
    """The tensors of a block."""
    found = [(name, tensor.shape) for name, tensor in source.tensors.items() if tensor.layer == layer]
    return frozenset((name.partition(f"blk.{layer}.")[2], shape) for name, shape in found)


def _unsliced(source: Weights) -> Sequence[str]:
    """Keys that make what a block does hang on its number."""
    names = ("nextn_predict_layers", "leading_dense_block_count", "interleave_moe_layer_step")
    return [key for name in names if (key := f"{source.architecture}.{name}") in source.keys]


def _without(source: Weights, layers: Sequence[int]) -> Outline:
    """The file without these blocks; those behind them move up, and what metadata say of each block goes with it."""
    count = _blocks(source)
    left = [layer for layer in range(count) if layer not in layers]
    place = {layer: number for number, layer in enumerate(left)}
    tensors = {
        name if tensor.layer is None else f"blk.{place[tensor.layer]}.{name.partition(f'blk.{tensor.layer}.')[2]}": name
        for name, tensor in source.tensors.items()
        if tensor.layer is None or tensor.layer in place
    }
    prefix = f"{source.architecture}."
    metadata: dict[str, Any] = {f"{prefix}block_count": len(left)}
    for key in source.keys:
        if key.startswith(prefix):
            value = source.value(key)
            if isinstance(value, list) and len(value) == count:
                metadata[key] = [value[layer] for layer in left]
    return Outline(tensors=tensors, metadata=metadata)
