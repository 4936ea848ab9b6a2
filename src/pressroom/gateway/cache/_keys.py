"""Which requests have an answer that can be given again, and what two of them must have in common for that."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway.protocols.openai import CHAT, EMBEDDING, prompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.gateway.admission import Caller
    from pressroom.gateway.cache.base import CachePolicy
    from pressroom.gateway.protocols.openai import Endpoint

#: Fields that change nothing of what is answered: how it is sent, who is asking, what is billed, how an engine manages
#: its work. Every other field is part of the key, also those nobody knows yet.
IGNORED = frozenset((
    "stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "cache_prompt", "priority",
))  # fmt: skip
# In most objects the order of names means nothing. A schema is written out in its order, by the engine that follows it
# and in the prompt that tells of it.
_IN_ORDER = frozenset(("tools", "response_format", "json_schema", "structured_outputs", "chat_template_kwargs"))
_SORTED = orjson.OPT_SORT_KEYS

# Answers that are more than words for a reader: one question's would not do for another one.
_NOT_BY_MEANING = frozenset((
    "tools", "tool_choice", "logprobs", "top_logprobs", "response_format", "json_schema", "grammar",
    "structured_outputs", "continue_final_message", "prompt_logprobs", "n_probs",
))  # fmt: skip
#: Characters. Embedders read some 250 tokens and leave out the rest, and long texts that differ in what matters are
#: near each other all the same.
LONGEST_TEXT = 1_000

# (scope, variant, endpoint, digest of the fields)
Where = tuple[str, str, str, bytes]


class Key:
    """A request whose answer may be kept. `text` is what may be compared by meaning, '' where nothing may; `answers` is
    how many choices its answer has."""

    __slots__ = (
        "answers", "by_meaning", "endpoint", "group", "model", "policy", "streamed", "text", "vector", "where",
        "with_usage",
    )  # fmt: skip

    def __init__(self, policy: CachePolicy, endpoint: Endpoint, fields: dict[str, Any], where: Where) -> None:
        self.policy = policy
        self.endpoint = endpoint
        self.model: str = fields["model"]
        self.where = where
        self.streamed = bool(fields.get("stream"))
        self.with_usage = False
        self.answers = 0 if endpoint is EMBEDDING else (fields.get("n") or 1) * len(prompts(fields))
        self.text = ""
        #: Whether to look for a question alike with `Cache.by_meaning`.
        self.by_meaning = False
        self.group: Where = where
        self.vector: NDArray[Any] | None = None


def scope(policy: CachePolicy, caller: Caller) -> str:
    """Who shares an answer with `caller`. The first letter says what kind of name follows, so that no name of a key can
    be taken for one of a team."""
    across = policy.across_keys
    if across is True:
        return "*"
    if across == "team" and caller.team:
        return "t" + caller.team
    return "k" + caller.key if caller.key else "-"


def digest(endpoint: Endpoint, fields: dict[str, Any], *, variant: str, scope: str) -> Where | None:
    """Under what an answer to `fields` is kept; None where they cannot be written as JSON.

    What is hashed is what an engine would be sent, so two requests with one digest are the same request to it.
    """
    asked = {name: value for name, value in fields.items() if name not in IGNORED}
    try:
        said = orjson.dumps(asked, option=_SORTED)
        if not _IN_ORDER.isdisjoint(asked):
            said += b"\n" + orjson.dumps([asked.get(name) for name in sorted(_IN_ORDER)])
    except TypeError:  # orjson's own error is one
        return None
    return scope, variant, endpoint.name, sha256(said).digest()


def steady(policy: CachePolicy, endpoint: Endpoint, fields: dict[str, Any]) -> bool:
    """Whether asking again is meant to give the same answer."""
    if endpoint is EMBEDDING or policy.temperature_above_0:
        return True
    temperature = fields.get("temperature")
    return temperature is not None and temperature == 0


def text_of(endpoint: Endpoint, fields: dict[str, Any]) -> str:
    """The last thing the user said, where an answer to something alike would do; else ''."""
    if endpoint is not CHAT or not _NOT_BY_MEANING.isdisjoint(fields) or (fields.get("n") or 1) != 1:
        return ""
    last = fields["messages"][-1]
    content = last.get("content")
    if last.get("role") != "user" or type(content) is not str or len(content) > LONGEST_TEXT:
        return ""
    return content.strip()


def around(key: Key, fields: dict[str, Any], embedder: str) -> Where | None:
    """Where questions are that differ from this one in `text` alone. `embedder` says who made their vectors."""
    *before, last = fields["messages"]
    rest = {**fields, "messages": [*before, {**last, "content": ""}], "\n": embedder}
    return digest(key.endpoint, rest, variant=key.where[1], scope=key.where[0])
