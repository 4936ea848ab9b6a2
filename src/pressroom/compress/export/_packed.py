"""A GGUF file as a checkpoint of compressed-tensors: weights rounded with what enters each layer in mind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.compress.export import _safetensors
from pressroom.compress.export._folder import DTYPES, as_type, config_of, entries, matrix, write_settings
from pressroom.compress.export._grid import WholeNumbers
from pressroom.compress.export._safetensors import Entry
from pressroom.compress.export._schemes import Scheme, check_multiples, scheme_of
from pressroom.compress.models import names
from pressroom.kernel import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.weights import Tensor, Weights

# Layers that vLLM makes one of have one input, so one static scale.
_SAME_INPUT = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What became of a layer: the share of its output, squared, that is lost on the calibration text, and what plain
    rounding would have lost (None: there was no calibration)."""

    name: str
    error: float | None
    nearest: float | None
    fallback: bool


def planned(
    source: Weights, name: str, *, dtype: str = "bf16", input_scales: Mapping[str, float] | None = None
) -> Scheme:
    """The scheme, once all is known to fit: no layer is left out silently. `input_scales` are looked at where given.

    Raises:
        RecipeError: the model cannot be a folder of transformers, the scheme does not fit its layers, or static scales
            are missing or wrong; it names the layers. MissingDependencyError: a library is missing.
    """
    config_of(source, dtype)
    scheme = scheme_of(name, source.linears)
    check_multiples(scheme, source.linears)
    if dtype == "f32":
        raise RecipeError("vLLM's integer kernels have no float32 beside them", hint="Take bf16 or f16.", asked=dtype)
    if scheme.activations == "static" and input_scales is not None:
        _static(source, input_scales)
    _library()
    return scheme


def write_packed(
    source: Weights,
    folder: Path,
    scheme: Scheme,
    *,
    dtype: str = "bf16",
    calibration: Calibration | None = None,
    input_scales: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Layer]:
    """Write the checkpoint into an empty folder; returns what became of each linear layer. The embedding, the head and
    the norms stay in `dtype`.

    Raises:
        RecipeError, StoreFullError, StoreError, MissingDependencyError: as `planned` and `write_folder`.
    """
    config = config_of(source, dtype)
    scales = _static(source, input_scales or {}) if scheme.activations == "static" else {}
    work = _Work(source, config, scheme, dtype, calibration)
    listed = {one.name: one for one in source.linears}
    every = entries(source, config, dtype, left=listed)
    for tensor in source.linears:
        every += work.entries(tensor, scales.get(tensor.name))
    _safetensors.write(folder / "model.safetensors", every, progress=progress)
    write_settings(source, folder, {**config, "quantization_config": quantization_config(scheme)})
    return work.layers


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """What config.json says of it, as the library writes it."""
    quantization = _library()
    arguments = quantization.QuantizationArgs
    weights = arguments(
        num_bits=scheme.bits,
        type="int",
        symmetric=True,
        strategy="group" if scheme.group else "channel",
        group_size=scheme.group or None,
        dynamic=False,
    )
    inputs = None
    if scheme.activations:
        dynamic = scheme.activations == "dynamic"
        strategy = "token" if dynamic else "tensor"
        inputs = arguments(num_bits=8, type="int", symmetric=True, strategy=strategy, dynamic=dynamic)
    group = quantization.QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    found = quantization.QuantizationConfig(
        config_groups={"group_0": group},
        format="pack-quantized" if scheme.packed else "int-quantized",
        quantization_status="compressed",
        ignore=["lm_head"],
    )
    result: dict[str, Any] = found.model_dump(mode="json")
    return result


class _Work:
    """Rounds layers when the file comes to them; the parts of one are made together and kept until the last is out."""

    def __init__(
        self, source: Weights, config: Mapping[str, Any], scheme: Scheme, dtype: str, calibration: Calibration | None
    ) -> None:
        self._source, self._config, self._scheme, self._dtype = source, config, scheme, dtype
        self._calibration = calibration
        self._made: tuple[str, NDArray[np.int8], NDArray[np.float32]] | None = None
        self._curvature: tuple[Any, Any] | None = None
        self.layers: list[Layer] = []

    def entries(self, tensor: Tensor, input_scale: float | None) -> list[Entry]:
        """The parts of a layer that a file has, in their order."""
        scheme, name = self._scheme, tensor.name
        theirs = names.to_hf(name)
        assert theirs is not None
        stem = theirs.removesuffix(".weight")
        rows, columns = tensor.shape
        groups = columns // scheme.group if scheme.group else 1
        if not scheme.packed:
            found = [
                Entry(f"{stem}.weight", "I8", (rows, columns), lambda: self._of(name)[0]),
                Entry(f"{stem}.weight_scale", "F32", (rows, groups), lambda: self._of(name)[1]),
            ]
            if input_scale is not None:
                found.append(Entry(f"{stem}.input_scale", "F32", (1,), lambda: np.array([input_scale], np.float32)))
            return found
        shape = np.array([rows, columns], dtype=np.int64)
        words = -(-columns * scheme.bits // 32)
        kind = DTYPES[self._dtype][0]
        return [
            Entry(f"{stem}.weight_packed", "I32", (rows, words), lambda: packed(self._of(name)[0], scheme.bits)),
            Entry(f"{stem}.weight_scale", kind, (rows, groups), lambda: as_type(self._of(name)[1], self._dtype, name)),
            Entry(f"{stem}.weight_shape", "I64", (2,), lambda: shape),
        ]

    def _of(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        if self._made is None or self._made[0] != name:
            self._made = (name, *self._rounded(name))
        return self._made[1], self._made[2]

    def _rounded(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        weights = np.ascontiguousarray(matrix(self._source, self._config, name))
        kind = self._dtype if self._scheme.packed else "f32"
        format = WholeNumbers(self._scheme.bits, self._scheme.group or weights.shape[1], kind)
        found = None if self._calibration is None else self._calibration.hessians.get(name)
        if found is None or not found.any():
            importance = None if self._calibration is None else self._calibration.moments.get(name)
            data = format.encode(weights, importance if importance is not None and importance.any() else None)
            self.layers.append(Layer(name=name, error=None, nearest=None, fallback=self._calibration is not None))
        else:
            from pressroom.compress.rounding import Curvature, rounded

            if self._curvature is None or self._curvature[0] is not found:
                self._curvature = found, Curvature(found)
            done = rounded(weights, self._curvature[1], format)
            data = done.data
            self.layers.append(Layer(name=name, error=done.error, nearest=done.nearest, fallback=done.fallback))
        codes, scales = format.parts(data)
        if not np.isfinite(scales).all():
            raise RecipeError(f"the scales of {name} are not finite", hint="Take a sound file.", tensor=name)
        return codes, scales


def packed(codes: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Codes in words of 32 bits, as the library packs them: (rows, words)."""
    import torch

    _library()
    helpers: Any = importlib.import_module("compressed_tensors.compressors.pack_quantized.helpers")
    found: NDArray[np.int32] = helpers.pack_to_int32(torch.from_numpy(np.ascontiguousarray(codes)), bits).numpy()
    return found


def _static(source: Weights, given: Mapping[str, float]) -> dict[str, float]:
    """The scale of what enters each layer; layers that vLLM makes one have the largest of theirs."""
    names_ = [one.name for one in source.linears]
    wrong = [name for name in names_ if not (0 < given.get(name, 0.0) < float("inf"))]
    if wrong:
        some = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise RecipeError(
            f"static activations need a scale above 0 for every layer, and there is none for {some}",
            hint="Give input_scales by the layers' names, or take w8a8, which scales each token by itself.",
            tensors=wrong,
        )
    found = {name: float(given[name]) for name in names_}
    for name in names_:
        for part, first in _SAME_INPUT.items():
            other = name.replace(f".{part}.", f".{first}.")
            if other != name and other in found:
                found[other] = max(found[other], found[name])
    for name in names_:
        for part, first in _SAME_INPUT.items():
            found[name] = found.get(name.replace(f".{part}.", f".{first}."), found[name])
    return found


def _library() -> Any:
    try:
        quantization: Any = importlib.import_module("compressed_tensors.quantization")
    except ImportError as error:
        raise MissingDependencyError(
            "checkpoints for vLLM are packed by the library 'compressed-tensors', which is not installed",
            hint="Install it: pip install compressed-tensors",
            missing="compressed-tensors",
        ) from error
    return quantization
