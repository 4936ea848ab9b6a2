"""What the store knows of a file of weights: read from its header, never from its promises."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One tensor in a file: `offset` and `nbytes` in bytes from the start of the file, checked against its size.

    `shape` has the outermost dimension first. In a folder `file` is the one it lies in, '' where there is one only.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: str = ""

    @property
    def elements(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsInfo:
    """A checked file (or folder) of weights.

    `format` is `gguf` or `safetensors`, or `remote` for the description of a model at a vendor; `metadata` holds the
    header's own scalar values (long lists are left out); `context_length` in tokens, `tokenizer` as the file names it,
    `quantization` as the field writes it (Q4_1, BF16).
    """

    format: str
    architecture: str | None = None
    parameters: int
    tokenizer: str | None = None
    vocabulary: int | None = None
    context_length: int | None = None
    quantization: str | None = None
    license: str | None = None
    metadata: dict[str, str | int | float | bool] = field(default_factory=dict)
    tensors: tuple[TensorInfo, ...] = ()
