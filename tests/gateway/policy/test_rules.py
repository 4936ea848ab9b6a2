"""Rules by content: a vendor never sees what must stay, wherever in a request it stands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pressroom.gateway.policy import Asking, Detectors, Steerings
from pressroom.gateway.policy._texts import MOST_READ, Text
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, EMBEDDING, Endpoint
from pressroom.text import Finding

from .scripted import PERSONAL, SECRET, Client, Loop, World, branch, run

BOTH = (branch("vendor", 99, vendor=True), branch("own", 1))


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _calls(arguments: str) -> list[dict[str, Any]]:
    return [{"id": "c", "type": "function", "function": {"name": "send", "arguments": arguments}}]


def places(found: str) -> Iterator[tuple[str, Endpoint, dict[str, Any]]]:
    """Requests that have `found` in them, each somewhere else."""
    half = len(found) // 2
    hello = {"role": "user", "content": "hello"}
    yield "content", CHAT, said(f"write to {found}, please")
    yield "an earlier message", CHAT, {"messages": [{"role": "system", "content": found}, *[hello] * 50]}
    yield "a part", CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": found}]}]}
    yield (
        "over two parts",
        CHAT,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": found[:half]}, {"type": "text", "text": found[half:]}],
                }
            ]
        },
    )
    yield "beside a part", CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": found}]}]}
    yield "a refusal", CHAT, {"messages": [{"role": "assistant", "content": None, "refusal": found}, hello]}
    yield "reasoning", CHAT, {"messages": [{"role": "assistant", "content": "x", "reasoning_content": found}, hello]}
    yield "a name", CHAT, {"messages": [{**hello, "name": found}]}
    yield "a call", CHAT, {"messages": [{"role": "assistant", "tool_calls": _calls(json.dumps({"to": found}))}]}
    yield (
        "an escaped call",
        CHAT,
        {"messages": [{"role": "assistant", "tool_calls": _calls(json.dumps({"to": found}).replace("@", "\\u0040"))}]},
    )
    yield "a result", CHAT, {"messages": [{"role": "tool", "tool_call_id": "c", "content": f'{{"to": "{found}"}}'}]}
    tool = {"type": "function", "function": {"name": "f", "description": found}}
    yield "a tool", CHAT, {**said("x"), "tools": [tool]}
    schema = {"type": "object", "properties": {found: {"type": "string"}}}
    yield "a key", CHAT, {**said("x"), "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    yield (
        "a format",
        CHAT,
        {
            **said("x"),
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": found}}},
        },
    )
    yield "user", CHAT, {**said("x"), "user": found}
    yield "metadata", CHAT, {**said("x"), "metadata": {"for": found}}
    yield "stop", CHAT, {**said("x"), "stop": ["a", found]}
    yield "a grammar", COMPLETION, {"prompt": "x", "grammar": f'root ::= "{found}"'}
    yield "a bias", CHAT, {**said("x"), "logit_bias": {found: 1}}
    yield "a prompt", COMPLETION, {"prompt": f"x {found}"}
    yield "prompts", COMPLETION, {"prompt": ["x", "y", found]}
    yield "an input", EMBEDDING, {"input": found}
    yield "inputs", EMBEDDING, {"input": ["x", found]}
    deep: Any = found
    for _ in range(900):
        deep = [deep]
    yield "deep below", CHAT, {**said("x"), "metadata": {"a": deep}}


EVERYWHERE = [
    (*place, name) for name, text in (("personal_data", PERSONAL), ("secret", SECRET)) for place in places(text)
]


@pytest.mark.parametrize(
    ("where", "endpoint", "fields", "name"), EVERYWHERE, ids=[f"{p[3]}-{p[0]}" for p in EVERYWHERE]
)
def test_it_is_found_wherever_it_stands(where: str, endpoint: Endpoint, fields: dict[str, Any], name: str) -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH)
        request = world.ask(endpoint=endpoint, **fields)
        assert world.asked == ["own"]
        assert request.asking.row.verdicts == [name] and request.asking.own_only
        world.tries[0].whole()
        world.still()

    run(test)


def test_what_has_nothing_of_it_goes_anywhere() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH)
        for _ in range(100):
            request = world.ask(**said("hello"), user="bob", temperature=0.5, seed=4_111_111_111_111_111)
            assert not request.asking.row.verdicts and not request.asking.own_only
        assert world.asked.count("vendor") > 80

    run(test)


def test_a_long_number_in_a_call_is_text_and_a_token_is_not() -> None:
    text = Text({"tools": [{"type": "function", "function": {"parameters": {"const": 4111111111111111}}}]}, CHAT)
    assert "4111111111111111" in text.whole
    text = Text({"prompt": "x", "logit_bias": {"12345678": 1}, "stop_token_ids": [12_345_678]}, COMPLETION)
    assert "12345678" not in text.whole and not text.unreadable


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_cannot_be_read(prompt: Any) -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH)
        request = world.ask(endpoint=COMPLETION, prompt=prompt)
        assert world.asked == ["own"] and request.asking.row.verdicts == ["unreadable"]
        # Where nothing must stay they go anywhere.
        free = World(loop, *BOTH, policy={"rules": {"default": False}})
        for _ in range(50):
            free.ask(endpoint=COMPLETION, prompt=prompt)
        assert "vendor" in free.asked
        # Each of the rules about text is one that they cannot be checked against.
        for when in ({"secret": True}, {"language": ["fr"]}, {"personal_data": True, "tag": ["t"]}):
            rule = [{"when": when, "only": "own"}]
            held = World(loop, *BOTH, policy={"rules": {"default": False}, "rule": rule})
            held.ask(endpoint=COMPLETION, prompt=prompt, tag="t")
            assert held.asked == ["own"]

    run(test)


def test_more_than_is_read_stays() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH)
        request = world.ask(**said("x" * (MOST_READ + 1)))
        assert world.asked == ["own"] and request.asking.row.verdicts == ["unreadable"]

    run(test)


LONG = "word " * 40_000


async def asked(world: World, tries: int = 1) -> None:
    """Let texts be read until so many branches were asked."""
    for _ in range(1_000):
        if len(world.tries) >= tries:
            return
        await asyncio.sleep(0)
    raise AssertionError("nobody was asked")


@pytest.mark.parametrize(
    ("text", "found"),
    [(LONG, []), (LONG + PERSONAL, ["personal_data"]), (PERSONAL + LONG, ["personal_data"]),
     (LONG + SECRET + LONG, ["secret"]), (SECRET + LONG + PERSONAL, ["secret", "personal_data"])],
)  # fmt: skip
def test_a_long_text_is_read_piece_by_piece(text: str, found: list[str]) -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH)
        requests = [world.ask(**said(text)) for _ in range(5)]
        assert not world.tries and world.steerings.under_way == 5
        turns = 0
        readers = world.steerings.of("m", world.policy).readers._readers
        while readers and turns < 1_000:
            await asyncio.sleep(0)
            turns += 1
        # One piece of one of them in a turn.
        assert turns > 10
        assert [tuple(request.asking.row.verdicts) for request in requests] == [tuple(found)] * 5
        assert len(world.asked) == 5 and (not found or set(world.asked) == {"own"})
        for tried in world.live:
            tried.whole()
        assert all(request.client.over for request in requests)
        world.still()

    run(test)


def test_a_finding_over_the_seam_of_two_pieces() -> None:
    async def test(loop: Loop) -> None:
        for before in range(32_768 - len(PERSONAL), 32_768 + 2):
            world = World(loop, *BOTH)
            world.ask(**said("x" * before + PERSONAL + "x" * 10_000))
            await asked(world)
            assert world.asked == ["own"]

    run(test)


def test_a_client_that_leaves_while_its_text_is_read() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH)
        one, other, third = (world.ask(**said(LONG)) for _ in range(3))
        await asyncio.sleep(0)
        one.leave()
        assert third.asked is not None and one.asked is not None
        one.asked.cancel()
        third.asked.pause()
        await asked(world, 2)
        assert not one.client.heard and world.steerings.under_way == 2
        world.tries[0].whole()
        world.tries[1].begin()
        assert other.client.over and world.tries[1].paused
        third.asked.resume()
        assert not world.tries[1].paused
        third.leave()
        assert world.tries[1].cancelled
        world.still()

    run(test)


def test_a_detector_that_fails_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    def bad(text: str) -> list[Finding]:
        if "bad" in text:
            raise RuntimeError("no")
        return []

    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH)
        world.steerings = Steerings(detectors=Detectors(bad, bad, lambda text: "en"), clock=loop.time)
        failing, fine = world.ask(**said("bad" + LONG)), world.ask(**said(LONG))
        await asked(world)
        world.tries[0].whole()
        assert failing.client.status == 500 and fine.client.status == 200
        world.still()

    run(test)
    assert "could not be looked through" in caplog.text


def test_neither_retry_nor_fallback_nor_hedge_nor_copy_shows_it_to_a_vendor() -> None:
    async def test(loop: Loop) -> None:
        policy = {
            "fallback": {"order": ["vendor", "other"]},
            "retry": {"attempts": 2, "backoff_s": 0.1},
            "hedge": {"after_s": 1},
            "limits": {"first_token_s": 5},
            "shadow": {"branch": "vendor", "share": 1},
            "split": {"key:alice": "vendor", "sticky": True},
            "rule": [{"when": {"longer_than": 0}, "prefer": "vendor"}],
        }
        other = branch("other", 50, vendor=True)
        world = World(loop, *BOTH, other, policy=policy)
        request = world.ask(**said(PERSONAL), key="alice")
        await asyncio.sleep(2)
        for _ in range(3):
            world.live[0].fail(503)
            await asyncio.sleep(0.5)
        assert [tried.branch for tried in world.tries] == ["own"] * 3
        assert request.client.status == 503
        world.still()
        # With the only one of one's own passed over, too.
        for _ in range(10):
            world.ask(**said(PERSONAL))
            world.live[0].fail(408 if world.marks("own")["breaker"] == "open" else 502, "vendor_tls")
        assert world.marks("own")["breaker"] == "open" and {tried.branch for tried in world.tries} == {"own"}

    run(test)


def test_where_one_route_of_a_branch_leads_to_a_vendor_the_branch_does() -> None:
    async def test(loop: Loop) -> None:
        mixed = branch("mixed")
        routes = (*mixed.routes, *(branch("mixed", vendor=True).routes))
        world = World(loop, type(mixed)(name="mixed", routes=routes), branch("own", 0))
        world.ask(**said(SECRET))
        assert world.asked == ["own"]

    run(test)


@pytest.mark.parametrize("branches", [(branch("v", vendor=True), branch("w", vendor=True)), (branch("a"), branch("b"))])
def test_where_there_is_no_choice_nothing_is_looked_for(branches: Any) -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *branches)
        request = world.ask(**said(PERSONAL))
        assert world.asked and not request.asking.row.verdicts

    run(test)


def test_the_default_rule_can_be_switched_off() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH, policy={"rules": {"default": False}})
        for _ in range(50):
            assert not world.ask(**said(PERSONAL)).asking.row.verdicts
        assert "vendor" in world.asked

    run(test)


def test_where_nobody_may_see_it_nothing_is_sent() -> None:
    async def test(loop: Loop) -> None:
        rule = [
            {"when": {"tag": ["internal"]}, "only": "own"},
            {"when": {"language": ["de"]}, "only": ["vendor"]},
        ]
        world = World(loop, *BOTH, policy={"rule": rule, "shadow": {"branch": "own", "share": 1}})
        request = world.ask(**said(f"Guten Tag, {PERSONAL}"))
        assert request.client.status == 400 and request.client.problem is not None
        assert request.client.problem.code == "content_not_allowed"
        assert "the default rule and [[rule]] 2" in request.client.problem.message
        assert PERSONAL not in request.client.problem.message and "personal data" in request.client.problem.message
        request = world.ask(**said("Guten Tag"), tag="internal")
        assert "[[rule]] 1 and [[rule]] 2" in request.client.problem.message  # type: ignore[union-attr]
        assert request.asked is not None
        request.asked.pause()
        request.asked.resume()
        request.asked.cancel()
        assert not world.tries
        world.still()

    run(test)


@pytest.mark.parametrize(
    ("when", "met", "not_met"),
    [
        ({"tag": ["a", "b"]}, {"tag": "b"}, {"tag": "c"}),
        ({"key": ["alice"]}, {"key": "alice"}, {"key": "bob"}),
        ({"team": ["research"]}, {"team": "research"}, {}),
        ({"longer_than": 5}, said("x" * 6), said("x" * 5)),
        ({"language": ["de"]}, said("Guten Tag"), said("Good day")),
        ({"personal_data": True}, said(PERSONAL), said(SECRET)),
        ({"secret": True}, said(SECRET), said(PERSONAL)),
        ({"secret": True, "tag": ["a"]}, said(SECRET) | {"tag": "a"}, said(SECRET)),
        ({"secret": True, "personal_data": True}, said(SECRET + PERSONAL), said(PERSONAL)),
    ],
)
def test_when_a_rule_holds(when: dict[str, Any], met: dict[str, Any], not_met: dict[str, Any]) -> None:
    async def test(loop: Loop) -> None:
        rule = [{"when": when, "only": ["b"]}]
        world = World(loop, branch("a"), branch("b", 0), policy={"rule": rule})
        world.ask(**met)
        world.ask(**not_met)
        assert world.asked == ["b", "a"]
        for tried in world.live:
            tried.fail()
        assert world.asked == ["b", "a"]  # `only` holds for who is asked next; `b` has no weight

    run(test)


def test_any_message_in_the_language_is_enough() -> None:
    async def test(loop: Loop) -> None:
        rule = [{"when": {"language": ["de"]}, "only": "own"}]
        world = World(loop, *BOTH, policy={"rule": rule})
        english = {"role": "system", "content": "You are kind. " * 100}
        request = world.ask(messages=[english, {"role": "user", "content": "Guten Tag"}])
        assert world.asked == ["own"] and request.asking.own_only

    run(test)


def test_rules_of_one_deployment_add_up() -> None:
    async def test(loop: Loop) -> None:
        rule = [{"when": {"tag": ["x"]}, "only": ["a", "b"]}, {"when": {"key": ["k"]}, "only": ["b", "c"]}]
        world = World(loop, branch("a", 9), branch("b", 0), branch("c", 9), policy={"rule": rule})
        for _ in range(10):
            world.ask(tag="x", key="k")
        assert set(world.asked) == {"b"}

    run(test)


def test_a_branch_that_is_gone_is_not_replaced_by_one_that_may_not() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), branch("b", 0), policy={"rule": [{"when": {"tag": ["x"]}, "only": ["b"]}]})
        world.served = World(loop, branch("a")).served
        client = Client()
        world.ask(client, tag="x")
        assert client.status == 400 and not world.asked

    run(test)


def test_the_detectors_of_the_gateway_find_what_is_meant() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *BOTH)
        world.steerings = type(world.steerings)()
        request = world.ask(**said("Please write to maria.meier@posteo.de about the invoice."))
        assert world.asked == ["own"] and request.asking.row.verdicts == ["personal_data"]
        assert isinstance(request.asking, Asking)

    run(test)
