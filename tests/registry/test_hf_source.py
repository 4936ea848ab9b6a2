"""The hub, spoken to through huggingface_hub, against a server of its API."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import (
    DigestMismatchError,
    NetworkError,
    Progress,
    SourceError,
    UnsafeWeightsError,
    Workspace,
)
from pressroom.registry import Pulled, Registry, pull

from .servers import File, Hub, hub, site
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


def test_a_pull_that_was_stopped_goes_on(workspace: Workspace, served: Hub) -> None:
    served.manner["model.safetensors"] = File(cuts=[10], hang=True)

    def stop(_: Progress) -> None:
        if "model.safetensors" in served.downloaded():
            raise KeyboardInterrupt

    end = workspace.events.subscribe(Progress, stop)
    with pytest.raises(KeyboardInterrupt):
        pull(workspace, "hf:org/tiny", connections=1)
    end()
    served.manner.clear()
    before = served.downloaded()
    assert before == ["README.md", "config.json", "model.safetensors"]
    assert pull(workspace, "hf:org/tiny", connections=1).number == 1
    # What came whole is not fetched again, and of the rest only what is missing.
    assert served.downloaded()[len(before) :] == ["model.safetensors", "tokenizer.json"]
    assert served.sent == sum(len(served.files[name]) for name in {*served.downloaded()})
    assert list(workspace.path("tmp").iterdir()) == []


def test_a_hub_that_asks_to_wait(workspace: Workspace, served: Hub) -> None:
    served.status = 429
    with pytest.raises(NetworkError, match="429"):
        pull(workspace, "hf:org/tiny")
    assert nothing_kept(workspace)


def test_names_of_a_hub_are_shown_without_what_a_terminal_obeys(workspace: Workspace, served: Hub) -> None:
    served.files.clear()
    served.files |= {"a\x1b[2J.gguf": gguf_bytes(), "b\u202e.gguf": gguf_bytes(seed=1)}
    with pytest.raises(SourceError) as caught:
        pull(workspace, "hf:org/tiny")
    assert caught.value.hint.isprintable() and "\\x1b" in caught.value.hint
    with pytest.raises(SourceError) as caught:
        pull(workspace, "hf:org/tiny#a\x1b[2J.gguf")
    assert caught.value.message.isprintable()
    assert served.downloaded() == [] and nothing_kept(workspace)


def shard(name: str, body: bytes) -> bytes:
    header = json.dumps({name: {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}}).encode()
    return len(header).to_bytes(8, "little") + header + body


def in_shards(served: Hub, tensors: dict[str, bytes]) -> list[str]:
    del served.files["model.safetensors"]
    names = {tensor: f"model-{n:05}-of-{len(tensors):05}.safetensors" for n, tensor in enumerate(tensors, 1)}
    served.files |= {names[tensor]: shard(tensor, body) for tensor, body in tensors.items()}
    served.files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": names}).encode()
    return list(names.values())


def costs(workspace: Workspace) -> list[Pulled]:
    seen: list[Pulled] = []
    workspace.events.subscribe(Pulled, seen.append)
    return seen


def test_several_shards_at_once(workspace: Workspace, served: Hub) -> None:
    names = in_shards(served, {tensor: bytes([n]) * (3 << 18) for n, tensor in enumerate("abcd")})
    served.manner |= {name: File(slow=0.01) for name in names}
    version = pull(workspace, "hf:org/tiny")
    assert set(names) < {f.path for f in version.files} and version.metadata["parameters"] == 3 << 20
    assert served.log.busiest > 2
    assert served.sent == version.size


def test_shards_that_are_cut_go_on_inside(workspace: Workspace, served: Hub) -> None:
    names = in_shards(served, {tensor: bytes([n]) * (3 << 20) for n, tensor in enumerate("ab")})
    served.manner |= {name: File(cuts=[1 << 20, 200_000, 3] + [0] * 1000) for name in names}
    with pytest.raises(NetworkError):
        pull(workspace, "hf:org/tiny", connections=1)
    served.manner.clear()
    version = pull(workspace, "hf:org/tiny", connections=1)
    assert served.sent == version.size


def test_only_what_changed_is_fetched(workspace: Workspace, served: Hub) -> None:
    """A new commit costs its new files: the others are known by the hub's SHA-256, small ones by their git names."""
    first, second = in_shards(served, {"a": bytes(100_000), "b": bytes(50_000)})
    pull(workspace, "hf:org/tiny")
    served.commit = "d" * 40
    served.files[second] = shard("b", bytes([1]) * 50_000)
    before, sent, seen = len(served.downloaded()), served.sent, costs(workspace)
    version = pull(workspace, "hf:org/tiny")
    assert version.number == 2
    assert served.downloaded()[before:] == [second]
    assert seen[0].fetched == served.sent - sent == len(served.files[second])
    assert (seen[0].held, seen[0].files) == (5, 6)
    with Registry(workspace).store.open(next(f.blob for f in version.files if f.path == second)) as file:
        assert file.read() == served.files[second]
    assert first in {f.path for f in version.files}


def test_what_came_from_elsewhere_is_not_fetched(workspace: Workspace, served: Hub, tmp_path: Path) -> None:
    """Nobody has asked for its SHA-256 yet: it is the only file of that size."""
    (tmp_path / "m.safetensors").write_bytes(served.files["model.safetensors"])
    pull(workspace, str(tmp_path / "m.safetensors"))
    pull(workspace, "hf:org/tiny")
    assert sorted(served.downloaded()) == ["README.md", "config.json", "tokenizer.json"]


def test_a_small_file_that_was_altered(workspace: Workspace, served: Hub) -> None:
    """Files that are not large have no SHA-256 on a hub: they are held against their git names."""
    served.altered["config.json"] = config_bytes().replace(b"128", b"129")
    with pytest.raises(DigestMismatchError, match="git name"):
        pull(workspace, "hf:org/tiny")
    assert nothing_kept(workspace)


def test_a_file_of_another_length_than_is_declared(workspace: Workspace, served: Hub) -> None:
    served.altered["model.safetensors"] = safetensors_bytes(elements=1 << 20)
    with pytest.raises(DigestMismatchError, match="declared"):
        pull(workspace, "hf:org/tiny")
    # It is seen with the first answer.
    assert nothing_kept(workspace) and served.sent < 2 << 20


def test_a_token_stays_with_the_hub(workspace: Workspace, served: Hub) -> None:
    """It goes along a redirect on the hub, and not to where the hub keeps its files."""
    with site({f"/{name}": File(body) for name, body in served.files.items()}) as elsewhere:
        served.elsewhere = elsewhere.url
        assert pull(workspace, "hf:org/tiny").number == 1
        assert elsewhere.asked and all("authorization" not in headers for _, _, headers in elsewhere.asked)
    served.elsewhere, served.commit = "/inside", "d" * 40
    served.files["config.json"] += b"\n"
    pull(workspace, "hf:org/tiny")
    inside = [headers for _, path, headers in served.asked if path.startswith("/inside/")]
    assert inside and all(headers["authorization"] == "Bearer hf_secret_of_the_tests" for headers in inside)


def test_files_that_are_gated(workspace: Workspace, served: Hub) -> None:
    """Some hubs list what they do not give."""
    served.manner["model.safetensors"] = File(status=403, code="GatedRepo")
    with pytest.raises(SourceError, match="gated") as caught:
        pull(workspace, "hf:org/tiny")
    assert "terms" in caught.value.hint and nothing_kept(workspace)
