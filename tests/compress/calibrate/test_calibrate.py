"""What was seen in llama.cpp, against the same model computed with NumPy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from pressroom.compress.calibrate import Calibration, calibrate, load, read_imatrix, save, write_imatrix
from pressroom.kernel import (
    EngineError,
    MalformedWeightsError,
    NotFoundError,
    PressroomError,
    RecipeError,
    StoreFullError,
    WeightsError,
)
from tests.compress.calibrate.tiny_llama import BOS, TinyLlama

TEXT = (
    "the press was old and the paper was thin, but every morning the printer set the type by hand and pulled a proof. "
    "words came out a little blurred at the edge, as if seen through rain. nobody minded. "
) * 4
WINDOW = 32
# So many windows that a child's answers do not fit into a pipe: while nobody reads them it is not done, however fast.
LONG, FULL_PIPE = TEXT * 99, {"tokens": 64_000, "window": 8}


def run(model: Path, folder: Path, text: str = TEXT, **options: Any) -> Calibration:
    return calibrate(model, text, **{"tokens": 96, "window": WINDOW, "threads": 1, "folder": folder, **options})


def expected(tiny: TinyLlama, text: str, windows: int, window: int = WINDOW) -> dict[str, np.ndarray]:
    """The inputs at all positions, by matrix."""
    tokens = tiny.tokenised(text)
    begin = [BOS] if tiny.add_bos else []
    body = window - len(begin)
    each = [tiny.inputs(begin + tokens[n * body : (n + 1) * body]) for n in range(windows)]
    return {name: np.concatenate([one[name] for one in each]) for name in each[0]}


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    # llama.cpp keeps keys and values in 16 bits: a relative error of 5e-4 each, less after sums.
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def tiny() -> TinyLlama:
    return TinyLlama()


@pytest.fixture(scope="module")
def model(tiny: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibrations")


@pytest.fixture(scope="module")
def found(model: Path, cache: Path) -> Calibration:
    return run(model, cache)


def test_every_linear_layer_is_seen_as_computed_by_hand(tiny: TinyLlama, found: Calibration) -> None:
    wanted = expected(tiny, TEXT, 3)
    assert set(found.moments) == set(found.hessians) == set(wanted)
    assert len(wanted) == 7 * 2 + 1
    for name, x in wanted.items():
        assert len(x) == found.tokens == 96
        close(found.moments[name], (x**2).mean(axis=0))
        close(found.hessians[name], x.T @ x / len(x))
        assert found.positions[name].tolist() == [96]
    assert (found.windows, found.window, found.bos, found.unseen) == (3, 32, True, ())


def test_hessians_are_symmetric_and_agree_with_the_moments(found: Calibration) -> None:
    for name, hessian in found.hessians.items():
        assert hessian.dtype == found.moments[name].dtype == np.float32
        assert np.array_equal(hessian, hessian.T)
        np.testing.assert_allclose(np.diag(hessian), found.moments[name], rtol=1e-5)


def test_tensors_with_one_input_share_its_array(found: Calibration, cache: Path) -> None:
    hessians = found.hessians
    for first, *others in (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")):
        for other in others:
            assert hessians[f"blk.1.{first}.weight"] is hessians[f"blk.1.{other}.weight"]
            assert found.moments[f"blk.1.{first}.weight"] is found.moments[f"blk.1.{other}.weight"]
    assert len({id(one) for one in hessians.values()}) == 4 * 2 + 1
    kept = load_file(next(cache.glob("*.safetensors")))  # another's reader of the format
    assert sum(name.startswith("hessian.") for name in kept) == 4 * 2 + 1


def test_arrays_cannot_be_written(found: Calibration) -> None:
    with pytest.raises(ValueError, match="read-only"):
        found.moments["blk.0.attn_q.weight"][0] = 1.0


def test_without_a_beginning_token_and_in_pieces(tmp_path: Path) -> None:
    tiny = TinyLlama(add_bos=False, context=1024)
    found = run(tiny.write(tmp_path / "tiny.gguf"), tmp_path, TEXT * 2, tokens=1280, window=640)
    wanted = expected(tiny, TEXT * 2, 2, window=640)
    assert (found.windows, found.tokens, found.bos) == (2, 1280, False)
    for name, x in wanted.items():
        close(found.hessians[name], x.T @ x / len(x))


def test_experts_are_seen_one_by_one(tmp_path: Path) -> None:
    tiny = TinyLlama(experts=4)
    found = run(tiny.write(tmp_path / "tiny.gguf"), tmp_path)
    wanted = expected(tiny, TEXT, 3)
    for n in range(2):
        close(found.moments[f"blk.{n}.ffn_gate_inp.weight"], (wanted[f"blk.{n}.ffn_gate_inp.weight"] ** 2).mean(axis=0))
        for part, columns in (("gate", 32), ("up", 32), ("down", 48)):
            name = f"blk.{n}.ffn_{part}_exps.weight"
            assert found.moments[name].shape == (4, columns)
            assert found.hessians[name].shape == (4, columns, columns)
            assert found.positions[name].tolist() == [len(wanted[f"{name}[{expert}]"]) for expert in range(4)]
            for expert in range(4):
                x = wanted[f"{name}[{expert}]"]
                close(found.moments[name][expert], (x**2).mean(axis=0))
                close(found.hessians[name][expert], x.T @ x / len(x))


def test_an_expert_that_is_never_chosen_is_an_error_unless_allowed(tmp_path: Path) -> None:
    tiny = TinyLlama(experts=4, used=1)
    for n in range(2):  # one of the first two is always above 0, which is what the others get
        gate = tiny.weights[f"blk.{n}.ffn_gate_inp.weight"]
        gate[1], gate[2:] = -gate[0], 0
    model = tiny.write(tmp_path / "tiny.gguf")
    with pytest.raises(RecipeError, match="12 of the model's matrices saw no input") as caught:
        run(model, tmp_path)
    unseen = [f"blk.{n}.ffn_{part}_exps.weight[{e}]" for n in (0, 1) for part in ("down", "gate", "up") for e in (2, 3)]
    assert caught.value.facts["unseen"] == unseen
    found = run(model, tmp_path, allow_unseen=True)
    assert found.unseen == tuple(unseen)
    assert not found.hessians["blk.0.ffn_up_exps.weight"][2].any()
    with pytest.raises(RecipeError, match="saw no input"):  # what was kept does not allow it afterwards
        run(model, tmp_path)
    write_imatrix(tmp_path / "imatrix.dat", found)
    important = read_imatrix(tmp_path / "imatrix.dat").moments["blk.0.ffn_up_exps.weight"].reshape(4, 32)
    assert (important[2:] == 1).all()
    np.testing.assert_allclose(important[:2], found.moments["blk.0.ffn_up_exps.weight"][:2], rtol=1e-6)


def test_the_same_input_gives_the_same_bytes(model: Path, found: Calibration, cache: Path, tmp_path: Path) -> None:
    run(model, tmp_path)
    (first,), (second,) = cache.glob("*.safetensors"), tmp_path.glob("*.safetensors")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_what_was_kept_is_not_computed_again(
    model: Path, found: Calibration, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    assert run(model, cache).text_digest == found.text_digest
    assert run(model, cache, tokens=100).tokens == 96  # no more whole windows than before
    assert run(model, cache, hessians=False).moments.keys() == found.moments.keys()
    for other in ({"tokens": 64}, {"window": 16}, {"text": TEXT + "more"}, {"model_digest": "another"}):
        with pytest.raises(AssertionError, match="a process was started"):
            run(model, cache, **other)


def test_moments_alone(model: Path, found: Calibration, tmp_path: Path) -> None:
    few = run(model, tmp_path, hessians=False)
    assert few.hessians == {}
    for name, moments in found.moments.items():
        assert np.array_equal(few.moments[name], moments)


def test_a_damaged_file_is_made_again(model: Path, found: Calibration, cache: Path, tmp_path: Path) -> None:
    (kept,) = cache.glob("*.safetensors")
    whole = kept.read_bytes()
    (tmp_path / kept.name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MalformedWeightsError):
        load(tmp_path / kept.name)
    assert run(model, tmp_path).tokens == 96
    assert (tmp_path / kept.name).read_bytes() == whole


def test_saved_and_loaded(found: Calibration, tmp_path: Path) -> None:
    save(found, tmp_path / "a" / "here.safetensors")
    again = load(tmp_path / "a" / "here.safetensors")
    assert [*(tmp_path / "a").iterdir()] == [tmp_path / "a" / "here.safetensors"]
    for name in Calibration.__slots__:
        if name not in ("moments", "hessians", "positions"):
            assert getattr(again, name) == getattr(found, name)
    for arrays in ("moments", "hessians", "positions"):
        one, other = getattr(found, arrays), getattr(again, arrays)
        assert list(one) == list(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert again.hessians["blk.0.attn_q.weight"] is again.hessians["blk.0.attn_k.weight"]
    with pytest.raises(NotFoundError):
        load(tmp_path / "nowhere")
    TinyLlama().write(tmp_path / "not-one")
    with pytest.raises(MalformedWeightsError, match="not a calibration"):
        load(tmp_path / "not-one")


def test_importance_as_llama_cpp_reads_it(found: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    write_imatrix(path, found)
    again = read_imatrix(path)
    assert (again.chunks, again.source) == (3, found.text_digest)
    assert again.moments.keys() == found.moments.keys()
    for name, moments in found.moments.items():
        np.testing.assert_allclose(again.moments[name], moments, rtol=1e-6)
    data = path.read_bytes()
    assert int.from_bytes(data[:4], "little") == 15
    first = b"blk.0.attn_k.weight"
    assert data[4 : 8 + len(first)] == len(first).to_bytes(4, "little") + first
    for cut in (2, 7, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(MalformedWeightsError):
            read_imatrix(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ""}, "the calibration text is empty"),
        ({"text": " \n "}, "the calibration text is empty"),
        ({"text": "short"}, "too short: 6 tokens, and one window takes 31"),
        ({"text": "a\ud800" * 99}, "not Unicode"),
        ({"tokens": 31}, "one window takes 32"),
        ({"window": 4}, "a window of 4 tokens"),
        ({"window": 256, "tokens": 256}, "the model was made for 128"),
    ],
)
def test_what_cannot_be_done_is_said(model: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(model, tmp_path, **options)
    assert [*tmp_path.iterdir()] == []


def test_a_shorter_text_gives_fewer_windows_and_says_so(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = run(model, tmp_path, TEXT[:80], tokens=960, on_progress=lambda *done: seen.append(done))
    assert (found.windows, found.tokens) == (2, 64)
    assert seen == [(1, 2), (2, 2)]
    assert found.tokens_per_character == pytest.approx(81 / 80)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    model = TinyLlama(architecture="lamma").write(tmp_path / "tiny.gguf")
    with pytest.raises(RecipeError, match=r"llama\.cpp cannot load tiny\.gguf") as caught:
        run(model, tmp_path / "cache")
    assert any("lamma" in line for line in caught.value.facts["lines"])


def test_inputs_that_are_not_finite_name_the_layer(tmp_path: Path) -> None:
    tiny = TinyLlama()
    tiny.weights["blk.1.ffn_up.weight"][5] = np.inf
    with pytest.raises(RecipeError, match=r"'blk\.1\.ffn_down\.weight' is not finite") as caught:
        run(tiny.write(tmp_path / "tiny.gguf"), tmp_path / "cache")
    assert caught.value.facts["columns"] == [5]
    assert [*(tmp_path / "cache").iterdir()] == []


def test_another_language_is_only_a_warning(model: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    found = run(model, tmp_path, "печатный станок был старым " * 20, on_warning=warnings.append)
    assert found.fallback_share > 0.8
    assert found.tokens_per_character > 1.5
    assert len(warnings) == 2 and "single bytes" in warnings[0] and "tokens a character" in warnings[1]


def test_the_share_of_bytes_is_counted(found: Calibration) -> None:
    assert found.fallback_share == 0.0


def test_what_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(WeightsError):
        run(tmp_path / "text.gguf", tmp_path)
    with pytest.raises(NotFoundError):
        run(tmp_path / "nothing.gguf", tmp_path)


def test_a_process_that_dies_is_an_error_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 1:
            (child,) = children(os.getpid())
            os.kill(child, signal.SIGKILL)

    with pytest.raises(EngineError, match="ended with status -9"):
        run(model, tmp_path, LONG, **FULL_PIPE, on_progress=kill)
    assert [*tmp_path.iterdir()] == []


def test_the_child_ends_with_its_parent_and_the_rest_is_swept(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys, os, pathlib\n"
        "from pressroom.compress.calibrate import calibrate\n"
        "def progress(done, total): print(os.getpid(), flush=True); sys.stdin.read()\n"
        f"calibrate(pathlib.Path({str(model)!r}), {LONG!r}, **{FULL_PIPE!r}, threads=1,\n"
        f"          folder=pathlib.Path({str(tmp_path)!r}), on_progress=progress)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = children(parent.pid)
        parent.kill()
        parent.wait()
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert len([*tmp_path.iterdir()]) == 1
    run(model, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_a_full_disk_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(PressroomError) as caught:
            run(model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(caught.value, StoreFullError | EngineError), "a limit of the process, not the disk"
    assert [*tmp_path.iterdir()] == []


def children(process: int) -> list[int]:
    found = psutil.Process(process).children()
    return [one.pid for one in found if "pressroom.compress.calibrate._child" in one.cmdline()]
