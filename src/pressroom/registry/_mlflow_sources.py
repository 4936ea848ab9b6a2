"""Where the files of a version come from that MLflow registers: the store already, a local folder, or any place that
MLflow can read. Only what is not in the store yet is copied."""

# Parts of MLflow are not annotated.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path

from pressroom.kernel import PressroomError, UnsafeWeightsError
from pressroom.registry._mlflow_errors import refused
from pressroom.registry._mlflow_files import Files
from pressroom.registry._mlflow_place import SCHEME, Place, located, opened
from pressroom.registry.base import FileEntry
from pressroom.store import Blob, is_pickle_name, sniff

# Pickles, archives and compressed files are known from this much; of archives the rest is read, too.
_HEAD = 1 << 16
_LEASE_S = 86_400.0


def files_of(place: Place, source: str, *, local: str | None, tracking_uri: str | None) -> list[FileEntry]:
    """The files below `source`, all of them in the store. `local` is a folder that has the same files.

    Raises:
        MlflowException: there are none, or they cannot be read.
        StoreError: there is no room.
    """
    if urlsplit(source).scheme == SCHEME and located(source)[0] == place.workspace.root:
        found = [*Files(opened(source)).list()]
        place.registry.lease(entry.blob for entry in found)
    elif local is not None or urlsplit(source).scheme in ("", "file"):
        found = list(_from_folder(place, Path(local or local_file_uri_to_path(source))))
    else:
        found = list(_from_repository(place, get_artifact_repository(source, tracking_uri=tracking_uri)))
    if not found:
        raise refused(f"there are no files in {source}: nothing to register")
    return found


def refuse_pickles(place: Place, files: Iterable[FileEntry]) -> None:
    """Versions are loaded by whoever trusts their name, and loading a pickle runs what is in it.

    Raises:
        UnsafeWeightsError: a file is a pickle, by its name or its content.
    """
    pickles = [entry.path for entry in files if _is_pickle(place, entry)]
    if pickles:
        shown = ", ".join(map(repr, pickles[:5])) + (f" and {len(pickles) - 5} more" if len(pickles) > 5 else "")
        raise UnsafeWeightsError(
            f"{shown}: a version holds no Python pickle, because loading one runs whatever code it contains",
            hint="Log the model without one: safetensors (mlflow.transformers, save_pretrained), skops "
            "(mlflow.sklearn), or models from code (python_model='model.py'). The run keeps its artifacts as they are.",
            files=pickles,
        )


def _is_pickle(place: Place, entry: FileEntry) -> bool:
    name = PurePosixPath(entry.path).name
    store = place.registry.store
    with store.open(entry.blob) as source, tempfile.TemporaryDirectory() as made:
        head = Path(made, "head")
        head.write_bytes(source.read(_HEAD))
        kind = sniff(head, name)
    if kind in ("gguf", "safetensors"):
        return False
    if is_pickle_name(name) or entry.size <= _HEAD or kind in ("npy", "hdf5", "ggml", "json", "text", "unknown"):
        return kind == "pickle" or is_pickle_name(name)
    # An archive says at its end what is in it, and the beginning alone may look damaged.
    return sniff(store.path(entry.blob), name) == "pickle"


def _from_folder(place: Place, folder: Path) -> Iterator[FileEntry]:
    if not folder.is_dir():
        raise refused(f"there is no folder {folder}: nothing to register")
    for above, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(above, name)
            yield _entry(place, file.relative_to(folder).as_posix(), file.resolve())


def _from_repository(place: Place, repository: ArtifactRepository) -> Iterator[FileEntry]:
    """One file after another, so that a large model needs room for its largest file only."""
    try:
        for info in repository._iter_artifacts_recursive(None):
            if info.is_dir:
                continue
            with tempfile.TemporaryDirectory(dir=place.workspace.path("tmp"), prefix="mlflow-") as made:
                file = Path(made, "file")
                repository._download_file(info.path, str(file))
                yield _entry(place, info.path, file)
    except (MlflowException, PressroomError):
        raise
    except (OSError, ImportError) as error:  # the library of a cloud is missing, or its answer
        raise refused(f"{repository.artifact_uri} cannot be read: {error}") from error


def _entry(place: Place, path: str, file: Path) -> FileEntry:
    blob: Blob = place.registry.store.put_file(file)
    place.registry.lease([blob.digest], seconds=_LEASE_S)
    return FileEntry(path=path, blob=blob.digest, size=blob.size)
