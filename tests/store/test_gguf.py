"""GGUF headers: what an honest one says, and what each lie is answered with."""

from __future__ import annotations

import ctypes
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest

from pressroom.kernel import MalformedWeightsError, WeightsError
from pressroom.store import TensorInfo, WeightsInfo, inspect
from pressroom.store.formats._ggml import FILE_TYPES, TYPES

from .weights_files import ARRAY, BOOL, F32, STRING, U32, U64, Gguf, Row, default_keys, strings, text


def read(tmp_path: Path, content: Gguf | bytes) -> WeightsInfo:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(content))
    return inspect(path)


def test_an_honest_file(tmp_path: Path) -> None:
    gguf = Gguf()
    info = read(tmp_path, gguf)
    start = -(-len(gguf.header()) // 32) * 32
    assert info == WeightsInfo(
        format="gguf",
        architecture="llama",
        parameters=192,
        tokenizer="gpt2 (smollm)",
        vocabulary=4,
        context_length=2048,
        quantization="Q4_0",
        license="apache-2.0",
        metadata={
            "general.architecture": "llama",
            "general.file_type": 2,
            "general.license": "apache-2.0",
            "llama.context_length": 2048,
            "llama.rope.freq_base": 10_000.0,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.add_bos_token": True,
            "chat_template": True,
            "tensor_types": "F32 66.7%, Q4_0 33.3%",
        },
        tensors=(
            TensorInfo(name="embed.weight", dtype="F32", shape=(4, 32), offset=start, nbytes=512),
            TensorInfo(name="block.0.weight", dtype="Q4_0", shape=(64,), offset=start + 512, nbytes=36),
        ),
    )


def test_version_2_reads_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, Gguf(version=2)) == read(tmp_path, Gguf())


def test_the_fewest_keys(tmp_path: Path) -> None:
    info = read(tmp_path, Gguf(keys={}))
    assert info.architecture is info.tokenizer is info.vocabulary is info.context_length is info.license is None
    assert info.quantization == "F32"
    assert info.metadata == {"chat_template": False, "tensor_types": "F32 66.7%, Q4_0 33.3%"}


def test_another_alignment_and_padding_after_the_last_tensor(tmp_path: Path) -> None:
    keys = {**default_keys(), "general.alignment": (U32, struct.pack("<I", 4096))}
    rows = [Row("a", (1,)), Row("b", (1,), 0, 4096)]
    info = read(tmp_path, Gguf(keys=keys, rows=rows, alignment=4096, data=bytes(4100 + 100)))
    assert [tensor.offset % 4096 for tensor in info.tensors] == [0, 0]
    assert info.tensors[1].offset - info.tensors[0].offset == 4096


def test_long_and_dangerous_text_is_tamed(tmp_path: Path) -> None:
    keys = default_keys()
    keys["general.name"] = (STRING, text("\x1b[2Jnice\x00\x9b\tname\n"))
    keys["general.description"] = (STRING, text("d" * 3_000_000))
    keys["general.broken"] = (STRING, text(b"\xff\xfe"))
    keys["general.nan"] = (F32, struct.pack("<f", float("nan")))
    keys["general.large"] = (U64, struct.pack("<Q", (1 << 64) - 1))
    metadata = read(tmp_path, Gguf(keys=keys)).metadata
    assert metadata["general.name"] == "[2Jnice\tname\n"
    assert metadata["general.description"] == "d" * 1999 + "…"
    assert metadata["general.broken"] == "��"
    assert metadata["general.nan"] == "nan"
    assert metadata["general.large"] == "18446744073709551615"


def test_long_lists_are_stepped_over_across_the_window(tmp_path: Path) -> None:
    keys = default_keys()
    words = [("t" * (n % 97)) for n in range(60_000)]
    keys["tokenizer.ggml.tokens"] = (ARRAY, strings(*words, "w" * 2_500_000, "end"))
    keys["tokenizer.ggml.scores"] = (ARRAY, struct.pack("<IQ", F32, 700_000) + bytes(2_800_000))
    info = read(tmp_path, Gguf(keys=keys))
    assert info.vocabulary == 60_002
    assert info.parameters == 192


@pytest.mark.parametrize(
    ("file_type", "kinds", "expected"),
    [
        (15, [(12, 256, 144)], "Q4_K_M"),
        (15, [(8, 32, 34)], "Q4_K_M"),  # rows that 256 does not divide fall back to other types
        (1, [(12, 256, 144)], "Q4_K"),  # says half precision, and is not
        (1, [(1, 8, 16)], "F16"),
        (1024, [(12, 256, 144)], "Q4_K"),  # "guessed"
        (None, [(0, 1, 4), (30, 8, 16)], "BF16"),
    ],
)
def test_quantization(tmp_path: Path, file_type: int | None, kinds: list[tuple[int, int, int]], expected: str) -> None:
    keys = {} if file_type is None else {"general.file_type": (U32, struct.pack("<I", file_type))}
    rows, offset = [], 0
    for number, (kind, elements, nbytes) in enumerate(kinds):
        rows.append(Row(f"t{number}", (elements,), kind, offset))
        offset += -(-nbytes // 32) * 32
    assert read(tmp_path, Gguf(keys=keys, rows=rows, data=bytes(offset))).quantization == expected  # type: ignore[arg-type]


def test_block_sizes_are_those_of_ggml() -> None:
    """Against the table inside the installed llama.cpp, which ends with a type this Pressroom must know."""
    spec = find_spec("xllamacpp.xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    ggml = ctypes.CDLL(spec.origin)
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.llama_ftype_name.restype = ctypes.c_char_p
    for number in range(max(TYPES) + 1):
        known = TYPES.get(number)
        elements = ggml.ggml_blck_size(number)
        assert (known is not None) == (elements > 0), number
        if known is not None:
            assert known == (ggml.ggml_type_name(number).decode().upper(), elements, ggml.ggml_type_size(number))
    for number, name in FILE_TYPES.items():
        said = ggml.llama_ftype_name(number).decode()
        # Some are written out, as "Q4_K - Medium" and "all F32".
        assert name.split("_")[0] in said, (number, said)


def _with(key: str, kind: int, value: bytes) -> Gguf:
    return Gguf(keys={**default_keys(), key: (kind, value)})


LIES: dict[str, tuple[Gguf | bytes, str]] = {
    "only the magic": (b"GGUF", "cut short|the file ends"),
    "version 1": (Gguf(version=1), "version 1"),
    "version 4": (Gguf(version=4), "version 4"),
    "big-endian": (Gguf(version=3 << 24), "big-endian"),
    "tensor count": (Gguf(tensor_count=1 << 60), "claims"),
    "one tensor more": (Gguf(tensor_count=3), "tensor 2|bytes"),
    "key count": (Gguf(key_count=1 << 63), "claims"),
    "no tensors": (Gguf(rows=[]), "no tensors"),
    "key name length": (Gguf(key_count=12, extra_keys=struct.pack("<Q", 1 << 62)), "bytes long"),
    "empty key": (Gguf(key_count=12, extra_keys=text("") + bytes(12)), "bytes long"),
    "key not UTF-8": (Gguf(keys={b"\xff": (U32, bytes(4))}), "UTF-8"),
    "key twice": (
        Gguf(key_count=12, extra_keys=text("general.license") + struct.pack("<I", STRING) + text("mit")),
        "'general.license' occurs twice",
    ),
    "unknown type of value": (_with("x", 13, b""), "unknown type 13"),
    "text past the file": (_with("x", STRING, struct.pack("<Q", 1 << 60)), "the file ends"),
    "list past the file": (_with("x", ARRAY, struct.pack("<IQ", STRING, 1 << 60)), "cannot fit"),
    "list of numbers past the file": (_with("x", ARRAY, struct.pack("<IQ", U64, (1 << 64) - 1)), "the file ends"),
    "text in a list past the file": (
        _with("x", ARRAY, struct.pack("<IQQ", STRING, 3, (1 << 64) - 1) + bytes(64)),
        "the file ends",
    ),
    "list of lists": (_with("x", ARRAY, struct.pack("<IQ", ARRAY, 1) + strings("a")), "list of lists"),
    "list of an unknown type": (_with("x", ARRAY, struct.pack("<IQ", 99, 1)), "unknown type 99"),
    "alignment 0": (_with("general.alignment", U32, bytes(4)), "general.alignment is 0"),
    "alignment 24": (_with("general.alignment", U32, struct.pack("<I", 24)), "power of two"),
    "alignment as text": (_with("general.alignment", STRING, text("32")), "power of two"),
    "alignment as truth": (_with("general.alignment", BOOL, b"\1"), "power of two"),
    "alignment of 2 GB": (_with("general.alignment", U32, struct.pack("<I", 1 << 31)), "512, not at a multiple"),
    "architecture as a number": (_with("general.architecture", U32, bytes(4)), "must be text"),
    "architecture as a list": (_with("general.license", ARRAY, strings("a")), "must be text"),
    "context as text": (_with("llama.context_length", STRING, text("8")), "context_length is '8'"),
    "context of 0": (_with("llama.context_length", U32, bytes(4)), "context_length is 0"),
    "context beyond reason": (_with("llama.context_length", U64, struct.pack("<Q", 1 << 63)), "context_length is"),
    "tensor twice": (Gguf(rows=[Row("a", (8,)), Row("a", (8,), 0, 32)]), "'a' occurs twice"),
    "tensor without a name": (Gguf(rows=[Row("")]), "bytes long"),
    "tensor with a long name": (Gguf(rows=[Row("n" * 65)]), "65 bytes long"),
    "five dimensions": (Gguf(rows=[Row("a", (1,) * 5)]), "5 dimensions"),
    "dimensions past the file": (Gguf(rows=[Row("a", (1,), dimensions=1 << 31)]), "dimensions"),
    "a dimension of 0": (Gguf(rows=[Row("a", (0, 4))]), "impossible shape"),
    "a huge dimension": (Gguf(rows=[Row("a", (1 << 62,))]), "end at byte"),
    "dimensions that overflow": (Gguf(rows=[Row("a", (1 << 32, 1 << 32))]), "impossible shape"),
    "dimensions that overflow to little": (Gguf(rows=[Row("a", (1 << 63, 2, 4))]), "impossible shape"),
    "unknown type": (Gguf(rows=[Row("a", kind=31)]), "type 31"),
    "unknown large type": (Gguf(rows=[Row("a", kind=(1 << 32) - 1)]), "does not know"),
    "half a block": (Gguf(rows=[Row("a", (48,), 2)]), "blocks of 32"),
    "blocks across rows": (Gguf(rows=[Row("a", (16, 2), 2)]), "rows of 16"),
    "unaligned": (Gguf(rows=[Row("a", (1,)), Row("b", (1,), 0, 4)]), "multiple of 32"),
    "first tensor not at the start": (Gguf(rows=[Row("a", (1,), 0, 32)]), "hole"),
    "hole": (Gguf(rows=[Row("a", (1,)), Row("b", (1,), 0, 96)]), "hole"),
    "overlap": (Gguf(rows=[Row("a", (16,)), Row("b", (1,), 0, 32)]), "overlaps"),
    "the same place": (Gguf(rows=[Row("a", (1,)), Row("b", (1,), 0, 0)]), "overlaps"),
    "offset past the file": (Gguf(rows=[Row("a", (1,), 0, (1 << 64) - 32)]), "hole"),
    "no data": (Gguf(data=b""), "cut short|end at byte"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(tmp_path: Path, lie: str) -> None:
    content, said = LIES[lie]
    with pytest.raises(MalformedWeightsError, match=said) as caught:
        read(tmp_path, content)
    assert "'model.gguf'" in str(caught.value)
    assert caught.value.hint


def test_every_shorter_file_is_refused(tmp_path: Path) -> None:
    whole = bytes(Gguf())
    for length in range(4, len(whole)):
        with pytest.raises(MalformedWeightsError):
            read(tmp_path, whole[:length])


def test_too_many_strings_are_refused_before_they_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(_with("x", ARRAY, struct.pack("<IQ", STRING, 1 << 33)).header())
    with path.open("r+b") as file:
        file.truncate(1 << 37)  # room for all of them, none on the disk
    with pytest.raises(MalformedWeightsError, match="strings"):
        inspect(path)


def test_a_long_name_does_not_make_a_long_message(tmp_path: Path) -> None:
    with pytest.raises(MalformedWeightsError, match="unknown type 13") as caught:
        read(tmp_path, _with("k" * 900, 13, b""))
    with pytest.raises(MalformedWeightsError) as caught:
        read(tmp_path, _with("k" * 60_000, 13, b""))
    assert len(str(caught.value)) < 1100


def test_one_part_of_a_split_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="one of 3 parts") as caught:
        read(tmp_path, _with("split.count", 2, struct.pack("<H", 3)))
    assert "merge" in caught.value.hint
    assert read(tmp_path, _with("split.count", 2, struct.pack("<H", 1))).parameters == 192
