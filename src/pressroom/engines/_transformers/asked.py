"""What a request for text asks for, checked and in tokens.

A field is understood, or harmless by its meaning, or refused with 400: nothing is ignored in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pressroom.engines._transformers import calls
from pressroom.engines._transformers._fields import flag, integer, number, only, strings, token_ids
from pressroom.engines._transformers.chat import Template
from pressroom.engines._transformers.grammar import Grammars
from pressroom.engines._transformers.picking import Sampling
from pressroom.engines._transformers.refusal import Refusal, too_long, unsupported, wrong
from pressroom.engines._transformers.vocabulary import Vocabulary

# Answers one request may ask for: prompts times n.
_MOST_ANSWERS = 256
_MOST_LOGPROBS = 20
_MOST_STOPS = 16
# OpenAI's default of text completions; a chat goes on to the end of the context.
_USUAL_TOKENS = 16
# Below this, dividing by it leaves nothing but the likeliest token.
_COLD = 1e-4

# About the account and the billing at OpenAI.
_HARMLESS = frozenset((
    "metadata", "model", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "user",
))  # fmt: skip
# Fields that mean nothing with this value; any other is refused.
_NEUTRAL: dict[str, Any] = {
    "best_of": 1, "echo": False, "include_reasoning": True, "length_penalty": 1.0, "modalities": ["text"],
    "spaces_between_special_tokens": True, "store": False, "suffix": "", "typical_p": 1.0,
}  # fmt: skip
_BOTH = frozenset((
    "allowed_token_ids", "cache_prompt", "frequency_penalty", "ignore_eos", "include_stop_str_in_output",
    "json_schema", "logit_bias", "logprobs", "max_tokens", "min_p", "min_tokens", "n", "n_predict",
    "presence_penalty", "repeat_penalty", "repetition_penalty", "response_format", "return_tokens_as_token_ids",
    "seed", "skip_special_tokens", "stop", "stop_token_ids", "stream", "stream_options", "structured_outputs",
    "temperature", "top_k", "top_p",
))  # fmt: skip
_CHAT = _BOTH | {
    "add_generation_prompt", "chat_template_kwargs", "continue_final_message", "max_completion_tokens", "messages",
    "parallel_tool_calls", "tool_choice", "tools", "top_logprobs",
}  # fmt: skip
_COMPLETION = _BOTH | {"add_special_tokens", "prompt"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The model that is asked. `ends` are the tokens that end an answer, `usual` what its makers sample with."""

    name: str
    vocabulary: Vocabulary
    context: int
    ends: tuple[int, ...]
    usual: dict[str, float]
    template: Template | None
    grammars: Grammars | None

    @property
    def tools(self) -> bool:
        return self.grammars is not None and self.template is not None and self.template.knows_tools


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request for `n` answers to each of `prompts`, which are tokens. `tools` are the names that may be called;
    `forced`: the answer is one call."""

    chat: bool
    prompts: list[list[int]]
    n: int
    sampling: Sampling
    most: int | None
    least: int
    stops: tuple[str, ...]
    include_stop: bool
    stop_tokens: frozenset[int]
    skip_special: bool
    grammar: str | None
    tools: frozenset[str]
    forced: bool
    one_call: bool
    cache: bool
    stream: bool
    include_usage: bool
    tokens_as_ids: bool


def read(fields: Any, served: Served, *, chat: bool) -> Asked:
    """Check a request and turn its prompts into tokens; may take seconds for a long one.

    Raises:
        Refusal: it cannot be answered as it is.
    """
    if type(fields) is not dict:
        raise Refusal("The body of the request must be a JSON object.")
    fields = {name: value for name, value in fields.items() if value is not None}
    _known(fields, _CHAT if chat else _COMPLETION)
    if chat:
        if served.template is None:
            raise unsupported("messages", "this model has no chat template; ask /v1/completions.")
        tools, forced, prompts = _conversation(fields, served, served.template)
    else:
        tools, forced, prompts = [], False, _prompts(fields, served)
    n = integer(fields, "n", 1, _MOST_ANSWERS, 1)
    if n * len(prompts) > _MOST_ANSWERS:
        raise wrong(
            "n", f"At most {_MOST_ANSWERS} answers are given to one request; {n * len(prompts)} were asked for."
        )
    stream = flag(fields, "stream")
    options = fields.get("stream_options") or {}
    if type(options) is not dict or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise wrong("stream_options", "'stream_options' takes 'include_usage'.")
    if options.get("include_obfuscation"):
        raise unsupported("stream_options.include_obfuscation", "this engine does not pad its stream.")
    grammar = _grammar(fields, served, tools, forced=forced)
    # An answer that is held to a grammar has no other way to end.
    endless = flag(fields, "ignore_eos") and grammar is None
    ends = frozenset(() if endless else served.ends)
    stop_ids = token_ids(fields, "stop_token_ids", served.vocabulary.size)
    return Asked(
        chat=chat,
        prompts=prompts,
        n=n,
        sampling=_sampling(fields, served, chat=chat),
        most=_most(fields, chat=chat),
        least=integer(fields, "min_tokens", 0, 2**31 - 1, 0),
        stops=_stops(fields),
        include_stop=flag(fields, "include_stop_str_in_output"),
        stop_tokens=ends | frozenset(stop_ids or ()),
        skip_special=flag(fields, "skip_special_tokens", default=True),
        grammar=grammar,
        tools=frozenset(tool["function"]["name"] for tool in tools),
        forced=forced,
        one_call=not flag(fields, "parallel_tool_calls", default=True),
        cache=flag(fields, "cache_prompt", default=True),
        stream=stream,
        include_usage=stream and flag(options, "include_usage"),
        tokens_as_ids=flag(fields, "return_tokens_as_token_ids"),
    )


def _known(fields: dict[str, Any], known: frozenset[str]) -> None:
    for name, value in fields.items():
        if name in known or name in _HARMLESS:
            continue
        if name in _NEUTRAL:
            only(name, value, _NEUTRAL[name])
        else:
            raise unsupported(name[:200], f"the engine of this model does not know '{name[:200]}'.")


def _conversation(
    fields: dict[str, Any], served: Served, template: Template
) -> tuple[list[dict[str, Any]], bool, list[list[int]]]:
    tools, forced = calls.chosen(fields, calls.tools_of(fields))
    if tools and not served.tools:
        raise unsupported("tools", "the chat template of this model does not know tools.")
    text = template.text(fields, tools or None)
    if forced:
        # Within its own tag a model writes the call as it was trained to; the grammar holds it to the rest.
        text += f"{calls.OPEN}\n"
    return tools, forced, [_tokens(text, served, special=False, param="messages")]


def _tokens(text: str, served: Served, *, special: bool, param: str) -> list[int]:
    vocabulary = served.vocabulary
    # Tokenizing far more than fits would take memory for an answer that is known already.
    surplus = len(text) // vocabulary.longest
    if surplus > 4 * served.context:
        raise too_long(surplus, served.context, param=param, at_least=True)
    tokens = vocabulary.encode(text, special=special)
    if not tokens:
        raise wrong(param, f"'{param}' holds no tokens.", "empty_string")
    if len(tokens) >= served.context:
        raise too_long(len(tokens), served.context, param=param)
    return tokens


def _prompts(fields: dict[str, Any], served: Served) -> list[list[int]]:
    value = fields.get("prompt")
    special = flag(fields, "add_special_tokens", default=True)
    if type(value) is str:
        return [_tokens(value, served, special=special, param="prompt")]
    if type(value) is not list or not value:
        raise wrong("prompt", "'prompt' must be a string, an array of strings, or an array of tokens.", "invalid_type")
    if len(value) > _MOST_ANSWERS and type(value[0]) is not int:
        raise wrong("prompt", f"At most {_MOST_ANSWERS} prompts may be in one request.")
    if type(value[0]) is int:
        value = [value]
    prompts = []
    for each in value:
        if type(each) is str:
            prompts.append(_tokens(each, served, special=special, param="prompt"))
            continue
        tokens = token_ids({"prompt": each}, "prompt", served.vocabulary.size)
        if not tokens:
            raise wrong("prompt", "'prompt' holds an empty array of tokens.", "empty_array")
        if len(tokens) >= served.context:
            raise too_long(len(tokens), served.context, param="prompt")
        prompts.append(list(tokens))
    return prompts


def _sampling(fields: dict[str, Any], served: Served, *, chat: bool) -> Sampling:
    usual = served.usual
    temperature = number(fields, "temperature", 0, 100, usual.get("temperature", 1.0))
    repeating = number(fields, "repeat_penalty", 0.01, 100, usual.get("repetition_penalty", 1.0))
    logprobs: int | None = None
    if chat:
        top = integer(fields, "top_logprobs", 0, _MOST_LOGPROBS, 0)
        if flag(fields, "logprobs"):
            logprobs = top
    elif "logprobs" in fields and fields["logprobs"] is not False:
        logprobs = integer(fields, "logprobs", 0, _MOST_LOGPROBS, 0)
    allowed = token_ids(fields, "allowed_token_ids", served.vocabulary.size)
    if allowed is not None and not allowed:
        raise wrong("allowed_token_ids", "'allowed_token_ids' must not be empty.")
    return Sampling(
        temperature=temperature if temperature >= _COLD else 0.0,
        top_p=number(fields, "top_p", 0, 1, usual.get("top_p", 1.0)),
        # llama.cpp and vLLM: 0 and -1 are all of them.
        top_k=max(0, integer(fields, "top_k", -1, 2**31 - 1, int(usual.get("top_k", 0)))),
        min_p=number(fields, "min_p", 0, 1, usual.get("min_p", 0.0)),
        frequency_penalty=number(fields, "frequency_penalty", -2, 2, 0.0),
        presence_penalty=number(fields, "presence_penalty", -2, 2, 0.0),
        repetition_penalty=number(fields, "repetition_penalty", 0.01, 100, repeating),
        logit_bias=_bias(fields, served.vocabulary.size),
        allowed=allowed,
        seed=integer(fields, "seed", -(2**63), 2**64 - 1, 0) if "seed" in fields else None,
        logprobs=logprobs,
    )


def _bias(fields: dict[str, Any], size: int) -> dict[int, float]:
    given = fields.get("logit_bias", {})
    if type(given) is not dict or len(given) > size:
        raise wrong("logit_bias", "'logit_bias' must be an object.", "invalid_type")
    bias = {}
    for token in given:
        if not token.isascii() or not token.isdigit() or len(token) > 9 or int(token) >= size:
            raise wrong("logit_bias", f"'logit_bias' names the token {token[:40]!r}; tokens are 0 to {size - 1}.")
        bias[int(token)] = number(given, token, -100, 100, 0.0)
    return bias


def _most(fields: dict[str, Any], *, chat: bool) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "n_predict"):
        if name in fields:
            # llama.cpp: -1 is no bound.
            low = -1 if name == "n_predict" else 1
            value = integer(fields, name, low, 2**31 - 1, 0)
            return value if value > 0 else None
    return None if chat else _USUAL_TOKENS


def _stops(fields: dict[str, Any]) -> tuple[str, ...]:
    stops = strings(fields, "stop", _MOST_STOPS)
    if any(not stop for stop in stops):
        raise wrong("stop", "'stop' must not hold an empty string.")
    return stops


def _grammar(fields: dict[str, Any], served: Served, tools: list[dict[str, Any]], *, forced: bool) -> str | None:
    wanted: list[str] = [name for name in ("response_format", "json_schema", "structured_outputs") if name in fields]
    if wanted and (fields[wanted[0]] or {}) == {"type": "text"}:
        wanted = wanted[1:]
    if forced:
        wanted.append("tool_choice")
    if not wanted:
        return None
    if len(wanted) > 1:
        raise wrong(wanted[0], f"{' and '.join(map(repr, wanted))} cannot be kept together.")
    name = wanted[0]
    grammars = served.grammars
    if grammars is None:
        raise unsupported(name, "the engine of this model cannot hold it to a format.")
    if forced:
        return grammars.json(calls.call_schema(tools), param="tools")
    value = fields[name]
    if type(value) is not dict:
        raise wrong(name, f"Invalid type for '{name}': expected an object.", "invalid_type")
    if name == "json_schema":
        return grammars.json(value, param=name)
    if name == "structured_outputs":
        return _structured(value, grammars)
    if value.get("type") == "json_object":
        return grammars.json({"type": "object"}, param=name)
    described = value.get("json_schema")
    if value.get("type") != "json_schema" or type(described) is not dict:
        raise wrong(name, "'response_format.type' is 'text', 'json_object', or 'json_schema' with a 'json_schema'.")
    schema = described.get("schema", {})
    if type(schema) is not dict:
        raise wrong(name, "'response_format.json_schema.schema' must be an object.", "invalid_type")
    return grammars.json(schema, param=name)


def _structured(value: dict[str, Any], grammars: Grammars) -> str:
    """vLLM's field: one of json, regex, choice."""
    name = "structured_outputs"
    given = {key: each for key, each in value.items() if each is not None}
    if len(given) != 1:
        raise wrong(name, f"'{name}' takes one of 'json', 'regex', 'choice'.")
    ((kind, wanted),) = given.items()
    if kind == "json" and type(wanted) is dict:
        return grammars.json(wanted, param=name)
    if kind == "regex" and type(wanted) is str:
        return grammars.pattern(wanted, param=name)
    if kind == "choice" and type(wanted) is list and wanted and all(type(each) is str for each in wanted):
        return grammars.choice(wanted, param=name)
    if kind in ("json", "regex", "choice"):
        raise wrong(name, f"'{name}.{kind}' is not of the right type.", "invalid_type")
    raise unsupported(f"{name}.{kind[:80]}", f"'{name}' takes one of 'json', 'regex', 'choice' here.")
