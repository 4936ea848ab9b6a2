"""The other ways of keeping a family, each as good as its library allows; run in what `make_venv` makes.

raw          copies of the files
zstd, zstd3  each file by itself, at levels 1 and 3
zipnn        each file by itself, in one call, with one thread: as its documentation shows
zipnn_pieces the same in pieces of 4 MiB, which stay in the cache of the processor
tensor_dedup each tensor once; tensor_dedup_zipnn: the same, each kept tensor through ZipNN
xor_zstd     each tensor once; one with a parent as its XOR with that, the two bytes of a weight apart, each through
             zstd at level 1; bf16 tensors without a parent through ZipNN, int8 ones through zstd: what is published as
             BitX or ZipLLM, written anew from its description
xet          the client of the Hugging Face Hub, on a local directory in place of its server
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _store_child import Approach, Bytes, on_disk
from numpy.typing import NDArray

PACKAGES = ("zipnn==0.5.4", "zstandard==0.25.0", "xxhash==3.6.0", "hf-xet==1.8.0")
# What the difference is taken to: the base, as the smallest copy to hold; of what was made from ft40, that.
_PARENTS = {"pruned": "ft40", "one": "ft40", "ckpt10": "base", "ckpt20": "base", "ckpt30": "base", "ft40": "base"}
_PARENTS |= {"lora": "base", "ftfar": "base"}
_PIECE = 4 << 20
_WEIGHTS = 1 << 20  # that are split and compressed at once: two planes of 1 MiB


def make_venv(directory: Path) -> Path:
    """The Python of a virtual environment with the peers' libraries; made once. What they need besides (PyTorch, which
    is 5 GB with CUDA) comes from the environment that this runs in."""
    python = directory / "bin" / "python"
    mark = directory / "peers.json"
    wanted = json.dumps([PACKAGES, sys.version, sysconfig.get_path("purelib")])
    if not (mark.exists() and mark.read_text() == wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            *PACKAGES,
        ]
        subprocess.run(install, check=True)
        (site,) = directory.glob("lib/python*/site-packages")
        (site / "from-outside.pth").write_text(sysconfig.get_path("purelib") + "\n")
        mark.write_text(wanted)
    return python


class Raw:
    """Given back from the file itself, wherever it lies: copies elsewhere would be read no faster."""

    passes = ("hot",)

    def __init__(self, into: Path, files: dict[str, Path]) -> None:
        self._into, self._files = into, files
        self._buffer = np.ones(max(file.stat().st_size for file in files.values()), np.uint8)

    def _file(self, name: str) -> Path:
        return self._into / name

    def _raw(self, file: Path) -> memoryview:
        """What is in the file, in memory that was written before."""
        with file.open("rb", buffering=0) as opened:
            return memoryview(self._buffer)[: opened.readinto(self._buffer)]

    def ingest(self, name: str, file: Path) -> None:
        self._file(name).write_bytes(self._raw(file))

    def stored(self) -> int:
        return on_disk(self._into)

    def prepare(self, how: str, name: str) -> None: ...

    def close(self) -> None: ...

    def restore(self, name: str, out: Bytes) -> Any:
        with self._files[name].open("rb", buffering=0) as file:
            read = 0
            while read < len(out):
                count = file.readinto(memoryview(out)[read:])
                assert count
                read += count


class Zstd(Raw):
    level = 1

    def ingest(self, name: str, file: Path) -> None:
        import zstandard

        self._file(name).write_bytes(zstandard.ZstdCompressor(level=self.level).compress(self._raw(file)))

    def restore(self, name: str, out: Bytes) -> Any:
        import zstandard

        with self._file(name).open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            read = 0
            while read < len(out):
                count = reader.readinto(memoryview(out)[read:])
                assert count
                read += count


class Zstd3(Zstd):
    level = 3


class ZipNN(Raw):
    piece = 1 << 62

    def __init__(self, into: Path, files: dict[str, Path]) -> None:
        super().__init__(into, files)
        self._zipnn = _zipnn()

    def ingest(self, name: str, file: Path) -> None:
        raw = self._raw(file)
        if len(raw) <= self.piece:
            # It reorders what it is given in place.
            parts = [self._zipnn.compress(bytearray(raw))]
        else:
            parts = [
                self._zipnn.compress(bytearray(raw[at : at + self.piece])) for at in range(0, len(raw), self.piece)
            ]
        with self._file(name).open("wb") as made:
            for part in parts:
                made.write(len(part).to_bytes(8, "little"))
                made.write(part)

    def restore(self, name: str, out: Bytes) -> Any:
        packed = memoryview(np.memmap(self._file(name), np.uint8, "r"))
        read = written = 0
        while read < len(packed):
            end = read + 8 + int.from_bytes(packed[read : read + 8], "little")
            part = self._zipnn.decompress(packed[read + 8 : end])
            if len(part) == len(out):
                return part
            out[written : written + len(part)] = np.frombuffer(part, np.uint8)
            read, written = end, written + len(part)
        return None


class ZipNNPieces(ZipNN):
    piece = _PIECE


class Dedup:
    """Each tensor once, by the hash of its bytes, in one pack; a file is its header and the hashes of its tensors."""

    passes = ("hot",)

    def __init__(self, into: Path, files: dict[str, Path]) -> None:
        self._into, self._files = into, files
        self._pack = (into / "pack").open("a+b", buffering=0)
        self._entries: dict[str, tuple[Any, ...]] = {}  # by hash: where in the pack, and how to read it
        self._manifests: dict[str, dict[str, Any]] = {}
        self._hot: dict[str, Bytes] = {}
        self._mapped = memoryview(b"")

    def ingest(self, name: str, file: Path) -> None:
        raw = np.fromfile(file, np.uint8)
        start, tensors = _safetensors(raw)
        refs: list[tuple[str, int, int]] = []
        for tensor, dtype, begin, end in tensors:
            data = raw[begin:end]
            key = _hash(data)
            if key not in self._entries:
                self._entries[key] = self._keep(data, dtype, tensor, name)
            refs.append((key, begin, end))
        self._manifests[name] = {"header": raw[:start].tobytes().decode("latin-1"), "tensors": refs}
        (self._into / "index").write_text(json.dumps([self._entries, self._manifests]))

    def stored(self) -> int:
        return on_disk(self._into)

    def prepare(self, how: str, name: str) -> None:
        """The parent's bytes, in memory."""
        parent = _PARENTS.get(name)
        self._hot = {parent: np.fromfile(self._files[parent], np.uint8)} if parent else {}

    def restore(self, name: str, out: Bytes) -> Any:
        manifest = self._manifests[name]
        header = manifest["header"].encode("latin-1")
        out[: len(header)] = np.frombuffer(header, np.uint8)
        for key, begin, end in manifest["tensors"]:
            self._give(self._entries[key], out[begin:end])

    def close(self) -> None:
        self._pack.close()

    def _append(self, *parts: bytes | Bytes) -> tuple[int, list[int]]:
        at = self._pack.seek(0, os.SEEK_END)
        for part in parts:
            self._pack.write(part)
        return at, [len(part) for part in parts]

    def _read(self, at: int, length: int) -> memoryview:
        if at + length > len(self._mapped):
            self._mapped = memoryview(np.memmap(self._into / "pack", np.uint8, "r"))
        return self._mapped[at : at + length]

    def _keep(self, data: Bytes, dtype: str, tensor: str, name: str) -> tuple[Any, ...]:
        return "raw", *self._append(data)

    def _give(self, entry: tuple[Any, ...], out: Bytes) -> None:
        _, at, (length,) = entry
        assert os.preadv(self._pack.fileno(), [out], at) == length


class DedupZipNN(Dedup):
    def __init__(self, into: Path, files: dict[str, Path]) -> None:
        super().__init__(into, files)
        self._zipnn = _zipnn()

    def _keep(self, data: Bytes, dtype: str, tensor: str, name: str) -> tuple[Any, ...]:
        if dtype != "BF16":
            return super()._keep(data, dtype, tensor, name)
        pieces = [data[at : at + _PIECE].tobytes() for at in range(0, len(data), _PIECE)]
        return "zipnn", *self._append(*(self._zipnn.compress(bytearray(piece)) for piece in pieces))

    def _give(self, entry: tuple[Any, ...], out: Bytes) -> None:
        kind, at, lengths = entry
        if kind != "zipnn":
            super()._give(entry, out)
            return
        begin = 0
        for length in lengths:
            part = np.frombuffer(self._zipnn.decompress(self._read(at, length)), np.uint8)
            out[begin : begin + len(part)] = part
            at, begin = at + length, begin + len(part)


class XorZstd(DedupZipNN):
    def __init__(self, into: Path, files: dict[str, Path]) -> None:
        import zstandard

        super().__init__(into, files)
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()
        self._places = {name: _places(file) for name, file in files.items()}
        self._scratch = np.empty(_WEIGHTS, np.uint16)

    def ingest(self, name: str, file: Path) -> None:
        self.prepare("hot", name)
        super().ingest(name, file)

    def _keep(self, data: Bytes, dtype: str, tensor: str, name: str) -> tuple[Any, ...]:
        parent = _PARENTS.get(name)
        if parent is None or dtype != "BF16":
            if dtype == "BF16":
                return super()._keep(data, dtype, tensor, name)
            return "zstd", *self._append(self._compressor.compress(data))
        begin, end = self._places[parent][tensor]
        mine, theirs = data.view(np.uint16), self._hot[parent][begin:end].view(np.uint16)
        planes: list[bytes] = []
        for at in range(0, len(mine), _WEIGHTS):
            piece = mine[at : at + _WEIGHTS]
            both = np.bitwise_xor(piece, theirs[at : at + _WEIGHTS], out=self._scratch[: len(piece)]).view(np.uint8)
            planes += [self._compressor.compress(np.ascontiguousarray(both[side::2])) for side in (0, 1)]
        return "xor", *self._append(*planes), parent, tensor

    def _give(self, entry: tuple[Any, ...], out: Bytes) -> None:
        if entry[0] == "zstd":
            _, at, (length,) = entry
            out[:] = np.frombuffer(self._decompressor.decompress(self._read(at, length)), np.uint8)
            return
        if entry[0] != "xor":
            super()._give(entry, out)
            return
        _, at, lengths, parent, tensor = entry
        begin, end = self._places[parent][tensor]
        if parent not in self._hot:  # a tensor that several files share, kept as a difference of the first of them
            self._hot[parent] = np.fromfile(self._files[parent], np.uint8)
        theirs = self._hot[parent][begin:end].view(np.uint16)
        mine = out.view(np.uint16)
        for block, first in enumerate(range(0, len(mine), _WEIGHTS)):
            planes = []
            for length in lengths[2 * block : 2 * block + 2]:
                planes.append(np.frombuffer(self._decompressor.decompress(self._read(at, length)), np.uint8))
                at += length
            piece = mine[first : first + _WEIGHTS]
            np.left_shift(planes[1], 8, out=piece, dtype=np.uint16, casting="unsafe")
            piece |= planes[0]
            piece ^= theirs[first : first + _WEIGHTS]


class Xet:
    passes = ("hot",)

    def __init__(self, into: Path, files: dict[str, Path]) -> None:
        os.environ |= {
            "HF_HOME": str(into / "home"),
            "HF_XET_CACHE": str(into / "cache"),
            "HF_XET_TELEMETRY_ENABLED": "0",
        }
        import hf_xet

        self._skip = hf_xet.SKIP_SHA256
        self._session = hf_xet.XetSession()
        self._cas = into / "cas"
        self._cas.mkdir()
        self._held: dict[str, Any] = {}

    def ingest(self, name: str, file: Path) -> None:
        with self._session.new_upload_commit(endpoint=f"local://{self._cas}") as commit:
            upload = commit.start_upload_file(str(file), sha256=self._skip)
        self._held[name] = upload.result().xet_info

    def stored(self) -> int:
        """What its server keeps: the chunks in xorbs, and the shards that say which file has which; no caches."""
        kept = self._cas / "xet" / "xorbs"
        found = [*kept.glob("xorbs/default.*"), *kept.glob("shards/*.mdb")]
        return sum(file.stat().st_size for file in found if file.suffix != ".tagset")

    def prepare(self, how: str, name: str) -> None: ...

    def close(self) -> None: ...

    def restore(self, name: str, out: Bytes) -> Any:
        at = 0
        group = self._session.new_download_stream_group(endpoint=f"local://{self._cas}")
        for chunk in group.download_stream(self._held[name]):
            out[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
            at += len(chunk)


APPROACHES: dict[str, Callable[[Path, dict[str, Path]], Approach]] = {
    "raw": Raw,
    "zstd": Zstd,
    "zstd3": Zstd3,
    "zipnn": ZipNN,
    "zipnn_pieces": ZipNNPieces,
    "tensor_dedup": Dedup,
    "tensor_dedup_zipnn": DedupZipNN,
    "xor_zstd": XorZstd,
    "xet": Xet,
}


def _hash(data: Bytes) -> str:
    import xxhash

    return str(xxhash.xxh3_128_hexdigest(data))


def _zipnn() -> Any:
    import warnings

    warnings.simplefilter("ignore")  # of the PyTorch it imports
    import zipnn

    return zipnn.ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)


def _safetensors(raw: NDArray[np.uint8]) -> tuple[int, list[tuple[str, str, int, int]]]:
    """Where the data begins, and name, dtype, first and last byte of each tensor, as they lie in the file."""
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    return start, sorted(_tensors(json.loads(raw[8:start].tobytes()), start), key=lambda tensor: tensor[2])


def _tensors(header: dict[str, Any], start: int) -> Iterator[tuple[str, str, int, int]]:
    for name, told in header.items():
        if name != "__metadata__":
            begin, end = told["data_offsets"]
            yield name, told["dtype"], start + begin, start + end


def _places(file: Path) -> dict[str, tuple[int, int]]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {name: (begin, end) for name, _, begin, end in _tensors(header, 8 + length)}
