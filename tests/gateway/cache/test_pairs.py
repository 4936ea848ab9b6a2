"""Pairs of questions with the cosine that all-MiniLM-L6-v2 gives them: what docs/cache.md says of thresholds.

`pairs.tsv` has the kind, the cosine, and both questions. `narrower`: the same words and one more.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pressroom.gateway.cache._guards import alike

_ROWS = [line.split("\t") for line in (Path(__file__).parent / "pairs.tsv").read_text(encoding="utf-8").splitlines()]
_PAGE = Path(__file__).parents[3] / "docs" / "cache.md"
_KINDS = ("same", "different", "narrower")


def _hits(threshold: float, same_words: bool | None) -> str:
    """How many pairs of each kind are hits; without `same_words` by their vectors alone."""
    counts = dict.fromkeys(_KINDS, 0)
    for kind, cosine, one, other in _ROWS:
        if float(cosine) >= threshold and (same_words is None or alike(one, other, same_words=same_words)):
            counts[kind] += 1
    return " / ".join(str(counts[kind]) for kind in _KINDS)


@pytest.mark.parametrize("threshold", [0.85, 0.9, 0.95, 0.97, 0.98])
def test_the_page_says_what_comes_of_thresholds(threshold: float) -> None:
    row = [f"{threshold:g}", *(_hits(threshold, same_words) for same_words in (None, False, True))]
    assert f"| {' | '.join(row)} |" in _PAGE.read_text(encoding="utf-8")


def test_no_pair_that_differs_is_a_hit_with_equal_words() -> None:
    assert {kind for kind, _, one, other in _ROWS if alike(one, other, same_words=True)} == {"same"}


def test_the_page_says_how_many_pairs_there_are() -> None:
    counts = [sum(row[0] == kind for row in _ROWS) for kind in _KINDS]
    assert "of {} / {} / {}".format(*counts) in _PAGE.read_text(encoding="utf-8")
