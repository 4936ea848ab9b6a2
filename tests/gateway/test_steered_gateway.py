"""Routes, cache, keys and budgets together, over real connections: the gateway as it is deployed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from pressroom.cost import Price
from pressroom.engines.backends.echo import Backend
from pressroom.gateway import Books, Route
from pressroom.gateway.cache import CachePolicy
from pressroom.gateway.money import Accounts, Budget, Period, Scope, Unit
from pressroom.gateway.policy import Policy
from pressroom.gateway.routes import Branch
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Script, chat, post, route_to, until
from .test_grant import Kept, tokens

PERSONAL = "Write to jane.doe@example.org about her invoice."
PER_MILLION = Price(prompt=1_000_000, completion=1_000_000)


def branch(name: str, port: int, *, weight: float = 1.0, elsewhere: bool = False) -> Branch:
    route = route_to(port, branch=name, elsewhere=elsewhere, capabilities=Backend.capabilities)
    return Branch(name=name, routes=(route,), weight=weight)


class Steered:
    """A gateway over branches, each of an own or a vendor's."""

    def __init__(
        self,
        *branches: Branch,
        policy: dict[str, Any] | None = None,
        cache: dict[str, Any] | None = None,
        budgets: tuple[Budget, ...] = (),
        price: Callable[[Route], Price | None] = lambda route: PER_MILLION if route.elsewhere else Price(),
    ) -> None:
        self.ledger = Kept()
        self.accounts = Accounts(budgets)
        self.gateway = GatewayThread(books=Books(self.accounts, self.ledger), grpc=True)
        self.gateway.routes.pricing = price
        own = [each.name for each in branches if not each.routes[0].elsewhere]
        self.gateway.routes.put_branches(
            "m",
            branches,
            policy=Policy.parse(policy or {}, [each.name for each in branches], own),
            cache=CachePolicy.parse(cache) if cache else None,
        )

    def __enter__(self) -> Steered:
        self.gateway.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self.gateway.__exit__(*how)

    def ask(self, text: str = "hello big world", *lines: str, **fields: Any) -> tuple[int, dict[str, str], bytes]:
        client = Client(self.gateway.port)
        client.send(post(chat(text, **fields), "/v1/chat/completions", *lines))
        found = client.response()
        client.close()
        return found

    def metrics(self) -> str:
        client = Client(self.gateway.port)
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        text = client.response()[2].decode()
        client.close()
        return text


def fails(status: int) -> Callable[[socket.socket], None]:
    def answer(connected: socket.socket) -> None:
        body = json.dumps({"error": {"message": "no", "type": "server_error", "param": None, "code": None}}).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connected.sendall(head.encode() + body)

    return answer


def test_the_order_of_the_policy_is_gone_down(echo: Callable[..., Any], script: Callable[..., Script]) -> None:
    vendor, own = script(fails(503)), echo(tokens=4)
    branches = branch("vendor", vendor.port, elsewhere=True), branch("own", own.port, weight=0)
    with Steered(*branches, policy={"fallback": {"order": ["vendor", "own"]}}) as steered:
        status, headers, body = steered.ask(max_tokens=4)
        (row,) = steered.ledger.rows
    assert status == 200
    assert headers["pressroom-route"] == "own"
    assert (row.branch, row.tries, row.status, row.nano_usd) == ("own", 2, 200, 0)
    assert row.completion_tokens == json.loads(body)["usage"]["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_vendor_never_sees_personal_data(echo: Callable[..., Any], stream: bool) -> None:
    own, vendor = echo(tokens=4), echo(tokens=4)
    branches = branch("own", own.port, weight=0.01), branch("vendor", vendor.port, weight=1, elsewhere=True)
    with Steered(*branches) as steered:
        for _ in range(50):
            status, headers, _ = steered.ask(PERSONAL, max_tokens=4, stream=stream)
            assert (status, headers["pressroom-route"]) == (200, "own")
        assert steered.ask("What is a forme?", max_tokens=4)[0] == 200
        rows = steered.ledger.rows
    assert all("personal_data" in row.verdicts for row in rows[:50])
    assert not rows[50].verdicts


def test_nobody_answers_where_only_a_vendor_could(echo: Callable[..., Any], script: Callable[..., Script]) -> None:
    """The own model is down: the request is refused, and does not leave."""
    heard: list[bytes] = []

    def listens(connected: socket.socket) -> None:
        heard.append(connected.recv(65536))

    own, vendor = script(fails(500)), script(listens)
    branches = branch("own", own.port), branch("vendor", vendor.port, elsewhere=True)
    with Steered(*branches, policy={"fallback": {"order": ["own", "vendor"]}}) as steered:
        assert steered.ask(PERSONAL, max_tokens=4)[0] == 502
    assert heard == []


def test_without_money_for_the_vendor_the_own_model_answers(echo: Callable[..., Any]) -> None:
    own, vendor = echo(tokens=4), echo(tokens=4)
    broke = Budget(scope=Scope.ALL, name="", unit=Unit.USD, period=Period.TOTAL, amount=1)
    branches = branch("vendor", vendor.port, elsewhere=True), branch("own", own.port, weight=0)
    with Steered(*branches, policy={"fallback": {"order": ["vendor", "own"]}}, budgets=(broke,)) as steered:
        status, headers, _ = steered.ask(max_tokens=4)
    assert (status, headers["pressroom-route"]) == (200, "own")


def test_what_was_asked_before_costs_nothing(echo: Callable[..., Any]) -> None:
    engine = echo(tokens=4)
    plenty = tokens(10_000)
    with Steered(branch("a", engine.port), cache={"exact": True}, budgets=(plenty,)) as steered:
        first = steered.ask(max_tokens=4, temperature=0)
        spent = steered.gateway.on_loop(lambda: steered.accounts.spent(Scope.DEPLOYMENT, "m", "total", Unit.TOKENS))
        again = steered.ask(max_tokens=4, temperature=0)
        streamed = steered.ask(max_tokens=4, temperature=0, stream=True)
        after = steered.gateway.on_loop(lambda: steered.accounts.spent(Scope.DEPLOYMENT, "m", "total", Unit.TOKENS))
        unkept = steered.ask("hello big world", "Cache-Control: no-store", max_tokens=4, temperature=0)
        rows = steered.ledger.rows
    assert "pressroom-cache" not in first[1]
    assert again[1]["pressroom-cache"] == streamed[1]["pressroom-cache"] == "exact"
    assert "pressroom-cache" not in unkept[1]
    texts = [json.loads(body)["choices"][0]["message"]["content"] for body in (first[2], again[2])]
    assert texts[0] == texts[1]
    assert streamed[2].rstrip().endswith(b"[DONE]")
    assert spent == after > 0
    assert [row.cache for row in rows] == ["", "exact", "exact", ""]
    assert rows[1].prompt_tokens == rows[1].completion_tokens == rows[1].nano_usd == 0


def test_a_stream_is_kept_and_given_whole_with_its_usage(echo: Callable[..., Any]) -> None:
    with Steered(branch("a", echo(tokens=4).port), cache={"exact": True}) as steered:
        steered.ask(max_tokens=4, temperature=0, stream=True)
        _, headers, body = steered.ask(max_tokens=4, temperature=0)
    assert headers["pressroom-cache"] == "exact"
    assert json.loads(body)["usage"]["completion_tokens"] == 4


def test_a_copy_goes_along_and_its_answer_does_not(echo: Callable[..., Any]) -> None:
    live, new = echo(tokens=4), echo(tokens=2)
    branches = branch("live", live.port), branch("new", new.port, weight=0)
    with Steered(*branches, policy={"shadow": {"branch": "new", "share": 1.0}}) as steered:
        _, headers, body = steered.ask(max_tokens=4)
        until(lambda: len(steered.ledger.rows) == 2)
        rows = {row.shadow: row for row in steered.ledger.rows}
    assert headers["pressroom-route"] == "live"
    assert json.loads(body)["usage"]["completion_tokens"] == 4
    assert (rows[False].branch, rows[True].branch) == ("live", "new")
    assert rows[True].key == ""


def test_several_answers_over_branches_are_one_row(echo: Callable[..., Any]) -> None:
    with Steered(branch("a", echo(tokens=3).port), branch("b", echo(tokens=3).port)) as steered:
        status, _, body = steered.ask(n=4, max_tokens=3)
        (row,) = steered.ledger.rows
    assert status == 200
    assert len(json.loads(body)["choices"]) == 4
    assert row.completion_tokens == 12


def test_the_figures_say_what_came_of_it(echo: Callable[..., Any], script: Callable[..., Script]) -> None:
    branches = branch("vendor", script(fails(503)).port, elsewhere=True), branch("own", echo(tokens=4).port, weight=0)
    policy = {"fallback": {"order": ["vendor", "own"]}, "breaker": {"failures": 1, "pause_s": 60}}
    with Steered(*branches, policy=policy, cache={"exact": True}, budgets=(tokens(10_000),)) as steered:
        for _ in range(2):
            steered.ask(max_tokens=4, temperature=0)
        text = steered.metrics()
    assert 'pressroom_route_fallbacks_total{model="m",route="own"} 1.0' in text
    assert 'pressroom_route_breaker{model="m",route="vendor"} 2.0' in text
    assert 'pressroom_cache_lookups_total{kind="exact",model="m",result="hit"} 1.0' in text
    assert 'pressroom_budget{name="m",period="total",scope="deployment",unit="tokens"} 10000.0' in text
    assert 'pressroom_budget_held{name="m",period="total",scope="deployment",unit="tokens"} 0.0' in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_of_several_parts_is_counted_once(echo: Callable[..., Any], stream: bool) -> None:
    """A hedge that lost, a copy that was sent along, a rule that leaves nobody: clients have one answer each."""
    slow, quick = echo(first_delay_s=1), echo(tokens=4)
    branches = branch("slow", slow.port, elsewhere=True), branch("quick", quick.port, weight=0, elsewhere=True)
    policy = {
        "hedge": {"after_s": 0.05},
        "fallback": {"order": ["slow", "quick"]},
        "shadow": {"branch": "quick", "share": 1.0},
        "rule": [{"when": {"tag": ["internal"]}, "only": name} for name in ("slow", "quick")],
    }
    with Steered(*branches, policy=policy) as steered:
        assert steered.ask(max_tokens=50, stream=stream)[1]["pressroom-route"] == "quick"
        until(lambda: len(steered.ledger.rows) == 2)
        assert steered.ask("hello", "Pressroom-Tag: internal", stream=stream)[0] == 400
        text = steered.metrics()
    lines = [line for line in text.splitlines() if line.startswith("pressroom_requests_total")]
    assert sorted(lines) == [
        f'pressroom_requests_total{{endpoint="chat.completions",model="m",status="{status}"}} 1.0'
        for status in (200, 400)
    ]
    assert 'pressroom_request_duration_seconds_count{endpoint="chat.completions",model="m"} 2.0' in text
    assert f'pressroom_time_to_first_token_seconds_count{{model="m"}} {int(stream)}.0' in text
    assert 'pressroom_client_disconnects_total{model="m"} 0.0' in text
    assert 'pressroom_requests_in_flight{model="m"} 0.0' in text


@pytest.mark.parametrize("room", [1, 2])
def test_two_that_are_asked_at_once_are_both_paid_for(echo: Callable[..., Any], room: int) -> None:
    """A slow branch and the one that is asked too: what both may come to is set aside, or the second is not asked."""
    slow, quick = echo(tokens=50, delay_s=0.02), echo(tokens=4)
    comes_to = 3 + 50  # the echo counts words
    branches = branch("slow", slow.port), branch("quick", quick.port, weight=0)
    policy = {"hedge": {"after_s": 0.05}, "fallback": {"order": ["slow", "quick"]}}
    with Steered(*branches, policy=policy, budgets=(tokens(comes_to * room + 10),)) as steered:
        status, headers, _ = steered.ask(max_tokens=50)
        until(lambda: steered.ledger.rows)
        (row,) = steered.ledger.rows
        held = steered.gateway.on_loop(lambda: steered.accounts.held(Scope.DEPLOYMENT, "m", Unit.TOKENS))
    assert (status, headers["pressroom-route"]) == (200, "slow" if room == 1 else "quick")
    assert row.tries == room
    assert held == 0


def test_the_row_names_who_answered(echo: Callable[..., Any], script: Callable[..., Script]) -> None:
    """The vendor failed, the own model answered, and the time for the whole was over before it was done."""
    branches = (
        branch("vendor", script(fails(503)).port, elsewhere=True),
        branch("own", echo(delay_s=0.02).port, weight=0),
    )
    policy = {"fallback": {"order": ["vendor", "own"]}, "limits": {"total_s": 0.3}}
    with Steered(*branches, policy=policy) as steered:
        status, headers, _ = steered.ask("word " * 100, stream=True)
        until(lambda: steered.ledger.rows)
        (row,) = steered.ledger.rows
    assert (status, headers["pressroom-route"]) == (200, "own")
    assert row.branch == "own"
    assert 0 < row.completion_tokens < 100


def test_a_stream_that_breaks_off_has_failed(script: Callable[..., Script]) -> None:
    """An error event after the first words: the client hears it once, and ledger and tally have it."""
    piece = b'data: {"choices":[{"delta":{"content":"some"}}]}\n\n'
    error = b'data: {"error":{"message":"it broke","type":"server_error","code":"vendor_cut"}}\n\n'

    def breaks(connected: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        connected.sendall(head + piece + error)
        connected.close()

    with Steered(branch("a", script(breaks).port), branch("b", script(breaks).port)) as steered:
        _, _, body = steered.ask(stream=True)
        (row,) = steered.ledger.rows
        tally = steered.gateway.routes.tally("m", row.branch)
    assert body.count(b'"error"') == 1 and b"vendor_cut" in body and b"some" in body
    assert (row.outcome, row.status, row.completion_tokens) == ("failed", 502, 1)
    assert tally is not None and (tally.failed, tally.answered) == (1, 0)


@pytest.mark.parametrize("bounds", [{"max_tokens": 1, "n_predict": 300}, {"max_tokens": 9, "max_completion_tokens": 1}])
def test_one_bound_and_not_two(echo: Callable[..., Any], bounds: dict[str, int]) -> None:
    with Steered(branch("a", echo().port)) as steered:
        assert steered.ask(**bounds)[0] == 400
