"""`press compress --budget` and `--max-loss`, on a tiny model that llama.cpp runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pressroom.cli._app import run
from pressroom.compress.weights import open_weights
from pressroom.kernel import Workspace
from pressroom.registry import Registry, pull
from pressroom.track import open_tracker
from tests.compress.weights.gguf_files import tiny

TEXT = "the press prints what the compositor sets, letter by letter, line by line, page by page. " * 60


# MLflow's own, when its database is opened.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One workspace for all: what a search learns of the model serves the next one."""
    place = tmp_path_factory.mktemp("search")
    text = place / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    settings = f'[compress]\ntext = "{text}"\n[measure]\ntext = "{text}"\nwindows = 2\n'
    (place / "pressroom.toml").write_text(settings, encoding="utf-8")
    path = tiny(tied=True, layers=1).write(place / "tiny.gguf")
    with Workspace.open(place) as workspace:
        pull(workspace, str(path), name="tiny")
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def read(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run([*arguments, "--json"]) == code, capsys.readouterr()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--budget", "20KB"), 1, "in the smallest format"),
        (("--budget", "1GB"), 1, "within 1000.000 MB already"),
        (("--budget", "much"), 1, "neither a size nor a time"),
        (("--max-loss", "200%"), 1, "no share of the perplexity"),
        (("--max-loss", "1%", "--budget", "80KB"), 2, "one of --to, --recipe, --budget and --max-loss"),
        (("--budget", "80KB", "--plan"), 2, "A search chooses by itself"),
        (("--to", "int8", "--save", "a.toml"), 2, "--save is for what a search finds"),
    ],
)
def test_what_cannot_be_is_said_first(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    assert run(["compress", "tiny", *arguments]) == code
    assert says in capsys.readouterr().err
    assert not list(here.glob(".pressroom/compress/*"))


def test_the_best_file_within_a_size(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("compress", "tiny", "--tokens", "512", "--no-measure")
    plans = [read(capsys, "compress", "tiny", "--to", to, "--embedding", to, "--plan") for to in ("int4", "int8")]
    small, large = (plan["bytes"] for plan in plans)
    narrow, wide = small + (large - small) // 3, small + 2 * (large - small) // 3
    found = read(capsys, *arguments, "--budget", f"{narrow}B", "--save", "found.toml")
    assert found["ref"] == f"tiny-{narrow / 1e6:g}MB:1" and 0.95 * narrow < found["bytes"] <= narrow
    taken = min(found["tried"], key=lambda one: one["kl"])
    assert taken["bytes"] == found["bytes"] and taken["kl"] > 0
    assert found["tried"][0]["why"] == "the best predicted"
    # A larger budget is used, and loses less; what is known of the model is not found out again.
    wider = read(capsys, *arguments, "--budget", f"{wide}")
    assert narrow < wider["bytes"] <= wide
    assert wider["tried"][0]["kl"] < taken["kl"]
    # The recipe makes the same bytes without a search.
    again = read(capsys, "compress", "tiny", "--recipe", "found.toml", "--no-measure", "--as", "again")
    with Workspace.open(here) as workspace:
        registry = Registry(workspace)
        paths = [registry.materialise(registry.get(one["ref"])) for one in (found, again)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        with open_weights(paths[0]) as weights:
            assert len({tensor.type for tensor in weights.tensors.values()} - {"F32"}) > 1  # not all matter equally
        with open_tracker(workspace) as tracker:
            runs = tracker.list(experiment="compress")
            tried = [one["bytes"] for one in (*found["tried"], *wider["tried"])]
            assert [one.metrics["bytes"] for one in reversed(runs)] == tried
            assert runs[0].started_from == str(registry.get("tiny").ref)
            of_the_first = runs[-len(found["tried"]) :]
            (became,) = (one for one in of_the_first if one.versions)
            assert became.versions == (str(registry.get(found["ref"]).ref),)
            assert became.metrics["kl_mean"] == taken["kl"]
        assert not list(workspace.path("compress").glob("search-*/rounded"))
        assert not list(workspace.path("compress").glob("**/*.gguf"))


def test_the_smallest_file_within_a_loss(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("compress", "tiny", "--tokens", "512", "--no-measure")
    found = read(capsys, *arguments, "--max-loss", "1%")
    assert found["ref"] == "tiny-1percent:1"
    (taken,) = (one for one in found["tried"] if one["bytes"] == found["bytes"])
    assert taken["loss"] <= 0.01
    assert all(one["loss"] > 0.01 or one["bytes"] >= found["bytes"] for one in found["tried"])


def test_a_text_that_is_too_short_to_search_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "tiny", "--budget", "80KB", "--tokens", "5120"]) == 1
    assert "too short" in capsys.readouterr().err
