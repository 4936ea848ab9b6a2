"""What a killed training run leaves for the next: weights, the optimiser's state, the losses so far, in one file."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.kernel import StoreError, StoreFullError
from pressroom.kernel.disk import sync, sync_directory

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

_log = logging.getLogger(__name__)
_NAME, _PART = "training.safetensors", "training.part"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STATE = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """The one checkpoint of a run in a folder; a new one takes the place of the old when it is complete."""

    def __init__(self, folder: Path, key: str, parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        self._folder, self._key = folder, key
        self._parameters, self._optimizer = parameters, optimizer

    def load(self) -> list[float]:
        """Take up the work where it was, if there is any of this key; returns the losses of the steps that are done."""
        from safetensors import SafetensorError, safe_open

        (self._folder / _PART).unlink(missing_ok=True)
        path = self._folder / _NAME
        if not path.is_file():
            return []
        try:
            with safe_open(path, "pt") as file:
                said: Any = file.metadata() or {}
                if said.get("key") != self._key:
                    return []
                losses: list[float] = json.loads(said["losses"])
                found = [
                    [file.get_tensor(f"{kind}.{number}") for kind in ("value", *_STATE)]
                    for number in range(len(self._parameters))
                ]
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            _log.warning("%s is not taken up: %s", path, error)
            return []
        self._restore(found, len(losses))
        return losses

    def _restore(self, found: list[list[Tensor]], steps: int) -> None:
        import torch

        with torch.no_grad():
            for parameter, (value, first, second) in zip(self._parameters, found, strict=True):
                parameter.copy_(value)
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(steps)),
                    "exp_avg": first.to(parameter.device),
                    "exp_avg_sq": second.to(parameter.device),
                }

    def save(self, losses: list[float]) -> None:
        """Raises StoreFullError and StoreError; the checkpoint before is then still there."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for number, parameter in enumerate(self._parameters):
            tensors[f"value.{number}"] = parameter.detach().contiguous()
            for kind in _STATE:
                tensors[f"{kind}.{number}"] = self._optimizer.state[parameter][kind].contiguous()
        part = self._folder / _PART
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"key": self._key, "losses": json.dumps(losses)})
            with part.open("rb") as file:
                sync(file.fileno())
            part.replace(self._folder / _NAME)
            sync_directory(self._folder)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            size = sum(one.nbytes for one in tensors.values())
            full = isinstance(error, OSError) and error.errno in _FULL
            if full or _free(self._folder) < size:
                raise StoreFullError(
                    f"{self._folder} has no room for a checkpoint of {size / 1e6:,.1f} MB",
                    hint="Make room there, or train without: checkpoint = 0.",
                    needed=size,
                    path=str(self._folder),
                ) from error
            raise StoreError(
                f"the checkpoint of the training cannot be written to {self._folder}: {error}",
                hint="Check that the directory may be written by this user.",
                path=str(self._folder),
            ) from error

    def drop(self) -> None:
        """What is done needs none."""
        for name in (_NAME, _PART):
            (self._folder / name).unlink(missing_ok=True)


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
