"""Answers to questions alike in meaning."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pressroom.gateway.cache import Cache, CachePolicy, Hit, Key, MeaningPolicy
from pressroom.gateway.cache._meaning import Group, unit
from pressroom.gateway.protocols.openai import CHAT, COMPLETION
from pressroom.gateway.routes import RouteTable

from .asking import ALICE, BOB, Clock, Heard, answer, chat, look, missed, route, stream, table

Vector = Sequence[float] | None
POLICY = CachePolicy(exact=True, meaning=MeaningPolicy(deployment="e", threshold=0.75))


class Bag:
    """An embedder of the simplest kind: a vector has a place for each word, by its hash. Real, if not clever."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.say: Callable[[str], Any] = self.vector

    @staticmethod
    def vector(text: str) -> list[float]:
        vector = [0.0] * 64
        for word in text.lower().strip("?!. ").split():
            vector[hashlib.sha256(word.encode()).digest()[0] % 64] += 1.0
        return vector

    def __call__(self, deployment: str, text: str, then: Callable[[Vector], None], /) -> None:
        assert deployment == "e"
        self.asked.append(text)
        then(self.say(text))


@pytest.fixture
def routes() -> RouteTable:
    return table("m", "e")


@pytest.fixture
def bag() -> Bag:
    return Bag()


@pytest.fixture
def cache(routes: RouteTable, bag: Bag) -> Cache:
    return Cache(routes, embed=bag)


def seek(cache: Cache, fields: dict[str, Any], *, policy: CachePolicy = POLICY, **more: Any) -> Hit | Key:
    """As a gateway does: look, then look by meaning."""
    found = look(cache, fields, policy=policy, **more)
    assert found is not None
    if isinstance(found, Key) and found.by_meaning:
        told: list[Hit | None] = []
        cache.by_meaning(found, told.append)
        assert len(told) == 1
        return told[0] or found
    return found


def learn(cache: Cache, fields: dict[str, Any], body: bytes | None = None, **more: Any) -> None:
    found = seek(cache, fields, **more)
    assert isinstance(found, Key)
    cache.recording(found, Heard()).whole(body or answer(), route())


def test_a_question_alike_has_the_same_answer(cache: Cache) -> None:
    learn(cache, chat("How do I reset my password?"))
    found = seek(cache, chat("how can I reset my password"))
    assert isinstance(found, Hit) and found.kind == "meaning" and 0.75 < found.similarity < 1
    heard = Heard()
    found.give(heard)
    assert heard.record["choices"][0]["message"]["content"] == "hi there"
    assert heard.route is not None and heard.route.cache == f"meaning;{found.similarity:.2f}"
    figures = cache.snapshot()["m"]
    assert (figures.hits, figures.meaning_hits, figures.misses, figures.stores) == (0, 1, 1, 1)


def test_also_as_a_stream(cache: Cache) -> None:
    learn(cache, chat("How do I reset my password?"))
    found = seek(cache, chat("How can I reset my password?", stream=True, stream_options={"include_usage": True}))
    assert isinstance(found, Hit)
    heard = Heard()
    found.give(heard)
    assert heard.told == ["begin", "data", "end"] and heard.events[-1]["usage"]["total_tokens"] == 7


def test_equal_questions_need_no_vector(cache: Cache, bag: Bag) -> None:
    learn(cache, chat("How do I reset my password?"))
    found = seek(cache, chat("How do I reset my password?"))
    assert isinstance(found, Hit) and found.kind == "exact" and len(bag.asked) == 1


def test_the_threshold_is_that_of_the_policy(cache: Cache) -> None:
    learn(cache, chat("How do I reset my password?"))
    near = replace(POLICY, meaning=MeaningPolicy(deployment="e", threshold=0.99))
    assert isinstance(seek(cache, chat("How can I reset my password?"), policy=near), Key)


def test_words_are_looked_at_besides(cache: Cache) -> None:
    learn(cache, chat("How do I convert CSV to JSON?"))
    assert isinstance(seek(cache, chat("How do I convert JSON to CSV?")), Key)  # the bag of words is equal
    assert isinstance(seek(cache, chat("how do i convert csv to json")), Hit)


def test_words_may_be_left_free(cache: Cache) -> None:
    free = replace(POLICY, meaning=MeaningPolicy(deployment="e", threshold=0.75, same_words=False))
    learn(cache, chat("What is the price of gold per ounce?"))
    other = chat("What is the price of gold per ounce please")
    assert isinstance(seek(cache, other, policy=free), Hit)
    assert isinstance(seek(cache, chat("What is the price of pure gold per ounce?"), policy=free), Hit)
    assert isinstance(seek(cache, chat("What is the price of pure gold per ounce?"), policy=POLICY), Key)


@pytest.mark.parametrize(
    "changed",
    [
        {"max_tokens": 5},
        {"seed": 1},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "how can I boil an egg"},
            ]
        },
        {"model": "n"},
        {"messages": [{"role": "user", "name": "x", "content": "how can I boil an egg"}]},
    ],
)
def test_all_else_must_be_equal(routes: RouteTable, cache: Cache, changed: dict[str, Any]) -> None:
    routes.set(route("n"))
    learn(cache, chat("how do I boil an egg"))
    assert isinstance(seek(cache, chat("how can I boil an egg")), Hit)
    assert isinstance(seek(cache, {**chat("how can I boil an egg"), **changed}), Key)


def test_scopes_and_variants_do_not_mix(cache: Cache) -> None:
    learn(cache, chat("how do I boil an egg"))
    assert isinstance(seek(cache, chat("how can I boil an egg"), caller=BOB), Key)
    assert isinstance(seek(cache, chat("how can I boil an egg"), variant="gold"), Key)
    team = replace(POLICY, across_keys="team")
    learn(cache, chat("how do I boil an egg"), policy=team)
    assert isinstance(seek(cache, chat("how can I boil an egg"), policy=team, caller=BOB), Hit)


@pytest.mark.parametrize(
    "fields",
    [
        chat(tools=[{"type": "function", "function": {"name": "f"}}]),
        chat(n=2),
        chat(logprobs=True),
        chat(response_format={"type": "json_object"}),
        chat(grammar="x"),
        chat("x" * 1_001),
        chat("  "),
        {**chat(), "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
        {**chat(), "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]},
    ],
)
def test_only_plain_questions_are_compared(cache: Cache, bag: Bag, fields: dict[str, Any]) -> None:
    learn(cache, fields, answer(choices=[]))
    assert bag.asked == []


def test_nothing_is_compared_without_an_embedder_or_a_policy(routes: RouteTable, bag: Bag) -> None:
    assert not missed(Cache(routes), chat(), policy=POLICY).by_meaning
    assert not missed(Cache(routes, embed=bag), chat()).by_meaning
    found = look(
        Cache(routes, embed=bag), {"model": "m", "prompt": "x", "temperature": 0}, policy=POLICY, endpoint=COMPLETION
    )
    assert isinstance(found, Key) and not found.by_meaning
    fresh = look(Cache(routes, embed=bag), chat(), policy=POLICY, fresh=True)
    assert isinstance(fresh, Key) and not fresh.by_meaning


@pytest.mark.parametrize(
    "bad", [None, [], [0.0, 0.0], [float("nan")], [float("inf"), 1.0], ["x"], [[1.0]], [1e300, 1.0], [0.1] * 20_000]
)
def test_without_a_vector_it_goes_on(cache: Cache, bag: Bag, bad: Any) -> None:
    bag.say = lambda text: bad
    learn(cache, chat("how do I boil an egg"))
    assert isinstance(seek(cache, chat("how do I boil an egg")), Hit)  # kept as an equal question
    bag.say = bag.vector
    assert isinstance(seek(cache, chat("how can I boil an egg")), Key)


def test_vectors_of_another_length_are_not_compared(cache: Cache, bag: Bag) -> None:
    learn(cache, chat("how do I boil an egg"))
    bag.say = lambda text: [1.0, 0.0]
    learn(cache, chat("how can I boil an egg"))
    assert cache.snapshot()["m"].entries == 2


def test_vectors_of_another_embedder_are_not_compared(routes: RouteTable, cache: Cache) -> None:
    learn(cache, chat("how do I boil an egg"))
    routes.set(route("e", digest="sha256-other"))
    assert isinstance(seek(cache, chat("how can I boil an egg")), Key)
    routes.set(route("e"))
    assert isinstance(seek(cache, chat("how can I boil an egg")), Hit)


def test_what_is_too_old_or_of_another_version_is_passed_over(routes: RouteTable, bag: Bag) -> None:
    clock = Clock()
    cache = Cache(routes, embed=bag, clock=clock)
    learn(cache, chat("how do I boil an egg"))
    clock.now += 3_601
    assert isinstance(seek(cache, chat("how can I boil an egg")), Key)
    learn(cache, chat("how do I boil an egg"))
    routes.set(route(digest="sha256-two"))
    assert isinstance(seek(cache, chat("how can I boil an egg")), Key)
    assert cache.snapshot()["m"].entries == 0


def test_the_least_used_lose_their_vector_first(cache: Cache) -> None:
    two = replace(POLICY, meaning=MeaningPolicy(deployment="e", threshold=0.75, max_entries=2))
    for text in ("how do I boil an egg", "how do I fry the onions", "how do I grill some fish"):
        learn(cache, chat(text), policy=two)
    assert isinstance(seek(cache, chat("how can I boil an egg"), policy=two), Key)
    assert isinstance(seek(cache, chat("how can I fry the onions"), policy=two), Hit)
    assert isinstance(seek(cache, chat("how can I grill some fish"), policy=two), Hit)
    assert isinstance(seek(cache, chat("how do I boil an egg"), policy=two), Hit)  # still kept as an equal question


def test_streams_are_kept_with_their_vector(cache: Cache) -> None:
    found = seek(cache, chat("how do I boil an egg", stream=True))
    assert isinstance(found, Key)
    stream(cache, found)
    assert isinstance(seek(cache, chat("how can I boil an egg")), Hit)


def test_a_slow_embedder_keeps_nobody_waiting(routes: RouteTable) -> None:
    clock = Clock()
    waiting: list[Callable[[Vector], None]] = []
    cache = Cache(routes, embed=lambda deployment, text, then: waiting.append(then), clock=clock)
    policy = replace(POLICY, meaning=MeaningPolicy(deployment="e", timeout_s=0.01))

    async def run() -> None:
        told: list[Hit | None] = []
        key = missed(cache, chat("how do I boil an egg"), policy=policy)
        cache.by_meaning(key, told.append)
        assert told == []
        await asyncio.sleep(0.05)
        assert told == [None]
        # The next ones do not even ask, for a while.
        cache.by_meaning(missed(cache, chat("2"), policy=policy), told.append)
        assert told == [None, None] and len(waiting) == 1
        clock.now += 6
        cache.by_meaning(missed(cache, chat("2"), policy=policy), told.append)
        assert len(waiting) == 2
        waiting[1]([1.0, 0.0])
        await asyncio.sleep(0.05)
        assert told == [None, None, None]
        # A vector that comes late is still of use, if the answer comes later.
        waiting[0](Bag.vector("how do I boil an egg"))
        assert key.vector is not None
        cache.recording(key, Heard()).whole(answer(), route())

    asyncio.run(run())
    cache._embed = Bag()
    assert isinstance(seek(cache, chat("how can I boil an egg")), Hit)


def test_many_questions_are_found_and_forgotten(cache: Cache) -> None:
    """The matrix stays true while rows come and go."""
    rng = np.random.default_rng(5)
    small = replace(POLICY, max_bytes=100_000)
    for _ in range(600):
        learn_or_hit = seek(cache, chat(f"how do I cook dish {rng.integers(150)}"), policy=small)
        if isinstance(learn_or_hit, Key):
            cache.recording(learn_or_hit, Heard()).whole(answer(), route())
    shelf = cache._shelves["m"]
    (group,) = shelf._groups.values()
    assert len(group.entries) == len(shelf._meant) == len(shelf.entries) < 150
    for place, entry in enumerate(group.entries):
        assert entry.place == place and entry.group is group
        expected = unit(Bag.vector(entry.text))
        assert expected is not None and np.allclose(group._rows[place], expected)
    assert cache._bytes == shelf.bytes == sum(entry.size for entry in shelf.entries.values()) <= 100_000


def test_the_nearest_comes_first() -> None:
    group = Group(("", "", "", b""))
    for angle in (0.5, 0.1, 0.3, 1.5):
        entry: Any = type("E", (), {"group": None, "place": 0, "angle": angle})()
        assert group.add(entry, np.array([np.cos(angle), np.sin(angle)], dtype=np.float32))
    found = list(group.nearest(np.array([1.0, 0.0], dtype=np.float32), 0.8))
    assert [entry.angle for entry, _ in found] == [0.1, 0.3, 0.5]  # type: ignore[attr-defined]
    assert found[0][1] == pytest.approx(np.cos(0.1), abs=1e-6)


def test_by_meaning_does_not_outlive_a_forgotten_deployment(cache: Cache) -> None:
    key = missed(cache, chat("how do I boil an egg"), policy=POLICY)
    cache.forget("m")
    told: list[Hit | None] = []
    cache.by_meaning(key, told.append)
    assert told == [None]
    assert cache.look(POLICY, ALICE, CHAT, chat()) is not None


def test_who_makes_no_vectors_is_told_of_once(
    cache: Cache, bag: Bag, routes: RouteTable, caplog: pytest.LogCaptureFixture
) -> None:
    bag.say = lambda text: None
    for _ in range(3):
        assert isinstance(seek(cache, chat("How do I reset my password?")), Key)
    (told,) = caplog.messages
    assert "the vectors of 'e'" in told and "/v1/embeddings" in told
    routes.put("e", [replace(route("e"), elsewhere=True)])
    for _ in range(3):
        seek(cache, chat("How do I reset it?"))
    assert "asks somebody else" in caplog.messages[-1]
    routes.remove("e")
    for _ in range(3):
        seek(cache, chat("How do I reset it?"))
    assert "no such deployment" in caplog.messages[-1]
    assert len(caplog.messages) == 3


def test_one_that_starts_is_not_told_of(
    cache: Cache, bag: Bag, routes: RouteTable, caplog: pytest.LogCaptureFixture
) -> None:
    bag.say = lambda text: None
    routes.put("e", [replace(route("e"), ready=False, coming=True)])
    seek(cache, chat("How do I reset it?"))
    assert not caplog.messages
