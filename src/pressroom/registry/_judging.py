"""Whether files may become a version, and what they say of themselves: on their way in, and once they are kept.

What is kept is judged by the beginnings of the files: everything that a reader looks at is there, and a store that
keeps a file in pieces need not put 300 GB together again for it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pressroom.kernel import SourceError, StoreError
from pressroom.store import Store, WeightsInfo, inspect, inspect_folder, sniff

_PACKED = {"zip", "tar", "gzip", "bzip2", "xz", "lzma", "zlib", "lz4", "zstd"}
# The header of a GGUF file has the whole vocabulary: some MB. The longest JSON that is read is 64 MiB.
_HEAD = (64 << 20) + 1
# The header of safetensors says how long it is; readers take no longer one.
_MOST_HEADER = 128 << 20
_CHUNK = 1 << 20


def judge(files: Mapping[str, Path], *, as_data: bool) -> WeightsInfo | None:
    """What the weights say of themselves; None for data.

    Raises:
        WeightsError: they are unsafe or malformed.
        SourceError: what should be data is empty or packed.
    """
    if not as_data:
        if len(files) > 1:
            return inspect_folder(files)
        ((name, path),) = files.items()
        return inspect(path, name=name)
    for name, path in files.items():
        kind = sniff(path, name)
        if kind == "pickle":
            inspect(path, name=name)  # says why, and the safe way
        if kind == "empty":
            raise SourceError(f"{name} is empty", hint="Choose another file.")
        if kind in _PACKED:
            raise SourceError(
                f"{name} is packed ({kind}): what is inside cannot be judged",
                hint="Unpack it, or choose one file of it with '#' behind the source.",
            )
    return None


def judge_kept(store: Store, blobs: Mapping[str, str], workdir: Path, *, as_data: bool) -> WeightsInfo | None:
    """The same of what the store has: `blobs` are digests by path. `workdir` is for what is needed meanwhile.

    Raises:
        WeightsError, SourceError: as `judge`.
        NotFoundError: the store has not all of it.
    """
    folder = Path(tempfile.mkdtemp(prefix="heads-", dir=workdir))
    try:
        heads = {}
        for number, (path, blob) in enumerate(blobs.items()):
            heads[path] = folder / str(number)
            with store.open(blob) as file:
                _copy_head(file, heads[path], store.size(blob) or 0)
        return judge(heads, as_data=as_data)
    except OSError as error:
        raise StoreError(
            f"{workdir} cannot be written: {error.strerror}", hint="Check that the disk has room."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def described(info: WeightsInfo, size: int) -> dict[str, Any]:
    """The metadata of a version of `size` bytes."""
    values = {
        "format": info.format,
        "architecture": info.architecture,
        "parameters": info.parameters or None,  # what a vendor runs does not say
        "tokenizer": info.tokenizer,
        "vocabulary": info.vocabulary,
        "context_length": info.context_length,
        "quantization": info.quantization,
        "license": info.license,
        "bits_per_weight": round(8 * size / info.parameters, 4) if info.parameters else None,
        "header": info.metadata,
    }
    return {key: value for key, value in values.items() if value is not None}


def _copy_head(file: BinaryIO, target: Path, size: int) -> None:
    """A file as long as the other, with its beginning and a hole behind it."""
    start = file.read(9)
    length = _HEAD
    if start[8:9] == b"{":  # safetensors: the length of its header stands before it
        length = min(8 + int.from_bytes(start[:8], "little"), _MOST_HEADER)
    with target.open("wb") as out:
        out.write(start)
        left = length - len(start)
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            out.write(chunk)
            left -= len(chunk)
        out.truncate(size)
