"""A file's weights in a model of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pressroom.compress.models._architectures import Place
from pressroom.compress.models._shape import Shape, check
from pressroom.compress.weights import Role, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """`model` holds the weights as float32; `places` says where each tensor of the file is in it."""

    model: PreTrainedModel
    shape: Shape
    roles: Mapping[str, Role]

    @property
    def places(self) -> Mapping[str, Place]:
        """Where each tensor of the file is in the model, in the order of the file."""
        return self.shape.places

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter that a tensor is (or is half of). KeyError for one that the file does not have."""
        return self.model.get_parameter(self.places[name].parameter)

    def module(self, name: str) -> nn.Module:
        """The layer that a tensor is the weight of."""
        return self.model.get_submodule(self.places[name].parameter.rpartition(".")[0])

    def filed(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of a tensor (numbers or bytes) in the order of the file, where they are in the model's."""
        return np.ascontiguousarray(_as_filed(rows, self.places[name], self.shape.head))

    def named(self, *roles: Role) -> dict[str, nn.Parameter]:
        """The parameters that are one tensor of these roles each, by its name in the file (experts' gate and up are
        one parameter, and left out)."""
        return {
            name: self.parameter(name)
            for name, place in self.places.items()
            if self.roles[name] in roles and place.half is None
        }

    def matrices(self, types: Mapping[str, str], *among: str) -> dict[str, nn.Parameter]:
        """The weights of linear layers and experts by the names of the parameters, of those whose tensors are all of
        these types (`types`: that of each tensor)."""
        kinds: dict[str, set[str]] = {}
        for name, place in self.places.items():
            if self.roles[name] in (Role.LINEAR, Role.EXPERTS):
                kinds.setdefault(place.parameter, set()).add(types[name])
        return {path: self.model.get_parameter(path) for path, found in kinds.items() if found <= set(among)}

    def values(self, name: str) -> Floats:
        """A copy of a tensor as the file would have it."""
        place = self.places[name]
        return _as_filed(self.parameter(name).detach().cpu().numpy(), place, self.shape.head).copy()

    def put(self, name: str, values: Floats) -> None:
        """Give a tensor other values, in the shape and order of the file."""
        place = self.places[name]
        target = self.parameter(name)
        with torch.no_grad():
            given = torch.from_numpy(np.ascontiguousarray(as_modelled(values, place, self.shape.head)))
            _part(target, place).copy_(given)

    def store(self) -> dict[str, Floats]:
        """Every tensor as the file would have it; what nothing was done to is the file's, bit for bit."""
        return {name: self.values(name) for name in self.places}


def load(source: Weights, *, device: str = "cpu") -> Bridge:
    """The model of a file, with its weights as float32, not in training.

    Raises:
        RecipeError: see `check`; or a tensor is of a type that cannot be read.
        MissingDependencyError: PyTorch or transformers is missing.
    """
    shape = check(source)
    model = _built(shape)
    halves: dict[str, dict[int, Floats]] = {}
    # A layer is made anew for its weights; so its bias comes after them, however the file has it.
    for name, place in sorted(shape.places.items(), key=lambda item: item[0].endswith(".bias")):
        values = as_modelled(source.rows(name).reshape(source.tensor(name).shape), place, shape.head)
        if place.half is None:
            _assign(model, place.parameter, values)
            continue
        both = halves.setdefault(place.parameter, {})
        both[place.half] = values
        if len(both) == 2:
            _assign(model, place.parameter, np.concatenate([both[0], both[1]], axis=1))
            del halves[place.parameter]
    if shape.tied:
        model.get_submodule("lm_head").weight = model.get_parameter("model.embed_tokens.weight")
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, f"no tensor of the file is {left}"
    trained: Any = model.eval().to(device)  # type: ignore[no-untyped-call]
    roles = {name: source.tensor(name).role for name in shape.places}
    return Bridge(trained, shape, roles)


def as_modelled(values: Floats, place: Place, head: int) -> Floats:
    """A tensor of the file in the order of the model. Rows of q and k of a head: 0, 1, 2, 3 become 0, 2, …, 1, 3, …"""
    if not place.turned:
        return values
    found: Floats = values.reshape(-1, head // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return found


def _as_filed(values: NDArray[Any], place: Place, head: int) -> NDArray[Any]:
    if place.half is not None:
        width = values.shape[1] // 2
        values = values[:, place.half * width : (place.half + 1) * width]
    if not place.turned:
        return values
    found: NDArray[Any] = values.reshape(-1, 2, head // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return found


def _part(parameter: torch.Tensor, place: Place) -> torch.Tensor:
    if place.half is None:
        return parameter
    width = parameter.shape[1] // 2
    return parameter[:, place.half * width : (place.half + 1) * width]


def _built(shape: Shape) -> PreTrainedModel:
    """The model without weights, but with its table of rotary frequencies."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # Layers get their own sizes when the weights come: the first one's stand for all here, where they are allowed to.
    whole = shape.hidden % shape.heads[0] == 0
    settings: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.expert_width or shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads[0] if whole else 1,
        "num_key_value_heads": shape.kv_heads[0] if whole else 1,
        "head_dim": shape.head,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "tie_word_embeddings": shape.tied,
        "attn_implementation": "sdpa",
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if shape.experts:
        settings |= {
            "num_local_experts": shape.experts,
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.experts_used,
            "moe_intermediate_size": shape.expert_width,
            "norm_topk_prob": True,
        }
    with _quiet(), torch.device("meta"):
        config = AutoConfig.for_model(shape.kind, **settings)
        made: Any = AutoModelForCausalLM
        model: Any = made.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    # Made again on the processor: what is on "meta" has no numbers.
    rotary = model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    divisor = torch.full_like(rotary.inv_freq, shape.stretch)
    if shape.frequencies is not None:
        divisor *= torch.from_numpy(np.array(shape.frequencies))
    rotary.inv_freq /= divisor
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.num_key_value_groups = shape.heads[number] // shape.kv_heads[number]
    built: PreTrainedModel = model
    return built


def _assign(model: nn.Module, parameter: str, values: Floats) -> None:
    """Give a parameter its values; a layer of another size, or without a bias, becomes one of the right kind."""
    path, _, kind = parameter.rpartition(".")
    given = nn.Parameter(torch.from_numpy(np.array(values, np.float32)))
    module = model.get_submodule(path)
    if isinstance(module, nn.Linear):
        if kind == "weight":
            module.out_features, module.in_features = given.shape
            module.register_parameter("bias", None)  # it comes after, where the file has one
        module.register_parameter(kind, given)
        return
    assert isinstance(module.get_parameter(kind), nn.Parameter)
    expected = tuple(module.get_parameter(kind).shape)
    assert expected == tuple(given.shape), (
        f"{parameter} is {expected} in the model and {tuple(given.shape)} in the file"
    )
    module.register_parameter(kind, given)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns on its own channel of what is meant here."""
    from transformers.utils import logging as channel

    logging: Any = channel
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
