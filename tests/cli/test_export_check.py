"""An exported version run in its engine and held against the one it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pressroom.cli._export_check import _same_words, _windows, must_run, run_exported
from pressroom.compress.export import export
from pressroom.kernel import CapabilityError, EngineError, Workspace
from pressroom.registry import Registry, Version, pull
from tests.compress.export.models import model
from tests.compress.export.test_folder import TEXT, made


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "work").mkdir()
    with Workspace.open(tmp_path / "work") as opened:
        yield opened


@pytest.fixture
def version(workspace: Workspace, tmp_path: Path) -> Version:
    return pull(workspace, str(model("llama").write(tmp_path / "tiny.gguf")), name="tiny")


@pytest.mark.parametrize(
    ("answer", "before", "same"),
    [("a b c", "a b c", 3), ("a b d", "a b c", 2), ("x", "a b", 0), ("a", "a b", 2), ("", "", 0)],
)
def test_words_up_to_the_first_that_differs(answer: str, before: str, same: int) -> None:
    assert _same_words(answer, before) == same


def test_windows_are_those_of_the_files_tokenizer(tmp_path: Path) -> None:
    folder = made(tmp_path, model("llama"))
    windows = list(_windows(folder, TEXT, 2))
    assert [len(each) for each in windows] == [512, 512]
    begun = made(tmp_path, model("llama", pre="llama-bpe"))
    assert list(_windows(begun, TEXT, 0)) == []


def test_an_engine_that_is_not_there(workspace: Workspace) -> None:
    with pytest.raises(CapabilityError, match="cannot run here") as raised:
        must_run(workspace, "vllm")
    assert raised.value.facts["engine"] == "vllm"


@pytest.mark.slow
def test_it_runs_and_says_the_same(workspace: Workspace, version: Version) -> None:
    child = export(workspace, version, target="transformers", dtype="f32", name="tiny-hf").version
    ran = run_exported(workspace, child, "transformers", parent=version)
    assert ran.answers == ran.before and len(ran.answers) == 4
    figure = Registry(workspace).get(child.ref).figure("answers_agree")
    assert figure is not None and figure.value == 1.0


@pytest.mark.slow
def test_another_model_is_found_out(workspace: Workspace, version: Version, tmp_path: Path) -> None:
    other = model("llama")
    for name in [name for name in other.tensors if "ffn_down" in name or "attn_output" in name]:
        array = other.tensors[name]
        numbers = np.frombuffer(array.data, "<f4").reshape(array.shape)
        other.tensors[name] = type(array).of(numbers[::-1])
    (tmp_path / "b").mkdir()
    wrong = pull(workspace, str(made(tmp_path / "b", other)), name="wrong", parent=str(version.ref))
    with pytest.raises(EngineError, match="says other things"):
        run_exported(workspace, wrong, "transformers", parent=version)
