"""An engine's own distribution of the first token after a prompt, over its own HTTP."""

from __future__ import annotations

import http.client
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pressroom.engines.base import Endpoint
from pressroom.kernel import EngineError

# Likeliest tokens asked for: the first of these that the engine gives. llama.cpp gives any number, vLLM 20 unless it is
# told otherwise, and OpenAI's own completions gave 5.
_COUNTS = (2000, 20, 5)
_MOST_BYTES = 64 << 20
_NUMBER = re.compile(r"token_id:(\d+)\Z")
# A cache of prompts gives the same answer but for rounding; without it, the same question gives the very same numbers.
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "llamacpp": {"cache_prompt": False},
    "transformers": {"return_tokens_as_token_ids": True, "cache_prompt": False},
    "vllm": {"return_tokens_as_token_ids": True, "cache_salt": "pressroom-parity"},
}
_DEFAULT_FIELDS: Mapping[str, Any] = {"return_tokens_as_token_ids": True}
# llama.cpp gives no logprobs where the likeliest token is only a part of a character. Another is forced then, which its
# server does after it has written down how likely each one is.
_MOST_FORCED = 8
_FORCE = 1000.0


class NoLogprobsError(EngineError):
    """The engine does not say how likely tokens are, or not which tokens it means."""


class Asking:
    """Asks a running engine for distributions."""

    def __init__(self, endpoint: Endpoint, *, engine: str, timeout_s: float = 300.0) -> None:
        self._endpoint = endpoint
        self._fields = _FIELDS.get(engine, _DEFAULT_FIELDS)
        self._force = engine == "llamacpp"
        self._timeout_s = timeout_s
        self._counts = list(_COUNTS)
        self._number = 0
        self._model = ""

    def try_out(self) -> None:
        """Ask for anything at all, before the reference is computed. Raises what `first_token` does."""
        self._complete((0, 1), {})

    def first_token(self, tokens: Sequence[int], *, likely: Iterable[int] = ()) -> dict[int, float]:
        """The likeliest tokens after the prompt, with the natural logarithms of their probabilities.

        `likely`: tokens that may come next, in case the engine must be made to say another one.

        Raises:
            NoLogprobsError: it does not give them.
            EngineError: it does not answer, or answers with something else.
        """
        answer = self._complete(tokens, {})
        forced = iter(list(likely)[1 : 1 + _MOST_FORCED])
        while self._force and answer["choices"][0].get("logprobs") is None:
            token = next(forced, None)
            if token is None:
                break
            answer = self._complete(tokens, {"logit_bias": {str(token): _FORCE}})
        return _distribution(answer)

    def _complete(self, tokens: Sequence[int], more: Mapping[str, Any]) -> Any:
        """One token after the prompt, with as many logprobs as the engine gives."""
        if not self._model:
            self._model = self._called()
        self._number += 1
        while True:
            body: dict[str, Any] = {
                "model": self._model,
                "prompt": list(tokens),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": self._counts[0],
                **self._fields,
                **more,
            }
            if "cache_salt" in body:  # what is kept under another salt is not used
                body["cache_salt"] = f"{body['cache_salt']}-{self._number}"
            status, answer = self._ask("POST", "/v1/completions", body)
            if status == 200:
                if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
                    raise EngineError("the engine's answer has no choices", hint="Its log says more.")
                return answer
            if status != 400 or len(self._counts) == 1:
                raise _refused(status, answer)
            self._counts.pop(0)

    def _called(self) -> str:
        """What the model calls itself: vLLM answers to that name only."""
        status, answer = self._ask("GET", "/v1/models", None)
        try:
            return str(answer["data"][0]["id"]) if status == 200 else "model"
        except (KeyError, IndexError, TypeError):
            return "model"

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        # One connection a question: llama.cpp's server closes them whatever it says of keeping them.
        connection = http.client.HTTPConnection(self._endpoint.host, self._endpoint.port, timeout=self._timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            received = response.read(_MOST_BYTES + 1)
            if len(received) > _MOST_BYTES:
                raise ValueError(f"an answer of more than {_MOST_BYTES} bytes")
            return response.status, json.loads(received)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise EngineError(
                f"the engine at {self._endpoint.url} did not answer {path} as it should: {error}",
                hint="Its log says more.",
                url=self._endpoint.url,
            ) from error
        finally:
            connection.close()


def _refused(status: int, answer: Any) -> EngineError:
    error = answer.get("error") if isinstance(answer, dict) else None
    message = str(error.get("message")) if isinstance(error, dict) else str(answer)[:200]
    kind = NoLogprobsError if status in (400, 404, 422, 501) else EngineError
    return kind(f"the engine answered status {status}: {message}", hint="Its log says more.", status=status)


def _distribution(answer: Any) -> dict[int, float]:
    """Token numbers and log-probabilities, in the form of llama.cpp (that of the chat API, with `id`) or of OpenAI's
    completions with tokens named `token_id:N`."""
    try:
        logprobs = answer["choices"][0]["logprobs"]
        if logprobs is None:
            raise NoLogprobsError("the engine gives no logprobs", hint="Take an engine that does, such as llamacpp.")
        if logprobs.get("content"):
            pairs = [(entry["id"], entry["logprob"]) for entry in logprobs["content"][0]["top_logprobs"]]
        else:
            pairs = [(_token(name), logprob) for name, logprob in logprobs["top_logprobs"][0].items()]
        # A token that cannot come has the logarithm of zero, which JSON has no number for.
        found = {int(token): float(value) for token, value in pairs if value is not None and value > -1e4}
        if not found or any(math.isnan(value) or value > 1e-3 for value in found.values()):
            raise ValueError("no log-probabilities in it")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NoLogprobsError(
            f"the engine's logprobs are not in a form that is known here: {error!r}",
            hint="Known are llama.cpp's, and OpenAI's with tokens named `token_id:N`.",
        ) from error
    return found


def _token(name: str) -> int:
    found = _NUMBER.match(name)
    if found is None:
        raise ValueError(f"a token is named {name[:40]!r}, not by its number")
    return int(found[1])
