"""`press compress` and `press frontier`, on a tiny model that llama.cpp runs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from pressroom.cli._app import run
from pressroom.cli._frontier_svg import Point, frontier_svg
from pressroom.kernel import Workspace
from pressroom.registry import Figure, FileEntry, Registry, pull
from tests.compress.weights.gguf_files import tiny

TEXT = "the press prints what the compositor sets, letter by letter, line by line, page by page. " * 200


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PRESS_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = (
        f'[compress]\ntext = "{tmp_path / "text.txt"}"\n[measure]\ntext = "{tmp_path / "text.txt"}"\nwindows = 2\n'
    )
    (tmp_path / "pressroom.toml").write_text(settings, encoding="utf-8")
    path = tiny().write(tmp_path / "tiny.gguf")
    with Workspace.open(tmp_path) as workspace:
        pull(workspace, str(path), name="tiny")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run([*arguments]) == code, capsys.readouterr()
    return capsys.readouterr().out


def read(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(said(capsys, *arguments, "--json", code=code))


def test_from_a_plan_to_a_picture(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = read(capsys, "compress", "tiny", "--to", "int8", "--plan")
    assert "Q8_0" in said(capsys, "compress", "tiny", "--to", "int8", "--plan")
    made = read(capsys, "compress", "tiny", "--to", "int8", "--tokens", "1024", "--no-measure")
    assert made["bytes"] == plan["bytes"] and made["ref"] == "tiny-q8_0:1"
    assert "no" not in made["sheet"] and "kl_mean" not in made["sheet"]
    assert read(capsys, "frontier", "tiny", code=1)["error"]["hint"].endswith("press measure tiny-q8_0:1")
    text = said(capsys, "compress", "tiny", "--to", "int4", "--tokens", "1024", "--embedding", "int8")
    assert "tiny-q4_0:1" in text and "smaller than tiny:1" in text and "kl_mean" in text and "press frontier" in text
    said(capsys, "measure", "tiny-q8_0")
    found = read(capsys, "frontier", "tiny", "--svg", "frontier.svg")
    assert [(point["name"], point["best"]) for point in found["points"]] == [
        ("tiny-q4_0:1", True),
        ("tiny-q8_0:1", True),
    ]
    small, near = (point["kl"] for point in found["points"])
    assert 0 < near < small
    assert ElementTree.parse(here / "frontier.svg").getroot().tag.endswith("svg")
    assert "best" in said(capsys, "frontier", "tiny")


def test_a_recipe_from_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = '[calibration]\ntokens = 1024\n[[step]]\nto = "q8_0"\ntargets = \'blk\\..*\'\nrounding = "nearest"\n'
    (here / "mine.toml").write_text(recipe, encoding="utf-8")
    assert read(capsys, "compress", "tiny", "--recipe", "mine.toml", "--no-measure")["ref"] == "tiny-mine:1"
    (here / "bad.toml").write_text('[[stop]]\nto = "q8_0"\n', encoding="utf-8")
    error = read(capsys, "compress", "tiny", "--recipe", "bad.toml", code=1)["error"]
    assert error["code"] == "recipe" and "Did you mean step?" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("compress", "tiny"), 2, "one of --to, --recipe, --budget and --max-loss"),
        (
            ("compress", "tiny", "--to", "int8", "--recipe", "a.toml"),
            2,
            "one of --to, --recipe, --budget and --max-loss",
        ),
        (("compress", "tiny", "--to", "q44"), 1, "Did you mean"),
        (("compress", "tiny", "--to", "q4_k"), 1, "no whole blocks"),
        (("compress", "tony", "--to", "int8"), 1, "tony"),
        (("compress", "tiny", "--to", "int8", "--text", "nowhere.txt"), 1, "nowhere.txt"),
        (("frontier", "tiny"), 1, "press compress tiny:1"),
        (("frontier", "tony"), 1, "tony"),
    ],
)
def test_bad_input(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    error = read(capsys, *arguments, code=code)["error"]
    assert says in f"{error['message']} {error['hint']}"


def test_what_is_no_gguf(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Workspace.open(here) as workspace:
        registry = Registry(workspace)
        blob = registry.store.put([b"notes"])
        registry.register("notes", [FileEntry(path="notes.txt", blob=blob.digest, size=blob.size)])
    assert (
        "only GGUF and safetensors weights"
        in read(capsys, "compress", "notes", "--to", "int8", code=1)["error"]["message"]
    )


def test_best_is_what_nothing_beats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Workspace.open(here) as workspace:
        registry = Registry(workspace)
        parent = registry.get("tiny").digest
        for name, size, kl in (("a", 100, 0.5), ("b", 200, 0.6), ("c", 300, 0.1), ("d", 400, 0.1)):
            blob = registry.store.put([name.encode() * size])
            files = [FileEntry(path="w", blob=blob.digest, size=blob.size)]
            figures = [Figure(name="kl_mean", value=kl), Figure(name="kl_stderr", value=0.01)]
            registry.register(name, files, kind="quantised", parent=parent, figures=figures)
    points = read(capsys, "frontier", "tiny")["points"]
    assert {point["name"][0] for point in points if point["best"]} == {"a", "c"}


def test_the_picture_takes_any_figure() -> None:
    points = [
        Point(name="<a>", mb=90, kl=0.0, best=True),
        Point(name="b" * 80, mb=0.001, kl=12.5, kl_stderr=20.0, tokens_per_second=1e6),
    ]
    for given in (points, points[:1], []):
        drawn = frontier_svg("x & y", given)
        root = ElementTree.fromstring(drawn)
        assert root.tag.endswith("svg") and "nan" not in drawn and "inf" not in drawn
