"""From the registry to the registry: what is registered runs, and what cannot be done leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.compress.export import _same_tokens, as_gguf, check_export, export
from pressroom.compress.weights import open_weights
from pressroom.engines import perplexity
from pressroom.kernel import Note, RecipeError, RefError, Workspace
from pressroom.registry import Registry, Version, pull

from .models import model
from .test_folder import TEXT, changed, made


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "work").mkdir()
    with Workspace.open(tmp_path / "work") as opened:
        yield opened


@pytest.fixture
def version(workspace: Workspace, tmp_path: Path) -> Version:
    return pull(workspace, str(model("llama").write(tmp_path / "tiny.gguf")), name="tiny")


def left(workspace: Workspace) -> list[str]:
    return [path.name for path in workspace.path("compress").iterdir() if path.name.startswith("export-")]


def test_to_transformers_and_back_to_llamacpp(workspace: Workspace, version: Version) -> None:
    assert check_export(workspace, version, target="transformers") == ""
    done = export(workspace, version, target="transformers", dtype="f32", name="tiny-hf")
    child = done.version
    assert (child.format, child.kind, child.parent, child.tags) == (
        "safetensors", "base", version.digest, {"export": "transformers"},
    )  # fmt: skip
    assert done.tokens_checked and done.as_dict()["ref"] == "tiny-hf:1" and left(workspace) == []
    assert check_export(workspace, child, target="llamacpp") == ""
    back = as_gguf(workspace, child)
    assert (back.name, back.format, back.parent) == ("tiny-hf-gguf", "gguf", child.digest)
    assert as_gguf(workspace, child).ref == back.ref and as_gguf(workspace, back) is back
    registry = Registry(workspace)
    one, other = (registry.materialise(each) for each in (back, version))
    found = perplexity(one, TEXT, windows=1, threads=1, reference=other)
    assert found.unlike == "" and found.kl is not None and abs(found.kl) < 1e-7


@pytest.mark.parametrize("text", ["", TEXT])
def test_to_vllm(workspace: Workspace, version: Version, text: str) -> None:
    pytest.importorskip("compressed_tensors")
    assert check_export(workspace, version, target="vllm", scheme="w4a16") == "w4a16-g64"
    done = export(workspace, version, target="vllm", scheme="w4a16", name="tiny-vllm", text=text, tokens=512)
    child = done.version
    assert (child.kind, child.tags) == ("quantised", {"export": "vllm", "scheme": "w4a16-g64"})
    assert len(done.layers) == 14 and (child.figure("layer_error") is not None) == bool(text)
    assert child.metadata["format"] == "safetensors" and left(workspace) == []


def test_static_scales_are_measured(workspace: Workspace, version: Version) -> None:
    pytest.importorskip("compressed_tensors")
    from safetensors.torch import load_file

    with pytest.raises(RecipeError, match="calibration text, or a scale"):
        export(workspace, version, target="vllm", scheme="w8a8-static", name="x")
    done = export(workspace, version, target="vllm", scheme="w8a8-static", name="x", text=TEXT, tokens=512)
    folder = Registry(workspace).materialise(done.version)
    every = {name: float(part) for name, part in load_file(folder / "model.safetensors").items() if "input_sc" in name}
    assert len(every) == 14 and all(0 < scale < 1 for scale in every.values()) and len(set(every.values())) == 8


def test_a_folder_to_vllm(workspace: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    version = pull(workspace, str(made(tmp_path, model("qwen2"))), name="tiny-hf")
    assert check_export(workspace, version, target="vllm", scheme="w8a8") == "w8a8"
    with pytest.raises(RecipeError, match="attn_q"):
        check_export(workspace, version, target="vllm", scheme="w4a16-g128")
    done = export(workspace, version, target="vllm", scheme="w8a8", name="small")
    assert done.version.parent == version.digest and done.scheme == "w8a8"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"target": "tensorrt"}, "Take one of llamacpp, transformers, vllm"),
        ({"target": "llamacpp"}, "gguf already"),
        ({"target": "transformers", "scheme": "w8a8"}, "is for vLLM"),
        ({"target": "transformers", "dtype": "f8"}, "bf16, f16, f32"),
        ({"target": "vllm", "scheme": "w2a2"}, "no scheme"),
    ],
)
def test_what_cannot_be_asked(workspace: Workspace, version: Version, asked: dict[str, Any], says: str) -> None:
    for call in (check_export, lambda *given, **more: export(*given, name="x", **more)):
        with pytest.raises(RecipeError) as raised:
            call(workspace, version, **asked)
        assert says in f"{raised.value.message} {raised.value.hint}"
    assert [one.name for one in Registry(workspace).list()] == ["tiny"] and left(workspace) == []


def test_a_name_that_cannot_be_one(workspace: Workspace, version: Version) -> None:
    with pytest.raises(RefError):
        export(workspace, version, target="transformers", name="-x")


def test_an_architecture_that_is_not_known(workspace: Workspace, tmp_path: Path) -> None:
    folder = made(tmp_path, model("llama"))
    changed(folder, model_type="gemma3", architectures=["Gemma3ForCausalLM"])
    version = pull(workspace, str(folder), name="other")
    with pytest.raises(RecipeError, match="gemma3"):
        as_gguf(workspace, version)
    assert [one.name for one in Registry(workspace).list()] == ["other"] and left(workspace) == []


def test_tokens_that_differ_register_nothing(
    workspace: Workspace, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _same_tokens.llama_tokens
    monkeypatch.setattr(_same_tokens, "llama_tokens", lambda *given: [ids[:-1] for ids in real(*given) or []])
    with pytest.raises(RecipeError, match="the same tokens"):
        export(workspace, version, target="transformers", name="x")
    assert [one.name for one in Registry(workspace).list()] == ["tiny"] and left(workspace) == []


def test_without_llamacpp_it_is_said(workspace: Workspace, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    workspace.events.subscribe(Note, lambda event: notes.append(event.text))
    monkeypatch.setattr(_same_tokens, "llama_tokens", lambda *_: None)
    assert not export(workspace, version, target="transformers", name="x").tokens_checked
    assert any("not compared with llama.cpp" in note for note in notes)


def test_what_a_killed_one_left_is_removed(workspace: Workspace, version: Version) -> None:
    (workspace.path("compress") / "export-abc").mkdir()
    export(workspace, version, target="transformers", name="x")
    assert left(workspace) == []
    with open_weights(Registry(workspace).materialise(version)) as source:
        assert source.tied
