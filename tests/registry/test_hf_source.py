"""The hub, spoken to through huggingface_hub, against a server of its API."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import (
    DigestMismatchError,
    NetworkError,
    Progress,
    SourceError,
    StoreFullError,
    UnsafeWeightsError,
    Workspace,
)
from pressroom.registry import pull

from .servers import Hub, hub
from .test_path_source import notes, nothing_kept
from .weights import config_bytes, gguf_bytes, pickle_bytes, safetensors_bytes


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {
        "model.safetensors": safetensors_bytes(),
        "config.json": config_bytes(),
        "tokenizer.json": b"{}",
        "README.md": b"---\nlicense: mit\n---\n",
        "pytorch_model.bin": pickle_bytes(),
        "modeling_tiny.py": b"raise SystemExit",
        ".gitattributes": b"x",
        "onnx/model.onnx": b"x",
    }
    with hub(files) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_tests")
        yield running


def test_a_model(workspace: Workspace, served: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    said = notes(workspace)
    seen: list[Progress] = []
    workspace.events.subscribe(Progress, seen.append)
    version = pull(workspace, "hf:org/tiny")
    assert (version.name, version.source) == ("tiny", f"hf:org/tiny@{served.commit}")
    assert {f.path for f in version.files} == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert version.metadata["license"] == "mit" and version.metadata["architecture"] == "LlamaForCausalLM"
    assert sorted(served.downloaded()) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert any("pytorch_model.bin" in text for text in said) and any("modeling_tiny.py" in text for text in said)
    assert any(event.done == event.total and event.total for event in seen)
    sent = {headers.get("authorization") for _, path, headers in served.asked if "/org/tiny" in path}
    assert sent == {"Bearer hf_secret_of_the_tests"}
    # Its own progress bars would break into the lines of whoever runs this.
    assert capfd.readouterr() == ("", "")


def test_a_commit_is_not_fetched_again(workspace: Workspace, served: Hub) -> None:
    first = pull(workspace, "hf:org/tiny")
    asked = len(served.asked)
    assert pull(workspace, f"hf:org/tiny@{served.commit}") == first
    assert len(served.asked) == asked
    served.commit, served.files["config.json"] = "d" * 40, config_bytes() + b"\n"
    assert pull(workspace, "hf:org/tiny@main").number == 2


def test_one_file(workspace: Workspace, served: Hub) -> None:
    served.files.clear()
    served.files |= {"a.Q4_0.gguf": gguf_bytes(quantised=True), "b.gguf": gguf_bytes()}
    with pytest.raises(SourceError) as caught:
        pull(workspace, "hf:org/tiny")
    assert "#a.Q4_0.gguf" in caught.value.hint
    assert served.downloaded() == []
    assert pull(workspace, "hf:org/tiny#a.Q4_0.gguf").metadata["quantization"] == "Q4_0"
    assert served.downloaded() == ["a.Q4_0.gguf"]


def test_only_pickles(workspace: Workspace, served: Hub) -> None:
    del served.files["model.safetensors"]
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin"):
        pull(workspace, "hf:org/tiny")
    with pytest.raises(UnsafeWeightsError):
        pull(workspace, "hf:org/tiny#pytorch_model.bin")
    assert served.downloaded() == [] and nothing_kept(workspace)


def test_weights_in_the_first_folder_come_before_those_of_parts(workspace: Workspace, served: Hub) -> None:
    served.files["2_Dense/model.safetensors"] = safetensors_bytes(seed=1)
    version = pull(workspace, "hf:org/tiny")
    assert {f.path for f in version.files} == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}


@pytest.mark.parametrize("name", ["../../../escaped.gguf", "/etc/escaped.gguf", "a\\..\\..\\escaped.gguf"])
def test_a_hub_that_names_files_outside(workspace: Workspace, served: Hub, tmp_path: Path, name: str) -> None:
    served.files.clear()
    served.files[name] = gguf_bytes()
    with pytest.raises(SourceError):
        pull(workspace, "hf:org/tiny")
    assert not list(tmp_path.rglob("escaped*")) and not Path("/etc/escaped.gguf").exists()


@pytest.mark.parametrize(
    ("source", "status", "code", "kind"),
    [
        ("hf:org/nothing", 200, "", SourceError),
        ("hf:org/tiny@v9", 200, "", SourceError),
        ("hf:org/tiny", 403, "GatedRepo", SourceError),
        ("hf:org/tiny", 401, "", SourceError),
        ("hf:org/tiny", 500, "", NetworkError),
        ("hf:org/a--b", 200, "", SourceError),
        ("hf:org/x.git", 200, "", SourceError),
        ("hf:a/b/c", 200, "", SourceError),
        ("hf:", 200, "", SourceError),
        ("hf:../..", 200, "", SourceError),
        ("hf:org/tiny@../x", 200, "", SourceError),
        (f"hf:org/{'x' * 96}", 200, "", SourceError),
        ("hf:org/tiny#nothing.json", 200, "", SourceError),
    ],
)
def test_what_the_hub_refuses(
    workspace: Workspace, served: Hub, source: str, status: int, code: str, kind: type[SourceError]
) -> None:
    served.status, served.code = status, code
    with pytest.raises(SourceError) as caught:
        pull(workspace, source)
    assert type(caught.value) is kind and caught.value.hint
    assert "hf_secret" not in str(caught.value.as_dict()) and "\n" not in caught.value.message
    assert served.downloaded() == [] and nothing_kept(workspace)


def test_a_file_that_was_altered(workspace: Workspace, served: Hub) -> None:
    served.altered["model.safetensors"] = safetensors_bytes(seed=9)
    with pytest.raises(DigestMismatchError):
        pull(workspace, "hf:org/tiny")
    assert nothing_kept(workspace)
    served.altered.clear()
    assert pull(workspace, "hf:org/tiny").number == 1


def test_no_hub(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(NetworkError) as caught:
            pull(workspace, "hf:org/tiny")
    assert "HF_ENDPOINT" in caught.value.hint and nothing_kept(workspace)


def test_a_full_disk(workspace: Workspace, served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from huggingface_hub import HfApi

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HfApi, "hf_hub_download", full)
    with pytest.raises(StoreFullError):
        pull(workspace, "hf:org/tiny")
    assert nothing_kept(workspace)
