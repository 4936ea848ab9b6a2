"""Whatever is asked in whatever order: a hit is an answer that was given to the same question, in the same scope."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.gateway.admission import Caller
from pressroom.gateway.cache import Cache, CachePolicy, Hit, Key
from pressroom.gateway.cache._keys import IGNORED
from pressroom.gateway.protocols.openai import CHAT, COMPLETION

from .asking import HI, Clock, Heard, answer, chat, hit, missed, route, stream, table

_CALLERS = [Caller(), Caller("a", "x"), Caller("b", "x"), Caller("c", "y"), Caller("x", "a"), Caller("d")]
_FIELDS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["m", "n", "nobody"]),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.sampled_from(["1", "2", ""])}), max_size=2
        ),
    },
    optional={
        "temperature": st.sampled_from([0, 0.0, 1, None]),
        "stream": st.booleans(),
        "user": st.sampled_from(["u", "v"]),
        "seed": st.sampled_from([1, 2]),
        "stop": st.sampled_from(["a", ["a"], None]),
        "n": st.sampled_from([1, None]),
        "tools": st.sampled_from([[], [{"a": 1, "b": 2}], [{"b": 2, "a": 1}]]),
    },
)
_STEPS = st.tuples(
    _FIELDS,
    st.sampled_from(_CALLERS),
    st.sampled_from([False, "team", True]),
    st.sampled_from([CHAT, COMPLETION]),
    st.sampled_from(["", "gold"]),
    st.booleans(),
    st.sampled_from(["answer", "new version", "time", "nothing"]),
)


def _scope(across: bool | str, caller: Caller) -> tuple[str, str]:
    if across is True:
        return "all", ""
    if across == "team" and caller.team:
        return "team", caller.team
    return "key", caller.key


def _question(fields: dict[str, Any]) -> str:
    asked = {name: value for name, value in fields.items() if name not in IGNORED}
    return json.dumps(asked, sort_keys=True) + json.dumps(asked.get("tools"))


@settings(max_examples=150, deadline=None)
@given(st.lists(_STEPS, max_size=25), st.sampled_from([700, 2_000, 1 << 20]))
def test_a_hit_is_for_an_equal_question_in_the_same_scope(steps: list[Any], room: int) -> None:
    clock, routes, version = Clock(), table("m", "n"), 0
    cache = Cache(routes, max_bytes=room, clock=clock)
    given_before: dict[str, tuple[Any, ...]] = {}
    for fields, caller, across, endpoint, variant, fresh, then in steps:
        policy = CachePolicy(exact=True, across_keys=across, ttl_s=10)
        found = cache.look(policy, caller, endpoint, fields, variant=variant, fresh=fresh)
        what = (_scope(across, caller), _question(fields), endpoint.name, variant, fields["model"])
        if fields.get("temperature") not in (0, 0.0) or fields.get("temperature") is None:
            assert found is None
        elif isinstance(found, Hit):
            assert not fresh
            said = json.loads(found.body())["system_fingerprint"]
            asked, made, at = given_before[said]
            assert asked == what
            assert made == version if fields["model"] == "m" else True
            assert clock.now - at <= 10
        elif isinstance(found, Key) and then == "answer":
            mark = str(len(given_before))
            digest = f"sha256-{version}" if fields["model"] == "m" and version else "sha256-one"
            given_before[mark] = (what, version, clock.now)
            choice = {"index": 0, "finish_reason": "stop", "message": {}, "text": ""}
            body = answer(system_fingerprint=mark, choices=[choice])
            cache.recording(found, Heard()).whole(body, route(fields["model"], digest=digest))
        if then == "new version":
            version += 1
            routes.set(route(digest=f"sha256-{version}"))
        elif then == "time":
            clock.now += 4
        shelves = cache._shelves.values()
        assert cache._bytes == sum(shelf.bytes for shelf in shelves) <= room
        for shelf in shelves:
            assert shelf.bytes == sum(entry.size for entry in shelf.entries.values())


_TEXT = st.text(max_size=20)


@settings(max_examples=150, deadline=None)
@given(st.lists(_TEXT, max_size=12), st.integers(1, 200), st.booleans())
def test_what_was_streamed_is_what_is_given(pieces: list[str], size: int, ascii_only: bool) -> None:
    def event(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return "data: " + json.dumps({"id": "x", "choices": [choice]}, ensure_ascii=ascii_only) + "\n\n"

    said = "".join(pieces)
    usage = 'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\n'
    ended = [event({}, "stop"), usage, "data: [DONE]\n\n"]
    data = "".join([event({"role": "assistant"}), *(event({"content": piece}) for piece in pieces), *ended])
    cache = Cache(table())
    heard = stream(cache, missed(cache, chat(stream=True)), data.encode(), size=size)
    assert heard.stream == data.encode()
    assert hit(cache, chat()).record["choices"][0]["message"]["content"] == said
    deltas = [choice["delta"] for each in hit(cache, chat(stream=True)).events for choice in each["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == said


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(HI)), st.integers(0, len(HI)), st.binary(max_size=8))
def test_a_stream_that_was_tampered_with_harms_nobody(start: int, end: int, instead: bytes) -> None:
    """It is kept only if it is whole JSON events, and then says what its clients read in it."""
    data = HI[:start] + instead + HI[max(start, end) :]
    cache = Cache(table())
    heard = stream(cache, missed(cache, chat(stream=True)), data)
    assert heard.stream == data
    found = cache.look(replace(CachePolicy(exact=True)), _A, CHAT, chat(stream=True))
    if isinstance(found, Hit):
        assert json.loads(found.body())["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")


_A = Caller("alice", "red")
