"""The batch, the cache of prefixes and the choice of tokens, against what the library does for one sequence alone."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from pressroom.engines._transformers.answer import Answer, Piece
from pressroom.engines._transformers.apart import ApartRows
from pressroom.engines._transformers.asked import Asked, Served
from pressroom.engines._transformers.asked import read as read_request
from pressroom.engines._transformers.picking import Picker, Sampling, pick
from pressroom.engines._transformers.prefixes import Prefixes
from pressroom.engines._transformers.rows import Model, Prompt, Rows
from pressroom.engines._transformers.scheduler import Scheduler
from pressroom.engines._transformers.vocabulary import Vocabulary

from . import _tiny_models as tiny

KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Qwen3": {},
    "Gemma3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3},
    "Bloom": {"n_layer": 2, "n_head": 4},
}
#: Remembers more than keys and values.
APART: dict[str, dict[str, Any]] = {"Mamba": {"state_size": 8}}


def _causal(kind: str) -> tuple[Any, Any]:
    import transformers

    if kind == "Gemma3":
        torch.manual_seed(3)
        tokenizer = tiny.byte_level()
        config = transformers.Gemma3TextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=512, initializer_range=0.5, **KINDS[kind],
        )  # fmt: skip
        model = transformers.Gemma3ForCausalLM(config).eval()
        return model, tokenizer
    return tiny.causal(kind, **{**KINDS, **APART}[kind])


@pytest.fixture(scope="module", params=[*KINDS, *APART])
def kind(request: pytest.FixtureRequest) -> tuple[Model, Served]:
    return _served(*_causal(request.param))


@pytest.fixture(scope="module")
def llama() -> tuple[Model, Served]:
    return _served(*_causal("Llama"))


def _served(model: Any, tokenizer: Any) -> tuple[Model, Served]:
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    served = Served(name="tiny", vocabulary=vocabulary, context=256, ends=(), usual={}, template=None, grammars=None)
    return Model(model, torch.device("cpu")), served


def _alone(model: Model, prompt: Sequence[int], tokens: int) -> list[int]:
    """What the library's own `generate` answers."""
    given = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = model.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


class _Running:
    """A scheduler whose answers are collected."""

    def __init__(self, model: Model, served: Served, *, slots: int = 4, cache_bytes: int = 1 << 24) -> None:
        rows = Rows(model, slots) if model.batches else ApartRows(model)
        self.served = served
        self.rows = rows
        self.finished: dict[Answer, threading.Event] = {}
        self.pieces: dict[Answer, Piece] = {}
        cache = cache_bytes if model.batches else 0
        self.scheduler = Scheduler(model, rows, slots=slots, cache_bytes=cache, tell=self._tell)
        self.scheduler.start()

    def _tell(self, news: list[tuple[Answer, Piece]]) -> None:
        for answer, piece in news:
            self.pieces[answer].add(piece)
            if piece.finish or piece.error:
                self.finished[answer].set()

    def submit(self, prompt: Sequence[int], **fields: Any) -> Answer:
        asked = self.asked(prompt, **fields)
        answer = Answer(asked, self.served, list(prompt), 0)
        self.pieces[answer] = Piece()
        self.finished[answer] = threading.Event()
        assert self.scheduler.submit([answer])
        return answer

    def asked(self, prompt: Sequence[int], **fields: Any) -> Asked:
        return read_request({"prompt": list(prompt), "temperature": 0, **fields}, self.served, chat=False)

    def wait(self, answer: Answer) -> list[int]:
        assert self.finished[answer].wait(60), "it did not finish"
        piece = self.pieces[answer]
        assert piece.error is None, piece.error
        return answer.tokens[answer.prompt_tokens :]


def _prompts(count: int, *, longest: int = 60, seed: int = 0) -> Iterator[list[int]]:
    chance = random.Random(seed)
    for _ in range(count):
        yield [chance.randrange(5, 350) for _ in range(chance.randrange(1, longest))]


def test_answers_do_not_depend_on_who_else_is_there(kind: tuple[Model, Served]) -> None:
    model, served = kind
    running = _Running(model, served)
    chance = random.Random(2)
    wanted = [(prompt, chance.randrange(1, 40)) for prompt in _prompts(16)]
    answers = [running.submit(prompt, max_tokens=tokens) for prompt, tokens in wanted]
    for (prompt, tokens), answer in zip(wanted, answers, strict=True):
        assert running.wait(answer) == _alone(model, prompt, tokens)


def test_a_long_prompt_is_read_in_pieces(kind: tuple[Model, Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pressroom.engines._transformers.scheduler._PIECE", 16)
    model, served = kind
    running = _Running(model, served)
    (short,) = _prompts(1, longest=10, seed=4)
    long = [5 + at % 300 for at in range(100)]
    first = running.submit(short, max_tokens=30)
    second = running.submit(long, max_tokens=5)
    assert running.wait(second) == _alone(model, long, 5)
    assert running.wait(first) == _alone(model, short, 30)


def test_equal_beginnings_are_read_once(kind: tuple[Model, Served]) -> None:
    model, served = kind
    running = _Running(model, served)
    beginning = [7 + at for at in range(40)]
    first = running.submit([*beginning, 300], max_tokens=4)
    said = running.wait(first)
    assert first.cached_tokens == 0
    more = [[*beginning, 301, 302], [*beginning[:20], 9, 9], [*beginning, 300], [*beginning, 300, *said, 55]]
    known = (40, 20, 40, 44) if model.batches else (0, 0, 0, 0)
    answers = [running.submit(prompt, max_tokens=6) for prompt in more]
    for prompt, answer, cached in zip(more, answers, known, strict=True):
        assert running.wait(answer) == _alone(model, prompt, 6)
        assert answer.cached_tokens == cached
    fresh = running.submit([*beginning, 301, 302], max_tokens=6, cache_prompt=False)
    running.wait(fresh)
    assert fresh.cached_tokens == 0


def test_logits_in_company_are_those_alone(llama: tuple[Model, Served]) -> None:
    model, _ = llama
    rows = Rows(model, 3)
    prompts = list(_prompts(3, longest=30, seed=9))
    with torch.inference_mode():
        reading = rows.read([Prompt(prompt) for prompt in prompts])
        read = reading.step(100)
        for row, prompt in enumerate(prompts):
            alone = model.model(torch.tensor([prompt])).logits[0, -1]
            assert torch.allclose(read[row], alone, atol=1e-4)
            rows.join(reading.kept(row))
        for step in range(300):
            tokens = [5 + (step * 7 + row) % 300 for row in range(rows.count)]
            logits = rows.step(tokens)
            for prompt, token in zip(prompts, tokens, strict=True):
                prompt.append(token)
            if step in (40, 90):
                rows.leave(0)
                prompts[0] = prompts[-1]
                prompts.pop()
            if step % 60 == 0:
                alone = model.model(torch.tensor([prompts[-1]])).logits[0, -1]
                assert torch.allclose(logits[len(prompts) - 1], alone, atol=1e-3), step
    assert rows.buffers[0][0].shape[2] <= 512, "columns behind every row are used again"


def test_memory_follows_the_longest_row_and_not_time(llama: tuple[Model, Served]) -> None:
    model, served = llama
    running = _Running(model, served, slots=2)
    # One answer always runs, so the batch never becomes empty.
    before = running.submit([9], max_tokens=30)
    for _ in range(40):
        after = running.submit([9], max_tokens=30)
        running.wait(before)
        before = after
    running.wait(before)
    assert isinstance(running.rows, Rows)
    assert running.rows.buffers[0][0].shape[2] == 256


def test_who_leaves_makes_room(llama: tuple[Model, Served]) -> None:
    model, served = llama
    running = _Running(model, served, slots=1)
    endless = running.submit([5, 6, 7], max_tokens=250)
    behind = running.submit([5, 6, 8], max_tokens=3)
    running.scheduler.cancel(endless)
    assert running.wait(behind) == _alone(model, [5, 6, 8], 3)
    assert running.finished[endless].wait(60)
    assert running.pieces[endless].finish == "cancelled"


def test_a_paused_answer_gives_its_place_and_goes_on(llama: tuple[Model, Served]) -> None:
    model, served = llama
    running = _Running(model, served, slots=1, cache_bytes=0)
    slow = running.submit([5, 6, 7], max_tokens=200)
    running.scheduler.pause(slow)
    other = running.submit([5, 6, 8], max_tokens=3)
    assert running.wait(other) == _alone(model, [5, 6, 8], 3)
    assert not running.finished[slow].is_set()
    running.scheduler.resume(slow)
    assert running.wait(slow) == _alone(model, [5, 6, 7], 200)


def test_a_failing_step_fails_its_answers_and_nobody_else(
    llama: tuple[Model, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, served = llama
    running = _Running(model, served)

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Model, "forward", broken)
        lost = running.submit([5, 6, 7], max_tokens=5)
        assert running.finished[lost].wait(60)
    problem = running.pieces[lost].error
    assert problem is not None and problem.status == 500 and "out of memory" in problem.message
    assert running.wait(running.submit([5, 6, 7], max_tokens=5)) == _alone(model, [5, 6, 7], 5)


def test_numbers_that_are_none_spoil_only_their_own_answer(
    llama: tuple[Model, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, served = llama
    running = _Running(model, served)
    step = Rows.step

    def spoiled(rows: Rows, tokens: Sequence[int]) -> Any:
        logits = step(rows, tokens)
        if rows.count == 2:
            rows.buffers[0][0][1] = float("nan")
            logits[1] = float("nan")
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "step", spoiled)
        good = running.submit([5, 6, 7], max_tokens=40)
        bad = running.submit([5, 6, 8], max_tokens=40)
        assert running.finished[bad].wait(60) and running.wait(good) == _alone(model, [5, 6, 7], 40)
    assert running.pieces[bad].error is not None


def test_too_many_are_refused(llama: tuple[Model, Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pressroom.engines._transformers.scheduler._MOST_WAITING", 2)
    model, served = llama
    scheduler = Scheduler(model, Rows(model, 1), slots=1, cache_bytes=0, tell=lambda _: None)
    answers = [Answer(_Running.asked(_Asker(served), [5]), served, [5], 0) for _ in range(3)]
    assert not scheduler.submit(answers)
    assert scheduler.submit(answers[:2])
    assert scheduler.counts["waiting"] == 2 and scheduler.counts["running"] == 0


class _Asker(_Running):
    def __init__(self, served: Served) -> None:
        self.served = served


# The cache of prefixes


def _kept(tokens: int, mark: float = 0.0) -> list[tuple[Any, Any]]:
    return [(torch.full((2, tokens, 4), mark), torch.full((2, tokens, 4), mark)) for _ in range(2)]


def test_the_longest_prefix_is_found() -> None:
    prefixes = Prefixes(1 << 20)
    shared = list(range(20))
    prefixes.add([*shared, 1], _kept(21, 1.0))
    prefixes.add([*shared, 2, 3, 4], _kept(23, 2.0))
    known, kept = prefixes.find([*shared, 2, 3, 5])
    assert known == 22 and kept is not None
    assert kept[0][0].shape == (2, 22, 4) and float(kept[1][1][0, 0, 0]) == 2.0
    assert prefixes.find([*shared, 1])[0] == 20, "the last token is always read: its logits are needed"
    assert prefixes.find(shared[:7]) == (0, None)
    assert prefixes.find([99, *shared]) == (0, None)
    assert prefixes.find([]) == (0, None)
    assert prefixes.holds([*shared, 2, 3]) and not prefixes.holds([*shared, 9])


def test_longer_ones_replace_shorter_ones_and_the_unused_go() -> None:
    prefixes = Prefixes(4000)
    prefixes.add(list(range(10)), _kept(10))
    one = prefixes.bytes
    prefixes.add(list(range(12)), _kept(12))
    assert prefixes.bytes == one * 12 // 10 and prefixes.find(list(range(13)))[0] == 12
    prefixes.add(list(range(11)), _kept(11))
    assert prefixes.bytes == one * 12 // 10, "it is known already"
    prefixes.add([50 + n for n in range(12)], _kept(12))
    prefixes.find(list(range(13)))
    prefixes.add([100 + n for n in range(12)], _kept(12))
    assert prefixes.bytes <= 4000
    assert prefixes.find(list(range(13)))[0] == 12 and prefixes.find([50 + n for n in range(13)]) == (0, None)
    prefixes.add([200 + n for n in range(100)], _kept(100))
    assert prefixes.find([200 + n for n in range(100)]) == (0, None), "it is larger than all of the memory"
    prefixes.clear()
    assert prefixes.bytes == 0 and prefixes.find(list(range(13))) == (0, None)


# Which token comes next


def _draws(sampling: Sampling, logits: Any, count: int = 400) -> list[int]:
    picker = Picker(sampling, ())
    return [pick(logits[None], [picker])[0].token for _ in range(count)]  # type: ignore[union-attr]


LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03]))


def test_chance_follows_the_probabilities() -> None:
    draws = _draws(Sampling(seed=1), LOGITS, 4000)
    for token, probability in enumerate([0.5, 0.25, 0.15, 0.07, 0.03]):
        assert draws.count(token) / 4000 == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(temperature=0), {0}),
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_k=1), {0}),
        (Sampling(top_p=0.5), {0}),
        (Sampling(top_p=0.51), {0, 1}),
        (Sampling(top_p=0.89), {0, 1, 2}),
        (Sampling(top_p=0.0), {0}),
        (Sampling(min_p=0.29), {0, 1, 2}),
        (Sampling(top_k=4, top_p=0.6), {0, 1}),
        (Sampling(top_k=3, min_p=0.4), {0, 1}),
        (Sampling(logit_bias={0: -100.0, 4: 100.0}), {4}),
        (Sampling(allowed=(1, 3)), {1, 3}),
        (Sampling(temperature=0, allowed=(1, 3)), {1}),
    ],
)
def test_what_may_be_drawn(sampling: Sampling, possible: set[int]) -> None:
    assert set(_draws(dataclasses.replace(sampling, seed=3), LOGITS)) == possible


def test_few_or_all_tokens_looked_at_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2000)
    for sampling in (Sampling(top_p=0.4, seed=5), Sampling(top_p=0.999, seed=5), Sampling(min_p=0.2, seed=5)):
        some = _draws(sampling, logits, 100)
        with monkeypatch.context() as patch:
            patch.setattr("pressroom.engines._transformers.picking._LIKELIEST", 2000)
            assert _draws(sampling, logits, 100) == some


def test_the_same_seed_draws_the_same() -> None:
    assert _draws(Sampling(seed=7), LOGITS) == _draws(Sampling(seed=7), LOGITS)
    assert _draws(Sampling(seed=7), LOGITS) != _draws(Sampling(seed=8), LOGITS)


def test_a_low_temperature_sharpens() -> None:
    assert _draws(Sampling(temperature=0.2, seed=1), LOGITS, 1000).count(0) > 950
    assert _draws(Sampling(temperature=5, seed=1), LOGITS, 1000).count(0) < 350


def test_penalties() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0]])

    def after(sampling: Sampling, prompt: Sequence[int], said: Sequence[int]) -> list[float]:
        picker = Picker(dataclasses.replace(sampling, temperature=0, logprobs=0), prompt)
        altered = logits[0].clone()
        picker.alter(altered.clone())
        for token in said:
            picker.said(token)
        picker.alter(altered)
        return altered.tolist()

    assert after(Sampling(presence_penalty=1), [1], [0, 0]) == [1.0, 1.5, -1.0]
    assert after(Sampling(frequency_penalty=0.5), [1], [0, 0]) == [1.0, 1.5, -1.0]
    assert after(Sampling(frequency_penalty=-1), [], [2]) == [2.0, 1.5, 0.0]
    assert after(Sampling(repetition_penalty=2), [1], [2]) == [2.0, 0.75, -2.0]


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    sampling = Sampling(temperature=0, logit_bias={3: 100.0}, logprobs=2)
    (picked,) = pick(LOGITS[None], [Picker(sampling, ())])
    assert picked is not None and picked.token == 3 and picked.logprob is not None
    assert picked.logprob == pytest.approx(float(LOGITS[3]), abs=1e-6)
    assert [token for token, _ in picked.likeliest] == [0, 1]
    assert [logprob for _, logprob in picked.likeliest] == pytest.approx(LOGITS[:2].tolist(), abs=1e-6)


def test_one_row_draws_as_it_does_alone() -> None:
    rows = torch.stack([LOGITS, LOGITS.flip(0), LOGITS])
    pickers = [Picker(Sampling(temperature=0), ()), Picker(Sampling(seed=4), ()), Picker(Sampling(temperature=0), ())]
    together = [pick(rows, pickers)[1].token for _ in range(50)]  # type: ignore[union-attr]
    assert together == _draws(Sampling(seed=4), LOGITS.flip(0), 50)
