"""Prepare, calibrate, convert: layers of whole numbers in a model that was float."""

from __future__ import annotations

import numpy as np
import pytest

from pressroom.compress.clipping import METHODS, Affine, Int8Linear, convert, prepare
from pressroom.compress.clipping import _int8 as int8_module
from pressroom.compress.numbers import Coded, number_format
from pressroom.kernel import RecipeError

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two layers with a ReLU between, and a head that is not to be touched."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(24, 40)
        self.block = torch.nn.ModuleDict({"second": torch.nn.Linear(40, 16, bias=False)})
        self.lm_head = torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        answer: torch.Tensor = self.lm_head(self.block["second"](hidden))
        return answer


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def inputs(seed: int, rows: int = 64) -> torch.Tensor:
    return torch.randn(2, rows, 24, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def calibrated(net: Net):  # type: ignore[no-untyped-def]
    with prepare(net) as prepared:
        for seed in range(4):
            net(inputs(seed))
    return prepared


@torch.inference_mode()  # type: ignore[untyped-decorator]
def off(net: Net, other: torch.nn.Module) -> float:
    x = inputs(99)
    return float((net(x) - other(x)).square().sum() / net(x).square().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_static(net: Net, method: str, symmetric: bool) -> None:
    prepared = calibrated(net)
    assert list(prepared.observers) == ["first", "block.second"]
    found = convert(prepared, method=method, symmetric=symmetric)  # type: ignore[arg-type]
    assert 0 < off(net, found.model) < 2e-3
    assert [one.name for one in found.layers] == ["first", "block.second"]
    for one in found.layers:
        assert one.inputs is not None and 0 < one.weight_error < 1e-4
        assert one.input_error is not None and 0 < one.input_error < 1e-3
        assert one.as_dict()["scale"] == one.inputs.scale
    # Behind a ReLU an asymmetric range has all codes on one side.
    if not symmetric:
        assert found.layers[1].inputs is not None and found.layers[1].inputs.zero == -128
    assert isinstance(found.model.first, Int8Linear) and isinstance(found.model.lm_head, torch.nn.Linear)


def test_dynamic_needs_no_calibration_and_follows_its_inputs(net: Net) -> None:
    found = convert(prepare(net), activations="dynamic")
    assert off(net, found.model) < 2e-4
    with torch.inference_mode():
        x = inputs(5)
        near = found.model(x * 1000)
        far = convert(calibrated(net)).model(x * 1000)
        true = net(x * 1000)
        assert not found.model(torch.zeros(1, 2, 24)).isnan().any()
    assert float((near - true).square().sum() / true.square().sum()) < 2e-4
    # Static ranges cut off what calibration did not see.
    assert float((far - true).square().sum() / true.square().sum()) > 0.5


def test_some_layers_can_be_dynamic(net: Net) -> None:
    """Where a few tokens are far larger than the others, one range does not serve both."""
    with torch.inference_mode(), prepare(net) as prepared:
        for seed in range(4):
            x = inputs(seed)
            x[:, 0] *= 300
            net(x)
    static, mixed = convert(prepared, method="min-max"), convert(prepared, method="min-max", dynamic=("block.*",))
    assert [one.inputs is None for one in mixed.layers] == [False, True]
    assert mixed.layers[1].as_dict()["scale"] is None
    every = convert(prepared, method="min-max", dynamic=(".*",))
    assert off(net, every.model) == off(net, convert(prepared, activations="dynamic").model) < off(net, static.model)


def test_fewer_bits_lose_more(net: Net) -> None:
    prepared = calibrated(net)
    losses = [off(net, convert(prepared, bits=bits, weights=f"int{bits}-channel").model) for bits in (8, 6, 4, 2)]
    assert losses == sorted(losses) and losses[-1] > 10 * losses[0]
    assert off(net, convert(prepared, weights="int8-channel").model) < off(
        net, convert(prepared, weights="int4-tensor").model
    )


def test_the_model_itself_stays_as_it_was(net: Net) -> None:
    x = inputs(7)
    with torch.inference_mode():
        before = net(x)
        prepared = prepare(net)
        assert torch.equal(net(x), before)
        found = convert(prepared)
        seen = prepared.observers["first"].seen
        assert torch.equal(net(x), before)
        found.model(x)
    assert prepared.observers["first"].seen == seen, "converted, and still watched"
    assert not net.first._forward_pre_hooks and not found.model.lm_head._forward_pre_hooks
    assert found.model.lm_head.weight is net.lm_head.weight


def test_the_sums_are_those_of_whole_numbers(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the codes multiplied by hand; and in floating point, where a build of torch cannot, bit for bit the same."""
    found = convert(calibrated(net))
    layer, x = found.model.first, inputs(3)
    numbers = layer.inputs
    assert found.arithmetic == layer.arithmetic
    with torch.inference_mode():
        y = layer(x)
        codes = numbers.codes(x.numpy()).astype(np.int64)
        sums = (codes - numbers.zero) @ layer.weight.numpy().astype(np.int64).T
        expected = sums * (numbers.scale * layer.scales.numpy().astype(np.float64)) + layer.bias.numpy()
        assert np.abs(y.numpy() - expected).max() < 1e-5
        monkeypatch.setattr(int8_module, "multiplies_int8", lambda device="cpu": False)
        assert layer.arithmetic == "emulated"
        assert torch.equal(layer(x), y)
        wide = Int8Linear(
            Coded(codes=np.full((3, 4096), 127, np.int8), scales=np.ones((1, 1), np.float32), zeros=None),
            Affine(1.0, 0, -128, 127),
        )
        assert (wide(torch.full((1, 4096), 127.0)) == 127 * 127 * 4096).all()


def test_half_precision_goes_in_and_comes_out(net: Net) -> None:
    found = convert(calibrated(net))
    with torch.inference_mode():
        assert found.model.first(inputs(1).bfloat16()).dtype == torch.bfloat16


def test_refused(net: Net) -> None:
    with pytest.raises(RecipeError, match=r"2 of 2 layers saw nothing: first, block\.second"):
        convert(prepare(net))
    prepared = calibrated(net)
    for weights in ("q4_0", "int4-g32", "int8-channel-asym", "nf4"):
        with pytest.raises(RecipeError, match=weights) as caught:
            convert(prepared, weights=weights)
        assert "int8-channel" in caught.value.hint
    with pytest.raises(RecipeError, match="'both'"):
        convert(prepared, activations="both")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="9 bits"):
        convert(prepared, bits=9)
    with pytest.raises(RecipeError, match="'worst'"):
        convert(prepared, method="worst")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="none is left"):
        prepare(net, skip=(".*",))
    with pytest.raises(RecipeError, match="regular expression"):
        prepare(net, skip=("(",))
    with pytest.raises(RecipeError, match="1 of 48 numbers at first"), prepare(net):
        net(torch.tensor([[float("nan"), *[0.0] * 23], [0.0] * 24]))
    odd = torch.nn.Sequential(torch.nn.Linear(10, 4))
    with pytest.raises(RecipeError, match="0 has rows of 10 weights"):
        convert(prepare(odd), activations="dynamic")
    coded = number_format("int4-g8").coded(number_format("int4-g8").encode(np.ones((4, 16), np.float32)))  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="one scale"):
        Int8Linear(coded, None)
