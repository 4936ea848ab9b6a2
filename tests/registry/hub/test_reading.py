"""What clients read: models and their revisions, files, trees, refs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .serving import HubServer, files_of, write
from .weights import SMOL, safetensors_bytes
from .wire import Wire


@pytest.fixture(autouse=True)
def two_versions(hub: HubServer, smol: Path, tmp_path: Path) -> None:
    hub.add("smollm2", smol)
    other = write(tmp_path / "other", SMOL | {"model.safetensors": safetensors_bytes(seed=2)})
    hub.add("smollm2", other)
    hub.registry.promote("smollm2:1", "production", why="it is good")


def test_a_snapshot_is_the_version(hub: HubServer, smol: Path, tmp_path: Path) -> None:
    newest = snapshot_download("smollm2", endpoint=hub.url, cache_dir=tmp_path / "cache", token=False)
    assert files_of(Path(newest)) == SMOL | {"model.safetensors": safetensors_bytes(seed=2)}
    assert Path(newest).name == hub.registry.get("smollm2:2").digest[7:47]
    first = snapshot_download(
        "local/smollm2",
        revision="production",
        endpoint=hub.url,
        cache_dir=tmp_path / "cache",
        local_dir=tmp_path / "here",
        token=False,
    )
    assert files_of(Path(first)) == SMOL


@pytest.mark.parametrize("revision", ["1", "production", "refs/tags/production", "COMMIT", "SHORT"])
def test_every_way_to_name_a_revision(hub: HubServer, tmp_path: Path, revision: str) -> None:
    commit = hub.registry.get("smollm2:1").digest[7:47]
    revision = {"COMMIT": commit, "SHORT": commit[:8]}.get(revision, revision)
    found = hf_hub_download(
        "smollm2", "model.safetensors", revision=revision, endpoint=hub.url, cache_dir=tmp_path / "c", token=False
    )
    assert Path(found).read_bytes() == SMOL["model.safetensors"]
    assert hub.api().model_info("smollm2", revision=revision).sha == commit


def test_a_model_says_what_it_is(hub: HubServer) -> None:
    info = hub.api().model_info("local/smollm2", files_metadata=True)
    assert info.id == "local/smollm2" and info.sha == hub.registry.get("smollm2:2").digest[7:47]
    assert info.card_data is not None and info.card_data.license == "apache-2.0"
    assert info.tags is not None and {"tiny", "license:apache-2.0", "kind:base"} <= set(info.tags)
    assert info.config == {"architectures": ["LlamaForCausalLM"]} and info.library_name == "transformers"
    by_name = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    weights = by_name["model.safetensors"]
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256(safetensors_bytes(seed=2)).hexdigest()
    # git hash-object of the same bytes.
    config = SMOL["config.json"]
    assert by_name["config.json"].blob_id == hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()


def test_some_properties_only(hub: HubServer) -> None:
    info = hub.api().model_info("smollm2", expand=["sha", "tags"])
    assert info.sha is not None and info.tags is not None and info.siblings is None and info.last_modified is None


def test_lists(hub: HubServer, smol: Path) -> None:
    for number in range(5):
        hub.add(f"other-{number}", smol)
    api = hub.api()
    assert [model.id for model in api.list_models()] == [*(f"other-{n}" for n in range(5)), "smollm2"]
    assert [model.id for model in api.list_models(search="SMOL")] == ["smollm2"]
    assert len(list(api.list_models(filter="tiny", limit=2))) == 2
    assert list(api.list_models(author="nobody")) == []
    assert sorted(api.list_repo_files("smollm2")) == sorted(SMOL)


def test_trees(hub: HubServer) -> None:
    api = hub.api()
    flat = list(api.list_repo_tree("smollm2"))
    assert [entry.path for entry in flat] == [
        "README.md", "config.json", "model.safetensors", "sub", "tokenizer_config.json",
    ]  # fmt: skip
    below = list(api.list_repo_tree("smollm2", "sub", expand=True))
    assert [entry.path for entry in below] == ["sub/notes with blanks.txt"]
    assert below[0].last_commit is not None
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("smollm2", "nowhere"))
    found = api.get_paths_info("smollm2", ["sub", "config.json", "missing"], revision="1")
    assert [entry.path for entry in found] == ["sub", "config.json"]


def test_pages_are_followed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from pressroom.registry.hub import _calls

    monkeypatch.setattr(_calls, "_PAGE", 2)
    assert sorted(hub.api().list_repo_files("smollm2")) == sorted(SMOL)
    assert len(list(hub.api().list_repo_commits("smollm2"))) == 2


def test_refs_and_commits(hub: HubServer) -> None:
    refs = hub.api().list_repo_refs("smollm2")
    first, second = (hub.registry.get(f"smollm2:{n}").digest[7:47] for n in (1, 2))
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"1": first, "2": second, "production": first}
    assert [branch.target_commit for branch in refs.branches] == [second]
    assert [commit.commit_id for commit in hub.api().list_repo_commits("smollm2")] == [second, first]
    assert [commit.commit_id for commit in hub.api().list_repo_commits("smollm2", revision="1")] == [first]


def test_what_exists_and_what_does_not(hub: HubServer) -> None:
    api = hub.api()
    assert api.repo_exists("smollm2") and not api.repo_exists("nothing") and not api.repo_exists("other/smollm2")
    assert api.file_exists("smollm2", "config.json") and not api.file_exists("smollm2", "missing.json")
    assert api.revision_exists("smollm2", "1") and not api.revision_exists("smollm2", "9")
    assert not api.repo_exists("smollm2", repo_type="dataset")


def test_errors_are_those_that_clients_know(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError, match="Did you mean smollm2"):
        hub.api().model_info("smolm2")
    with pytest.raises(RevisionNotFoundError, match="production"):
        hub.api().model_info("smollm2", revision="produktion")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("smollm2", "missing.json", endpoint=hub.url, cache_dir=tmp_path, token=False)
    # A file that is not there is remembered with the commit.
    commit = hub.registry.get("smollm2").digest[7:47]
    assert (tmp_path / "models--smollm2" / ".no_exist" / commit / "missing.json").exists()
    with pytest.raises(HfHubHTTPError, match="no GET"):
        hub.api().get_repo_discussions  # noqa: B018  there
        hub.api().list_liked_repos("x")


def test_no_discussions(hub: HubServer) -> None:
    assert list(hub.api().get_repo_discussions("smollm2")) == []


def test_a_download_goes_on_where_it_was_cut(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub.file_download import http_get

    target = tmp_path / "part"
    whole = safetensors_bytes(seed=2)
    target.write_bytes(whole[:50])
    with target.open("ab") as file:
        http_get(f"{hub.url}/smollm2/resolve/main/model.safetensors", file, resume_size=50, expected_size=len(whole))
    assert target.read_bytes() == whole


def test_as_a_file_system(hub: HubServer) -> None:
    files = HfFileSystem(endpoint=hub.url, token=False, skip_instance_cache=True)
    assert "local/smollm2/config.json" in files.ls("local/smollm2", detail=False)
    with files.open("local/smollm2/model.safetensors", "rb", block_size=64) as file:
        file.seek(100)
        assert file.read(20) == safetensors_bytes(seed=2)[100:120]


def test_addresses_that_are_opened_in_a_browser(hub: HubServer) -> None:
    second = hub.registry.get("smollm2:2").digest[7:47]
    with Wire(hub) as wire:
        for path, wanted in (
            ("/smollm2", "smollm2:2"),
            ("/local/smollm2", "smollm2:2"),
            (f"/local/smollm2/commit/{second}", "smollm2:2"),
            ("/local/smollm2/tree/production", "smollm2:1  (production)"),
        ):
            status, headers, body = wire.ask(f"GET {path}")
            assert status == 200 and headers["content-type"] == "text/plain; charset=utf-8"
            text = body.decode()
            assert (
                text.startswith(f"{wanted}\n") and "model.safetensors" in text and "/api/models/local/smollm2/" in text
            )
        for path in ("/nothing", "/nothing/here", "/smollm2/commit/" + "0" * 39 + "1", "/datasets/smollm2"):
            status, headers, body = wire.ask(f"GET {path}")
            assert status == 404 and headers["x-error-code"] in ("RepoNotFound", "RevisionNotFound")
            assert json.loads(body)["error"]
        # What is the gateway's own, and what is no page, it answers itself.
        for line in ("GET /v1/rerank", "GET /favicon.ico", "GET /a/b/c", "POST /smollm2", "GET /.."):
            status, _, body = wire.ask(line)
            assert status == 404 and json.loads(body)["error"]["code"] == "unknown_url"
        index = json.loads(wire.ask("GET /")[2])
        assert "/{id}/commit/{commit}" in index["hub"] and "/v1/models" in index["paths"]


# huggingface_hub itself calls httpx in a way that this warns of.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_address_that_a_push_gives_can_be_opened(hub: HubServer, smol: Path) -> None:
    pushed = hub.api(hub.key("write")).upload_folder(
        folder_path=smol, repo_id="local/smollm2", commit_message="back to\nthe first"
    )
    path = pushed.commit_url.removeprefix(hub.url)
    with Wire(hub) as wire:
        status, _, body = wire.ask(f"GET {path}")
    assert status == 200 and pushed.oid in body.decode()
