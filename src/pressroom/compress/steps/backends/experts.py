"""The dense feed-forwards of a model as experts behind a router: split by channels, or copied."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pressroom.compress.steps.base import Job, Outline, Report, Stage, Step
from pressroom.kernel import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.experts import Loads, Split
    from pressroom.compress.weights import New, Weights

_PARTS = ("ffn_gate", "ffn_up", "ffn_down")
# What the dense architecture is called with experts. llama's own takes them; its router is a softmax whose weights for
# the experts that are taken sum to 1, which is what the splitting counts on.
_ARCHITECTURES = ("llama",)
# llama.cpp's LLAMA_MAX_EXPERTS.
_MOST = 512
# The scales of formats of 4 bits and more stand for so many weights of a row.
_BLOCK = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(Step):
    """Turn every feed-forward of a llama into experts, of which a router takes some for each token.

    `split`: the channels are divided among the experts. As many bytes as before, but each token costs the experts that
    it uses; what the others would have given is lost, as far as the fit to the calibration text does not make up for
    it. `copy`: every expert is the whole feed-forward, so that the model answers as before, and training can make them
    differ ("sparse upcycling", arXiv 2212.05055).
    """

    stage: ClassVar[Stage] = Stage.STRUCTURE
    kind: ClassVar[str] = "pruned"
    options: ClassVar[Mapping[str, str]] = {
        "experts": "how many there are",
        "used": "how many of them a token goes through",
        "how": "split: the channels are divided among them; copy: each is the whole feed-forward",
        "shared": "split: how many of the experts are of the channels that are most active at all, which the router "
        "takes nearly always; -1: half of those that are used",
        "grouping": "split: use puts channels together that are active together; turn deals them out in turn",
        "refit": "split: whether the weights behind the channels are fitted to what the dense feed-forward gives",
    }

    experts: int
    used: int
    how: str = "split"
    shared: int = -1
    grouping: str = "use"
    refit: bool = True

    def wrong(self) -> list[str]:
        """What is wrong with the options."""
        found = []
        if not 2 <= self.experts <= _MOST:
            found.append(f"experts = {self.experts} is not a number from 2 to {_MOST}")
        if not 1 <= self.used <= max(self.experts, 1):
            found.append(f"used = {self.used} is not a number from 1 to the {self.experts} experts")
        if self.how not in ("split", "copy"):
            found.append(f"how = {self.how!r} is neither split nor copy")
        if not -1 <= self.shared <= max(self.used, 0):
            found.append(f"shared = {self.shared} is not a number from 0 to the {self.used} that are used")
        if self.grouping not in ("use", "turn"):
            found.append(f"grouping = {self.grouping!r} is neither use nor turn")
        return found

    def check(self, source: Weights) -> None:
        """See `Step.check`."""
        from pressroom.compress.weights import readable

        self._must_have_libraries()
        layers, problems = _layers(source), []
        if source.architecture not in _ARCHITECTURES:
            problems.append(
                f"its architecture is {source.architecture or 'not said'}, and experts are made of "
                f"{', '.join(_ARCHITECTURES)}"
            )
        if source.value(f"{source.architecture}.expert_count"):
            problems.append("it is made of experts already")
        if not layers:
            problems.append("it does not say how many layers it has")
        width = source.value(f"{source.architecture}.feed_forward_length")
        if not isinstance(width, int):
            problems.append("its layers have feed-forwards of different widths, or it does not say of which")
        elif self.how == "split" and width % self.experts:
            fitting = [n for n in range(2, min(width, _MOST) + 1) if width % n == 0 and width // n % _BLOCK == 0]
            problems.append(
                f"{width:,} channels do not divide into {self.experts} experts; "
                f"{', '.join(map(str, fitting[:12])) or 'no number'} would"
            )
        missing = [
            name
            for layer in range(layers)
            for name in (f"blk.{layer}.{part}.weight" for part in _PARTS)
            if name not in source.tensors or len(source.tensors[name].shape) != 2
        ]
        if missing:
            problems.append(f"it has no {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}")
        feeds = [tensor for tensor in source.tensors.values() if tensor.layer is not None and tensor.part in _PARTS]
        if unknown := [tensor.name for tensor in feeds if not readable(tensor)]:
            problems.append(f"the types of {', '.join(unknown[:3])} cannot be turned into numbers")
        if biases := [
            name for name in source.tensors if name.startswith("blk.") and ".ffn_" in name and "bias" in name
        ]:
            problems.append(f"its feed-forwards have biases, which experts have not: {', '.join(biases[:3])}")
        if problems:
            raise RecipeError(
                f"{source.called} cannot be turned into {self.experts} experts: {'; '.join(problems)}",
                hint="Choose another number of experts, or a llama-like dense model.",
                problems=problems,
            )

    def outline(self, source: Weights) -> Outline:
        """The shapes and the metadata; the types of what is copied and of gate and up stay."""
        made: dict[str, str | tuple[str, tuple[int, ...]]] = {}
        for name, parts in self._names(source).items():
            if parts is None:
                made[name] = name
                continue
            old = source.tensors[parts]
            if name.endswith("ffn_gate_inp.weight"):
                made[name] = ("f32", (self.experts, old.columns))
            else:
                down = self.how == "split" and ".ffn_down" in name
                format = self._down_format(source, parts) if down else _format(source, parts)
                made[name] = (format.name, self._shape(old.shape, down=".ffn_down" in name))
        return Outline(tensors=made, metadata=self._metadata(source))

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        """See `Step.run`."""
        from pressroom.compress.experts import inputs_seen
        from pressroom.compress.weights import rebuild

        layers = _layers(source)
        with ExitStack() as stack:
            seen = stack.enter_context(
                inputs_seen(
                    source.path,
                    job.text,
                    tokens=job.tokens,
                    layers=layers,
                    width=source.tensors["blk.0.ffn_gate.weight"].columns,
                    folder=job.folder,
                    threads=job.threads,
                    on_progress=lambda done, total: job.progress("reading", done, total, "windows"),
                )
            )
            work = _Work(self, source, job, seen)
            tensors: dict[str, str | New] = {}
            for name, old in self._names(source).items():
                tensors[name] = name if old is None else work.of(name, old)
            rebuild(target, source, tensors, metadata=self._metadata(source))
        return work.report()

    def _must_have_libraries(self) -> None:
        for library, why in (("torch", "splitting feed-forwards"), ("xllamacpp", "seeing what enters them")):
            if importlib.util.find_spec(library) is None:
                raise MissingDependencyError(
                    f"{why} needs the library {library!r}, which is not installed",
                    hint="Install it: pip install 'pressroom[compress]'",
                    missing=library,
                )

    def _names(self, source: Weights) -> dict[str, str | None]:
        """The tensors of the new file in their order, and for those that are made the one they are made of."""
        found: dict[str, str | None] = {}
        for tensor in source.tensors.values():
            if tensor.layer is None or tensor.part not in _PARTS:
                found[tensor.name] = None
                continue
            router = f"blk.{tensor.layer}.ffn_gate_inp.weight"
            found.setdefault(router, f"blk.{tensor.layer}.ffn_gate.weight")
            found[f"blk.{tensor.layer}.{tensor.part}_exps.weight"] = tensor.name
        return found

    def _shape(self, old: tuple[int, ...], *, down: bool) -> tuple[int, ...]:
        if self.how == "copy":
            return (self.experts, *old)
        rows, columns = old
        return (self.experts, rows, columns // self.experts) if down else (self.experts, rows // self.experts, columns)

    def _down_format(self, source: Weights, name: str) -> Any:
        from pressroom.compress.weights import float_format

        return float_format(source, name)

    def _metadata(self, source: Weights) -> dict[str, int]:
        at = source.architecture
        width = int(source.value(f"{at}.feed_forward_length"))
        each = width // self.experts if self.how == "split" else width
        return {
            f"{at}.expert_count": self.experts,
            f"{at}.expert_used_count": self.used,
            # llama.cpp's llama takes the experts' width from the first, others from the second.
            f"{at}.feed_forward_length": each,
            f"{at}.expert_feed_forward_length": each,
        }


class _Work:
    """The experts of one layer after the other, as the file comes to them."""

    def __init__(self, step: Backend, source: Weights, job: Job, seen: NDArray[np.float16]) -> None:
        self.step, self.source, self.job, self.seen = step, source, job, seen
        self._told: dict[int, dict[str, Any]] = {}
        self._split: tuple[int, Split] | None = None

    @property
    def layers(self) -> list[dict[str, Any]]:
        """What is told of each."""
        return [self._told[layer] for layer in sorted(self._told)]

    def of(self, name: str, old: str) -> New:
        """A new tensor, made of an old one."""
        from pressroom.compress.numbers import number_format
        from pressroom.compress.weights import New

        tensor, step = self.source.tensors[old], self.step
        layer = tensor.layer
        assert layer is not None
        if name.endswith("ffn_gate_inp.weight"):
            format = number_format("f32")
            return New(format, (step.experts, tensor.columns), lambda: [format.encode(self._router_of(layer))])
        down = tensor.part == "ffn_down"
        shape = step._shape(tensor.shape, down=down)
        if step.how == "copy":
            return New(_format(self.source, old), shape, self._copies(old))
        if not down:
            return New(_format(self.source, old), shape, self._chosen(old, layer))
        into = step._down_format(self.source, old)
        return New(into, shape, lambda: (into.encode(expert) for expert in self._checked(old, self._of(layer).down)))

    def report(self) -> Report:
        """What came of it."""
        step = self.step
        total, active = self._parameters()
        shares = [share for one in self.layers for share in one["loads"]]
        variations = [one["variation"] for one in self.layers]
        variation = sum(variations) / len(variations)
        figures: dict[str, tuple[float | int | str, str, str]] = {
            "parameters": (total, "", "weights in the file"),
            "active_parameters": (
                active,
                "",
                f"weights that a token is computed with: {step.used} of {step.experts} experts a layer, and all else",
            ),
            "load_variation": (
                round(variation, 6),
                "",
                "standard deviation over mean of the experts' shares of the tokens, without the shared ones, mean over "
                "layers, on the calibration text",
            ),
            "load_most": (
                round(max(one["most"] for one in self.layers), 4),
                "",
                "load of the busiest expert of all layers as a multiple of an even one, without the shared, on the "
                "calibration text",
            ),
        }
        notes = [f"A token is computed with {active:,} of {total:,} weights."]
        if step.how == "split":
            errors = [one["error"] for one in self.layers]
            even = [one["even"] for one in self.layers]
            figures["experts_error"] = (
                round(sum(errors) / len(errors), 8),
                "",
                "mean over layers of the share of the feed-forward's output, squared, that is lost, each token "
                "counting alike, on a quarter of the calibration text that nothing but the damping was fitted to",
            )
            notes.append(
                f"{sum(errors) / len(errors):.1%} of what the feed-forwards give is lost; experts taken in turn, "
                f"without a fit, would lose {sum(even) / len(even):.1%}. Training recovers more: a step after this one."
            )
        else:
            notes.append("All experts of a layer are alike until training makes them differ: the answers stay.")
        if idle := sum(share == 0 for share in shares):
            notes.append(f"{idle} experts saw nothing of the calibration text: it may be too short, or of one kind.")
        return Report(figures=figures, tensors=self.layers, notes=notes)

    def _parameters(self) -> tuple[int, int]:
        step = self.step
        dense = sum(tensor.elements for tensor in self.source.tensors.values())
        width = self.source.tensors["blk.0.ffn_gate.weight"].columns
        feeds = sum(
            one.elements for one in self.source.tensors.values() if one.part in _PARTS and one.layer is not None
        )
        routers = len(self.layers) * step.experts * width
        copied = feeds * (step.experts if step.how == "copy" else 1)
        total = dense - feeds + copied + routers
        return total, total - copied + copied * step.used // step.experts

    def _of(self, layer: int) -> Split:
        from pressroom.compress.experts import split

        if self._split is None or self._split[0] != layer:
            gate, up, down = (self.source.rows(f"blk.{layer}.{part}.weight") for part in _PARTS)
            found = split(
                self.seen[layer],
                gate,
                up,
                down,
                experts=self.step.experts,
                used=self.step.used,
                shared=self.step.used // 2 if self.step.shared < 0 else self.step.shared,
                grouping=self.step.grouping,
                refit=self.step.refit,
                seed=self.job.seed,
                threads=self.job.threads,
            )
            self._split = layer, found
            self._tell(layer, found.loads, error=found.error, even=found.even, refitted=found.refitted)
        return self._split[1]

    def _router_of(self, layer: int) -> NDArray[np.float32]:
        from pressroom.compress.experts import copies_router

        if self.step.how == "split":
            return self._of(layer).router
        router, loads = copies_router(self.seen[layer], self.step.experts, self.step.used, seed=self.job.seed)
        self._tell(layer, loads)
        return router

    def _tell(self, layer: int, loads: Loads, **more: Any) -> None:
        self._told[layer] = {
            "name": f"blk.{layer}",
            "loads": list(loads.shares),
            "variation": loads.variation,
            "most": loads.most,
            **more,
        }
        self.job.progress("splitting" if more else "copying", len(self._told), len(self.seen), "layers")

    def _copies(self, old: str) -> Callable[[], Iterator[memoryview]]:
        return lambda: (self.source.raw(old) for _ in range(self.step.experts))

    def _chosen(self, old: str, layer: int) -> Callable[[], Iterator[Any]]:
        """The rows of each expert, in the type that they have: their bytes stay."""

        def made() -> Iterator[Any]:
            import numpy as np

            rows = np.frombuffer(self.source.raw(old), np.uint8).reshape(self.source.tensors[old].rows, -1)
            for group in self._of(layer).channels:
                yield np.ascontiguousarray(rows[group])

        return made

    def _checked(self, old: str, down: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        most = float(np.abs(down).max())
        if not most <= (65504.0 if self.step._down_format(self.source, old).name == "f16" else 3e38):
            raise RecipeError(
                f"the experts made of {old} have weights that are not finite, or beyond f16",
                hint="Choose other numbers of experts, or refit = false.",
                tensor=old,
            )
        return down


def _layers(source: Weights) -> int:
    found = source.value(f"{source.architecture}.block_count", 0)
    return found if isinstance(found, int) else 0


def _format(source: Weights, name: str) -> Any:
    """The number format that a tensor is in, which must be one of ours."""
    from pressroom.compress.numbers import formats

    number = source.tensors[name].number
    return next(one for one in formats() if one.ggml == number)
