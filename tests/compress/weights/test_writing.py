"""Writing: nothing but what was asked for changes, the size is the promised one, and a failure leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress.numbers import formats, number_format
from pressroom.compress.weights import Changed, Weights, check, open_weights, same, write
from pressroom.kernel import RecipeError, StoreError, StoreFullError
from pressroom.store import inspect

from .gguf_files import F32, I32, STRING, U8, U32, Array, File, tiny


def rounded(source: Weights, wanted: dict[str, str]) -> dict[str, Changed]:
    return {
        name: Changed(number_format(to), number_format(to).encode(source.rows(name))) for name, to in wanted.items()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("alignment", [8, 32, 4096])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("version", [2, 3])
def test_what_is_not_changed_is_written_byte_for_byte(
    tmp_path: Path, alignment: int, padded: bool, version: int
) -> None:
    file = tiny(tied=True)
    file.tensors["odd"] = Array.of(np.ones(3, np.float32))
    file.alignment, file.padded, file.version = alignment, padded, version
    with open_weights(file.write(tmp_path / "a.gguf")) as source:
        assert write(tmp_path / "b.gguf", source, {}) == source.size
    assert (tmp_path / "b.gguf").read_bytes() == bytes(file)
    assert names(tmp_path) == ["a.gguf", "b.gguf"]


@pytest.mark.parametrize("to", [one.name for one in formats() if one.ggml is not None])
@pytest.mark.parametrize("alignment", [32, 4096])
def test_every_format_comes_back_and_has_the_promised_size(tmp_path: Path, to: str, alignment: int) -> None:
    file = tiny(hidden=256, feed_forward=256, layers=1)
    file.alignment = alignment
    path = tmp_path / "b.gguf"
    with open_weights(file.write(tmp_path / "a.gguf")) as source:
        wanted = dict.fromkeys(("blk.0.attn_k.weight", "blk.0.ffn_up.weight", "output.weight"), to)
        changed = rounded(source, wanted)
        metadata: dict[str, Any] = {"quantize.imatrix.file": "calm.txt", "quantize.imatrix.chunks_count": 8}
        plan = check(source, wanted, metadata=metadata)
        told: list[int] = []
        assert write(path, source, changed, metadata=metadata, progress=told.append) == plan.size
        assert path.stat().st_size == plan.size == sum(told)
        with open_weights(path) as found:
            for name, tensor in found.tensors.items():
                assert tensor.type == (to.upper() if name in wanted else "F32")
                if name in wanted:
                    np.testing.assert_array_equal(
                        found.rows(name), number_format(to).decode(np.asarray(changed[name].data))
                    )
                else:
                    assert found.raw(name) == source.raw(name)
            assert plan.types == check(found, {}).types


def test_only_what_must_change_does(source: Weights, tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    wanted = {tensor.name: "q4_0" for tensor in source.linears}
    write(path, source, rounded(source, wanted), metadata={"quantize.imatrix.file": "calm.txt"})
    with open_weights(path) as found:
        assert same(source, source) == ()
        assert same(source, found) == (
            "key general.file_type: 0 became 2",
            "key general.quantization_version is new: 2",
            "key quantize.imatrix.file is new: 'calm.txt'",
            *(f"tensor {name}: F32 became Q4_0" for name in wanted),
        )
    info = inspect(path)
    assert info.quantization == "Q4_0" and info.metadata["general.name"] == "Tiny é"
    assert names(tmp_path) == ["b.gguf", "tiny.gguf"]


def test_the_file_is_named_after_most_of_its_linear_layers(source: Weights, tmp_path: Path) -> None:
    wanted = {tensor.name: "q8_0" if tensor.part.startswith("attn") else "iq4_nl" for tensor in source.linears}
    write(tmp_path / "b.gguf", source, rounded(source, wanted))
    assert inspect(tmp_path / "b.gguf").quantization == "IQ4_NL"
    # Though there are more weights in the embedding and the head than in all layers.
    few = {tensor.name: "q5_0" for tensor in source.linears if tensor.part.startswith("ffn")}
    write(tmp_path / "c.gguf", source, rounded(source, few), metadata={"general.file_type": 15})
    assert inspect(tmp_path / "c.gguf").quantization == "Q4_K_M"  # whoever says so is believed


def test_other_data_in_the_same_format(source: Weights, tmp_path: Path) -> None:
    """A norm that takes up a scale: no type changes, so that the metadata stay."""
    path = tmp_path / "b.gguf"
    name = "blk.0.attn_norm.weight"
    data = (source.rows(name) * 2).tobytes()
    size = write(path, source, {name: Changed(number_format("f32"), data)})
    assert size == check(source, {name: "f32"}).size
    with open_weights(path) as found:
        assert same(source, found) == (f"tensor {name}: other data",)
        np.testing.assert_array_equal(found.rows(name), source.rows(name) * 2)


def test_keys_keep_their_place_and_type(tmp_path: Path) -> None:
    file = tiny()
    file.keys |= {"a.byte": (U8, 1), "a.signed": (I32, 1), "a.share": (F32, 0.5), "a.text": (STRING, "short")}
    with open_weights(file.write(tmp_path / "a.gguf")) as source:
        metadata: dict[str, Any] = {
            "a.byte": 255,
            "a.signed": -5,
            "a.share": 0.25,
            "a.text": "longer é",
            "b.new": True,
            "b.wide": 1 << 40,
            "b.negative": -1,
            "b.broken": 1.5,
        }
        size = write(tmp_path / "b.gguf", source, {}, metadata=metadata)
        assert size == check(source, {}, metadata=metadata).size
        with open_weights(tmp_path / "b.gguf") as found:
            assert list(found.keys) == [*file.keys, "b.new", "b.wide", "b.negative", "b.broken"]
            assert {key: found.value(key) for key in metadata} == metadata
            kinds = [found.header.entries[key].kind for key in ("a.byte", "a.signed", "a.share")]
            assert kinds == [U8, I32, F32] and found.value("b.new") is True
        for bad, what in (
            ({"a.byte": 256}, "does not fit"),
            ({"a.byte": -1}, "does not fit"),
            ({"a.byte": "text"}, "of another type"),
            ({"a.text": 3}, "of another type"),
            ({"a.share": True}, "of another type"),
            ({"tokenizer.ggml.tokens": "a"}, "a list"),
            ({"general.alignment": 64}, "cannot be set"),
            ({"general.architecture": "gpt2"}, "cannot be set"),
            ({"split.count": 2}, "cannot be set"),
            ({"": 2}, "cannot be set"),
            ({"a.text": "\ud800"}, "does not fit"),
            ({"b.wide": 1 << 64}, "does not fit"),
        ):
            with pytest.raises(RecipeError, match=what):
                write(tmp_path / "c.gguf", source, {}, metadata=bad)  # type: ignore[arg-type]
            with pytest.raises(RecipeError, match=what):
                check(source, {}, metadata=bad)  # type: ignore[arg-type]
    assert names(tmp_path) == ["a.gguf", "b.gguf"]


def test_what_makes_the_data_is_asked_in_the_files_order(source: Weights, tmp_path: Path) -> None:
    asked: list[str] = []
    format = number_format("q8_0")

    def maker(name: str) -> Any:
        def pieces() -> Iterator[np.ndarray[Any, Any]]:
            asked.append(name)
            for start in range(0, source.tensor(name).rows, 10):
                yield format.encode(source.rows(name, start, start + 10))

        return pieces

    wanted = [tensor.name for tensor in source.linears]
    write(tmp_path / "b.gguf", source, {name: Changed(format, maker(name)) for name in reversed(wanted)})
    assert asked == wanted
    write(tmp_path / "c.gguf", source, rounded(source, dict.fromkeys(wanted, "q8_0")))
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


def test_memory_is_bounded(tmp_path: Path) -> None:
    name, rows = "token_embd.weight", 1 << 15
    zeros = np.zeros((rows, 256), np.float16)
    file = File({}, {name: Array.of(zeros, "F16"), "output.weight": Array.of(zeros, "F16")})
    path = file.write(tmp_path / "a.gguf")
    del file, zeros
    with open_weights(path) as source:
        block = b"\0" * (256 * 4 * 64)
        changed = {name: Changed(number_format("f32"), lambda: (block for _ in range(rows // 64)))}
        tracemalloc.start()
        try:
            write(tmp_path / "b.gguf", source, changed)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (tmp_path / "b.gguf").stat().st_size > 48 << 20
    assert peak < 4 << 20


@pytest.mark.parametrize("by", [-1, 1, -1000, 1000])
def test_data_of_the_wrong_length(source: Weights, tmp_path: Path, by: int) -> None:
    right = source.tensor("blk.1.ffn_up.weight").elements // 32 * 34
    (tmp_path / "b.gguf").write_bytes(b"before")
    for data in (bytes(right + by), lambda: iter([bytes(right), bytes(by)] if by > 0 else [bytes(right + by)])):
        with pytest.raises(RecipeError, match=rf"data of blk\.1\.ffn_up\.weight are {right + by} bytes.*is {right}"):
            write(tmp_path / "b.gguf", source, {"blk.1.ffn_up.weight": Changed(number_format("q8_0"), data)})
    assert (tmp_path / "b.gguf").read_bytes() == b"before"
    assert names(tmp_path) == ["b.gguf", "tiny.gguf"]


def test_what_does_not_fit_is_refused_before_anything_is_made(source: Weights, tmp_path: Path) -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("it must not be asked")
        yield b""

    for name, to, what in (
        ("blk.0.attn_q.weight", "q4_k", r"blocks of 256.*rows of 64"),
        ("blk.0.attn_norm.weight", "f16", "is a norm"),
        ("nonsense", "f16", "no tensor nonsense"),
    ):
        with pytest.raises(RecipeError, match=what):
            write(tmp_path / "b.gguf", source, {name: Changed(number_format(to), never)})
    assert names(tmp_path) == ["tiny.gguf"]


def test_an_error_while_the_data_are_made(source: Weights, tmp_path: Path) -> None:
    def fails() -> Iterator[bytes]:
        yield bytes(34)
        raise ZeroDivisionError("the scales came out as zero")

    (tmp_path / "b.gguf").write_bytes(b"before")
    with pytest.raises(ZeroDivisionError, match="scales"):
        write(tmp_path / "b.gguf", source, {"output.weight": Changed(number_format("q8_0"), fails)})
    assert (tmp_path / "b.gguf").read_bytes() == b"before"
    assert names(tmp_path) == ["b.gguf", "tiny.gguf"]


def test_places_that_cannot_be_written(source: Weights, model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    (tmp_path / "link.gguf").symlink_to(model)
    for target in (model, tmp_path / "link.gguf"):
        with pytest.raises(RecipeError, match="is the file that is read"):
            write(target, source, {})
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(StoreError, match="is not a file"):
        write(tmp_path / "folder.gguf", source, {})
    with pytest.raises(StoreError, match="cannot be written: No such file") as caught:
        write(tmp_path / "absent" / "b.gguf", source, {})
    assert "directory" in caught.value.hint
    assert model.read_bytes() == before
    assert names(tmp_path) == ["folder.gguf", "link.gguf", "tiny.gguf"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from pressroom.compress.numbers import number_format
from pressroom.compress.weights import Changed, open_weights, write

def killed():
    yield bytes(34)
    os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
with open_weights(folder / "tiny.gguf") as source:
    write(folder / "b.gguf", source, {"output.weight": Changed(number_format("q8_0"), killed)})
"""


def test_a_kill_leaves_nothing_under_the_name(source: Weights, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    hidden, _ = names(tmp_path)
    assert hidden.startswith(".") and not (tmp_path / "b.gguf").exists()
    # The next writer takes it away, and leaves alone what another one is writing just now.
    other: list[list[str]] = []

    def meanwhile() -> Iterator[bytes]:
        other.append(names(tmp_path))
        write(tmp_path / "c.gguf", source, {})
        other.append(names(tmp_path))
        yield number_format("q8_0").encode(source.rows("output.weight")).tobytes()

    write(tmp_path / "b.gguf", source, {"output.weight": Changed(number_format("q8_0"), meanwhile)})
    ours = other[0][0]
    assert other == [[ours, "tiny.gguf"], [ours, "c.gguf", "tiny.gguf"]] and ours != hidden
    assert names(tmp_path) == ["b.gguf", "c.gguf", "tiny.gguf"]


_SMALL_DISK = """
import json, os, sys
from contextlib import suppress
from pathlib import Path
from pressroom.compress.numbers import number_format
from pressroom.compress.weights import Changed, open_weights, write
from pressroom.kernel import StoreFullError

disk = Path(sys.argv[1])
asked = []

def grows():
    for number in range(288):
        asked.append(number)
        with suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        yield bytes(64 * 4)

with open_weights(disk.parent / "tiny.gguf") as source:
    changed = {"output.weight": Changed(number_format("f32"), grows)}
    said = []
    for first in (bytes(900_000), b""):
        (disk / "first").write_bytes(first)
        try:
            write(disk / "b.gguf", source, changed)
        except StoreFullError as error:
            said.append([error.message, error.facts.get("needed"), len(asked)])
left = [name for name in os.listdir(disk) if name != "filler"]
print(json.dumps([said, left, source.size]))
"""


def test_a_disk_that_is_full_or_becomes_so(model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if sys.platform != "linux" or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a user mount a small disk")
    command = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$1" -c "$2" "$0"'
    ran = subprocess.run(
        [*unshare, "sh", "-c", command, str(disk), sys.executable, _SMALL_DISK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said, left, size = json.loads(ran.stdout)
    (foretold, needed, asked), (filled, again, on_the_way) = said
    assert "MB free, and" in foretold and needed == again == size and asked == 0
    assert "became full" in filled and on_the_way > 0
    assert left == ["first"]


@pytest.mark.parametrize(("number", "kind"), [(errno.EDQUOT, StoreFullError), (errno.EIO, StoreError)])
def test_a_failure_when_the_bytes_go_to_the_disk(
    source: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pressroom.compress.weights._writing.sync", fails)
    with pytest.raises(kind) as caught:
        write(tmp_path / "b.gguf", source, {})
    assert type(caught.value) is kind and os.strerror(number) in caught.value.message
    assert names(tmp_path) == ["tiny.gguf"]


def test_what_two_files_differ_in(tmp_path: Path) -> None:
    one, other = tiny(), tiny()
    other.keys["general.name"] = (STRING, "Tinier")
    other.keys["llama.context_length"] = (I32, 512)  # the same number in another type
    other.keys["tokenizer.ggml.scores"] = (9, (F32, [1.0] * 288))
    other.keys["new.key"] = (U32, 1)
    del other.keys["tokenizer.ggml.add_bos_token"]
    other.tensors["output_norm.weight"] = Array.of(np.ones(32, np.float32))
    other.tensors["blk.0.attn_q.weight"] = Array.of(np.ones((64, 64)), "F16")
    other.tensors["blk.1.attn_q.weight"] = Array.of(np.ones((64, 64)), "F32")
    other.tensors["extra"] = other.tensors.pop("output.weight")
    with open_weights(one.write(tmp_path / "a.gguf")) as a, open_weights(other.write(tmp_path / "b.gguf")) as b:
        assert same(a, b) == (
            "key general.name: 'Tiny é' became 'Tinier'",
            "key llama.context_length: 512 became 512",
            "key tokenizer.ggml.scores: [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] … (288) became "
            "[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] … (288)",
            "key tokenizer.ggml.add_bos_token is gone: True",
            "key new.key is new: 1",
            "tensor blk.0.attn_q.weight: F32 became F16",
            "tensor blk.1.attn_q.weight: other data",
            "tensor output_norm.weight: [64] became [32]",
            "tensor output.weight is gone",
            "tensor extra is new",
        )
    moved = tiny()
    moved.tensors["token_embd.weight"] = moved.tensors.pop("token_embd.weight")
    moved.keys["general.architecture"] = moved.keys.pop("general.architecture")
    moved.version = 2
    with open_weights(one.write(tmp_path / "a.gguf")) as a, open_weights(moved.write(tmp_path / "b.gguf")) as b:
        assert same(a, b) == (
            "GGUF version 3 became 2",
            "the keys are in another order",
            "the tensors are in another order",
        )
