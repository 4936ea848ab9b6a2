"""Who may: with which key, over which address."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from pressroom.kernel import HubSettings, Workspace
from pressroom.registry.hub import _access

from .serving import HubServer
from .wire import Wire

# huggingface_hub itself calls httpx in a way that this warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def status(call: object) -> int:
    assert callable(call)
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return int(caught.value.response.status_code)


def test_reading_over_loopback_needs_no_key_and_writing_does(hub: HubServer, smol: Path) -> None:
    hub.add("m", smol)
    api = hub.api()
    assert api.model_info("m").id == "m"
    with pytest.raises(HfHubHTTPError, match="Writing needs a key"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="local/m")
    assert status(lambda: api.create_repo("fresh")) == 401


def test_a_wrong_or_revoked_key_is_refused_also_where_none_is_needed(
    hub: HubServer, smol: Path, tmp_path: Path
) -> None:
    hub.add("m", smol)
    secret = hub.key("read")
    assert hub.api(secret).model_info("m").id == "m"
    hub.keys.revoke("tester")
    for wrong in (secret, "pr-" + "x" * 43, "hf_something"):
        with pytest.raises(HfHubHTTPError, match="not known here, or was revoked") as caught:
            hub.api(wrong).model_info("m")
        assert caught.value.response.status_code == 401
        with pytest.raises(HfHubHTTPError, match="--right write to push"):
            hub.api(wrong).create_repo("fresh")
        assert wrong not in str(caught.value)
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            hf_hub_download("m", "config.json", endpoint=hub.url, cache_dir=tmp_path, token=wrong)
    with pytest.raises(HfHubHTTPError, match=r"Invalid user token"):
        HfApi(endpoint=hub.url).whoami(token="pr-nothing")


def test_a_key_opens_what_it_is_for(hub: HubServer, smol: Path) -> None:
    hub.add("smollm2", smol)
    hub.add("secret", smol)
    api = hub.api(hub.key("write:smollm2*"))
    assert [model.id for model in api.list_models()] == ["smollm2"]
    assert status(lambda: api.model_info("secret")) == 403
    with pytest.raises(HfHubHTTPError, match="may not read secret"):
        api.model_info("secret")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="local/smollm2")
    api.create_repo("smollm2-tuned")
    assert status(lambda: api.create_repo("other")) == 403
    reader = hub.api(hub.key("read", name="reader"))
    assert reader.model_info("secret").id == "secret"
    with pytest.raises(HfHubHTTPError, match=r"may not write.*press keys create NAME --right write:smollm2"):
        reader.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="local/smollm2")
    assert reader.whoami()["fullname"] == "reader"
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"


def test_a_hash_does_not_open_what_a_key_does_not(hub: HubServer, smol: Path) -> None:
    import requests

    version = hub.add("secret", smol)
    blob = next(entry.blob for entry in version.files if entry.path == "model.safetensors")
    sha256 = hub.registry.sha256(blob)
    secret = hub.key("write:mine")
    hub.api(secret).create_repo("mine")
    headers = {"authorization": f"Bearer {secret}"}
    batch = {"operation": "upload", "objects": [{"oid": sha256, "size": 136}]}
    answer = requests.post(
        f"{hub.url}/local/mine.git/info/lfs/objects/batch", json=batch, headers=headers, timeout=60
    ).json()
    assert "upload" in answer["objects"][0]["actions"]  # it is asked for, as if it were not here
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "lfsFile", "value": {"path": "m.safetensors", "algo": "sha256", "oid": sha256}},
    ]
    commit = "\n".join(json.dumps(line) for line in lines)
    answer = requests.post(f"{hub.url}/api/models/mine/commit/main", data=commit, headers=headers, timeout=60)
    assert answer.status_code == 404 and "not uploaded" in answer.json()["error"]


@pytest.mark.parametrize("require", [False, True])
def test_where_everything_needs_a_key(workspace: Workspace, smol: Path, require: bool) -> None:
    if require:
        workspace.settings = dataclasses.replace(workspace.settings, hub=HubSettings(require_key=True))
    with HubServer(workspace, host="127.0.0.1" if require else "0.0.0.0") as hub:
        version = hub.add("m", smol)
        api = hub.api()
        with Wire(hub) as wire:
            for path in ("/m", f"/local/m/commit/{version.digest[7:47]}", "/nothing"):
                assert wire.ask(f"GET {path}")[0] == 401
            assert wire.ask("GET /m", key=hub.key("read:other", name="other"))[0] == 403
        for call in (
            lambda: api.model_info("m"),
            lambda: list(api.list_models()),
            lambda: list(api.list_repo_tree("m")),
            lambda: api.list_repo_refs("m"),
        ):
            assert status(call) == 401
        assert hub.api(hub.key("read")).model_info("m").id == "m"


def test_wrong_keys_are_counted_within_bounds(hub: HubServer, smol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_access, "_MOST_WRONG", 3)
    hub.add("m", smol)
    secret = hub.key("read")
    hub.api(secret).model_info("m")
    for number in range(3):
        assert status(lambda number=number: hub.api(f"pr-{number}").model_info("m")) == 401
    assert status(lambda: hub.api("pr-more").model_info("m")) == 429
    assert hub.api(secret).model_info("m").id == "m"  # a key that was good goes on
    access = _access.Access(hub.keys, require_key=False)
    for number in range(5_000):
        access._was_wrong(f"10.0.{number // 256}.{number % 256}", b"x")
    assert len(access._wrong) <= _access._MOST_PEERS


def test_keys_are_never_logged(hub: HubServer, smol: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pressroom")
    hub.add("m", smol)
    secret = hub.key()
    api = hub.api(secret)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="local/m")
    status(lambda: hub.api("pr-" + "y" * 43).model_info("m"))
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("pressroom"))
    assert secret not in said and "yyyy" not in said
