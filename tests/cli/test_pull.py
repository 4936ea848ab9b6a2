"""`press pull` as it is typed."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.cli._app import run


def weights(fill: int) -> bytes:
    header = b'{"w": {"dtype": "U8", "shape": [100000], "data_offsets": [0, 100000]}}'
    return len(header).to_bytes(8, "little") + header + bytes([fill]) * 100_000


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("PRESSROOM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    for name, fill in (("base", 1), ("tuned", 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights(fill))
        (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    return tmp_path


@pytest.fixture
def url(place: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(place))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_model_made_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", "base"]) == 0
    out = capsys.readouterr().out
    assert "base:1" in out and "fetched" in out and "stored" in out
    words = ["--tag", "team=search", "--tag", "note=a=b", "--description", "Tuned on our tickets."]
    assert run(["pull", "tuned", "--as", "mine", "--parent", "base", "--json", *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["ref"], record["kind"]) == ("mine:1", "fine-tune")
    assert record["tags"] == {"team": "search", "note": "a=b"}
    assert record["description"] == "Tuned on our tickets."
    assert record["fetched_bytes"] == 0 and 0 < record["stored_bytes"] <= record["bytes"]
    assert run(["show", "mine"]) == 0
    assert record["parent"] in capsys.readouterr().out


def test_what_a_pull_over_the_web_cost(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    size = len(weights(1))
    assert run(["pull", f"{url}/base/model.safetensors", "--as", "m", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["fetched_bytes"], record["files_held_before"]) == (size, 0)
    digest = hashlib.sha256(weights(1)).hexdigest()
    assert run(["pull", f"{url}/base/model.safetensors#sha256={digest}", "--as", "m", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["version"], record["fetched_bytes"], record["files_held_before"]) == (1, 0, 1)


def test_progress_goes_to_standard_error_and_not_into_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", f"{url}/base/model.safetensors"]) == 0
    assert "downloading model.safetensors" in capsys.readouterr().err
    assert run(["pull", f"{url}/tuned/model.safetensors", "--json"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--tag", "team"], "TAG=VALUE"),
        (["--tag", "a=1", "--tag", "a=2"], "once"),
        (["--kind", "better"], "fine-tune"),
        (["--data", "--kind", "merged"], "--data"),
        (["--connections", "0"], "connections"),
    ],
)
def test_words_that_are_wrong(capsys: pytest.CaptureFixture[str], words: list[str], part: str) -> None:
    assert run(["pull", "base", *words]) == 2
    assert part in capsys.readouterr().err
    assert run(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_parent_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", "base", "--parent", "nothing", "--json"]) == 1
    assert "nothing" in "".join(capsys.readouterr())
