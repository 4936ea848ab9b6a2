"""One request of a client: admitted, counted and written down once, however many of an engine's it takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pressroom.cost import Price
from pressroom.engines.backends.echo import Backend
from pressroom.gateway import Books
from pressroom.gateway._grant import Grant
from pressroom.gateway.admission import ANONYMOUS
from pressroom.gateway.ledger import Counted, Ledger, Outcome, Row
from pressroom.gateway.money import Accounts, Budget, Hold, Period, Scope, Unit
from pressroom.kernel import GatewaySettings
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, Script, chat, post, route_to, until


class Kept(Ledger):
    """A ledger in memory."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.open: list[str] = []
        self.no_room = False

    @property
    def full(self) -> bool:
        return self.no_room

    def opened(self, id: str, at: float, key: str, team: str, model: str, tokens: int, nano_usd: int) -> bool:
        self.open.append(id)
        return not self.no_room

    def append(self, row: Row) -> bool:
        self.rows.append(row)
        return not self.no_room


def tokens(amount: int, scope: Scope = Scope.DEPLOYMENT, name: str = "m") -> Budget:
    return Budget(scope=scope, name=name, unit=Unit.TOKENS, period=Period.TOTAL, amount=amount)


def money(nano: int) -> Budget:
    return Budget(scope=Scope.ALL, name="", unit=Unit.USD, period=Period.TOTAL, amount=nano)


class Open:
    """A gateway over an echo, with its books."""

    def __init__(self, echo: Echoes, *budgets: Budget, price: Price | None = None, **options: Any) -> None:
        self.ledger = Kept()
        self.accounts = Accounts(budgets)
        engine = echo(**options)
        self.gateway = GatewayThread(books=Books(self.accounts, self.ledger))
        self.gateway.routes.pricing = lambda route: price
        self.gateway.routes.set(route_to(engine.port))

    def __enter__(self) -> Open:
        self.gateway.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self.gateway.__exit__(*how)

    def ask(self, **fields: Any) -> tuple[int, Any]:
        client = Client(self.gateway.port)
        status, headers, body = client.ask(post(chat(**fields)))
        client.close()
        return status, {**body, "headers": headers}

    @property
    def row(self) -> Row:
        (row,) = self.ledger.rows
        return row


def test_a_row_says_what_the_answer_said(echo: Callable[..., Any]) -> None:
    with Open(echo, price=Price(prompt=1_000, completion=2_000), tokens=5) as open_:
        status, body = open_.ask(max_tokens=5, user="u-1")
        row = open_.row
    assert status == 200
    usage = body["usage"]
    assert (row.prompt_tokens, row.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert row.nano_usd == row.prompt_tokens + 2 * row.completion_tokens
    assert row.counted is Counted.STATED
    assert row.outcome is Outcome.ANSWERED
    assert (row.model, row.door, row.engine, row.user) == ("m", "chat.completions", "echo", "u-1")
    assert row.id == body["headers"]["x-request-id"]
    assert row.tries == 1


def test_a_stream_is_counted_without_the_client_asking(echo: Callable[..., Any]) -> None:
    with Open(echo, tokens=5) as open_:
        client = Client(open_.gateway.port)
        client.send(post(chat(stream=True)))
        _, _, body = client.response()
        client.close()
        row = open_.row
    assert b'"usage":{' not in body
    assert body.rstrip().endswith(b"[DONE]")
    assert row.completion_tokens == 5
    assert row.counted is Counted.STATED
    assert 0 < row.first_s <= row.total_s


def test_several_answers_are_one_row(echo: Callable[..., Any]) -> None:
    with Open(echo, tokens=5) as open_:
        status, body = open_.ask(n=3)
        row = open_.row
    assert status == 200
    assert len(body["choices"]) == 3
    assert row.completion_tokens == body["usage"]["completion_tokens"] == 15
    assert row.tries == 3


def test_no_overspend_when_everybody_asks_at_once(echo: Callable[..., Any]) -> None:
    """Two hundred at once, money for a part of them: those that fit are answered, and what is spent fits."""
    with Open(echo, tokens(50 * 400), tokens=5) as open_:
        body = post(chat("word " * 10, max_tokens=5))
        clients = [Client(open_.gateway.port) for _ in range(200)]
        found: list[int] = []

        def ask(client: Client) -> None:
            found.append(client.ask(body)[0])

        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
        spent = sum(row.prompt_tokens + row.completion_tokens for row in open_.ledger.rows)
        held = open_.gateway.on_loop(lambda: open_.accounts.held(Scope.DEPLOYMENT, "m", Unit.TOKENS))
    assert set(found) <= {200, 429}
    assert found.count(200) >= 50
    assert spent <= 50 * 400
    assert held == 0


def test_who_has_no_money_left_is_told(echo: Callable[..., Any]) -> None:
    with Open(echo, money(100), price=Price(prompt=10**6, completion=10**6), tokens=5) as open_:
        status, body = open_.ask(max_tokens=5)
    assert status == 429
    assert body["error"]["code"] == "insufficient_quota"
    assert open_.ledger.rows == []
    assert open_.ledger.open == []


def test_a_price_nobody_knows_is_not_paid(echo: Callable[..., Any]) -> None:
    with Open(echo, money(10**12), price=None, tokens=5) as open_:
        assert open_.ask()[0] == 429
    with Open(echo, tokens(10**6), price=None, tokens=5) as open_:
        assert open_.ask(max_tokens=5)[0] == 200


def test_a_full_disk_stops_what_a_budget_counts(echo: Callable[..., Any]) -> None:
    with Open(echo, tokens(10**6), tokens=5) as open_:
        open_.ledger.no_room = True
        status, body = open_.ask(max_tokens=5)
        held = open_.gateway.on_loop(lambda: open_.accounts.held(Scope.DEPLOYMENT, "m", Unit.TOKENS))
    assert status == 503
    assert body["error"]["code"] == "ledger_full"
    assert held == 0
    with Open(echo, tokens=5) as free:
        free.ledger.no_room = True
        assert free.ask()[0] == 200


def test_a_client_that_leaves_pays_for_what_was_made(echo: Callable[..., Any]) -> None:
    with Open(echo, tokens(10**6), tokens=200, delay_s=0.01) as open_:
        client = Client(open_.gateway.port)
        client.send(post(chat(stream=True, max_tokens=200)))
        client.until(b'"content":"')
        client.close()
        until(lambda: open_.ledger.rows)
        row = open_.row
        held = open_.gateway.on_loop(lambda: open_.accounts.held(Scope.DEPLOYMENT, "m", Unit.TOKENS))
    assert row.outcome is Outcome.LEFT
    assert 0 < row.completion_tokens < 200
    assert held == 0


def test_an_engine_that_dies_leaves_nothing_set_aside(echo: Callable[..., Any], script: Callable[..., Script]) -> None:
    piece = json.dumps({"choices": [{"delta": {"content": "a"}}]}, separators=(",", ":"))

    def dies(connected: Any) -> None:
        data = f"data: {piece}\n\n".encode()
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        connected.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        connected.close()

    ledger, accounts = Kept(), Accounts((tokens(10**6),))
    with GatewayThread(route_to(script(dies).port), books=Books(accounts, ledger)) as gateway:
        client = Client(gateway.port)
        client.send(post(chat(stream=True, max_tokens=50)))
        _, _, body = client.response()
        client.close()
        held = gateway.on_loop(lambda: accounts.held(Scope.DEPLOYMENT, "m", Unit.TOKENS))
    assert b'"error":' in body
    (row,) = ledger.rows
    assert row.outcome is Outcome.FAILED
    assert row.completion_tokens == 1
    assert row.counted is Counted.COUNTED
    assert held == 0


@pytest.mark.parametrize("bad", [{"messages": "x"}, {"temperature": 9}])
def test_what_is_refused_at_the_door_is_not_written(echo: Callable[..., Any], bad: dict[str, Any]) -> None:
    with Open(echo) as open_:
        assert open_.ask(**bad)[0] == 400
        assert open_.ledger.rows == []


def test_a_long_stream_that_states_nothing_is_counted_whole(script: Callable[..., Script]) -> None:
    """More of it than the end that is looked at for a usage, and less than makes its beginning be let go."""
    piece = b'data: {"choices":[{"delta":{"content":"word"}}],"padding":"%b"}\n\n' % (b"x" * 40)

    def says(connected: Any) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        connected.sendall(head + piece * 400 + b"data: [DONE]\n\n")
        connected.close()

    ledger = Kept()
    with GatewayThread(route_to(script(says).port), books=Books(Accounts(), ledger)) as gateway:
        client = Client(gateway.port)
        client.send(post(chat(stream=True)))
        client.response()
        client.close()
    (row,) = ledger.rows
    assert (row.completion_tokens, row.counted) == (400, Counted.COUNTED)


def test_what_is_cut_by_the_end_of_the_gateway_is_written_down(echo: Callable[..., Any]) -> None:
    """Nobody waits for the engine's last words then: the row says what was seen."""
    engine = echo(tokens=500, delay_s=0.02)
    ledger, accounts = Kept(), Accounts((tokens(10**6),))
    route = route_to(engine.port, capabilities=Backend.capabilities)
    settings = GatewaySettings(drain_s=0.0)
    with GatewayThread(route, settings=settings, books=Books(accounts, ledger)) as gateway:
        client = Client(gateway.port)
        client.send(post(chat(stream=True, max_tokens=500)))
        client.until(b'"content":"')
        gateway.stop()
        client.close()
    (row,) = ledger.rows
    assert row.outcome is not Outcome.ANSWERED
    assert 0 < row.completion_tokens < 500
    assert not accounts.open()


def test_two_parts_that_wait_for_the_owner_hold_once() -> None:
    """A worker asks the owner of the money: the second answer sets nothing aside besides the first."""
    accounts = Accounts((tokens(1_000),))
    fields = {"model": "m", "messages": [], "max_tokens": 5, "n": 2}
    grant = Grant(Books(accounts), ANONYMOUS, fields, id="r", door="chat")
    first, second = (accounts.admit(ANONYMOUS.caller, "m", tokens=100, nano_usd=0, request_id="r") for _ in range(2))
    assert isinstance(first, Hold) and isinstance(second, Hold)
    assert grant.covered(first) is None and grant.covered(second) is None
    assert accounts.held(Scope.DEPLOYMENT, "m", Unit.TOKENS) == 100
