"""Low-rank adapters of linear layers (LoRA, arXiv 2106.09685; on packed weights: QLoRA, arXiv 2305.14314), by PEFT."""

from __future__ import annotations

import shutil
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pressroom.compress.training._packed import PackedLinear
from pressroom.kernel import StoreError

if TYPE_CHECKING:
    from pressroom.compress.models import Bridge
    from pressroom.compress.numbers import NumberFormat


class Adapters:
    """Adapters on layers of a model; all else is frozen. `merge` puts them into the weights and takes them off."""

    def __init__(self, bridge: Bridge, names: tuple[str, ...], *, rank: int, scale: float) -> None:
        from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found, unused-ignore]

        self._bridge, self._names = bridge, names
        self._paths = {name: bridge.places[name].parameter.removesuffix(".weight") for name in names}
        config = LoraConfig(
            r=rank,
            lora_alpha=scale,  # type: ignore[arg-type, unused-ignore]  # a share of the rank; only its type says int
            lora_dropout=0.0,
            bias="none",
            target_modules=sorted(self._paths.values()),
        )
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5 for it by its old name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            self.model: Any = get_peft_model(bridge.model, config)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [one for one in self.model.parameters() if one.requires_grad]

    def merge(self) -> None:
        """The bridge's model has the adapters in its weights, and is as it was otherwise."""
        for name in self._names:
            layer: Any = self._bridge.module(name)
            if isinstance(layer.base_layer, PackedLinear):
                layer.base_layer = layer.base_layer.plain()
        merged = self.model.merge_and_unload()
        assert merged is self._bridge.model

    def save(self, folder: Path) -> None:
        """Write the adapters as PEFT reads them, whole or not at all. Call it before `merge`.

        Raises:
            StoreError: it cannot be written.
        """
        from peft import get_peft_model_state_dict  # type: ignore[import-not-found, unused-ignore]
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        made = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}.part")
        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        try:
            made.mkdir(parents=True)
            save_file({name: one.contiguous() for name, one in state.items()}, made / "adapter_model.safetensors")
            self.model.peft_config["default"].save_pretrained(made)
            made.rename(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(made, ignore_errors=True)
            raise StoreError(
                f"the adapter cannot be written to {folder}: {error}",
                hint="Name a directory that is not there yet, in one that may be written.",
                path=str(folder),
            ) from error


def pack(bridge: Bridge, forms: Mapping[str, NumberFormat]) -> None:
    """Keep these layers' weights in formats of few bits; what was lost by that is lost."""
    for name, form in forms.items():
        path = bridge.places[name].parameter.removesuffix(".weight")
        layer = bridge.module(name)
        assert isinstance(layer, nn.Linear)
        bridge.model.set_submodule(path, PackedLinear(layer, form))
