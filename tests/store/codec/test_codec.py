"""The codec gives every bit back, gives the same bytes on every path, and refuses what no encoder wrote."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pressroom.store import codec

Array = NDArray[Any]

COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
PATHS = ["numpy"]
if COMPILER:
    PATHS.append("native")
    if " avx2 " in FLAGS:
        PATHS += ["x86-64-v3", "x86-64"]


@pytest.fixture(autouse=True)
def chosen() -> Iterator[None]:
    yield
    codec.use("auto")


def bf16(values: Array) -> Array:
    """Rounded to nearest, ties to even, as frameworks do it."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def weights(seed: int, count: int) -> tuple[Array, Array]:
    """Weights as trained ones lie, in rows of 192, and what a few steps made of some of them."""
    some = np.random.default_rng(seed)
    scale = np.repeat(some.uniform(0.01, 0.1, -(-count // 192)), 192)[:count]
    step = np.repeat(10.0 ** some.uniform(-5, -3, -(-count // 192)), 192)[:count]
    parent = (some.standard_normal(count) * scale).astype(np.float32)
    child = (parent + some.standard_normal(count) * step * (some.random(count) < 0.6)).astype(np.float32)
    return parent, child


def pairs(dtype: str, count: int = 9000) -> tuple[bytes, bytes]:
    """A parent and a child of that type."""
    parent, child = weights(len(dtype) + count, count)
    made: dict[str, Any] = {
        "BF16": bf16,
        "F16": lambda v: v.astype(np.float16),
        "F32": lambda v: v,
        "F64": lambda v: v.astype(np.float64),
        "I8": lambda v: np.clip(np.rint(v * 600), -127, 127).astype(np.int8),
        "F8_E4M3": lambda v: (bf16(v) >> 8).astype(np.uint8),
        "I64": lambda v: np.rint(v * 1000).astype(np.int64),
        "U8": lambda v: np.rint(v * 100).astype(np.int8),
        "Q8_0": lambda v: np.resize(np.rint(v * 600).astype(np.int8), count // 34 * 34),
        "Q4_K": lambda v: np.resize(np.rint(v * 600).astype(np.int8), count // 144 * 144),
        "NOBODY_KNOWS": lambda v: np.rint(v * 100).astype(np.int8),
    }
    return made[dtype](parent).tobytes(), made[dtype](child).tobytes()


DTYPES = ["BF16", "F16", "F32", "F64", "I8", "F8_E4M3", "I64", "U8", "Q8_0", "Q4_K", "NOBODY_KNOWS"]


def decoded(stored: bytes, length: int, parent: bytes | None) -> bytes:
    out = bytearray(length)
    codec.decode(stored, out, parent=parent if codec.needs_parent(stored) else None)
    return bytes(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("near", [False, True])
def test_every_path_gives_the_same_bytes_and_every_bit_back(dtype: str, near: bool) -> None:
    parent, child = pairs(dtype)
    made = []
    for path in PATHS:
        codec.use(path)
        made.append(codec.encode(child, dtype=dtype, row=192, parent=parent if near else None))
    assert len(set(made)) == 1
    for path in PATHS:
        codec.use(path)
        assert decoded(made[0], len(child), parent) == child


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 63, 64, 65, 191, 192, 193, 1000, 4097])
def test_any_length(path: str, count: int) -> None:
    codec.use(path)
    parent, child = (bf16(part).tobytes() for part in weights(count, count)) if count else (b"", b"")
    for given_parent in (None, parent):
        stored = codec.encode(child, dtype="BF16", row=192, parent=given_parent)
        assert decoded(stored, len(child), parent) == child


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=3000),
    other=st.binary(max_size=3000),
    dtype=st.sampled_from(DTYPES),
    row=st.sampled_from([0, 1, 7, 128, 192, 100_000]),
)
def test_any_bytes(data: bytes, other: bytes, dtype: str, row: int) -> None:
    parent = other[: len(data)].ljust(len(data), b"\x80")
    stored = codec.encode(data, dtype=dtype, row=row, parent=parent)
    assert decoded(stored, len(data), parent) == data
    assert len(stored) <= len(data) + 9


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "values",
    [
        np.zeros(5000),
        np.full(5000, np.nan),
        np.array([np.inf, -np.inf, 0.0, -0.0, 1e-40, np.nan] * 500),
        np.arange(65536, dtype=np.uint16),
    ],
    ids=["zeros", "nan", "odd", "all"],
)
def test_values_that_no_training_gives(path: str, values: Array) -> None:
    codec.use(path)
    bits = values if values.dtype == np.uint16 else bf16(values)
    parent = np.roll(bits, 1)
    for given_parent in (None, parent.tobytes()):
        stored = codec.encode(bits.tobytes(), dtype="BF16", row=0, parent=given_parent)
        assert decoded(stored, bits.nbytes, parent.tobytes()) == bits.tobytes()


def test_what_each_kind_is_worth() -> None:
    """Bounds that a codec without contexts misses; the figures of a real family are the benchmark's."""
    parent, child = (bf16(part).tobytes() for part in weights(1, 1 << 18))
    alone = codec.encode(parent, dtype="BF16", row=192)
    near = codec.encode(child, dtype="BF16", row=192, parent=parent)
    changed = (np.frombuffer(child, np.uint16) != np.frombuffer(parent, np.uint16)).mean()
    assert 0.2 < changed < 0.7
    assert len(alone) < 0.69 * len(parent)
    assert len(near) < 0.2 * len(child)
    assert codec.codec_name(alone) == "alone" and codec.codec_name(near) == "near"
    assert len(codec.encode(child, dtype="BF16", row=192, parent=child)) < 10


def test_a_pruned_tensor_costs_next_to_nothing_beside_its_parent() -> None:
    parent = bf16(weights(2, 1 << 17)[0])
    magnitude = parent & 0x7FFF
    pruned = np.where(magnitude < np.median(magnitude), 0, parent).astype(np.uint16)
    stored = codec.encode(pruned.tobytes(), dtype="BF16", row=192, parent=parent.tobytes())
    assert len(stored) < 0.005 * pruned.nbytes
    assert decoded(stored, pruned.nbytes, parent.tobytes()) == pruned.tobytes()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "I8", "Q8_0"])
def test_altered_blocks_are_refused_or_decode_to_something_else(path: str, dtype: str) -> None:
    """Whatever a disk does to a block: no crash, no access outside, and never an answer of another length."""
    codec.use(path)
    parent, child = pairs(dtype, 3000)
    chance = random.Random(7)
    rounds = 300 if path != "numpy" else 25
    for near in (None, parent):
        stored = codec.encode(child, dtype=dtype, row=192, parent=near)
        refused = 0
        for _ in range(rounds):
            broken = bytearray(stored)
            for _ in range(chance.choice([1, 1, 2, 8])):
                at = chance.randrange(min(len(broken), chance.choice([24, 300, len(broken)])))
                broken[at] = chance.randrange(256)
            if chance.random() < 0.3:
                del broken[chance.randrange(len(broken)) :]
            out = bytearray(len(child))
            try:
                codec.decode(bytes(broken), out, parent=near)
            except codec.DamagedError:
                refused += 1
        assert refused > rounds // 10
        assert decoded(stored, len(child), near) == child  # the thread's memory is as good as before


@pytest.mark.parametrize("path", PATHS)
def test_random_bytes_are_refused(path: str) -> None:
    codec.use(path)
    chance = random.Random(11)
    out = bytearray(4096)
    for _ in range(400):
        kind = chance.choice([2, 3, 5, 6, 1, 4, 7, 255])
        junk = bytes([kind]) + chance.randbytes(chance.randrange(600))
        with pytest.raises(codec.DamagedError):
            codec.decode(junk, out, parent=bytes(4096) if codec.needs_parent(junk.ljust(2, b"\0")) else None)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_decoder_stays_inside_its_memory(tmp_path: Path) -> None:
    """The kernel under AddressSanitizer and UndefinedBehaviorSanitizer, fed blocks altered at random."""
    sources = [str(Path(codec.__file__).with_name(name)) for name in ("kernel.c", "rows.c")]
    library = tmp_path / "kernel.so"
    built = subprocess.run(
        [str(COMPILER), "-O1", "-g", "-std=c11", "-shared", "-fPIC", "-march=native", "-fno-strict-aliasing",
         "-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=undefined",
         "-o", str(library), *sources],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    runtime = subprocess.run([str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if built.returncode or not Path(runtime.stdout.strip()).is_file():
        pytest.skip("this compiler has no sanitizers")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz_kernel.py")), str(library)],
        env={"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "altered" in done.stdout


def test_threads_do_not_share_memory() -> None:
    parts = [tuple(bf16(part).tobytes() for part in weights(seed, 20_000)) for seed in range(8)]

    def there_and_back(pair: tuple[bytes, ...]) -> bool:
        parent, child = pair
        stored = codec.encode(child, dtype="BF16", row=192, parent=parent)
        return decoded(stored, len(child), parent) == child

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, parts * 8))


def test_the_format_does_not_change() -> None:
    """Digests of blocks that older stores hold. A change here needs a new kind of block, not a new digest."""
    codec.use(PATHS[-1])
    chance = np.random.Generator(np.random.PCG64(5))
    parent = (chance.integers(0, 1 << 32, 6000, dtype=np.uint64) % 2000 + 15000).astype(np.uint16)
    child = (parent + chance.integers(0, 1 << 32, 6000, dtype=np.uint64) % 3 - 1).astype(np.uint16)
    found = {
        "alone": codec.encode(parent.tobytes(), dtype="BF16", row=200),
        "near": codec.encode(child.tobytes(), dtype="BF16", row=192, parent=parent.tobytes()),
        "half": codec.encode(child.tobytes(), dtype="F16", row=192, parent=parent.tobytes()),
        "planes": codec.encode(child.tobytes(), dtype="F32", row=192, parent=parent.tobytes()),
    }
    digests = {name: hashlib.sha256(block).hexdigest()[:16] for name, block in found.items()}
    assert digests == {
        "alone": "537bb49ec50300da",
        "near": "0b996c864327c363",
        "half": "753b83d27e9afc2d",
        "planes": "e8b937f0d665b6a6",
    }


@pytest.mark.parametrize(
    ("dtype", "row", "length"),
    [
        ("BF16", 576, 2 * 576 * 1820),
        ("BF16", 0, 2 << 20),
        ("BF16", 3_000_000, 2 << 20),
        ("F32", 3, 12 * 174762),
        ("Q4_0", 576, 18 * 116508),
        ("NOBODY_KNOWS", 10, 2 << 20),
    ],
)
def test_blocks_end_where_elements_and_rows_end(dtype: str, row: int, length: int) -> None:
    assert codec.block_length(dtype, row) == length


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match="one length; got 4 and 2"):
        codec.encode(bytes(4), dtype="BF16", parent=bytes(2))
    with pytest.raises(codec.DamagedError, match="needs its parent"):
        codec.decode(codec.encode(bytes(64), dtype="BF16", parent=bytes(64)), bytearray(64))
    with pytest.raises(codec.DamagedError, match="needs none"):
        codec.decode(codec.encode(b"ab", dtype="U8"), bytearray(2), parent=b"ab")
    with pytest.raises(codec.DamagedError, match="no bytes"):
        codec.decode(b"", bytearray(2))
    with pytest.raises(ValueError, match="no kernel"):
        codec.use("no-such-processor")
