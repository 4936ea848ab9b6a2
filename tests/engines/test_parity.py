"""The bound against exact divergences, the forms engines answer in, and real engines beside the models they run."""

from __future__ import annotations

import http.server
import json
import math
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.engines import (
    Capabilities,
    Endpoint,
    EngineSpec,
    Parity,
    ParityReference,
    check_parity,
    create,
    kept_reference,
    parity_reference,
)
from pressroom.engines._parity_figures import divergence, largest_difference, likeliest
from pressroom.engines._parity_reference import Expected
from pressroom.engines.parity import PROMPTS, PROMPTS_VERSION
from pressroom.kernel import CapabilityError, EngineError, PressroomError

# --- the bound --------------------------------------------------------------------------------------------------------

LOGITS = st.lists(st.floats(-12, 12), min_size=2, max_size=30)


def probabilities(logits: list[float]) -> np.ndarray:
    raised = np.exp(np.array(logits) - max(logits))
    return raised / raised.sum()


def best(p: np.ndarray, count: int) -> dict[int, float]:
    """The likeliest tokens with the logarithms of their probabilities, as engines give them."""
    return {int(token): math.log(p[token]) for token in np.argsort(-p, kind="stable")[:count]}


def exact(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


@given(st.data(), LOGITS)
@settings(max_examples=300, deadline=None)
def test_it_is_a_lower_bound_and_exact_where_all_is_known(data: st.DataObject, logits: list[float]) -> None:
    p = probabilities(logits)
    q = probabilities(data.draw(st.lists(st.floats(-12, 12), min_size=len(logits), max_size=len(logits))))
    ours, theirs = (data.draw(st.integers(1, len(logits))) for _ in "pq")
    # What is left over is not told from a millionth.
    assert 0 <= divergence(best(p, ours), best(q, theirs)) <= exact(p, q) + 1e-5
    assert divergence(best(p, len(p)), best(q, len(q))) == pytest.approx(exact(p, q), abs=1e-5)
    assert divergence(best(p, ours), best(p, theirs)) == pytest.approx(0, abs=1e-5)


def test_engines_that_name_other_tokens_altogether_are_found_out() -> None:
    p, q = probabilities([9, 8, 0, 0, 0, 0]), probabilities([0, 0, 0, 0, 8, 9])
    # What the reference does not name is at most as likely as the least that it names, and no more than what is left.
    assert divergence(best(p, 2), best(q, 2)) > 4
    assert divergence(best(p, 2), best(p, 1)) < 1e-9


def test_more_tokens_make_it_sharper() -> None:
    chance = np.random.default_rng(1)
    p, q = (probabilities(list(chance.normal(0, 3, 500))) for _ in "pq")
    bounds = [divergence(best(p, 200), best(q, count)) for count in (1, 5, 20, 200)]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1] <= exact(p, q)


def test_ties_and_differences() -> None:
    assert likeliest({7: -1.0, 3: -1.0, 5: -2.0}) == 3
    assert largest_difference({1: math.log(0.5), 2: math.log(0.2)}, {1: math.log(0.4)}) == pytest.approx(0.1)
    assert largest_difference({1: -1.0}, {2: -1.0}) == 1


# --- what engines answer ----------------------------------------------------------------------------------------------


class Answering:
    """A server that answers completions as `answer(body)` says: a status and a JSON value, or bytes."""

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, Any]]) -> None:
        outer = self
        self.asked: list[dict[str, Any]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, {"data": [{"id": "called"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                self._say(*answer(body))

            def _say(self, status: int, value: Any) -> None:
                raw = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = Endpoint(host="127.0.0.1", port=self._server.server_port, pid=0)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def answering() -> Iterator[Callable[..., Answering]]:
    made: list[Answering] = []

    def make(answer: Callable[[dict[str, Any]], tuple[int, Any]]) -> Answering:
        made.append(Answering(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


P = {5: math.log(0.7), 8: math.log(0.2), 9: math.log(0.05)}
REFERENCE = ParityReference(
    by="somebody",
    vocabulary=10,
    expected=(Expected(tokens=(1, 2, 3), likeliest=P), Expected(tokens=(4,) * 100, likeliest=P)),
)
TWO = ("one", "two")


def as_llamacpp(found: dict[int, float] | None) -> dict[str, Any]:
    top = None if found is None else [{"id": i, "token": "x", "logprob": p} for i, p in found.items()]
    return {"choices": [{"text": "x", "logprobs": top and {"content": [{**top[0], "top_logprobs": top}]}}]}


def as_vllm(found: dict[int, float]) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"top_logprobs": [{f"token_id:{i}": p for i, p in found.items()}]}}]}


def check(endpoint: Endpoint, engine: str = "llamacpp", **more: Any) -> Parity:
    return check_parity(endpoint, None, engine=engine, prompts=TWO, reference=REFERENCE, **more)


def test_an_engine_that_says_the_same(answering: Callable[..., Answering]) -> None:
    engine = answering(lambda body: (200, as_llamacpp(P)))
    found = check(engine.endpoint)
    assert (found.kl_mean, found.kl_max, found.top1_agreement, found.repeats) == (0, 0, 1, 0)
    assert found.verdict == "equal" and found.reference == "somebody" and len(found.prompts) == 2
    # Tokens go as they are, nothing comes from a cache of prompts, and the first prompt is asked twice.
    assert [body["prompt"] for body in engine.asked[1:]] == [[1, 2, 3], [1, 2, 3], [4] * 100]
    assert all(body["cache_prompt"] is False and body["model"] == "called" for body in engine.asked)
    record = json.loads(json.dumps(found.as_dict()))
    assert record["verdict"] == "equal" and record["prompts"][0]["expected"] == 5


def test_one_that_says_something_else(answering: Callable[..., Answering]) -> None:
    other = {8: math.log(0.7), 5: math.log(0.2), 9: math.log(0.05)}
    answers = iter([P, P, P, other])
    found = check(answering(lambda body: (200, as_vllm(next(answers)))).endpoint, engine="vllm")
    wanted = 0.5 * math.log(0.7 / 0.2)  # the rest, 0.05, is the same
    assert found.kl_max == pytest.approx(wanted) and found.kl_mean == pytest.approx(wanted / 2)
    assert found.top1_agreement == 0.5 and found.verdict == "different"
    assert [row.agrees for row in found.prompts] == [True, False]
    assert found.prompts[1].found_probability == pytest.approx(0.7)


def test_answers_that_do_not_repeat_are_told(answering: Callable[..., Answering]) -> None:
    answers = iter([P, P, {**P, 8: math.log(0.1)}, P])
    found = check(answering(lambda body: (200, as_llamacpp(next(answers)))).endpoint)
    assert found.repeats == pytest.approx(0.1)


def test_the_most_logprobs_that_an_engine_gives(answering: Callable[..., Answering]) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if body["logprobs"] > 20:
            return 400, {"error": {"message": "at most 20", "code": None}}
        return 200, as_vllm(P)

    engine = answering(answer)
    assert check(engine.endpoint, engine="vllm").verdict == "equal"
    assert [body["logprobs"] for body in engine.asked] == [2000, 20, 20, 20, 20]
    assert len({body["cache_salt"] for body in engine.asked[1:]}) == 4, "each with a cache of its own"


def test_half_a_character_is_forced_into_another_token(answering: Callable[..., Answering]) -> None:
    # llama.cpp gives no logprobs where the likeliest token is only a part of a character.
    engine = answering(lambda body: (200, as_llamacpp(P if "logit_bias" in body or len(body["prompt"]) > 3 else None)))
    assert check(engine.endpoint).verdict == "equal"
    assert {"8": 1000.0} in [body.get("logit_bias") for body in engine.asked]


def test_prompts_over_the_context_are_left_out(answering: Callable[..., Answering]) -> None:
    engine = answering(lambda body: (200, as_llamacpp(P)))
    there = Endpoint(host=engine.endpoint.host, port=engine.endpoint.port, pid=0, context=50)
    found = check(there)
    assert len(found.prompts) == 1 and "1 left out" in found.how
    tiny = Endpoint(host=engine.endpoint.host, port=engine.endpoint.port, pid=0, context=2)
    assert check(tiny).verdict == "unchecked"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((400, {"error": {"message": "no logprobs here"}}), "no logprobs here"),
        ((404, {"error": {"message": "there are no completions"}}), "404"),
        ((200, as_llamacpp(None)), "no logprobs"),
        ((200, {"choices": [{"text": "x"}]}), "form"),
        ((200, {"choices": [{"logprobs": {"top_logprobs": [{" word": -1.0}]}}]}), "form"),
        ((200, as_vllm({1: 5.0})), "form"),
        ((200, as_vllm({1: -99999.0})), "form"),
        ((200, {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"id": "x", "logprob": 0}]}]}}]}), "form"),
    ],
)
def test_engines_without_usable_logprobs_are_unchecked(
    answering: Callable[..., Answering], answer: tuple[int, Any], reason: str
) -> None:
    found = check(answering(lambda body: answer).endpoint)
    assert found.verdict == "unchecked" and found.kl_mean is None and reason in found.reason


@pytest.mark.parametrize(
    "answer", [(500, {}), (200, b"not JSON"), (200, []), (200, {"choices": []}), (200, b"[" * 50_000)]
)
def test_engines_that_answer_nonsense_are_errors(answering: Callable[..., Answering], answer: tuple[int, Any]) -> None:
    with pytest.raises(EngineError):
        check(answering(lambda body: answer).endpoint)


def test_one_that_is_not_there_is_an_error() -> None:
    with pytest.raises(EngineError, match="did not answer"):
        check(Endpoint(host="127.0.0.1", port=1, pid=0))


def test_a_reference_with_another_vocabulary_is_an_error(answering: Callable[..., Answering]) -> None:
    with pytest.raises(CapabilityError, match="token 10"):
        check(answering(lambda body: (200, as_llamacpp({**P, 10: -5.0}))).endpoint)
    with pytest.raises(EngineError, match="2 prompts, and 18"):
        check_parity(
            answering(lambda body: (200, as_llamacpp(P))).endpoint, None, engine="llamacpp", reference=REFERENCE
        )


def test_nothing_is_computed_for_engines_that_cannot_say(answering: Callable[..., Answering], tmp_path: Path) -> None:
    def never() -> ParityReference:
        raise AssertionError("the reference is not needed")

    assert check_parity(REFERENCE_NOWHERE, None, engine="echo", reference=never).verdict == "unchecked"
    mute = Endpoint(host="127.0.0.1", port=1, pid=0, capabilities=Capabilities(logprobs=False))
    assert check_parity(mute, tmp_path, engine="llamacpp").verdict == "unchecked"
    assert "no weights" in check_parity(REFERENCE_NOWHERE, None, engine="llamacpp").reason
    refusing = answering(lambda body: (400, {"error": {"message": "no"}}))
    assert check_parity(refusing.endpoint, None, engine="llamacpp", reference=never).verdict == "unchecked"


REFERENCE_NOWHERE = Endpoint(host="127.0.0.1", port=1, pid=0)


@pytest.mark.parametrize(
    ("mean", "worst", "verdict"),
    [
        (0.0, 0.0, "equal"),
        (0.004, 0.06, "close"),
        (0.02, 0.1, "close"),
        (0.02, 2.0, "different"),
        (0.3, 1, "different"),
    ],
)
def test_verdicts(mean: float, worst: float, verdict: str) -> None:
    assert Parity(kl_mean=mean, kl_max=worst, top1_agreement=1.0, repeats=0.0).verdict == verdict


# --- the reference ----------------------------------------------------------------------------------------------------


def test_a_reference_survives_being_kept() -> None:
    assert ParityReference.from_json(REFERENCE.to_json()) == REFERENCE


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": 9}', REFERENCE.to_json()[:-40]])
def test_what_was_kept_and_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        ParityReference.from_json(text)


def test_what_was_kept_is_taken(tmp_path: Path) -> None:
    (tmp_path / f"sha256-x-{PROMPTS_VERSION}.json").write_text(REFERENCE.to_json())
    assert kept_reference(tmp_path / "no-model", digest="sha256-x", folder=tmp_path) == REFERENCE


def test_models_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(PressroomError):
        parity_reference(tmp_path / "absent.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(PressroomError):
        kept_reference(tmp_path / "broken.gguf", digest="x", folder=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_prompts_are_many_and_varied() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) >= 16
    assert any("<|im_start|>" in prompt for prompt in PROMPTS) and any(not prompt.isascii() for prompt in PROMPTS)
    assert max(len(prompt) for prompt in PROMPTS) < 1000


# --- real engines -----------------------------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Endpoint]]:
    made: list[Any] = []

    def start(engine: str, model: Path, **spec: Any) -> Endpoint:
        given = {"name": "m", "context": 512, "slots": 1, "threads": 1, "log": tmp_path / "engine.log", **spec}
        made.append(create(engine, EngineSpec(model=model, **given)))
        return made[-1].start()

    yield start
    for engine in made:
        engine.stop()


def with_other_rope(model: Path, into: Path, base: float) -> Path:
    """The same weights, turned by other angles: what an engine makes of a scaling that it does not know."""
    raw = model.read_bytes()
    key = b"llama.rope.freq_base"
    at = raw.index(key) + len(key)
    assert struct.unpack_from("<I", raw, at) == (6,)
    into.write_bytes(raw[: at + 4] + struct.pack("<f", base) + raw[at + 8 :])
    return into


@pytest.mark.slow
def test_llamacpp_says_what_its_library_says(
    smollm2: Path, started: Callable[..., Endpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").mkdir()
    kept = tmp_path / "kept" / f"digest-{PROMPTS_VERSION}.json"
    kept.write_text("{ half of it")
    reference = kept_reference(smollm2, digest="digest", folder=kept.parent)
    assert "made again" in caplog.text and ParityReference.from_json(kept.read_text()) == reference
    (tmp_path / "file").touch()
    assert kept_reference(smollm2, digest="digest", folder=tmp_path / "file").expected == reference.expected
    assert "not kept" in caplog.text
    found = check_parity(started("llamacpp", smollm2), smollm2, engine="llamacpp", reference=reference)
    assert found.verdict == "equal" and found.repeats == 0 and found.top1_agreement == 1
    # The same arithmetic on the same weights: only the sums of the softmax are rounded otherwise.
    assert found.kl_max is not None and found.kl_max < 1e-3
    wrong = with_other_rope(smollm2, tmp_path / "wrong.gguf", 100.0)
    other = check_parity(started("llamacpp", wrong), smollm2, engine="llamacpp", reference=reference)
    assert other.verdict == "different"


@pytest.mark.slow
def test_a_reference_that_takes_too_long_is_ended(smollm2: Path) -> None:
    with pytest.raises(EngineError, match=r"took longer than 0.05 s"):
        parity_reference(smollm2, timeout_s=0.05)


@pytest.mark.slow
def test_transformers_says_what_float32_says(started: Callable[..., Endpoint], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from . import _tiny_models as tiny

    folder = tiny.save(*tiny.causal(), tmp_path / "tiny")
    prompts = [prompt for prompt in PROMPTS if len(prompt) < 60]
    endpoint = started("transformers", folder, context=64, options={"dtype": "float32"})
    found = check_parity(endpoint, folder, engine="transformers", prompts=prompts)
    assert found.verdict == "equal", found.reason
    assert found.kl_max is not None and found.kl_max < 1e-5 and "float32" in found.reference
