"""Whole numbers for vLLM: the grid, the schemes, and checkpoints as the library reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress.calibrate import calibrate
from pressroom.compress.export._grid import WholeNumbers
from pressroom.compress.export._packed import planned, write_packed
from pressroom.compress.export._schemes import scheme_of
from pressroom.compress.models import names
from pressroom.compress.numbers import number_format
from pressroom.compress.rounding import rounded
from pressroom.compress.weights import open_weights
from pressroom.kernel import RecipeError
from tests.compress.weights.gguf_files import File, tiny

from .models import model

TEXT = "the press prints what the compositor sets, letter by letter, line by line, page by page. " * 20


def rows(count: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(5).standard_normal((count, columns)).astype(np.float32)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.0001), (4, 0.02)])
@pytest.mark.parametrize("scale", ["f32", "bf16"])
def test_the_grid(bits: int, most: float, scale: str) -> None:
    format = WholeNumbers(bits, 32, scale)
    given = rows(6, 96)
    data = format.encode(given, np.ones(96, np.float32))
    values = format.decode(data)
    assert np.square(values - given).mean() < most
    codes, scales = format.parts(data)
    half = 1 << (bits - 1)
    assert codes.min() >= -half and codes.max() < half and scales.shape == (6, 3) and (scales > 0).all()
    np.testing.assert_array_equal(values, codes * np.repeat(scales, 32, axis=1))
    # The engine keeps the scale in this type: nothing is left to be rounded there.
    kept = number_format(scale)
    np.testing.assert_array_equal(kept.decode(kept.encode(scales)), scales)
    grid = format.grid(given[:, :32])
    mine = np.stack([grid.nearest(given[:, at].copy(), at) for at in range(32)], axis=1)
    again = format.decode(grid.pack(mine))
    np.testing.assert_array_equal(again, np.stack([grid.values(mine[:, at], at) for at in range(32)], axis=1))


def test_zeros_and_what_is_not_finite() -> None:
    format = WholeNumbers(4, 32, "bf16")
    assert not format.decode(format.encode(np.zeros((2, 64), np.float32))).any()
    with pytest.raises(RecipeError, match="not finite"):
        format.encode(np.full((1, 32), np.nan, np.float32))


def test_the_second_order_pass_takes_the_grid() -> None:
    inputs = rows(400, 64) @ rows(64, 64)
    hessian = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    found = rounded(rows(32, 64), hessian, WholeNumbers(4, 32, "bf16"))
    assert not found.fallback and 0 < found.error < 0.7 * found.nearest


def named(file: File, path: Path) -> Path:
    return file.write(path / "given.gguf")


@pytest.mark.parametrize(
    ("asked", "full"),
    [("w8a8", "w8a8"), ("W4A16", "w4a16-g64"), ("w4a16-g32", "w4a16-g32"), ("w8a16", "w8a16")],
)
def test_schemes(asked: str, full: str, tmp_path: Path) -> None:
    with open_weights(named(model("llama"), tmp_path)) as source:
        assert scheme_of(asked, source.linears).name == full


@pytest.mark.parametrize(
    ("asked", "inner", "says"),
    [
        ("w3a16", 128, "w4a16-g32"),
        ("w8a8-g64", 128, "no scheme"),
        ("w4a16-g48", 128, "groups of 48"),
        ("w4a16-g128", 128, "blk.0.attn_q.weight [64, 64]"),
        ("w4a16-g64", 96, "blk.0.ffn_down.weight [64, 96]"),
        ("w4a16", 80, "Take w8a8 or w8a16"),
        ("w8a16", 80, "multiples of 32"),
        ("w8a8-static", 128, "blk.0.attn_q.weight"),
    ],
)
def test_schemes_that_do_not_fit(asked: str, inner: int, says: str, tmp_path: Path) -> None:
    with open_weights(named(model("llama", inner=inner), tmp_path)) as source:
        with pytest.raises(RecipeError) as raised:
            planned(source, asked, input_scales={})
        assert says in f"{raised.value.message} {raised.value.hint}"


def made(path: Path, file: File, scheme: str, **more: Any) -> tuple[Path, list[Any]]:
    pytest.importorskip("compressed_tensors")
    folder = path / scheme
    folder.mkdir()
    with open_weights(named(file, path)) as source:
        plan = planned(source, scheme, **{key: more[key] for key in more if key == "input_scales"})
        return folder, write_packed(source, folder, plan, **more)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a16", "w4a16-g32"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_library_reads_what_was_rounded(scheme: str, tied: bool, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    folder, layers = made(tmp_path, model("llama", tied=tied), scheme)
    assert len(layers) == 14
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    assert config.ignore == ["lm_head"] and config.quantization_status == "compressed"
    (group,) = config.config_groups.values()
    every = load_file(folder / "model.safetensors")
    assert every["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert ("lm_head.weight" in every) is not tied
    compressor = BaseCompressor.get_value_from_registry(config.format)
    with open_weights(tmp_path / "given.gguf") as source:
        given = names.config_from(source.value, {name: one.shape for name, one in source.tensors.items()})
        for tensor in source.linears:
            stem = (names.to_hf(tensor.name) or "").removesuffix(".weight")
            own = {name.rpartition(".")[2]: part for name, part in every.items() if name.startswith(f"{stem}.")}
            assert own["weight_scale"].dtype == (torch.float32 if scheme == "w8a8" else torch.bfloat16)
            found = compressor.decompress({**own, "weight_scale": own["weight_scale"].float()}, group)["weight"]
            heads = names.heads_of(tensor.name, names.of_gguf("llama"), given)
            wanted = names.split_halves(source.rows(tensor.name), heads)
            lost = float(np.square(found.float().numpy() - wanted).sum() / np.square(wanted).sum())
            assert lost < (0.02 if "w4" in scheme else 0.0002), tensor.name


def test_what_enters_the_layers_counts(tmp_path: Path) -> None:
    found = calibrate(named(tiny(), tmp_path), TEXT, tokens=1024, folder=tmp_path, threads=1)
    _, layers = made(tmp_path, tiny(), "w4a16-g32", calibration=found)
    assert not any(one.fallback for one in layers)
    assert sum(one.error for one in layers) < 0.9 * sum(one.nearest for one in layers)


def test_static_scales(tmp_path: Path) -> None:
    with open_weights(named(model("llama"), tmp_path)) as source:
        scales = {one.name: 0.1 + 0.01 * number for number, one in enumerate(source.linears)}
    folder, _ = made(tmp_path, model("llama"), "w8a8-static", input_scales=scales)
    every = _scales(folder)
    # vLLM makes one layer of q, k and v, and of gate and up: one input, one scale, that of the largest.
    first = {part: every[f"model.layers.0.self_attn.{part}_proj.input_scale"] for part in "qkv"}
    assert set(first.values()) == {np.float32(max(scales[f"blk.0.attn_{part}.weight"] for part in "qkv"))}
    config = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert config["input_activations"]["dynamic"] is False
    assert config["input_activations"]["strategy"] == "tensor"


def _scales(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    every = load_file(folder / "model.safetensors")
    return {name: part.numpy()[0] for name, part in every.items() if "input_scale" in name}
