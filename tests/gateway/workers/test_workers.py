"""Workers behind one address: what they answer, what they carry, and what they may spend."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pressroom.gateway._usage import TEMPLATE
from pressroom.gateway.ledger import Rows
from pressroom.gateway.money import Accounts, Budgets, parse_budget
from pressroom.gateway.workers import SharedTable, owner
from pressroom.gateway.workers._gone import Left
from pressroom.kernel import Keys, Workspace
from tests.gateway.engines_and_clients import Client, Echoes, chat, post, route_to, until

from .houses import House
from .loads import ask_many, spent, total

Make = Callable[..., House]
Both = Callable[[House], dict[int, Client]]


def test_both_workers_answer_and_what_they_do_is_in_one_ledger(echo: Echoes, house: Make, on_both: Both) -> None:
    engine = echo(tokens=3)
    served = house(route_to(engine.port))
    for client in on_both(served).values():
        for _ in range(3):
            status, _, answer = client.ask(post(chat()))
            assert status == 200 and answer["usage"]["completion_tokens"] == 3
        status, _, models = client.ask(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status == 200 and [model["id"] for model in models["data"]] == ["m"]
    assert engine.requests == 6
    tally = served.table.tally("m")
    assert tally is not None
    until(lambda: tally.answered == 6)
    until(lambda: spent(served) == 6 * total(answer))


def test_what_is_the_servers_is_carried_to_it(echo: Echoes, house: Make, on_both: Both) -> None:
    served = house(route_to(echo(tokens=3).port))
    client = next(iter(on_both(served).values()))
    client.send(post(chat()))
    assert client.response()[0] == 200
    # In pieces, so that the worker cannot tell at once.
    for piece in (b"\r\nG", b"ET /met", b"rics HTTP/1.1\r\nHost: local", b"host\r\n\r\n"):
        client.send(piece)
        time.sleep(0.01)
    status, headers, body = client.response()
    assert status == 200 and b"pressroom_requests" in body and headers["content-type"].startswith("text/plain")
    # From here on the server answers on this connection, whatever it is.
    client.send(post(chat()))
    assert client.response()[0] == 200
    status, _, index = client.ask(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status == 200 and "/v1/files" in " ".join(index["batches"])
    status, _, unknown = client.ask(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert status == 404 and unknown["error"]["code"] == "unknown_url"
    assert client.rest() == b""


def upload(content: bytes) -> bytes:
    form = (
        b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + content + b"\r\n--B--\r\n"
    )
    return post(form, "/v1/files", "Content-Type: multipart/form-data; boundary=B")


def test_files_larger_than_a_request_to_a_model_may_be_go_through(house: Make, tmp_path: Path) -> None:
    (tmp_path / "pressroom.toml").write_text("[gateway]\nmax_body_bytes = 100_000\n")
    served = house()
    content = os.urandom(1 << 20) * 3
    with Client(served.port) as client:
        status, _, file = client.ask(upload(content))
        assert status == 200 and file["bytes"] == len(content) > served.gateway.settings.max_body_bytes
        client.send(f"GET /v1/files/{file['id']}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.response()[2] == content


def test_batches_run(echo: Echoes, house: Make) -> None:
    served = house(route_to(echo(tokens=3).port))
    line = {"method": "POST", "url": "/v1/chat/completions", "body": json.loads(chat())}
    lines = b"".join(json.dumps({**line, "custom_id": str(number)}).encode() + b"\n" for number in range(3))
    with Client(served.port) as client:
        _, _, file = client.ask(upload(lines))
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        status, _, batch = client.ask(post(json.dumps(wanted).encode(), "/v1/batches"))
        assert status == 200, batch

        def done() -> bool:
            _, _, now = client.ask(f"GET /v1/batches/{batch['id']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            return bool(now["status"] == "completed" and now["request_counts"]["completed"] == 3)

        until(done)


def test_pipelined_behind_our_own_it_closes_after_our_answer(echo: Echoes, house: Make) -> None:
    served = house(route_to(echo(tokens=3).port))
    with Client(served.port) as client:
        client.send(post(chat()) + b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.response()[0] == 200
        assert client.rest() == b""


def test_strangers_get_an_answer(house: Make) -> None:
    served = house()
    for sent in (b"\x16\x03\x01 hello", b"nonsense\r\n\r\n", b"G" * 100, b"POST /v1/completions\r\n\r\n"):
        with Client(served.port) as client:
            client.send(sent)
            assert client.response()[0] == 400
            assert client.rest() == b""
    with Client(served.port) as client:
        client.send(b"GET " + b"/" * 70_000)
        assert client.response()[0] == 431


def test_keys_hold_at_every_worker(echo: Echoes, house: Make, tmp_path: Path, on_both: Both) -> None:
    (tmp_path / "pressroom.toml").write_text("[gateway]\nrequire_key = true\n")
    served = house(route_to(echo(tokens=3).port))
    clients = on_both(served)
    keys = Keys(served.workspace)
    _, secret = keys.create("alice", ["ask"])
    authorization = f"Authorization: Bearer {secret}"
    for client in clients.values():
        assert client.ask(post(chat()))[0] == 401
        until(lambda client=client: client.ask(post(chat(), "/v1/chat/completions", authorization))[0] == 200)  # type: ignore[misc]
    keys.revoke("alice")
    for client in clients.values():
        until(lambda client=client: client.ask(post(chat(), "/v1/chat/completions", authorization))[0] == 401)  # type: ignore[misc]


def test_a_budget_holds_over_all_workers_to_its_last_tokens(echo: Echoes, house: Make, tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        Budgets(workspace).set(parse_budget("all", "3000 tokens"))
    served = house(route_to(echo(tokens=5).port))
    answers = ask_many(served, 600)
    assert None not in answers
    good = [total(answer) for answer in answers if "usage" in answer]
    assert {answer["error"]["code"] for answer in answers if "error" in answer} == {"insufficient_quota"}
    assert sum(good) <= 3000
    # What is left is not enough for one more, and nobody holds it back.
    until(lambda: spent(served) == sum(good))
    largest = 20 + len(chat(max_tokens=20)) + TEMPLATE
    with Client(served.port) as client:
        while "usage" in (answer := client.ask(post(chat(max_tokens=20)))[2]):
            good.append(total(answer))
            time.sleep(0.05)
    assert 3000 - largest < sum(good) <= 3000


def test_texts_of_all_workers_are_in_the_ledger_where_they_are_kept(
    echo: Echoes, house: Make, tmp_path: Path, on_both: Both
) -> None:
    (tmp_path / "pressroom.toml").write_text('[ledger]\ncontent = "full"\n')
    served = house(route_to(echo(tokens=3).port))
    clients = on_both(served)
    for pid, client in clients.items():
        fields = {
            "model": "m",
            "messages": [{"role": "user", "content": f"what worker {pid} was asked"}],
            "user": "ann",
        }
        status, _, _ = client.ask(post(json.dumps(fields).encode()))
        assert status == 200
        client.send(post(json.dumps({**fields, "stream": True}).encode()))
        assert client.response()[0] == 200
    rows = Rows(served.workspace)
    until(lambda: len(rows.list()) == 4)
    asked = {entry.prompt_text for entry in rows.list()}
    assert asked == {f"user: what worker {pid} was asked" for pid in clients}
    assert all(entry.answer_text for entry in rows.list())
    assert rows.forget("ann") == 4
    assert {(entry.user, entry.prompt_text, entry.answer_text) for entry in rows.list()} == {("", None, None)}


def test_a_journal_that_cannot_be_recovered_at_first_is_recovered_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def recover(workspace: Workspace, number: int, names: list[str]) -> Left:
        tries.append(number)
        if len(tries) < 3:
            raise ValueError("nobody thought of that")
        return Left()

    monkeypatch.setattr(owner, "recover", recover)
    monkeypatch.setattr(owner, "_AGAIN_S", 0.01)

    async def bury() -> None:
        workers = owner.Workers(workspace, SharedTable(), Accounts(), count=1, ready=lambda: True)
        workers._alive.add(7)
        await workers._recover(1, 7, "session", ["req_a"])
        assert tries == [1, 1, 1] and not workers._alive
        assert caplog.text.count("nobody thought of that") >= 2
        await workers.stop(0)

    with Workspace.open(tmp_path) as workspace:
        asyncio.run(bury())
