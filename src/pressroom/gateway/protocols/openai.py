"""OpenAI's chat, text completions and embeddings: what a request must be before an engine sees it.

The body travels on untouched, so a field is either understood by the engine, or harmless by its meaning, or refused:
nothing that was asked for is ignored in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from pressroom.engines.base import Capabilities
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols import _checks as check
from pressroom.gateway.protocols import _schemas as schemas
from pressroom.gateway.protocols._messages import inputs, messages, prompt
from pressroom.gateway.protocols._tool_fields import chosen, tool_choice, tools

#: Fields beyond OpenAI's that llama.cpp's and vLLM's servers document for these endpoints. Clients written for those
#: servers send them, and sampling that is not OpenAI's is a reason to run a model oneself. Left out on purpose: what
#: chooses files, slots or templates of the server (`chat_template`, `id_slot`, `lora`, `request_id`), and what would
#: drop a part of the prompt in silence (`truncate_prompt_tokens`, `n_discard`).
ENGINE_FIELDS = frozenset((
    # both
    "add_generation_prompt", "cache_prompt", "chat_template_kwargs", "continue_final_message", "ignore_eos", "min_p",
    "top_k",
    # llama.cpp
    "dry_allowed_length", "dry_base", "dry_multiplier", "dry_penalty_last_n", "dry_sequence_breakers",
    "dynatemp_exponent", "dynatemp_range", "grammar", "grammar_lazy", "grammar_triggers", "json_schema", "min_keep",
    "mirostat", "mirostat_eta", "mirostat_tau", "n_indent", "n_keep", "n_predict", "n_probs", "parse_tool_calls",
    "post_sampling_probs", "preserved_tokens", "reasoning_format", "repeat_last_n", "repeat_penalty", "return_progress",
    "return_tokens", "samplers", "t_max_predict_ms", "thinking_forced_open", "timings_per_token", "top_n_sigma",
    "typical_p", "xtc_probability", "xtc_threshold",
    # vLLM
    "add_special_tokens", "allowed_token_ids", "bad_words", "include_reasoning", "include_stop_str_in_output",
    "length_penalty", "min_tokens", "priority", "prompt_logprobs", "repetition_penalty",
    "return_tokens_as_token_ids", "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids",
    "structured_outputs",
))  # fmt: skip


def _stream_options(param: str, value: Any) -> Problem | None:
    if type(value) is not dict:
        return None if value is None else check.wrong_type(param, value, "an object")
    for key, flag in value.items():
        if key not in ("include_usage", "include_obfuscation"):
            return check.unknown(param, key)
        if type(flag) is not bool and flag is not None:
            return check.wrong_type(f"{param}.{key}", flag, "a boolean")
    if value.get("include_obfuscation"):
        return check.unsupported(f"{param}.include_obfuscation", "no engine here pads its stream.")
    return None


_BIAS = check.number(-100, 100)


def _logit_bias(param: str, value: Any) -> Problem | None:
    if type(value) is not dict:
        return None if value is None else check.wrong_type(param, value, "an object")
    for token, bias in value.items():
        name = f"{param}.{token[:200]}"
        problem = _BIAS(name, bias)
        if problem is not None or bias is None:
            return problem or check.wrong_type(name, bias, "a decimal")
    return None


def _response_format(param: str, value: Any) -> Problem | None:
    if type(value) is not dict:
        return None if value is None else check.wrong_type(param, value, "an object")
    kind = value.get("type")
    if kind is None:
        return check.missing(f"{param}.type")
    if kind not in ("text", "json_object", "json_schema"):
        return check.wrong_value(
            f"{param}.type",
            f"Invalid value: {str(kind)[:80]!r}. Supported values are: 'json_object', 'json_schema', and 'text'.",
        )
    if kind == "json_schema":
        schema = value.get("json_schema")
        if type(schema) is not dict:
            name = f"{param}.json_schema"
            return check.missing(name) if schema is None else check.wrong_type(name, schema, "an object")
    return None


def _modalities(param: str, value: Any) -> Problem | None:
    if type(value) is not list:
        return None if value is None else check.wrong_type(param, value, "an array of strings")
    return None if value == ["text"] else check.unsupported(param, "the engines here answer in text only.")


#: Answers that one request may ask for, over all its prompts.
MOST_ANSWERS = 128

_MODEL = check.typed(str)
_SAMPLING: dict[str, check.Check] = {
    "model": _MODEL,
    "stream": check.typed(bool),
    "stream_options": _stream_options,
    "max_tokens": check.integer(1),
    "temperature": check.number(0, 2),
    "top_p": check.number(0, 1),
    "frequency_penalty": check.number(-2, 2),
    "presence_penalty": check.number(-2, 2),
    "stop": check.strings(4),
    "seed": check.integer(-(2**63), 2**63 - 1),
    "logit_bias": _logit_bias,
    "n": check.integer(1, MOST_ANSWERS),
    # About the account and the billing at OpenAI: engines ignore them by their meaning.
    "user": check.typed(str),
}

_CHAT: dict[str, check.Check] = {
    **dict.fromkeys(ENGINE_FIELDS, check.kept),
    **_SAMPLING,
    "messages": messages,
    "max_completion_tokens": check.integer(1),
    "logprobs": check.typed(bool),
    "top_logprobs": check.integer(0, 20),
    "response_format": _response_format,
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": check.typed(bool),
    "functions": check.never("'functions' is deprecated; use 'tools'."),
    "function_call": check.never("'function_call' is deprecated; use 'tool_choice'."),
    "modalities": _modalities,
    "audio": check.never("the engines here answer in text only."),
    "prediction": check.never("no engine here takes a predicted output."),
    "reasoning_effort": check.never("no engine here has levels of reasoning effort."),
    "verbosity": check.never("no engine here has levels of verbosity."),
    "web_search_options": check.never("no engine here searches the web."),
    "store": check.only(False, "nothing is stored here."),
    "metadata": check.typed(dict),
    "service_tier": check.typed(str),
    "safety_identifier": check.typed(str),
    "prompt_cache_key": check.typed(str),
    "prompt_cache_retention": check.typed(str),
}

_COMPLETION: dict[str, check.Check] = {
    **dict.fromkeys(ENGINE_FIELDS, check.kept),
    **_SAMPLING,
    "prompt": prompt,
    "logprobs": check.integer(0, 5),
    "best_of": check.only(1, "'best_of' above 1."),
    "echo": check.only(False, "'echo'."),
    "suffix": check.never("'suffix': no engine here fills in the middle on this endpoint."),
}


def _encoding_format(param: str, value: Any) -> Problem | None:
    if value in ("float", "base64", None):
        return None
    return check.wrong_value(param, f"Invalid value: {str(value)[:80]!r}. Supported values are: 'float' and 'base64'.")


_EMBEDDING: dict[str, check.Check] = {
    "model": _MODEL,
    "input": inputs,
    "encoding_format": _encoding_format,
    "dimensions": check.integer(1),
    "user": check.typed(str),
}


for _check, _schema in (
    (messages, schemas.MESSAGES),
    (prompt, schemas.PROMPT),
    (inputs, schemas.INPUT),
    (tools, schemas.TOOLS),
    (tool_choice, schemas.TOOL_CHOICE),
    (_stream_options, check.nullable(schemas.STREAM_OPTIONS)),
    (_response_format, check.nullable(schemas.RESPONSE_FORMAT)),
    (_logit_bias, check.nullable(schemas.LOGIT_BIAS)),
    (_modalities, check.nullable(schemas.MODALITIES)),
    (_encoding_format, check.nullable(schemas.ENCODING_FORMAT)),
):
    check.described(_check, _schema)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of OpenAI's endpoints: its name in the figures, its path on the engine, its fields."""

    name: str
    path: bytes
    fields: dict[str, check.Check]
    conversation: str


CHAT = Endpoint("chat.completions", b"/v1/chat/completions", _CHAT, "messages")
COMPLETION = Endpoint("completions", b"/v1/completions", _COMPLETION, "prompt")
EMBEDDING = Endpoint("embeddings", b"/v1/embeddings", _EMBEDDING, "input")
ENDPOINTS = (CHAT, COMPLETION, EMBEDDING)


def read(body: bytes, endpoint: Endpoint) -> dict[str, Any] | Problem:
    """The fields of a request, checked; or what is wrong with it."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        what = str(error) if body else "it is empty"
        return Problem(400, f"We could not parse the JSON body of your request: {what}.")
    if type(fields) is not dict:
        return Problem(400, "The body of the request must be a JSON object.")
    return checked(fields, endpoint)


def checked(fields: dict[str, Any], endpoint: Endpoint) -> dict[str, Any] | Problem:
    """The same fields; or what is wrong with them."""
    checks = endpoint.fields
    for name, value in fields.items():
        found = checks.get(name)
        if found is None:
            return Problem(400, f"Unrecognized request argument supplied: {name[:200]}", param=None)
        problem = found(name, value)
        if problem is not None:
            return problem
    if not fields.get("model"):
        return Problem(400, "you must provide a model parameter")
    if endpoint.conversation not in fields:
        return check.missing(endpoint.conversation)
    return _combined(fields) if not _COMBINED.isdisjoint(fields) else fields


_COMBINED = frozenset((
    "stream_options", "top_logprobs", "tool_choice", "parallel_tool_calls", "n", "n_predict", "max_completion_tokens",
))  # fmt: skip
#: Names of the bound on the tokens of an answer. Engines differ in which one they follow where there are two.
MOST_TOKENS = ("max_completion_tokens", "max_tokens", "n_predict")


def _combined(fields: dict[str, Any]) -> dict[str, Any] | Problem:
    """Fields that only mean something together with another one."""
    if fields.get("stream_options") is not None and not fields.get("stream"):
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        return check.wrong_value("stream_options", message)
    if fields.get("top_logprobs") is not None and not fields.get("logprobs"):
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        return check.wrong_value("top_logprobs", message)
    bounds = [name for name in MOST_TOKENS if fields.get(name) is not None]
    if len(bounds) > 1:
        both = f"'{bounds[0]}' and '{bounds[1]}'"
        return check.wrong_value(bounds[1], f"Setting {both} at the same time is not supported. Set one of them.")
    predict = fields.get("n_predict")
    if predict is not None and (type(predict) is not int or predict < -1):
        return check.wrong_value("n_predict", "Invalid 'n_predict': a whole number is expected, or -1 for no bound.")
    answers = (fields.get("n") or 1) * len(prompts(fields))
    if answers > MOST_ANSWERS:
        message = f"Invalid 'n': {answers} answers in one request. Expected at most {MOST_ANSWERS} over all prompts."
        return check.wrong_value("n", message, "integer_above_max_value")
    for name in ("tool_choice", "parallel_tool_calls"):
        if fields.get(name) is not None and not fields.get("tools"):
            return check.wrong_value(name, f"The '{name}' parameter is only allowed when 'tools' are specified.")
    return chosen(fields) or fields


def prompts(fields: dict[str, Any]) -> list[Any]:
    """The prompts of a request: one, unless a text completion has an array of several."""
    given = fields.get("prompt")
    if isinstance(given, list) and given and type(given[0]) is not int:
        return given
    return [given]


_CONDITIONAL = frozenset(("tools", "logprobs", "response_format", "json_schema", "grammar", "structured_outputs"))


def beyond(fields: dict[str, Any], endpoint: Endpoint, can: Capabilities) -> Problem | None:
    """What the request asks for and the engine of its model cannot do; None where it can do all of it."""
    if not (can.chat if endpoint is CHAT else can.completions if endpoint is COMPLETION else can.embeddings):
        return _cannot(None, f"does not answer {endpoint.path.decode()}")
    if fields.get("stream") and not can.streaming:
        return _cannot("stream", "does not stream")
    if _CONDITIONAL.isdisjoint(fields) and (can.tools or endpoint is not CHAT):
        return None
    if not can.tools:
        if fields.get("tools"):
            return _cannot("tools", "cannot call tools")
        if endpoint is CHAT:
            for index, message in enumerate(fields["messages"]):
                if len(message) > 2 and (message.get("tool_calls") or message.get("tool_call_id")):
                    return _cannot(f"messages[{index}]", "cannot call tools")
    asked = fields.get("logprobs")
    if asked is not None and asked is not False and not can.logprobs:
        return _cannot("logprobs", "gives no log probabilities")
    if not can.json_schema:
        if (fields.get("response_format") or {}).get("type", "text") != "text":
            return _cannot("response_format", "cannot be held to a format")
        for name in ("json_schema", "grammar", "structured_outputs"):
            if fields.get(name) is not None:
                return _cannot(name, "cannot be held to a format")
    return None


def _cannot(param: str | None, what: str) -> Problem:
    message = f"The engine that serves this model {what}."
    return Problem(400, message, param=param, code="unsupported_parameter")
