"""An exported version run in its engine: it loads, answers, and is held against the version it was made of."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.kernel import CapabilityError, EngineError, Note, Progress, Workspace, this_machine
from pressroom.registry.base import Figure, Version

if TYPE_CHECKING:
    from pressroom.engines import Endpoint

_PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "Water boils at a temperature of",
    "def add(a, b):\n    return",
)
_TOKENS = 12
# As for GGUF files, so that the figures can be compared: windows of 512 tokens, each scored on its second half.
_WINDOW = 512
_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What an engine made of an exported version: `answers` to the prompts beside `before`, those of its parent ([]:
    it was not run), and the figures for the sheet."""

    engine: str
    answers: list[str]
    before: list[str]
    figures: list[Figure]


def must_run(workspace: Workspace, target: str) -> None:
    """Before anything is written: whether the engine can run here. Raises CapabilityError."""
    from pressroom.engines import engine_class

    trouble = engine_class(target).unusable(workspace)
    if trouble:
        raise CapabilityError(
            f"what is exported for {target} is run there before it counts, and it cannot run here: {trouble}",
            hint="Install the engine, or leave the run out with --no-measure.",
            engine=target,
        )


def run_exported(workspace: Workspace, version: Version, target: str, *, parent: Version | None, text: str = "") -> Ran:
    """Load the version in its engine, let it answer greedily, and compare with its parent in its own engine; with vLLM
    its perplexity on the `text` as well, scored as that of GGUF files is.

    Raises:
        EngineError: it does not load, an answer is empty, or no answer begins as the parent's does (where weights were
            only carried over; those that were rounded may differ).
    """
    from pressroom.engines import engines_for
    from pressroom.registry import Registry

    registry = Registry(workspace)
    model = registry.materialise(version)
    figures: list[Figure] = []
    with _running(workspace, target, version, model) as endpoint:
        answers = _answers(endpoint, version.name)
        where = f"{this_machine()}; {target} ({endpoint.version})"
        if target == "vllm" and text and _context(version) > _WINDOW:
            figures += _perplexity(workspace, endpoint, version.name, model, text, where)
    before: list[str] = []
    its_own = next(iter(engines_for(workspace, parent.format)), "") if parent is not None else ""
    if parent is not None and its_own and registry.holds(parent):
        with _running(workspace, its_own, parent, registry.materialise(parent)) as endpoint:
            before = _answers(endpoint, parent.name)
        figures.insert(0, _agreement(answers, before, f"{parent.name}:{parent.number} in {its_own}", where))
    _must_be_sound(version, target, answers, before)
    registry.add_figures(version.ref, figures)
    return Ran(engine=target, answers=answers, before=before, figures=figures)


def _must_be_sound(version: Version, target: str, answers: list[str], before: list[str]) -> None:
    called = f"{version.name}:{version.number}"
    empty = [prompt for prompt, answer in zip(_PROMPTS, answers, strict=True) if not answer.strip()]
    if len(empty) == len(_PROMPTS):
        raise EngineError(
            f"{called} loads in {target}, and answers nothing",
            hint="The version is kept for a look: `press rm` removes it.",
        )
    if before and "scheme" not in version.tags and not any(_same_words(*pair) for pair in _pairs(answers, before)):
        raise EngineError(
            f"{called} says other things in {target} than the version it was made of",
            hint="The file does not hold the same model: do not use it.",
            answers=answers,
            before=before,
        )


def _agreement(answers: list[str], before: list[str], called: str, where: str) -> Figure:
    shares = [_same_words(*pair) / max(1, len(pair[1].split())) for pair in _pairs(answers, before)]
    return Figure(
        name="answers_agree",
        value=round(sum(shares) / len(shares), 4),
        how=f"share of the words of {len(answers)} greedy answers of {_TOKENS} tokens, up to the first that differs, "
        f"that are those of {called}",
        where=where,
        at=time.time(),
    )


def _pairs(answers: list[str], before: list[str]) -> list[tuple[str, str]]:
    return list(zip(answers, before, strict=True))


def _same_words(answer: str, before: str) -> int:
    """How many words are the same up to the first that differs."""
    pairs = zip(answer.split(), before.split(), strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(before.split()))


def _context(version: Version) -> int:
    """Tokens that are enough for all that is asked, where the model was made for so many."""
    known = version.metadata.get("context_length")
    return min(2 * _WINDOW, known) if isinstance(known, int) else 2 * _WINDOW


@contextmanager
def _running(workspace: Workspace, engine: str, version: Version, model: Path) -> Iterator[Endpoint]:
    from pressroom.engines import EngineSpec, create, engine_class

    settings = workspace.settings.engines
    options = engine_class(engine).defaults(workspace)
    spec = EngineSpec(
        name=version.name,
        model=model,
        context=_context(version),
        slots=1,
        threads=settings.threads,
        start_timeout_s=settings.start_timeout_s,
        stop_timeout_s=settings.stop_timeout_s,
        options=options,
    )
    workspace.events.emit(Note(f"running {version.name}:{version.number} in {engine}"))
    running = create(engine, spec)
    try:
        yield running.start()
    finally:
        running.stop()


def _answers(endpoint: Endpoint, name: str) -> list[str]:
    body = {"model": name, "max_tokens": _TOKENS, "temperature": 0}
    return [str(_asked(endpoint, {**body, "prompt": prompt})["choices"][0]["text"]) for prompt in _PROMPTS]


def _asked(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        found = json.loads(data)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineError(f"the engine gave no answer: {error}", hint="Its log says more.", url=endpoint.url) from error
    finally:
        connection.close()
    if response.status != 200 or not isinstance(found, dict) or not found.get("choices"):
        raise EngineError(
            f"the engine refused a request: status {response.status}: {data[:300].decode(errors='replace')}",
            hint="Its log says more.",
            url=endpoint.url,
        )
    return found


def _perplexity(
    workspace: Workspace, endpoint: Endpoint, name: str, model: Path, text: str, where: str
) -> Iterator[Figure]:
    windows = list(_windows(model, text, workspace.settings.measure.windows))
    lost: list[float] = []
    for number, window in enumerate(windows):
        workspace.events.emit(Progress("measuring perplexity", number, len(windows), "windows"))
        body = {"model": name, "prompt": window, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        places = _asked(endpoint, body)["choices"][0]["prompt_logprobs"]
        first = _WINDOW // 2
        lost += [
            -float(place[str(token)]["logprob"])
            for token, place in zip(window[first + 1 :], places[first + 1 :], strict=True)
        ]
    if not lost:
        workspace.events.emit(Note("perplexity is not measured: the text is shorter than a window"))
        return
    mean = sum(lost) / len(lost)
    if not math.isfinite(mean):
        raise EngineError(f"{name} gives no numbers in vLLM", hint="The file is damaged, or the scheme not for it.")
    spread = math.sqrt(sum((each - mean) ** 2 for each in lost) / max(1, len(lost) - 1) / len(lost))
    how = (
        f"llama.cpp's convention, by vLLM's prompt_logprobs: the first {len(windows)} windows of {_WINDOW} tokens, "
        f"each scored on its second half ({len(lost)} tokens in all)"
    )
    now = time.time()
    yield Figure(name="perplexity", value=round(math.exp(mean), 4), how=how, where=where, at=now)
    yield Figure(name="perplexity_stderr", value=round(math.exp(mean) * spread, 4), how=how, where=where, at=now)


def _windows(model: Path, text: str, most: int) -> Iterator[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    for number in range(min(most, len(tokens) // _WINDOW)):
        window = tokens[number * _WINDOW : (number + 1) * _WINDOW]
        yield [whole[0], *window[1:]] if whole[:1] != plain[:1] else window
