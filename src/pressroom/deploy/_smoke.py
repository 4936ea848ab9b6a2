"""Questions to an engine itself, before it gets a request of anybody's: does it answer, with text, as expected?"""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pressroom.deploy._nonsense import nonsense
from pressroom.deploy.checks import Checks

# Asked of every new version: plain, in no need of knowledge, each with an answer of several words.
_PROMPTS = (
    "Write one sentence about the sea.",
    "Name three animals and say where each of them lives.",
    "What do people use a hammer for?",
    "Tell me how to make a cup of tea.",
)
_TOKENS = 64
_TIMEOUT_S = 120.0
_MOST_BYTES = 8 << 20
# More is not written down of an answer that is shown.
_SHOWN = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """An engine to ask: `model` is what it calls itself."""

    host: str
    port: int
    model: str
    chat: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """An answer, or what went wrong instead."""

    text: str = ""
    wrong: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoke:
    """What came of it: `reason` is why the version must not be let on, '' where it may."""

    reason: str = ""
    figures: Mapping[str, Any] | None = None


def smoke(checks: Checks, new: Asked, old: Asked | None, *, stopping: threading.Event | None = None) -> Smoke:
    """Ask `new` all that `checks` ask, and `old` where the two are compared. Takes as long as the answers take."""
    stop = stopping or threading.Event()
    figures: dict[str, Any] = {}
    if checks.smoke:
        for number, question in enumerate(checks.smoke, 1):
            if stop.is_set():
                return Smoke(reason="the server ended")
            said = ask(new, question["messages"], tokens=int(question.get("max_tokens", _TOKENS)))
            wrong = said.wrong or judged(said.text, question)
            if wrong:
                shown = f" ({said.text.strip()[:_SHOWN]!r})" if said.text.strip() else ""
                return Smoke(reason=f"question {number} of the smoke set: {wrong}{shown}", figures={"smoke": number})
        figures["smoke"] = len(checks.smoke)
    if checks.sanity:
        found = _sane(new, old, stop)
        if found:
            return Smoke(reason=found, figures=figures)
        figures["sanity"] = "text"
    if checks.agreement is not None and old is not None:
        share = agreement(checks, new, old, stop)
        figures["agreement"] = round(share, 4)
        if share < checks.agreement:
            return Smoke(
                reason=f"its first token is the old version's on {share:.0%} of the questions, less than the "
                f"{checks.agreement:.0%} that `agreement` asks for",
                figures=figures,
            )
    return Smoke(figures=figures)


def _sane(new: Asked, old: Asked | None, stop: threading.Event) -> str:
    """Why what it says cannot be meant, '' where it can: by most of the answers, one alone may go wrong. Where the old
    version says no better (a model that was never taught to chat), it is no reason."""
    found = _troubles(new, stop)
    for said, trouble in found:
        if said.wrong:  # it does not answer at all
            return trouble
    bad = [trouble for _, trouble in found if trouble]
    if 2 * len(bad) <= len(found):
        return ""
    if old is not None:
        before = [trouble for said, trouble in _troubles(old, stop) if trouble and not said.wrong]
        if 2 * len(before) > len(found):
            return ""
    return f"{bad[0]} ({len(bad)} of {len(found)} answers are no text that means anything)"


def _troubles(asked: Asked, stop: threading.Event) -> list[tuple[Said, str]]:
    found = []
    for prompt in _PROMPTS:
        if stop.is_set():
            break
        said = ask(asked, [{"role": "user", "content": prompt}], tokens=_TOKENS)
        found.append((said, said.wrong or nonsense(said.text)))
    return found


def agreement(checks: Checks, new: Asked, old: Asked, stop: threading.Event) -> float:
    """On which share of the questions both begin with the same token, when neither takes any chance."""
    asked = [question["messages"] for question in checks.smoke]
    asked = asked or [[{"role": "user", "content": prompt}] for prompt in _PROMPTS]
    same = 0
    for messages in asked:
        if stop.is_set():
            break
        first, second = (ask(each, messages, tokens=1) for each in (new, old))
        same += not first.wrong and not second.wrong and first.text == second.text
    return same / len(asked)


def judged(text: str, question: Mapping[str, Any]) -> str:
    """What is wrong with an answer to a question of a smoke set, '' where nothing is."""
    if "expect" in question and question["expect"] not in text:
        return f"{question['expect'][:_SHOWN]!r} is not in the answer"
    if "pattern" in question and re.search(question["pattern"], text) is None:
        return f"the answer does not match {question['pattern'][:_SHOWN]!r}"
    if question.get("json"):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return "the answer is not JSON"
        return ""
    return nonsense(text)


def ask(asked: Asked, messages: Sequence[Mapping[str, Any]], *, tokens: int, timeout_s: float = _TIMEOUT_S) -> Said:
    """One answer, greedily."""
    common = {"model": asked.model, "max_tokens": tokens, "temperature": 0}
    if asked.chat:
        status, answer = _post(asked, "/v1/chat/completions", {**common, "messages": list(messages)}, timeout_s)
        if status == 200 or status >= 500 or not status:
            return _said(status, answer, chat=True)
    # Weights without a template for chats still go on with a text.
    prompt = "\n".join(str(message["content"]) for message in messages)
    status, answer = _post(asked, "/v1/completions", {**common, "prompt": prompt}, timeout_s)
    return _said(status, answer, chat=False)


def _post(asked: Asked, path: str, body: Mapping[str, Any], timeout_s: float) -> tuple[int, bytes]:
    """Status and body; 0 and what went wrong where there is none."""
    connection = http.client.HTTPConnection(asked.host, asked.port, timeout=timeout_s)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        received = response.read(_MOST_BYTES + 1)
        return response.status, received
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}".encode()
    finally:
        connection.close()


def _said(status: int, answer: bytes, *, chat: bool) -> Said:
    if not status:
        return Said(wrong=f"it does not answer: {answer.decode(errors='replace')}")
    if status != 200:
        return Said(wrong=f"it answers with status {status}: {answer[:200].decode(errors='replace')}")
    try:
        choice = json.loads(answer.decode("utf-8"))["choices"][0]
        message = choice["message"] if chat else choice
        text = message.get("content" if chat else "text") or ""
        # One that thinks first may not have come to its answer in so few tokens.
        text = text or message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(text, str) or not choice.get("finish_reason"):
            raise TypeError("no text, or no end")
    except UnicodeDecodeError:
        return Said(wrong="its answer is not UTF-8")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        return Said(wrong=f"its answer is not one of the protocol: {error!r}")
    return Said(text=text)
