"""Structure taken out of a real model, which then runs and knows most of what it knew."""

from __future__ import annotations

from pathlib import Path

import pytest

from pressroom.compress import CalibrationText, compress, parse
from pressroom.compress.weights import open_weights
from pressroom.kernel import Workspace
from pressroom.registry import Registry, pull

from .running import divergence, log_probabilities

# Old enough to be anybody's: the King James Bible, Ecclesiastes 1 and 3, repeated with numbers so that windows differ.
VERSES = (
    "One generation passeth away, and another generation cometh: but the earth abideth for ever. "
    "The sun also ariseth, and the sun goeth down, and hasteth to his place where he arose. "
    "All the rivers run into the sea; yet the sea is not full; unto the place from whence the rivers come, thither "
    "they return again. To every thing there is a season, and a time to every purpose under the heaven: a time to be "
    "born, and a time to die; a time to plant, and a time to pluck up that which is planted. "
)
TEXT = " ".join(f"Verse {number}. {VERSES}" for number in range(20))


@pytest.mark.slow
def test_structure_then_numbers(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    recipe = parse(
        {
            "calibration": {"tokens": 1024},
            "step": [
                {"method": "drop-layers", "layers": [14]},
                {"method": "prune-width", "feed_forward": 0.9, "heads": 0.67},
                {"to": "q8_0", "targets": r"blk\..*", "rounding": "nearest"},
            ],
        }
    )
    assert recipe.calibration == CalibrationText(tokens=1024)
    with Workspace.open(tmp_path / "work") as workspace:
        version = pull(workspace, str(smollm2), name="smollm2")
        made = compress(workspace, version, recipe, name="small", text=TEXT)
        path = Registry(workspace).materialise(made.version)
        with open_weights(path) as found:
            assert found.value("llama.block_count") == 29
            assert found.value("llama.feed_forward_length") == 1376
            assert (found.value("llama.attention.head_count"), found.value("llama.attention.head_count_kv")) == (6, 2)
            assert found.value("llama.attention.key_length") == 64
        whole, now = (log_probabilities(one, text=TEXT, window=256) for one in (smollm2, path))
        assert 0.01 < divergence(whole, now) < 3
        assert (whole.argmax(axis=1) == now.argmax(axis=1)).mean() > 0.4
