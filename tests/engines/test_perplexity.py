"""Perplexity: the arithmetic against an obvious reference, and the model's numbers against another way to get them."""

from __future__ import annotations

import http.client
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pressroom.engines import Beside, EngineSpec, create, perplexity
from pressroom.engines._llama import Llama, divergences, log_softmax_at
from pressroom.engines._perplexity import Compared, summarised
from pressroom.kernel import EngineError
from pressroom.store import inspect
from tests.compress.weights.gguf_files import VOCABULARY, tiny


def test_log_softmax_is_that_of_the_textbook() -> None:
    generator = np.random.default_rng(1)
    logits = (generator.normal(size=(70, 300)) * 8).astype(np.float32)
    targets = generator.integers(0, 300, size=70).astype(np.int32)
    expected = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        expected.append(row[target] - math.log(math.fsum(math.exp(value) for value in row)))
    # Both sum in float64; 300 terms leave at most some 1e-13.
    np.testing.assert_allclose(log_softmax_at(logits, targets), expected, atol=1e-12)


def test_log_softmax_of_large_logits_is_finite() -> None:
    logits = np.array([[5000.0, 4990.0, -5000.0]], dtype=np.float32)
    found = log_softmax_at(logits, np.array([1], dtype=np.int32))
    np.testing.assert_allclose(found, [-10.0 - math.log1p(math.exp(-10.0))], rtol=1e-9)


def test_divergence_is_that_of_the_textbook() -> None:
    generator = np.random.default_rng(2)
    first, second = ((generator.normal(size=(40, 90)) * 4).astype(np.float32) for _ in range(2))
    p, q = (
        np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True) for rows in (first.astype(float), second.astype(float))
    )
    np.testing.assert_allclose(divergences(first, second), (p * np.log(p / q)).sum(axis=1), atol=1e-12)
    np.testing.assert_array_equal(divergences(first, first), np.zeros(40))


def test_the_divergence_is_a_mean_with_its_error() -> None:
    windows = [Compared([0.1, 0.2], 2), Compared([0.4, 0.5], 1), Compared([0.0, 0.6], 2)]
    found = summarised([-1.0] * 6, windows, windows=3, bos=False, version="")
    assert found.kl == pytest.approx(0.3) and found.kl_p99 == 0.6
    # The windows' means are 0.15, 0.45 and 0.3: their standard deviation (of a population of 3) over the root of 2.
    assert found.kl_stderr == pytest.approx(math.sqrt(0.015 / 2))
    assert found.top1 == pytest.approx(5 / 6) and found.top1_stderr == pytest.approx(math.sqrt(1 / 18 / 2))
    alone = summarised([-1.0] * 2, windows[:1], windows=1, bos=False, version="")
    assert alone.kl == pytest.approx(0.15) and alone.kl_stderr is None and alone.top1_stderr is None
    assert summarised([-1.0, -2.0], windows=1, bos=False, version="").kl is None
    with pytest.raises(EngineError, match="no probabilities"):
        summarised([-1.0, -2.0], [Compared([0.1, math.inf], 2)], windows=1, bos=False, version="")


def test_a_guess_among_n_has_perplexity_n() -> None:
    found = summarised([math.log(1 / 50)] * 255, windows=1, bos=False, version="")
    assert found.value == pytest.approx(50) and found.stderr == pytest.approx(0, abs=1e-6)


def test_the_standard_error_is_that_of_the_mean() -> None:
    values = [-1.0, -2.0, -4.0, -5.0]
    found = summarised(values, windows=1, bos=True, version="v")
    assert found.value == pytest.approx(math.exp(3))
    # Delta method: exp(mean) times the standard error of the mean; the sample variance of the four is 10 / 3.
    assert found.stderr == pytest.approx(math.exp(3) * math.sqrt(10 / 3 / 4))
    assert (found.tokens, found.windows) == (4, 1) and "BOS" in found.how


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_no_figure_is_made_of_what_is_not_a_number(broken: float) -> None:
    with pytest.raises(EngineError, match="no probabilities"):
        summarised([-1.0, broken], windows=1, bos=False, version="")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    model = tmp_path / "noise.gguf"
    model.write_bytes(bytes(range(256)) * 16)
    with pytest.raises(EngineError, match=r"cannot load noise\.gguf") as caught:
        perplexity(model, "to be or not to be " * 500, windows=1, threads=1)
    assert any("magic" in line for line in caught.value.facts["lines"])


@pytest.mark.slow
def test_a_text_that_is_too_short(smollm2: Path) -> None:
    with pytest.raises(EngineError, match="too short") as caught:
        perplexity(smollm2, "Words, words, words.", windows=1)
    assert "measure.text" in caught.value.hint


_MEASURES = """
import sys
from pathlib import Path
from pressroom.engines import perplexity
perplexity(Path(sys.argv[1]), "To be or not to be. " * 5000, windows=20, on_progress=lambda *_: print("on", flush=True))
"""


@pytest.mark.slow
def test_it_does_not_outlive_a_killed_parent(smollm2: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _MEASURES, str(smollm2)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"on\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
        parent.wait()
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


@pytest.mark.slow
def test_it_is_the_same_every_time_and_says_how_far_it_is(smollm2: Path, hamlet: str) -> None:
    seen: list[tuple[int, int]] = []
    first = perplexity(smollm2, hamlet, windows=2, threads=2, on_progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]
    assert first.tokens == 2 * 255 and first.windows == 2
    first = perplexity(smollm2, hamlet, windows=1, threads=1)
    second = perplexity(smollm2, hamlet, windows=1, threads=2)
    # Threads share out the rows of each product; no sum is split between them.
    assert first.value == pytest.approx(second.value, rel=1e-6)


@pytest.mark.slow
def test_how_far_an_altered_model_is_from_what_it_was(smollm2: Path, hamlet: str, tmp_path: Path) -> None:
    same = perplexity(smollm2, hamlet, windows=2, reference=smollm2)
    assert (same.kl, same.kl_p99, same.top1, same.unlike) == (0, 0, 1, "")
    (norm,) = [tensor for tensor in inspect(smollm2).tensors if tensor.name == "blk.20.ffn_norm.weight"]
    content = bytearray(smollm2.read_bytes())
    weights = np.frombuffer(content, np.float32, norm.elements, norm.offset)
    weights *= np.float32(1.2)
    altered = tmp_path / "altered.gguf"
    altered.write_bytes(content)
    found = perplexity(altered, hamlet, windows=2, reference=smollm2)
    back = perplexity(smollm2, hamlet, windows=2, reference=altered)
    assert found.kl is not None and back.kl is not None and found.kl_stderr is not None
    # One of sixty norms a fifth larger: some hundredths of a nat.
    assert 0 < found.kl_stderr < found.kl < 0.5 and back.kl > 0 and found.kl != back.kl
    assert found.value != same.value and back.value == pytest.approx(same.value, rel=1e-6)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    alone = perplexity(smollm2, hamlet, windows=2, reference=broken)
    assert alone.kl is None and "cannot load broken.gguf" in alone.unlike


@pytest.mark.slow
def test_probabilities_are_those_that_the_server_gives(smollm2: Path, hamlet: str, tmp_path: Path) -> None:
    """The same tokens, forced one by one through the HTTP server of llama.cpp, which reports the log-probability of
    each from its own sampler: other code from the decoded batch to the number.
    """
    count, first = 48, 16
    llama = Llama(smollm2, window=64, threads=2)
    tokens = llama.tokens(hamlet[:1000])[:count]
    ours = llama.log_probabilities(tokens, first)

    engine = create("llamacpp", EngineSpec(name="smollm2", model=smollm2, context=512, slots=1, log=tmp_path / "log"))
    endpoint = engine.start()
    theirs = []
    try:
        for at in range(first + 1, count):
            body = {
                "prompt": tokens[:at].tolist(),
                "n_predict": 1,
                "n_probs": 1,
                "temperature": 0,
                "logit_bias": [[int(tokens[at]), 1000.0]],  # forces the token; its reported probability is without it
            }
            connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=60)
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            (said,) = json.loads(connection.getresponse().read())["completion_probabilities"]
            connection.close()
            assert said["id"] == tokens[at]
            theirs.append(said["logprob"])
    finally:
        engine.stop()
    assert len(ours) == len(theirs) == count - first - 1
    # One token at a time and a window at once run through different kernels, and the server takes its logarithm in
    # float32. Both together made 0.0003 at most for a token here; a wrong token or position would be off by about 3.
    np.testing.assert_allclose(ours, theirs, atol=0.003)
    assert np.std(ours) > 1, "the tokens are of many kinds, so agreeing is no accident"


def test_what_the_reference_said_is_kept_for_the_next_one(tmp_path: Path) -> None:
    text = "the press prints what the compositor sets, letter by letter. " * 60
    first, other = (tiny(seed=seed).write(tmp_path / f"{seed}.gguf") for seed in (1, 2))
    with (tmp_path / "kept").open("w+b") as kept:
        found = perplexity(other, text, windows=2, skip=512, reference=first, kept=kept)
        assert kept.seek(0, 2) == 2 * 255 * VOCABULARY * 4
        again = perplexity(other, text, windows=2, skip=512, reference=tmp_path / "not there", kept=kept)
    assert found.kl is not None and found.kl > 0 and len(found.kl_of_windows) == 2
    assert again == found
    assert sum(found.kl_of_windows) / 2 == pytest.approx(found.kl)
    assert perplexity(other, text, windows=2, reference=first).value != found.value  # the text begins elsewhere
    with pytest.raises(EngineError, match=r"too short .* after the first 3500"):
        perplexity(other, text, windows=2, skip=3500)


def test_several_models_beside_one(tmp_path: Path) -> None:
    text = "the press prints what the compositor sets, letter by letter. " * 60
    first, *others = (tiny(seed=seed).write(tmp_path / f"{seed}.gguf") for seed in (1, 2, 3))
    with Beside(first, text, windows=3, skip=512) as beside:
        short = beside.measure(others[0], windows=1)
        found = [beside.measure(other) for other in others]
        again = beside.measure(others[0], windows=1)
        (tmp_path / "none.gguf").write_bytes(b"nothing")
        with pytest.raises(EngineError, match=r"cannot load none\.gguf"):
            beside.measure(tmp_path / "none.gguf")
    assert short == again and short.kl_of_windows == found[0].kl_of_windows[:1]
    assert found == [perplexity(other, text, windows=3, skip=512, reference=first) for other in others]
