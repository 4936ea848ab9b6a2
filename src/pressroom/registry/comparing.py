"""What differs between two versions: tensors and how far, metadata, and the other files.

Tensors are matched by name, across however many files they lie in. Of files with equal digests nothing is read; of the
others two tensors at a time, in pieces, so that memory stays small whatever the models' size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from pressroom.kernel import Progress, Ref, Workspace
from pressroom.registry._numbers import Distance, distance, has_values
from pressroom.registry.base import FileEntry, Version
from pressroom.registry.registry import Registry
from pressroom.store import TensorInfo

_WEIGHTS = (".safetensors", ".gguf")
# The longest JSON whose keys are compared; tokenizers are among the long ones.
_MOST_JSON = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorChange:
    """A tensor that is not the same in both: `what` is `added`, `removed`, `shape`, `type` or `values`.

    Of the first version and the second: `dtypes`, `shapes`; None where it has no such tensor. `distance` is None where
    nothing can be said of it: other shapes, or other types of which one has no values here.
    """

    name: str
    what: str
    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    distance: Distance | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileChange:
    """A file that is not the same in both: `what` is `added`, `removed` or `changed`, `sizes` in bytes.

    `keys` are the values of a JSON file that differ, by their dotted path; None where the file is no JSON.
    """

    path: str
    what: str
    sizes: tuple[int | None, int | None]
    keys: dict[str, tuple[Any, Any]] | None = None


@dataclass(kw_only=True, slots=True)
class Comparison:
    """Everything that differs from `first` to `second`. `tensors_same` counts those that were read and are equal."""

    first: Version
    second: Version
    tensors: list[TensorChange] = field(default_factory=list)
    tensors_same: int = 0
    weights_same: list[str] = field(default_factory=list)
    files: list[FileChange] = field(default_factory=list)
    metadata: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "first": f"{self.first.name}:{self.first.number}",
            "second": f"{self.second.name}:{self.second.number}",
            "same": self.first.digest == self.second.digest,
            "tensors": [
                {**asdict(change), "share": change.distance.share if change.distance else None}
                for change in self.tensors
            ],
            "tensors_same": self.tensors_same,
            "weights_same": self.weights_same,
            "files": [asdict(change) for change in self.files],
            "metadata": self.metadata,
        }


def compare(workspace: Workspace, first: Ref | str, second: Ref | str) -> Comparison:
    """What differs from the first version to the second.

    Raises:
        RefError, NotFoundError: one of them means nothing, or its bytes are gone.
        WeightsError: a file that should hold weights does not.
    """
    registry = Registry(workspace)
    one, other = registry.get(first), registry.get(second)
    found = Comparison(first=one, second=other, metadata=_differences(one.metadata, other.metadata))
    shared = {entry.blob for entry in one.files} & {entry.blob for entry in other.files}
    found.weights_same = [entry.path for entry in one.files if entry.blob in shared and _is_weights(entry)]
    _compare_tensors(workspace, registry, found, shared)
    _compare_files(registry, found)
    return found


@dataclass(frozen=True, slots=True)
class _Tensor:
    info: TensorInfo
    file: BinaryIO


def _compare_tensors(workspace: Workspace, registry: Registry, found: Comparison, shared: set[str]) -> None:
    with ExitStack() as stack:
        before, after = (_tensors(registry, version, shared, stack) for version in (found.first, found.second))
        names = list(dict.fromkeys([*before, *after]))
        total, done = sum(tensor.info.nbytes for tensor in after.values()), 0
        task = f"comparing {found.first.name}:{found.first.number} and {found.second.name}:{found.second.number}"
        for name in names:
            change = _change(name, before.get(name), after.get(name))
            if change is None:
                found.tensors_same += 1
            else:
                found.tensors.append(change)
            if name in after:
                done += after[name].info.nbytes
                workspace.events.emit(Progress(task, done, total))


def _tensors(registry: Registry, version: Version, shared: set[str], stack: ExitStack) -> dict[str, _Tensor]:
    """The tensors of the files that the other version does not have, by name.

    The bytes are read through the file, not as arrays: a tensor may be larger than the memory.
    """
    found: dict[str, _Tensor] = {}
    for entry in version.files:
        if entry.blob in shared or not _is_weights(entry):
            continue
        infos = registry.store.tensors(entry.blob).infos  # from the header alone
        file = stack.enter_context(registry.store.open(entry.blob))
        found.update({name: _Tensor(info, file) for name, info in infos.items()})
    return found


def _change(name: str, before: _Tensor | None, after: _Tensor | None) -> TensorChange | None:
    first, second = before.info if before else None, after.info if after else None
    dtypes = (first.dtype if first else None, second.dtype if second else None)
    shapes = (first.shape if first else None, second.shape if second else None)
    if before is None or after is None:
        return TensorChange(name=name, what="removed" if after is None else "added", dtypes=dtypes, shapes=shapes)
    if shapes[0] != shapes[1]:
        return TensorChange(name=name, what="shape", dtypes=dtypes, shapes=shapes)
    same_type = dtypes[0] == dtypes[1]
    comparable = same_type or (has_values(before.info.dtype) and has_values(after.info.dtype))
    apart = distance(before.file, before.info, after.file, after.info) if comparable else None
    if same_type and apart is not None and not apart.changed:
        return None
    what = "values" if same_type else "type"
    return TensorChange(name=name, what=what, dtypes=dtypes, shapes=shapes, distance=apart)


def _compare_files(registry: Registry, found: Comparison) -> None:
    before = {entry.path: entry for entry in found.first.files if not _is_weights(entry)}
    after = {entry.path: entry for entry in found.second.files if not _is_weights(entry)}
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if old is not None and new is not None and old.blob == new.blob:
            continue
        keys = None
        if old is not None and new is not None:
            one, other = _json(registry, old), _json(registry, new)
            keys = _differences(one, other) if one is not None and other is not None else None
        found.files.append(
            FileChange(
                path=path,
                what="added" if old is None else "removed" if new is None else "changed",
                sizes=(old.size if old else None, new.size if new else None),
                keys=keys,
            )
        )


def _json(registry: Registry, entry: FileEntry) -> dict[str, Any] | None:
    if not entry.path.endswith(".json") or entry.size > _MOST_JSON:
        return None
    try:
        with registry.store.open(entry.blob) as file:
            found = json.loads(file.read())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values that differ, by their path with dots; None where one has none."""
    before, after = dict(_flat(one)), dict(_flat(other))
    return {
        key: (before.get(key), after.get(key)) for key in sorted({*before, *after}) if before.get(key) != after.get(key)
    }


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _is_weights(entry: FileEntry) -> bool:
    return PurePosixPath(entry.path).suffix.lower() in _WEIGHTS
