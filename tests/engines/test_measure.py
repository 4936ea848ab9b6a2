"""The sheet's figures: each with how and where, none measured twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.engines import Endpoint, EngineSpec, create, measure, speed
from pressroom.kernel import EngineError, Note, Progress, Ref, Workspace
from pressroom.registry.base import Figure, FileEntry, Version

RUNNING = {"tokens_per_second_1", "tokens_per_second_4", "ttft_ms", "peak_memory_bytes"}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path, environ={"PRESSROOM_ENGINES_CONTEXT": "512"}) as workspace:
        yield workspace


def version(size: int, **metadata: object) -> Version:
    entry = FileEntry(path="model.gguf", blob="blake3-" + "0" * 64, size=size)
    return Version(
        name="small", number=1, digest="sha256-" + "0" * 64, kind="base", files=(entry,), metadata=dict(metadata)
    )


def measured(workspace: Workspace, of: Version, model: Path, **more: object) -> list[Figure]:
    config = dataclasses.replace(workspace.settings.measure, tokens=8, windows=1)
    given: dict[str, object] = {"engine": "echo", "text": "", "text_ref": Ref("text", "1"), "config": config, **more}
    return list(measure(workspace, of, model=model, **given))  # type: ignore[arg-type]


def test_what_the_header_says(workspace: Workspace, tmp_path: Path) -> None:
    of = version(1000, format="safetensors", parameters=2000, architecture="llama", context_length=64, tokenizer="x")
    notes: list[Note] = []
    workspace.events.subscribe(Note, notes.append)
    figures = {figure.name: figure for figure in measured(workspace, of, tmp_path, known=RUNNING)}
    assert {name: figure.value for name, figure in figures.items()} == {
        "bytes": 1000,
        "parameters": 2000,
        "architecture": "llama",
        "tokenizer": "x",
        "context_length": 64,
        "bits_per_weight": 4.0,
    }
    assert all(figure.how and figure.at > 0 for figure in figures.values())
    assert "perplexity is not measured" in notes[0].text


def test_what_the_header_does_not_say_is_left_out(workspace: Workspace, tmp_path: Path) -> None:
    names = {figure.name for figure in measured(workspace, version(10, format="other"), tmp_path, known=RUNNING)}
    assert names == {"bytes"}


def test_what_is_known_is_not_measured_again(workspace: Workspace, tmp_path: Path) -> None:
    of = version(10, format="gguf")
    known = {"bytes", "perplexity", "perplexity_stderr", *RUNNING}
    # The model is not there: whatever had to be measured would fail.
    assert measured(workspace, of, tmp_path / "gone.gguf", engine="llamacpp", known=known) == []


def test_running_figures(workspace: Workspace, tmp_path: Path) -> None:
    progress: list[Progress] = []
    workspace.events.subscribe(Progress, progress.append)
    figures = measured(workspace, version(10, format="other"), tmp_path)
    by_name = {figure.name: figure for figure in figures}
    assert by_name.keys() == RUNNING | {"bytes"}
    for name in RUNNING:
        figure = by_name[name]
        assert isinstance(figure.value, float | int) and figure.value > 0
        assert figure.unit and figure.how and "echo" in figure.where
    assert [(event.done, event.total) for event in progress] == [(n, 6) for n in range(7)]


def test_one_missing_figure_is_measured_alone(workspace: Workspace, tmp_path: Path) -> None:
    for name in sorted(RUNNING):
        known = {"bytes", *RUNNING} - {name}
        (figure,) = measured(workspace, version(10, format="other"), tmp_path, known=known)
        assert figure.name == name


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Endpoint]:
    engine = create("echo", EngineSpec(name="echo", log=tmp_path / "echo.log"))
    yield engine.start()
    engine.stop()


def test_speed_counts_every_client(echo: Endpoint) -> None:
    one, four = speed(echo, clients=1, tokens=8), speed(echo, clients=4, tokens=8)
    assert (one.clients, four.clients) == (1, 4)
    assert 0 < one.tokens <= 8 and four.tokens == 4 * one.tokens
    for found in (one, four):
        assert 0 < found.ttft_s <= found.seconds
        assert found.tokens_per_second == pytest.approx(found.tokens / found.seconds)


def test_speed_of_what_is_gone_is_an_error(echo: Endpoint) -> None:
    gone = dataclasses.replace(echo, port=1)
    with pytest.raises(EngineError, match="cannot be measured"):
        speed(gone, clients=2, tokens=8)


@pytest.mark.slow
def test_the_whole_sheet_of_a_real_model(workspace: Workspace, smollm2: Path, hamlet: str) -> None:
    of = version(smollm2.stat().st_size, format="gguf", parameters=134_515_008)
    figures = measured(workspace, of, smollm2, engine="llamacpp", text=hamlet, text_ref=Ref("hamlet", "1"))
    by_name = {figure.name: figure for figure in figures}
    assert by_name.keys() == RUNNING | {"bytes", "parameters", "bits_per_weight", "perplexity", "perplexity_stderr"}
    perplexity = by_name["perplexity"]
    # 7.7 on this window; a model that reads its tokens wrongly is in the thousands, one that sees ahead near 1.
    assert isinstance(perplexity.value, float) and 5 < perplexity.value < 15
    assert "hamlet:1" in perplexity.how and "xllamacpp" in perplexity.where
    assert float(by_name["peak_memory_bytes"].value) > of.size
    assert "llamacpp" in by_name["ttft_ms"].where
