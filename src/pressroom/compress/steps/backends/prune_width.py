"""Narrower blocks: feed-forward channels and attention heads taken out, and what is left fitted to the old output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pressroom.compress.steps.base import Job, Outline, Report, Stage, Step
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.weights import New, Tensor, Weights

    Floats = NDArray[np.float32]
    Indices = NDArray[np.intp]

# What a block may have besides; a part that is in neither list may hang on what is taken out, and is refused.
_UNTOUCHED = (
    "attn_norm",
    "attn_norm.bias",
    "ffn_norm",
    "ffn_norm.bias",
    "post_attention_norm",
    "post_ffw_norm",
    "attn_post_norm",
    "ffn_post_norm",
    "attn_output.bias",
    "ffn_down.bias",
    "rope_freqs",
)
_OF_HEAD = ("attn_q_norm", "attn_k_norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(Step):
    """Take feed-forward channels and attention heads out of every block, as many of each block, chosen by what the
    block's output loses when those that stay are fitted again by least squares."""

    stage: ClassVar[Stage] = Stage.STRUCTURE
    kind: ClassVar[str] = "pruned"
    options: ClassVar[Mapping[str, str]] = {
        "feed_forward": "the share of the feed-forward channels that stays",
        "heads": "the share of the attention heads that stays: with grouped queries, of the groups, each a key and a "
        "value head with its query heads",
        "multiple": "the channels that stay are a multiple of it, as number formats come in blocks of 32 or 256. 0: of "
        "256 where they are now and that is near enough (a twentieth), else of 32",
        "refit": "fit what is left to the old output by least squares",
    }

    feed_forward: float = 1.0
    heads: float = 1.0
    multiple: int = 0
    refit: bool = True

    def wrong(self) -> list[str]:
        found = [
            f"{name} = {value:g} is not above 0 and at most 1"
            for name, value in (("feed_forward", self.feed_forward), ("heads", self.heads))
            if not 0 < value <= 1
        ]
        if self.feed_forward == self.heads == 1:
            found.append("feed_forward and heads are both 1: nothing would go")
        if not 0 <= self.multiple <= 1 << 16:
            found.append(f"multiple = {self.multiple} is not from 0 to 65,536")
        return found

    def check(self, source: Weights) -> None:
        from pressroom.compress.steps.backends.prune_weights import needs_torch
        from pressroom.compress.weights import readable

        needs_torch()
        width = self._width(source)
        if width.unknown:
            raise RecipeError(
                f"{source.called} has tensors that may hang on what is to be taken out: {', '.join(width.unknown)}",
                hint="Only blocks of plain attention and a plain feed-forward can be made narrower here; for others, "
                "drop-layers.",
                tensors=width.unknown,
            )
        unread = [tensor.name for tensor in source.tensors.values() if width.cut(tensor) and not readable(tensor)]
        if unread:
            raise RecipeError(
                f"of a type that cannot be turned into numbers here are {', '.join(unread)}", tensors=unread
            )
        if (width.channels, width.groups) == (width.channels_before, width.groups_before):
            raise RecipeError(
                f"nothing would go: {width.channels} channels and {width.groups} groups of heads stay",
                hint="Ask for less, or for a smaller multiple.",
            )

    def outline(self, source: Weights) -> Outline:
        width = self._width(source)
        tensors: dict[str, str | tuple[str, tuple[int, ...]]] = {}
        for name, tensor in source.tensors.items():
            shape = width.shape(tensor)
            kind = tensor.type.lower() if tensor.type in ("F32", "BF16") else "f16"
            tensors[name] = name if shape == tensor.shape else ("f32" if len(shape) == 1 else kind, shape)
        return Outline(tensors=tensors, metadata=width.metadata(source))

    def run(self, source: Weights, target: Path, job: Job) -> Report:
        from pressroom.compress.weights import rebuild

        width = self._width(source)
        work = _Work(self, source, width, job)
        tensors: dict[str, str | New] = {
            name: work.new(tensor) if width.cut(tensor) else name for name, tensor in source.tensors.items()
        }
        rebuild(target, source, tensors, metadata=width.metadata(source))
        return work.report()

    def _width(self, source: Weights) -> _Width:
        return _Width(source, self)


class _Width:
    """What a model's blocks measure now and will measure, and where each tensor is cut.

    Raises RecipeError where a block is not what it is thought to be.
    """

    def __init__(self, source: Weights, step: Backend) -> None:
        prefix = f"{source.architecture}."

        def said(name: str, default: Any = None) -> int:
            value = source.value(prefix + name, default)
            if type(value) is not int or value < 1:
                raise RecipeError(
                    f"{source.called} says {value!r} under {prefix}{name}, where one number is needed",
                    hint="Models whose blocks differ in width cannot be made narrower here; drop-layers can be used.",
                    key=prefix + name,
                )
            return value

        self.prefix = prefix
        heads = said("attention.head_count")
        self.groups_before = said("attention.head_count_kv", heads)
        self.queries = heads // self.groups_before
        hidden = said("embedding_length")
        self.head = said("attention.key_length", hidden // heads)
        self.head_value = said("attention.value_length", self.head)
        self.channels_before = said("feed_forward_length")
        self.channels = _channels(self.channels_before, step.feed_forward, step.multiple)
        self.groups = max(1, round(self.groups_before * step.heads))
        self.unknown = [
            name for name, tensor in source.tensors.items() if tensor.layer is not None and not self._known(tensor)
        ]

    def metadata(self, source: Weights) -> dict[str, Any]:
        """What the file says of its new shapes. The length of a head is said, for it follows from the number of heads
        no more."""
        found: dict[str, Any] = {}
        if self.channels != self.channels_before:
            found[self.prefix + "feed_forward_length"] = self.channels
        if self.groups != self.groups_before:
            found |= {
                self.prefix + "attention.head_count": self.groups * self.queries,
                self.prefix + "attention.head_count_kv": self.groups,
                self.prefix + "attention.key_length": self.head,
                self.prefix + "attention.value_length": self.head_value,
            }
            if self.prefix + "rope.dimension_count" not in source.keys:
                found[self.prefix + "rope.dimension_count"] = self.head
        return found

    def cut(self, tensor: Tensor) -> bool:
        """Whether it becomes another."""
        return self.shape(tensor) != tensor.shape

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape that it will have."""
        if tensor.layer is None:
            return tensor.shape
        rows, columns = self.places(tensor)
        shape = list(tensor.shape)
        if rows:
            shape[0] = shape[0] // self._before(rows) * self._after(rows)
        if columns:
            shape[-1] = shape[-1] // self._before(columns) * self._after(columns)
        return tuple(shape)

    def places(self, tensor: Tensor) -> tuple[str, str]:
        """What its rows and its columns are: "channel", "head", or "" where they stay."""
        part = tensor.part.removesuffix(".bias")
        if part in ("ffn_gate", "ffn_up"):
            return "channel", ""
        if tensor.part == "ffn_down":
            return "", "channel"
        if part in ("attn_q", "attn_k", "attn_v"):
            return "head", ""
        if tensor.part == "attn_output":
            return "", "head"
        return "", ""

    def _before(self, place: str) -> int:
        return self.channels_before if place == "channel" else self.groups_before

    def _after(self, place: str) -> int:
        return self.channels if place == "channel" else self.groups

    def _known(self, tensor: Tensor) -> bool:
        shapes = {
            "ffn_gate": self.channels_before,
            "ffn_up": self.channels_before,
            "attn_q": self.groups_before * self.queries * self.head,
            "attn_k": self.groups_before * self.head,
            "attn_v": self.groups_before * self.head_value,
        }
        part = tensor.part.removesuffix(".bias")
        if part in shapes:
            return tensor.shape[0] == shapes[part] and len(tensor.shape) <= 2
        if tensor.part == "ffn_down":
            return tensor.columns == self.channels_before and len(tensor.shape) == 2
        if tensor.part == "attn_output":
            return tensor.columns == self.groups_before * self.queries * self.head_value
        if tensor.part in _OF_HEAD:
            return tensor.columns in (self.head, self.head_value)
        return tensor.part in _UNTOUCHED


class _Work:
    """Chooses what stays in each block when the first of its tensors is written."""

    def __init__(self, step: Backend, source: Weights, width: _Width, job: Job) -> None:
        self._step, self._source, self._width, self._job = step, source, width, job
        self._calibration: Calibration = job.calibration(source, hessians=True)
        self._kept: dict[tuple[int, str], Indices] = {}
        self._lines: list[dict[str, Any]] = []

    def new(self, tensor: Tensor) -> New:
        from pressroom.compress.numbers import number_format
        from pressroom.compress.weights import New, float_format

        one = len(tensor.shape) == 1
        format = number_format("f32") if one else float_format(self._source, tensor.name)

        def made() -> Iterator[NDArray[np.uint8]]:
            yield format.encode(self._cut(tensor))

        return New(format, self._width.shape(tensor), made)

    def report(self) -> Report:
        width = self._width
        figures: dict[str, tuple[float | int | str, str, str]] = {}
        if width.channels != width.channels_before:
            figures["feed_forward_length"] = (width.channels, "", f"channels that stay of {width.channels_before}")
        if width.groups != width.groups_before:
            heads = width.groups * width.queries
            figures["heads"] = (heads, "", f"attention heads that stay of {width.groups_before * width.queries}")
        error = sum(line["error"] for line in self._lines) / len(self._lines)
        figures["narrowing_error"] = (
            round(error, 8),
            "",
            f"mean over {len(self._lines)} layers of the share of their output, squared, that is lost on the "
            f"calibration text{' after the rest was fitted again' if self._step.refit else ''}",
        )
        notes = [f"{width.channels} of {width.channels_before} feed-forward channels and {width.groups} of "
                 f"{width.groups_before} groups of heads stay in each layer."]  # fmt: skip
        return Report(figures=figures, tensors=self._lines, notes=notes)

    def _cut(self, tensor: Tensor) -> Floats:
        """The rows of a tensor as they will be."""
        import numpy as np

        assert tensor.layer is not None
        rows = self._source.rows(tensor.name)
        if len(tensor.shape) == 1:
            rows = rows.reshape(-1, 1)
        of_rows, of_columns = self._width.places(tensor)
        if of_columns:
            return self._narrowed(tensor, rows, self._stay(tensor.layer, of_columns))
        keep = self._stay(tensor.layer, of_rows)
        if of_rows == "head":
            each = len(rows) // self._width.groups_before
            keep = (keep[:, None] * each + np.arange(each)).reshape(-1)
        found: Floats = np.ascontiguousarray(rows[keep])
        return found.reshape(1, -1) if len(tensor.shape) == 1 else found

    def _narrowed(self, tensor: Tensor, rows: Floats, stay: Indices) -> Floats:
        import numpy as np

        from pressroom.compress.rounding import Curvature, least_squares_refit

        curvature = Curvature(self._hessian(tensor.name))
        each = rows.shape[1] // (
            self._width.channels_before if tensor.part == "ffn_down" else self._width.groups_before
        )
        keep = (stay[:, None] * each + np.arange(each)).reshape(-1)
        found = least_squares_refit(rows, curvature, keep, threads=1) if self._step.refit else rows[:, keep]
        difference = rows.copy()
        difference[:, keep] -= found
        whole = float(curvature.losses(rows).sum())
        lost = float(curvature.losses(difference).sum()) / whole if whole > 0 and difference.any() else 0.0
        self._lines.append({"name": tensor.name, "kept": len(keep), "of": rows.shape[1], "error": lost})
        layers = len({one.layer for one in self._source.tensors.values() if one.layer is not None})
        cuts = (self._width.channels != self._width.channels_before) + (self._width.groups != self._width.groups_before)
        self._job.progress("narrowing", len(self._lines), layers * cuts, "tensors")
        return np.ascontiguousarray(found)

    def _stay(self, layer: int, place: str) -> Indices:
        """The channels, or groups of heads, that stay in a block; sorted."""
        from pressroom.compress.steps._choosing import least_loss

        if (layer, place) not in self._kept:
            name = f"blk.{layer}.{'ffn_down' if place == 'channel' else 'attn_output'}.weight"
            before = self._width.channels_before if place == "channel" else self._width.groups_before
            after = self._width.channels if place == "channel" else self._width.groups
            self._kept = {  # those of other blocks are not asked for again
                key: kept for key, kept in self._kept.items() if key[0] == layer
            } | {(layer, place): least_loss(self._source.rows(name), self._hessian(name), before, after)}
        return self._kept[layer, place]

    def _hessian(self, name: str) -> Floats:
        import numpy as np

        found = self._calibration.hessians.get(name)
        columns = self._source.tensor(name).columns
        return np.eye(columns, dtype=np.float32) if found is None or not found.any() else found


def _channels(before: int, share: float, multiple: int) -> int:
    """How many channels stay: the share, to the nearest multiple."""
    if share == 1:
        return before
    wanted = before * share
    if not multiple:
        coarse = max(256, round(wanted / 256) * 256)
        multiple = 256 if before % 256 == 0 and abs(coarse - wanted) <= wanted / 20 else 32
    found = max(multiple, round(wanted / multiple) * multiple)
    return min(found, before)
