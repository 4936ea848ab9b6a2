"""Two hundred at once on a budget for fifty, through every door, on every kind of route: never more than the budget."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from pressroom.cost import Price
from pressroom.gateway.grpc import inference_pb2 as messages
from pressroom.gateway.money import Budget, Period, Scope, Unit

from .engines_and_clients import post
from .test_entrance import INFER
from .test_steered_gateway import Steered, branch

TEXT, MOST = "one two three four five", 5
PARALLEL, FITS = 200, 50
# What one request comes to: the echo counts words, and says as many as it may.
TOKENS = 5 + MOST
PRICE = Price(prompt=1_000_000, completion=1_000_000)


def http(path: str, body: dict[str, Any]) -> Callable[[int, int], Any]:
    raw = post(json.dumps(body).encode(), path, "Connection: close")

    async def ask(port: int, grpc_port: int) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        answer = await reader.read()
        writer.close()
        status = int(answer[9:12])
        assert status in (200, 429), answer
        return status == 200

    return ask


async def over_grpc(port: int, grpc_port: int) -> bool:
    request = messages.ModelInferRequest(model_name="m")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(TEXT.encode())
    request.parameters["max_tokens"].int64_param = MOST
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        try:
            await channel.unary_unary(INFER)(request.SerializeToString(), timeout=60)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
            return False
    return True


CHAT = {"model": "m", "messages": [{"role": "user", "content": TEXT}], "max_tokens": MOST}
TENSOR = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
DOORS = {
    "chat": http("/v1/chat/completions", CHAT),
    "chat, streamed": http("/v1/chat/completions", {**CHAT, "stream": True}),
    "completions": http("/v1/completions", {"model": "m", "prompt": TEXT, "max_tokens": MOST}),
    "V2 generate": http("/v2/models/m/generate", {"text_input": TEXT, "parameters": {"max_tokens": MOST}}),
    "V2 infer": http("/v2/models/m/infer", {"inputs": [TENSOR], "parameters": {"max_tokens": MOST}}),
    "V2 gRPC": over_grpc,
}


# Every door, every kind of route, both units; not each with each.
CASES = [("chat", "one", Unit.TOKENS)] + [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in [
        ("chat", "one", Unit.USD),
        ("chat", "several", Unit.USD),
        ("chat, streamed", "vendor first", Unit.USD),
        ("completions", "several", Unit.TOKENS),
        ("V2 generate", "vendor first", Unit.TOKENS),
        ("V2 infer", "one", Unit.USD),
        ("V2 gRPC", "several", Unit.TOKENS),
        ("V2 gRPC", "vendor first", Unit.USD),
    ]
]


@pytest.mark.parametrize(("door", "routes", "unit"), CASES)
def test_never_more_than_the_budget(echo: Callable[..., Any], door: str, routes: str, unit: Unit) -> None:
    if routes == "one":
        branches = [branch("a", echo(delay_s=0.001).port)]
    else:
        away = routes == "vendor first"
        branches = [branch("a", echo(delay_s=0.001).port, elsewhere=away), branch("b", echo(delay_s=0.001).port)]
    amount = FITS * TOKENS * (1_000 if unit is Unit.USD else 1)
    budget = Budget(scope=Scope.DEPLOYMENT, name="m", unit=unit, period=Period.TOTAL, amount=amount)
    policy = {"fallback": {"order": [each.name for each in branches]}} if len(branches) > 1 else {}
    ask = DOORS[door]
    with Steered(*branches, policy=policy, budgets=(budget,), price=lambda route: PRICE) as steered:

        async def crowd() -> int:
            """Everybody asks again and again until there is really nothing left."""
            answered = 0
            for _ in range(100):
                found = await asyncio.gather(
                    *(ask(steered.gateway.port, steered.gateway.grpc_port) for _ in range(PARALLEL))
                )
                answered += sum(found)
                if not any(found):
                    break
            return answered

        answered = asyncio.run(crowd())
        held = steered.gateway.on_loop(lambda: steered.accounts.held(Scope.DEPLOYMENT, "m", unit))
        spent = steered.gateway.on_loop(lambda: steered.accounts.spent(Scope.DEPLOYMENT, "m", "total", unit))
        rows = [row for row in steered.ledger.rows if row.outcome == "answered"]
    assert spent == answered * TOKENS * (1_000 if unit is Unit.USD else 1) <= amount
    assert sum(row.prompt_tokens + row.completion_tokens for row in rows) == answered * TOKENS
    assert held == 0
    # Nobody is refused what there is money for: near the end, tokens are counted and not guessed by the length.
    assert answered == FITS
