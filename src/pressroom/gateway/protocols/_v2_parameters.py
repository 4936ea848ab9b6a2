"""Parameters of a request: the fields of OpenAI's endpoints under their own names, and a few of this protocol's.

They come in three ways, which mean the same: as `parameters` of the request, as tensors beside the text, and as the
JSON in `sampling_parameters`, which clients of Triton's vLLM backend send.
"""

from __future__ import annotations

from typing import Any

import orjson

from pressroom.gateway.protocols._v2_tensors import Invalid
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, EMBEDDING, ENGINE_FIELDS, Endpoint
from pressroom.kernel import did_you_mean

#: Sampling parameters, in the order an error lists them. Beside these, what engines document as their own.
SAMPLING = (
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "best_of",
    "response_format",
    "max_completion_tokens",
    "user",
)
#: Parameters of this protocol.
OWN = ("chat", "stream", "sampling_parameters", "exclude_input_in_output")
# Fields of engines that ask for something back which has no place in an answer of this protocol.
_REPORTING = frozenset((
    "n_probs", "parse_tool_calls", "post_sampling_probs", "prompt_logprobs", "return_progress", "return_tokens",
    "return_tokens_as_token_ids", "timings_per_token",
))  # fmt: skip
_ENGINE = ENGINE_FIELDS - _REPORTING
_ALLOWED = {
    CHAT.name: frozenset(name for name in (*SAMPLING, *_ENGINE) if name in CHAT.fields),
    COMPLETION.name: frozenset(name for name in (*SAMPLING, *_ENGINE) if name in COMPLETION.fields),
    EMBEDDING.name: frozenset(("dimensions", "user")),
}


class Wanted:
    """What the parameters of a request ask for. `stream` is None where they do not say."""

    __slots__ = ("chat", "fields", "stream")

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        #: None where they do not say: then it is what the engine can do.
        self.chat: bool | None = None
        self.stream: bool | None = None

    def take(self, name: str, value: Any) -> None:
        """Take one parameter. Which names are allowed is checked by `for_endpoint`, when all of them are known."""
        if name == "chat":
            self.chat = _flag(name, value)
        elif name == "stream":
            self.stream = _flag(name, value)
        elif name == "sampling_parameters":
            for inner, given in _sampling(value).items():
                self.take(inner, _plain(inner, given))
        elif name == "exclude_input_in_output":
            if not _flag(name, value):
                raise Invalid("Parameter 'exclude_input_in_output': answers here never repeat the text; send true.")
        elif name == "content_type":
            if value != "str":
                raise Invalid("Parameter 'content_type': text is all that is taken here; send 'str', or leave it out.")
        elif name != "triton_enable_empty_final_response":  # the last response always says that it is
            self.fields[name] = value

    def for_endpoint(self, endpoint: Endpoint) -> dict[str, Any]:
        """The fields for a request to `endpoint`.

        Raises:
            Invalid: there is no such parameter; the message lists those there are.
        """
        allowed = _ALLOWED[endpoint.name]
        if not self.fields.keys() <= allowed:
            unknown = next(name for name in self.fields if name not in allowed)
            raise Invalid(_unknown(unknown, endpoint))
        return self.fields


def _unknown(name: str, endpoint: Endpoint) -> str:
    name = str(name)[:80]
    if endpoint is EMBEDDING:
        return f"There is no parameter '{name}' for a model that embeds. Allowed: {', '.join(_ALLOWED[endpoint.name])}."
    listed = [*(each for each in SAMPLING if each in _ALLOWED[endpoint.name]), *OWN]
    known = [*listed, *_ENGINE]
    nearest = did_you_mean(name, known)
    return (
        f"There is no parameter '{name}' here. {nearest}{' ' if nearest else ''}Allowed: {', '.join(listed)}, and what "
        "llama.cpp and vLLM add, such as top_k, min_p and repeat_penalty."
    )


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise Invalid(f"Parameter '{name}' must be true or false.")
    return value


def _sampling(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise Invalid(f"Parameter 'sampling_parameters' is not valid JSON: {error}.") from None
    if type(value) is not dict:
        raise Invalid("Parameter 'sampling_parameters' must be a JSON object.")
    if "sampling_parameters" in value:
        raise Invalid("Parameter 'sampling_parameters' cannot hold itself.")
    return value


def _plain(name: str, value: Any) -> Any:
    """A number or a flag that came as text, as in `{"temperature": "0.1"}`, which Triton's examples send."""
    if type(value) is str and name not in ("stop", "user", "grammar"):
        try:
            plain = orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
        if type(plain) in (int, float, bool):
            return plain
    return value
