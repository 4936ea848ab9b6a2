"""A limit on milliseconds, with a clock that reads the size of the file: what is decided must not hang on the hour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.compress.calibrate import calibrate
from pressroom.compress.search import Score, Search, Tools, budget
from pressroom.compress.weights import open_weights
from pressroom.engines import Beside
from pressroom.kernel import RecipeError
from tests.compress.weights.gguf_files import tiny

TEXT = "the press prints what the compositor sets, letter by letter, line by line, page by page. " * 60
TOKENS = 512


def milliseconds(path: Path) -> float:
    """As if a token took a millisecond for every 10,000 bytes, as it does where memory is the limit."""
    return path.stat().st_size / 1e4


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Search]:
    path = tiny(tied=True, layers=1).write(tmp_path / "tiny.gguf")
    seen = calibrate(path, TEXT, tokens=TOKENS, folder=tmp_path, threads=1)
    with open_weights(path) as source, Beside(path, TEXT, windows=2, skip=TOKENS, threads=1) as beside:

        def measure(file: Path) -> Score:
            found = beside.measure(file)
            assert found.kl is not None
            return Score(kl=found.kl, kl_stderr=found.kl_stderr, perplexity=found.value, reference=1.0)

        tools = Tools(measure=measure, glance=measure, clock=milliseconds)
        yield Search(source, seen, tools, tmp_path, key="tiny")


def test_the_file_is_as_fast_as_asked_and_as_good_as_that_allows(search: Search, tmp_path: Path) -> None:
    whole = milliseconds(tmp_path / "tiny.gguf")
    close, tried = search.run(budget(f"{0.3 * whole:.4f}ms"))
    assert close.ms is not None and close.ms <= 0.3 * whole and close in tried
    far, _ = search.run(budget(f"{0.2 * whole:.4f}ms"))
    assert far.ms is not None and far.ms <= 0.2 * whole
    assert 0 < close.score.kl < far.score.kl
    with pytest.raises(RecipeError, match=r"nothing keeps to .* the fastest file takes"):
        search.run(budget(f"{0.01 * whole:.4f}ms"))
    with pytest.raises(RecipeError, match="which is within"):
        search.run(budget(f"{2 * whole:.4f}ms"))
