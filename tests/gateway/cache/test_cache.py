"""Who is given which answer, for how long, and what is forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pressroom.gateway.admission import Caller
from pressroom.gateway.cache import Cache, CachePolicy, Hit, Key
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, EMBEDDING
from pressroom.gateway.routes import Branch, RouteTable

from .asking import ALICE, BOB, EVE, NOBODY, ON, Clock, Heard, answer, chat, hit, keep, look, missed, route, table


def test_the_second_time_it_is_there() -> None:
    cache = Cache(table())
    keep(cache, chat())
    heard = hit(cache, chat())
    assert heard.told == ["whole"]
    assert heard.record["choices"][0]["message"]["content"] == "hi there"
    assert heard.record["usage"] == {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7}
    assert heard.record["model"] == "weights.gguf" and heard.record["system_fingerprint"] == "b1"
    assert heard.route is not None and heard.route.cache == "exact" and heard.route.digest == "sha256-one"
    assert "timings" not in heard.record  # no engine worked


def test_each_time_it_has_an_id_and_a_time_of_its_own() -> None:
    cache = Cache(table())
    keep(cache, chat())
    one, two = hit(cache, chat()).record, hit(cache, chat()).record
    assert one["id"] != two["id"] and {one["id"], two["id"]}.isdisjoint({"chatcmpl-engine"})
    assert one["id"].startswith("chatcmpl-")
    assert one["created"] > 1_700_000_000


def test_a_hit_says_what_the_answer_took() -> None:
    cache = Cache(table())
    keep(cache, chat())
    found = look(cache, chat())
    assert isinstance(found, Hit) and found.kind == "exact" and found.similarity == 1.0
    assert found.usage()["completion_tokens"] == 2
    assert b"hi there" in found.body()


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        (chat(), True),
        (chat(temperature=0.0), True),
        (chat(temperature=0.1), False),
        (chat(temperature=None), False),
        ({key: value for key, value in chat().items() if key != "temperature"}, False),
        (chat(temperature=0.7, seed=3), False),
    ],
)
def test_only_what_is_meant_to_be_the_same_again(fields: dict[str, Any], kept: bool) -> None:
    cache = Cache(table())
    assert (look(cache, fields) is not None) is kept
    anything = CachePolicy(exact=True, temperature_above_0=True)
    assert look(cache, fields, policy=anything) is not None


def test_nothing_is_kept_unless_asked_for() -> None:
    assert look(Cache(table()), chat(), policy=CachePolicy()) is None


def test_embeddings_are_always_the_same() -> None:
    cache = Cache(table())
    fields = {"model": "m", "input": "hello"}
    body = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5]}],"usage":{"prompt_tokens":1}}'
    keep(cache, fields, body, endpoint=EMBEDDING)
    heard = hit(cache, fields, endpoint=EMBEDDING)
    assert heard.record["data"][0]["embedding"] == [0.5] and "id" not in heard.record
    assert isinstance(look(cache, {**fields, "encoding_format": "base64"}, endpoint=EMBEDDING), Key)


@pytest.mark.parametrize(
    "changed",
    [
        chat("hello!"),
        chat(max_tokens=5),
        chat(n=2),
        chat(seed=1),
        chat(stop=["x"]),
        chat(logprobs=True),
        chat(top_k=3),
        chat(tools=[{"type": "function", "function": {"name": "f"}}]),
        chat(response_format={"type": "json_object"}),
        {**chat(), "messages": [{"role": "system", "content": "hello"}]},
        {**chat(), "messages": [{"role": "user", "content": "hello", "name": "x"}]},
    ],
)
def test_what_changes_the_answer_is_another_question(changed: dict[str, Any]) -> None:
    cache = Cache(table())
    keep(cache, chat())
    assert isinstance(look(cache, changed), Key)


@pytest.mark.parametrize(
    "same",
    [
        chat(stream=True, stream_options={"include_usage": True}),
        chat(stream=False),
        chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto", safety_identifier="s"),
        chat(prompt_cache_key="k", prompt_cache_retention="24h", cache_prompt=True),
        dict(reversed(chat().items())),
        {**chat(), "messages": [{"content": "hello", "role": "user"}]},
    ],
)
def test_what_does_not_is_the_same_question(same: dict[str, Any]) -> None:
    cache = Cache(table())
    keep(cache, chat())
    assert isinstance(look(cache, same), Hit)


def test_the_order_of_a_schema_is_part_of_it() -> None:
    def asked(properties: dict[str, Any]) -> dict[str, Any]:
        schema = {"name": "s", "schema": {"type": "object", "properties": properties}}
        return chat(response_format={"type": "json_schema", "json_schema": schema})

    one, other = {"why": {}, "answer": {}}, {"answer": {}, "why": {}}
    cache = Cache(table())
    keep(cache, asked(one))
    assert isinstance(look(cache, asked(one)), Hit)
    assert isinstance(look(cache, asked(other)), Key)


def test_endpoints_do_not_mix() -> None:
    cache = Cache(table())
    fields = {"model": "m", "prompt": "hello", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    keep(cache, fields, endpoint=CHAT)
    assert isinstance(look(cache, fields, endpoint=COMPLETION), Key)


def test_variants_do_not_mix() -> None:
    cache = Cache(table())
    keep(cache, chat(), variant="tag=gold")
    assert isinstance(look(cache, chat()), Key)
    assert isinstance(look(cache, chat(), variant="tag=gold"), Hit)


@pytest.mark.parametrize(
    ("across", "shared"),
    [(False, []), ("team", [BOB]), (True, [BOB, EVE, NOBODY])],
)
def test_across_keys_only_where_allowed(across: bool | str, shared: list[Caller]) -> None:
    policy = CachePolicy(exact=True, across_keys=across)
    cache = Cache(table())
    keep(cache, chat(), policy=policy, caller=ALICE)
    for other in (BOB, EVE, NOBODY):
        found = look(cache, chat(), policy=policy, caller=other)
        assert isinstance(found, Hit) is (other in shared), other.key


def test_a_key_is_not_a_team_nor_everybody() -> None:
    names = ["", "*", "-", "red", "kred", "tred"]
    callers = [Caller(key, team) for key in names for team in names]
    cache = Cache(table())
    for across in (False, "team", True):
        policy = CachePolicy(exact=True, across_keys=across)
        for caller in callers:
            found = look(cache, chat(str(across)), policy=policy, caller=caller)
            whose = (
                "all"
                if across is True
                else ("team", caller.team)
                if across == "team" and caller.team
                else ("key", caller.key)
            )
            if isinstance(found, Hit):
                assert found.usage()["prompt_tokens_details"] == repr(whose)
            else:
                assert found is not None
                usage = {"prompt_tokens": 1, "prompt_tokens_details": repr(whose)}
                cache.keep(found, answer(usage=usage), route())


def test_who_has_no_key_shares_with_others_without() -> None:
    cache = Cache(table())
    keep(cache, chat(), caller=NOBODY)
    assert isinstance(look(cache, chat(), caller=Caller()), Hit)
    assert isinstance(look(cache, chat(), caller=ALICE), Key)


def test_a_fresh_answer_takes_the_place_of_the_old_one() -> None:
    cache = Cache(table())
    keep(cache, chat(), answer("old"))
    keep(cache, chat(), answer("new"), fresh=True)
    assert hit(cache, chat()).record["choices"][0]["message"]["content"] == "new"
    assert cache.snapshot()["m"].entries == 1


def test_time_to_live_is_that_of_the_policy_now() -> None:
    clock = Clock()
    cache = Cache(table(), clock=clock)
    keep(cache, chat(), policy=replace(ON, ttl_s=100))
    clock.now += 100
    assert isinstance(look(cache, chat(), policy=replace(ON, ttl_s=100)), Hit)
    assert isinstance(look(cache, chat(), policy=replace(ON, ttl_s=99)), Key)  # made shorter meanwhile
    assert cache.snapshot()["m"].bytes == 0


def test_use_does_not_lengthen_a_life() -> None:
    clock = Clock()
    cache = Cache(table(), clock=clock)
    policy = replace(ON, ttl_s=10)
    keep(cache, chat(), policy=policy)
    for _ in range(10):
        clock.now += 1
        assert isinstance(look(cache, chat(), policy=policy), Hit)
    clock.now += 0.5
    assert isinstance(look(cache, chat(), policy=policy), Key)


def test_another_version_answers_anew() -> None:
    routes = table()
    cache = Cache(routes)
    keep(cache, chat())
    routes.set(route(digest="sha256-two", port=2))
    assert isinstance(look(cache, chat()), Key)
    keep(cache, chat(), answer("two"), by=route(digest="sha256-two", port=2))
    assert hit(cache, chat()).record["choices"][0]["message"]["content"] == "two"


def test_an_answer_that_comes_after_its_version_left_is_not_given() -> None:
    routes = table()
    cache = Cache(routes)
    key = missed(cache, chat())
    routes.set(route(digest="sha256-two", port=2))
    cache.recording(key, Heard()).whole(answer(), route())
    assert isinstance(look(cache, chat()), Key)


def test_another_copy_of_a_version_has_the_same_answers() -> None:
    routes = table()
    cache = Cache(routes)
    keep(cache, chat())
    routes.put("m", [route(port=2), route(port=3)])
    assert isinstance(look(cache, chat()), Hit)


def test_every_branch_counts() -> None:
    routes = RouteTable()
    old, new = replace(route(), branch="old"), replace(route(digest="sha256-two", port=2), branch="new")
    routes.put_branches("m", [Branch(name="old", routes=(old,), weight=9), Branch(name="new", routes=(new,))])
    cache = Cache(routes)
    keep(cache, chat("1"), by=old)
    keep(cache, chat("2"), by=new)
    assert isinstance(look(cache, chat("1")), Hit) and isinstance(look(cache, chat("2")), Hit)
    routes.put_branches("m", [Branch(name="new", routes=(new,))])
    assert isinstance(look(cache, chat("1")), Key) and isinstance(look(cache, chat("2")), Hit)


def test_a_name_that_nothing_answers_to_leaves_no_trace() -> None:
    cache = Cache(table())
    for number in range(100):
        assert look(cache, {**chat(), "model": f"guess-{number}"}) is None
    assert cache.snapshot() == {}


def test_a_deployment_that_is_gone_is_forgotten() -> None:
    routes = table("m", "n")
    cache = Cache(routes)
    keep(cache, chat())
    keep(cache, {**chat(), "model": "n"})
    routes.remove("m")
    assert isinstance(look(cache, chat()), Key)
    assert list(cache.snapshot()) == ["n"]
    cache.forget("n")
    assert cache._bytes == 0


def test_the_longest_unused_goes_first() -> None:
    clock = Clock()
    cache = Cache(table(), clock=clock)
    size = _size_of_one(table())
    policy = replace(ON, max_bytes=3 * size)
    for number in range(3):
        clock.now += 1
        keep(cache, chat(str(number)), policy=policy)
    clock.now += 1
    hit(cache, chat("0"), policy=policy)
    keep(cache, chat("3"), policy=policy)
    there = [number for number in range(4) if isinstance(look(cache, chat(str(number)), policy=policy), Hit)]
    assert there == [0, 2, 3]
    figures = cache.snapshot()["m"]
    assert figures.evictions == 1 and figures.entries == 3 and figures.bytes <= policy.max_bytes


def test_all_deployments_share_one_bound() -> None:
    clock = Clock()
    size = _size_of_one(table())
    cache = Cache(table("m", "n"), clock=clock, max_bytes=3 * size)
    for model, text in (("m", "1"), ("n", "1"), ("m", "2"), ("n", "2")):
        clock.now += 1
        keep(cache, {**chat(text), "model": model})
    assert isinstance(look(cache, chat("1")), Key)
    assert isinstance(look(cache, {**chat("1"), "model": "n"}), Hit)
    assert cache.snapshot()["m"].evictions == 1


def test_memory_is_bounded_under_a_hundred_thousand_questions() -> None:
    cache = Cache(table(), max_bytes=2_000_000)
    policy = replace(ON, max_bytes=1_000_000)
    body = answer()
    for number in range(100_000):
        key = cache.look(policy, ALICE, CHAT, {"model": "m", "messages": [], "temperature": 0, "seed": number})
        assert type(key) is Key
        cache.keep(key, body, route())
    figures = cache.snapshot()["m"]
    assert figures.bytes == cache._bytes <= 1_000_000
    assert figures.entries + figures.evictions == figures.stores == 100_000
    newest = {"model": "m", "messages": [], "temperature": 0}
    assert isinstance(look(cache, {**newest, "seed": 99_999}, policy=policy), Hit)
    assert isinstance(look(cache, {**newest, "seed": 99_999 - figures.entries}, policy=policy), Key)


def test_what_is_past_its_time_makes_room() -> None:
    clock = Clock()
    cache = Cache(table(), clock=clock)
    policy = replace(ON, ttl_s=10)
    for number in range(8):
        keep(cache, chat(str(number)), policy=policy)
    clock.now += 11
    keep(cache, chat("new 1"), policy=policy)
    keep(cache, chat("new 2"), policy=policy)
    assert cache.snapshot()["m"].entries == 2


def test_fields_that_are_not_json_are_not_kept() -> None:
    deep: Any = []
    for _ in range(2_000):
        deep = [deep]
    for odd in ("\ud800", {1: 2}, object(), 2**70, deep):
        assert look(Cache(table()), chat(metadata_like=odd)) is None


def test_figures() -> None:
    cache = Cache(table())
    keep(cache, chat())
    hit(cache, chat())
    hit(cache, chat())
    cache.recording(missed(cache, chat("2")), Heard()).whole(b"nonsense", route())
    figures = cache.snapshot()["m"]
    assert (figures.hits, figures.misses, figures.stores, figures.refused) == (2, 2, 1, 1)
    assert figures.entries == 1 and figures.bytes > 300


def _size_of_one(routes: RouteTable) -> int:
    cache = Cache(routes)
    keep(cache, chat("0"))
    return cache.snapshot()["m"].bytes
