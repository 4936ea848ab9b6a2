"""Pickles in every dress, and other files that are not weights: refused, with the reason and the safe way."""

from __future__ import annotations

import bz2
import collections
import decimal
import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.kernel import MalformedWeightsError, NotFoundError, StoreError, UnsafeWeightsError
from pressroom.store import inspect, is_pickle_name, sniff

from .weights_files import Gguf, safetensors


class Attack:
    """Makes a directory when it is unpickled: the tests look whether it is there."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.place),)


def _zip(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return made.getvalue()


def _tar(form: int, **members: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    made = io.BytesIO()
    np.save(made, array, allow_pickle=True)
    return made.getvalue()


def _npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    made = io.BytesIO()
    np.savez_compressed(made, **arrays)  # type: ignore[arg-type]
    return made.getvalue()


def _lz4(content: bytes, *, compressed: bool, content_size: bool = False) -> bytes:
    """One frame with one block, as the format says; compressed as a run of literals, which any decoder takes."""
    flags = 0x60 | (0x08 if content_size else 0)
    head = (
        b"\x04\x22\x4d\x18" + bytes([flags, 0x40]) + (struct.pack("<Q", len(content)) if content_size else b"") + b"\0"
    )
    if not compressed:
        return head + struct.pack("<I", len(content) | 1 << 31) + content + bytes(4)
    rest, lengths = len(content) - 15, b""
    if rest >= 0:
        lengths = b"\xff" * (rest // 255) + bytes([rest % 255])
    block = bytes([min(len(content), 15) << 4]) + lengths + content
    return head + struct.pack("<I", len(block)) + block + bytes(4)


def _dresses(attack: Attack) -> dict[str, bytes]:
    """Every way a pickle comes, by what it is; the names are added by the tests."""
    pickles = {f"protocol {n}": pickle.dumps(attack, n) for n in range(6)}
    plain = pickles["protocol 4"]
    old = pickles["protocol 0"]
    objects = np.array([attack, None], dtype=object)
    records = np.zeros(2, dtype=[("weight", "<f4"), ("anything", "O")])
    return {
        **pickles,
        "state dict, protocol 0": pickle.dumps({"weight": attack}, 0),
        "state dict, protocol 1": pickle.dumps({"weight": attack}, 1),
        "ordered dict, protocol 0": pickle.dumps(collections.OrderedDict(weight=attack), 0),
        "ordered dict, protocol 2": pickle.dumps(collections.OrderedDict(weight=attack), 2),
        "list, protocol 0": pickle.dumps([1.5, attack], 0),
        "list, protocol 1": pickle.dumps([1.5, attack], 1),
        "tuple, protocol 0": pickle.dumps((1, "a", attack), 0),
        "tuple, protocol 1": pickle.dumps((1, "a", attack), 1),
        "class instance, protocol 0": pickle.dumps(decimal.Decimal(1), 0),
        "with bytes after it": old + b"\n" * 1000,
        "PyTorch before 1.6": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps(attack, 2),
        "PyTorch zip": _zip(model__data=b"x", **{"model__data.pkl": pickle.dumps(attack, 2), "model__version": b"3\n"}),
        "zip with a pickle by another name": _zip(config=b"{}", weights=plain),
        "zip with a .bin": _zip(**{"model/pytorch_model.bin": b"?"}),
        "PyTorch tar": _tar(tarfile.GNU_FORMAT, sys_info=b"1", pickle=plain, storages=b"", tensors=b""),
        "tar with a pickle by another name": _tar(tarfile.USTAR_FORMAT, a=b"1" * 600, weights=old),
        "tar.gz with a pickle": gzip.compress(_tar(tarfile.GNU_FORMAT, pickle=plain)),
        "NumPy objects": _npy(objects),
        "NumPy records with objects": _npy(records),
        "NumPy zip with objects": _npz(fine=np.zeros(3), objects=objects),
        "gzip": gzip.compress(plain),
        "bzip2": bz2.compress(plain),
        "xz": lzma.compress(plain),
        "lzma": lzma.compress(plain, format=lzma.FORMAT_ALONE),
        **{f"zlib {level}": zlib.compress(plain, level) for level in (0, 1, 5, 9)},
        "gzip of protocol 0": gzip.compress(old),
        "joblib before 0.10": b"ZF0x100                " + zlib.compress(plain),
        "lz4, stored": _lz4(plain, compressed=False),
        "lz4": _lz4(plain, compressed=True, content_size=True),
        "lz4 of a long one": _lz4(pickle.dumps([attack, os.urandom(600)], 4), compressed=True),
    }


DRESSES = sorted(_dresses(Attack(Path("-"))))
NAMES = ["model.gguf", "model.safetensors", "pytorch_model.bin", "model.pt", "weights"]


def test_the_attack_would_work(tmp_path: Path) -> None:
    pickle.loads(_dresses(Attack(tmp_path / "ran"))["protocol 0"])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dress", DRESSES)
def test_a_pickle_is_refused_in_any_dress(tmp_path: Path, dress: str, name: str) -> None:
    content = _dresses(Attack(tmp_path / "ran"))[dress]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "blob").write_bytes(content)
    for path, called in ((tmp_path / name, None), (tmp_path / "blob", name)):
        assert sniff(path, called) == "pickle"
        with pytest.raises(UnsafeWeightsError) as caught:
            inspect(path, name=called)
        assert repr(name) in str(caught.value)
        assert "runs whatever code" in str(caught.value)
        assert "safetensors" in caught.value.hint
        assert "press pull" in caught.value.hint
    assert not (tmp_path / "ran").exists()


PICKLE_NAMES = [
    "pytorch_model.bin",
    "a/b/model.PT",
    "model.pth",
    "x.pkl",
    "x.pickle",
    "x.ckpt",
    "x.joblib",
    "x.joblib.lz4",
    "x.pkl.gz",
    "x.pkl.xz",
    "x.pt.zst",
    "x.p",
    "x.dill",
]


@pytest.mark.parametrize("name", PICKLE_NAMES)
@pytest.mark.parametrize("content", [b"", b"?" * 100, bytes(range(256)) * 4, b"{}", b"\x89HDF\r\n\x1a\n"])
def test_a_name_that_pickles_have_is_enough(tmp_path: Path, name: str, content: bytes) -> None:
    assert is_pickle_name(name)
    path = tmp_path / "blob"
    path.write_bytes(content)
    with pytest.raises(UnsafeWeightsError):
        inspect(path, name=name)


@pytest.mark.parametrize(
    "name",
    [
        "model.gguf",
        "model.safetensors",
        "x.npy",
        "x.npz",
        "bin",
        "README",
        "x.gz",
        "x.pt.txt",
        "",
        "pt",
        "x.json",
        "a.bin/x",
    ],
)
def test_names_that_pickles_do_not_have(name: str) -> None:
    assert not is_pickle_name(name)


@pytest.mark.parametrize("content", [bytes(Gguf()), safetensors()])
@pytest.mark.parametrize("name", ["ggml-model.bin", "x.pt", "x.zip", "x"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert inspect(tmp_path / name).parameters > 0


TEXTS = [
    b"(see below) and more.",
    b"(Key points) are these.",
    b"Mac. And cheese.",
    b"I am here.\nI 2 am.",
    b"N. B.: text.",
    b"cat\ndog\npig\nquail\n",
    b"class Model:\n    pass\n",
    b"import os\nos.system('x')\n",
    b"i\nme\nmy\n.",
    b"Various\nthings\n",
    b"L\xc3\xa4nder\n",
    b"(I)\n(II)\n",
    b"S'il vous pla\xc3\xaet\nmerci\n",
    b"X is unknown.",
    b"To be, or not to be.",
    b"]",
    b"x" * 4095 + "é".encode(),
]


@pytest.mark.parametrize("content", TEXTS)
def test_text_is_not_taken_for_a_pickle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    assert sniff(tmp_path / "notes") == "text"


OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"Hello.\n", "text"),
    "html instead of weights": (b"<!doctype html><title>Sign in</title>", "text"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "text"),
    "json": (b'{"a": 1}', "json"),
    "json with a mark": (b"\xef\xbb\xbf [1]", "json"),
    "zip": (_zip(readme=b"hello"), "zip"),
    "empty zip": (_zip(), "zip"),
    "broken zip": (_zip(readme=b"hello")[:-30], "zip"),
    "tar": (_tar(tarfile.USTAR_FORMAT, readme=b"hello"), "tar"),
    "gzip of text": (gzip.compress(b"hello"), "gzip"),
    "broken gzip": (gzip.compress(b"hello")[:9], "gzip"),
    "broken xz": (b"\xfd7zXZ\x00" + b"\xff" * 50, "xz"),
    "broken lz4": (b"\x04\x22\x4d\x18\xff", "lz4"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
    "numbers of NumPy": (_npy(np.zeros((4, 4), dtype=np.float32)), "npy"),
    "zip of NumPy": (_npz(a=np.zeros(4)), "zip"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "hdf5"),
    "ggml": (b"tjgg" + bytes(100), "ggml"),
    "noise": (b"\xf0\x01" * 100, "unknown"),
    "zeros": (bytes(100), "unknown"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_files_are_refused_by_what_they_are(tmp_path: Path, other: str) -> None:
    content, kind = OTHERS[other]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert sniff(path) == kind
    with pytest.raises(MalformedWeightsError, match="GGUF and safetensors are loaded") as caught:
        inspect(path)
    assert caught.value.facts["found"] == kind
    assert caught.value.hint


def test_bombs_are_not_set_off(tmp_path: Path) -> None:
    """Many members, a large one that is little when compressed, and a table of contents that claims 4 GB."""
    path = tmp_path / "model.gguf"
    path.write_bytes(_zip(**{f"m{n}": b"" for n in range(12_000)}))
    assert sniff(path) == "zip"
    path.write_bytes(gzip.compress(bytes(200_000_000), 1))
    assert sniff(path) == "gzip"
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 65_535, 65_535, (1 << 32) - 1, (1 << 32) - 1, 0)
    path.write_bytes(b"PK\x03\x04" + end)
    assert sniff(path) == "zip"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        inspect(tmp_path / "nothing")
    with pytest.raises(StoreError, match="not a regular file"):
        inspect(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="not a regular file"):
        inspect(tmp_path / "pipe")
