"""`press pull` as it is typed."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.cli._app import run
from pressroom.kernel import Workspace


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
    assert "parent   base:1\n" in capsys.readouterr().out
    assert run(["pull", "base", "--as", "copy"]) == 0
    assert run(["show", "mine"]) == 0
    assert "parent   base:1 = copy:1\n" in capsys.readouterr().out


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


def test_what_is_here_is_said_and_what_was_damaged_is_mended(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = 1 << 20
    header = b'{"w": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]}}' % (size, size)
    content = len(header).to_bytes(8, "little") + header + random.Random(1).randbytes(size)
    (place / "base" / "model.safetensors").write_bytes(content)
    assert run(["pull", "base"]) == 0
    capsys.readouterr()
    assert run(["pull", "base"]) == 0
    assert "all of it was here" in capsys.readouterr().out
    assert run(["pull", "base", "--as", "other", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["files_held_before"], record["files_mended"], record["stored_bytes"]) == (2, 0, 0)
    with Workspace.open(place) as workspace:
        files = [path for path in (workspace.dir / "store").rglob("*") if path.is_file()]
        (pack,) = (path for path in files if path.stat().st_size >= size)
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(64))
    assert run(["verify"]) == 1
    capsys.readouterr()
    assert run(["pull", "base"]) == 0
    said = capsys.readouterr()
    assert "1 file of it was damaged here, written again" in said.out
    told = [line.split("  ") for line in said.err.splitlines()]
    assert {line[1] for line in told} == {"storing base", "writing model.safetensors"}
    # What a line says is done never exceeds what the file and its neighbour have.
    assert {line[-1] for line in told if line[2].strip() == "100%"} == {"1.0 MB"}
    assert run(["verify"]) == 0


def test_removing_says_what_space_comes_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = b'{"w": {"dtype": "U8", "shape": [1048576], "data_offsets": [0, 1048576]}, '
    header += b'"b": {"dtype": "U8", "shape": [4096], "data_offsets": [1048576, 1052672]}}'
    content = bytearray(len(header).to_bytes(8, "little") + header + random.Random(1).randbytes((1 << 20) + 4096))
    (place / "base" / "model.safetensors").write_bytes(content)
    content[-4096:] = random.Random(2).randbytes(4096)  # the tuned one is stored as little more than these
    (place / "tuned" / "model.safetensors").write_bytes(content)
    for words in (["base"], ["tuned", "--parent", "base"], ["tuned", "--as", "copy"]):
        assert run(["pull", *words]) == 0
    capsys.readouterr()
    assert run(["rm", "copy"]) == 0
    assert "No space comes back" in capsys.readouterr().out
    assert run(["rm", "tuned", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["let_go_bytes"] == len(content) and 0 < told["freed_bytes"] + told["reclaimable_bytes"] < 100_000
    assert run(["rm", "base"]) == 0
    out = capsys.readouterr().out
    assert "1.1 MB when press gc has run" in out and "Space that comes back" in out
    assert run(["gc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["swept"]["freed"] > 1_000_000


def test_what_was_registered_before_stays_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", "base"]) == 0
    assert run(["pull", "tuned", "--parent", "base"]) == 0
    for words, said in (
        (["base", "--kind", "merged"], "base:1 was registered before, as base; that stays, and is not made merged"),
        (["tuned", "--kind", "base"], "tuned:1 was registered before, as fine-tune; that stays, and is not made base"),
        (["base", "--parent", "tuned", "--kind", "base"], "base:1 was registered before, without a parent; that stays"),
        (["base", "--parent", "tuned"], "base:1 was registered before, without a parent and as base; that stays"),
    ):
        capsys.readouterr()
        assert run(["pull", *words]) == 0
        assert said in capsys.readouterr().err
    for words in (["tuned"], ["tuned", "--parent", "base"], ["tuned", "--kind", "fine-tune"], ["base"]):
        capsys.readouterr()
        assert run(["pull", *words]) == 0
        assert "registered before" not in capsys.readouterr().err
    assert run(["list", "--json"]) == 0
    assert [version["kind"] for version in json.loads(capsys.readouterr().out)] == ["base", "fine-tune"]
