"""Pushes: a commit is a version, whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

from pressroom.kernel import Workspace
from pressroom.store import is_digest

from .serving import HubServer, paths, write
from .weights import SMOL, gguf_bytes, noise_bytes, pickle_bytes, safetensors_bytes

# huggingface_hub itself calls httpx in a way that this warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def content(hub: HubServer, ref: str) -> dict[str, bytes]:
    found = {}
    for entry in hub.registry.get(ref).files:
        with hub.registry.store.open(entry.blob) as file:
            found[entry.path] = file.read()
    return found


def test_a_folder_becomes_a_version(hub: HubServer, smol: Path) -> None:
    api = hub.api(hub.key())
    url = api.create_repo("fresh")
    assert url.repo_id == "local/fresh"
    info = api.model_info("fresh")
    assert info.sha == "0" * 40 and info.siblings == []
    done = api.upload_folder(repo_id=url.repo_id, folder_path=smol, commit_message="first", commit_description="of all")
    version = hub.registry.get("fresh")
    assert done.oid == version.digest[7:47] and version.number == 1
    assert content(hub, "fresh") == SMOL
    assert (version.kind, version.parent, version.source) == ("base", None, "push:tester")
    assert version.description == "first\n\nof all"
    assert version.metadata["architecture"] == "LlamaForCausalLM" and version.metadata["license"] == "apache-2.0"
    assert hub.spooled() == []
    assert all(is_digest(entry.blob) for entry in version.files)


def test_a_commit_goes_on_from_the_version_before(hub: HubServer, smol: Path) -> None:
    api = hub.api(hub.key())
    api.create_repo("m")
    api.upload_folder(repo_id="local/m", folder_path=smol)
    api.create_commit(
        "local/m",
        [
            CommitOperationAdd("config2.json", b"{}"),
            CommitOperationDelete("tokenizer_config.json"),
            CommitOperationDelete("sub/"),
            CommitOperationCopy("model.safetensors", "copy.safetensors"),
            CommitOperationAdd("model.safetensors", safetensors_bytes(seed=7)),
        ],
        commit_message="change",
    )
    assert content(hub, "m:1") == SMOL
    assert content(hub, "m:2") == {
        "README.md": SMOL["README.md"],
        "config.json": SMOL["config.json"],
        "config2.json": b"{}",
        "copy.safetensors": SMOL["model.safetensors"],
        "model.safetensors": safetensors_bytes(seed=7),
    }
    api.upload_file(path_or_fileobj=b"hello", path_in_repo="a/b/c.txt", repo_id="m")
    assert content(hub, "m:3")["a/b/c.txt"] == b"hello"
    api.delete_file("a/b/c.txt", "local/m")
    assert hub.registry.get("m").number == 3  # equal to 2: that version, and main is there again
    assert api.model_info("m").sha == hub.registry.get("m:2").digest[7:47]
    api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id="local/m")
    assert "a/b/c.txt" not in paths(hub.registry.get("m:4").files)
    assert api.model_info("m").sha == hub.registry.get("m:4").digest[7:47]


@pytest.mark.parametrize("name", ["m", "local/m", "org/m"])
def test_what_has_not_changed_makes_no_version(hub: HubServer, smol: Path, name: str) -> None:
    api = hub.api(hub.key())
    api.create_repo(name)
    first = api.upload_folder(repo_id=name, folder_path=smol)
    again = api.upload_folder(repo_id=name, folder_path=smol)
    assert first.oid == again.oid
    assert len(hub.registry.list("org/m" if name == "org/m" else "m")) == 1


def test_a_model_that_is_not_there_is_not_made_by_a_push(hub: HubServer, smol: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        hub.api(hub.key()).upload_folder(repo_id="local/nothing", folder_path=smol)
    assert hub.registry.list() == []


def test_making_and_removing_names(hub: HubServer, smol: Path) -> None:
    api = hub.api(hub.key())
    api.create_repo("m")
    api.create_repo("m", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("m")
    with pytest.raises(BadRequestError, match="no datasets"):
        api.create_repo("d", repo_type="dataset")
    api.delete_repo("m")
    assert not api.repo_exists("m")
    hub.add("kept", smol)
    with pytest.raises(HfHubHTTPError, match="press rm"):
        api.delete_repo("kept")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("kept")


def test_the_card_names_the_parent(hub: HubServer, smol: Path) -> None:
    base = hub.add("base-model", smol)
    api = hub.api(hub.key())
    api.create_repo("tuned")
    card = b"---\nbase_model: local/base-model\n---\n"
    api.upload_folder(repo_id="local/tuned", folder_path=write(smol, {"README.md": card}))
    tuned = hub.registry.get("tuned")
    assert (tuned.parent, tuned.kind) == (base.digest, "fine-tune")
    card = b"---\nbase_model: [somebody/else, base-model]\nbase_model_relation: quantized\n---\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="local/tuned")
    quantised = hub.registry.get("tuned:2")
    assert (quantised.parent, quantised.kind) == (base.digest, "quantised")
    assert quantised.tags == {"hub.base_model": "somebody/else"}
    # What the card does not say any more stays as it was.
    api.upload_file(path_or_fileobj=b"# Words", path_in_repo="README.md", repo_id="local/tuned")
    assert (hub.registry.get("tuned:3").parent, hub.registry.get("tuned:3").kind) == (base.digest, "quantised")


def test_what_is_no_model_yet_is_kept_and_says_so(hub: HubServer) -> None:
    api = hub.api(hub.key())
    api.create_repo("parts")
    api.upload_file(path_or_fileobj=b'{"a": 1}', path_in_repo="tokenizer.json", repo_id="local/parts")
    assert "GGUF and safetensors" in hub.registry.get("parts").tags["hub.incomplete"]
    api.upload_file(path_or_fileobj=gguf_bytes(), path_in_repo="model.gguf", repo_id="local/parts")
    whole = hub.registry.get("parts")
    assert whole.tags == {} and whole.metadata["format"] == "gguf"


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("pytorch_model.bin", b"anything", "pickle"),
        ("training_args.pt", b"anything", "pickle"),
        ("innocent.safetensors", pickle_bytes(), "pickle"),
        ("innocent.txt", pickle_bytes(), "pickle"),
        ("model.safetensors", safetensors_bytes()[:60], "not usable as weights"),
        ("model.gguf", gguf_bytes()[:60], "not usable as weights"),
    ],
)
def test_what_is_unsafe_or_damaged_is_refused(hub: HubServer, path: str, data: bytes, message: str) -> None:
    api = hub.api(hub.key())
    api.create_repo("m")
    with pytest.raises(BadRequestError, match=message):
        api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id="local/m")
    assert hub.registry.list() == [] and hub.registry.loose() == []


@pytest.mark.parametrize("path", ["a\\b.txt", "a/\x01.txt", "x" * 300, "/".join(["long" * 20] * 8), "C:/x"])
def test_paths_that_no_version_has(hub: HubServer, path: str) -> None:
    api = hub.api(hub.key())
    api.create_repo("m")
    with pytest.raises(BadRequestError, match="cannot be the path"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo=path, repo_id="local/m")


@pytest.mark.parametrize("more", [{"CONFIG.json": b"{}"}, {"config.json/x": b"1"}])
def test_names_that_no_file_system_holds_together(hub: HubServer, more: dict[str, bytes]) -> None:
    api = hub.api(hub.key())
    api.create_repo("m")
    operations = [CommitOperationAdd(path, data) for path, data in {"config.json": b"{}", **more}.items()]
    with pytest.raises(BadRequestError, match=r"config\.json"):
        api.create_commit("local/m", operations, commit_message="x")


def test_deleting_what_is_not_there(hub: HubServer, smol: Path) -> None:
    hub.add("m", smol)
    api = hub.api(hub.key())
    with pytest.raises(EntryNotFoundError, match="trailing"):
        api.create_commit("local/m", [CommitOperationDelete("sub")], commit_message="x")
    with pytest.raises(BadRequestError, match="leaves no file"):
        api.create_commit("local/m", [CommitOperationDelete(path) for path in SMOL], commit_message="x")
    assert len(hub.registry.list("m")) == 1


def test_a_commit_on_another_parent_is_refused(hub: HubServer, smol: Path) -> None:
    first = hub.add("m", smol)
    api = hub.api(hub.key())
    add = [CommitOperationAdd("a.txt", b"1")]
    done = api.create_commit("local/m", add, commit_message="1", parent_commit=first.digest[7:47])
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(
            "local/m", [CommitOperationAdd("b.txt", b"1")], commit_message="2", parent_commit=first.digest[7:47]
        )
    assert paths(hub.registry.get("m").files).count("b.txt") == 0
    api.create_commit("local/m", [CommitOperationAdd("b.txt", b"1")], commit_message="3", parent_commit=done.oid)
    assert len(hub.registry.list("m")) == 3


def test_pushes_go_to_main(hub: HubServer, smol: Path) -> None:
    hub.add("m", smol)
    hub.add("m", write(smol, {"more.txt": b"1"}))
    api = hub.api(hub.key())
    with pytest.raises(BadRequestError, match="pushes go to main"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="local/m", revision="1")
    with pytest.raises(BadRequestError, match="pull requests"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="local/m", create_pr=True)


def test_pushes_at_once_are_versions_and_never_a_mix(hub: HubServer, tmp_path: Path) -> None:
    api = hub.api(hub.key())
    api.create_repo("m")
    folders = []
    for seed in range(6):
        files = {**SMOL, "model.safetensors": noise_bytes(seed, 20_000), "which.txt": str(seed).encode()}
        folders.append(write(tmp_path / f"f{seed}", files))
    threads = [
        threading.Thread(target=api.upload_folder, kwargs={"repo_id": "local/m", "folder_path": folder})
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = hub.registry.list("m")
    assert [version.number for version in versions] == [1, 2, 3, 4, 5, 6]
    for version in versions:
        found = content(hub, f"m:{version.number}")
        assert found["model.safetensors"] == noise_bytes(int(found["which.txt"]), 20_000)
    assert hub.spooled() == []


def test_a_push_is_not_mixed_with_one_that_came_between(hub: HubServer, smol: Path, tmp_path: Path) -> None:
    """A client leaves out what it was told is unchanged; meanwhile somebody else changes just that."""
    hub.add("m", smol)
    mine, theirs = hub.api(hub.key(name="mine")), hub.api(hub.key(name="theirs"))
    addition = CommitOperationAdd("model.safetensors", safetensors_bytes(seed=3))
    same = CommitOperationAdd("config.json", SMOL["config.json"])
    mine.preupload_lfs_files("local/m", [addition, same], free_memory=False)
    theirs.upload_file(path_or_fileobj=b'{"architectures": ["Other"]}', path_in_repo="config.json", repo_id="local/m")
    mine.create_commit("local/m", [addition, same], commit_message="weights for the old config")
    assert content(hub, "m:3")["config.json"] == SMOL["config.json"]
    assert content(hub, "m:3")["model.safetensors"] == safetensors_bytes(seed=3)


def test_bytes_that_are_here_are_not_sent_again(hub: HubServer, smol: Path) -> None:
    hub.add("m", smol)
    api = hub.api(hub.key())
    api.list_repo_tree("m")
    hub.registry.sha256(next(e.blob for e in hub.registry.get("m").files if e.path == "model.safetensors"))
    before = hub.gateway.metrics.hub
    assert before is not None
    puts = before.requests.get(("PUT", 200), 0)
    api.create_repo("copy")
    api.upload_folder(repo_id="local/copy", folder_path=smol)
    assert before.requests.get(("PUT", 200), 0) == puts
    assert content(hub, "copy") == SMOL


def test_a_push_that_was_cut_need_not_send_a_file_again(workspace: Workspace, tmp_path: Path) -> None:
    data = noise_bytes(1, 50_000)
    with HubServer(workspace) as hub:
        api = hub.api(hub.key())
        api.create_repo("m")
        api.preupload_lfs_files("local/m", [CommitOperationAdd("model.safetensors", data)])
        assert [name[64:] for name in hub.spooled()] == [".whole"]
        assert hub.registry.list() == []
    (workspace.dir / "tmp" / "hub" / "left.part").write_bytes(b"x")
    with HubServer(workspace) as hub:
        assert [name[64:] for name in hub.spooled()] == [".whole"]
        secret = hub.key(name="again")
        hub.api(secret).upload_file(path_or_fileobj=data, path_in_repo="model.safetensors", repo_id="local/m")
        figures = hub.gateway.metrics.hub
        assert figures is not None and ("PUT", 200) not in figures.requests
        assert content(hub, "m") == {"model.safetensors": data}
        assert hub.spooled() == []


def test_a_file_in_parts(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from pressroom.registry.hub import _uploads

    monkeypatch.setattr(_uploads, "_PART", 1 << 20)
    data = noise_bytes(4, (3 << 20) + 17)
    api = hub.api(hub.key())
    api.create_repo("m")
    api.upload_file(path_or_fileobj=data, path_in_repo="model.safetensors", repo_id="local/m")
    assert content(hub, "m") == {"model.safetensors": data}
    figures = hub.gateway.metrics.hub
    assert figures is not None and figures.requests["PUT", 200] == 4


def test_a_card_that_is_not_yaml(hub: HubServer) -> None:
    api = hub.api(hub.key())
    api.create_repo("m")
    with pytest.raises(ValueError, match="not YAML"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="local/m")
