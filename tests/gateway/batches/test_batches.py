"""Batches through the official client: what is refused, what is answered, and how they end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from pressroom.engines.base import Capabilities
from pressroom.gateway.batches._batches import Batches
from pressroom.gateway.batches._files import FileStore
from pressroom.gateway.batches.base import BatchError, Counts, Status
from pressroom.kernel import Workspace

from .serving import (
    CHAT,
    HEAD,
    Client,
    Script,
    Serving,
    chat,
    ended,
    jsonl,
    line,
    post,
    records,
    route_to,
    start,
    until,
    upload,
)

Make = Callable[..., Serving]


def test_a_batch_from_upload_to_answers(serving: Make, workspace: Workspace) -> None:
    client = serving().client()
    data = jsonl(line(n) for n in range(50))
    made = start(client, data, metadata={"what": "test"})
    assert made.status == "validating" and made.metadata == {"what": "test"}
    batch = ended(client, made.id)
    assert batch.status == "completed" and batch.model == "m"
    assert batch.request_counts.model_dump() == {"total": 50, "completed": 50, "failed": 0}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.error_file_id is None
    answers = records(client.files.content(batch.output_file_id).read())
    assert sorted(answer["custom_id"] for answer in answers) == sorted(f"r{n}" for n in range(50))
    for answer in answers:
        body = answer["response"]["body"]
        assert answer.keys() == {"id", "custom_id", "response", "error"}
        assert answer["error"] is None and answer["response"]["status_code"] == 200
        assert answer["response"]["request_id"].startswith("req_")
        assert body["choices"][0]["message"]["content"] == f"say {answer['custom_id'][1:]}"
    assert len({answer["id"] for answer in answers}) == 50
    assert batch.usage.input_tokens == 100 and batch.usage.output_tokens == 100
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output" and output.filename == f"{batch.id}_output.jsonl"
    assert {file.id for file in client.files.list()} == {made.input_file_id, batch.output_file_id}
    assert {path.name for path in (workspace.dir / "files").iterdir()} == {made.input_file_id, batch.output_file_id}


def test_what_fails_is_in_the_error_file(serving: Make) -> None:
    client = serving().client()
    lines = [line(0), line(1), line(2), line(3)]
    lines[1]["body"]["model"] = "nobody"
    lines[2]["body"]["temperature"] = 9
    batch = ended(client, start(client, jsonl(lines)).id)
    assert batch.status == "completed" and batch.model is None  # two models, so no one
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 2, "failed": 2}
    failed = {one["custom_id"]: one["response"] for one in records(client.files.content(batch.error_file_id).read())}
    assert failed["r1"]["status_code"] == 404 and failed["r1"]["body"]["error"]["code"] == "model_not_found"
    assert failed["r2"]["status_code"] == 400 and failed["r2"]["body"]["error"]["param"] == "temperature"
    done = records(client.files.content(batch.output_file_id).read())
    assert {one["custom_id"] for one in done} == {"r0", "r3"}


def test_completions_are_an_endpoint_too(serving: Make) -> None:
    client = serving().client()
    lines = [{**line(n), "url": "/v1/completions", "body": {"model": "m", "prompt": f"a b {n}"}} for n in range(3)]
    batch = ended(client, start(client, jsonl(lines), endpoint="/v1/completions").id)
    texts = [
        one["response"]["body"]["choices"][0]["text"]
        for one in records(client.files.content(batch.output_file_id).read())
    ]
    assert sorted(texts) == ["a b 0", "a b 1", "a b 2"]


def test_embeddings_are_an_endpoint_too(workspace: Workspace, script: Callable[..., Script]) -> None:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    body = json.dumps(
        {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}], "usage": usage}
    ).encode()
    engine = script(lambda connected: connected.sendall(HEAD % len(body) + body))
    with Serving(workspace, route_to(engine.port, capabilities=Capabilities(embeddings=True))) as serving:
        client = serving.client()
        lines = [{**line(n), "url": "/v1/embeddings", "body": {"model": "m", "input": f"text {n}"}} for n in range(3)]
        batch = ended(client, start(client, jsonl(lines), endpoint="/v1/embeddings").id)
        assert batch.request_counts.completed == 3 and batch.usage.input_tokens == 9
        for one in records(client.files.content(batch.output_file_id).read()):
            assert one["response"]["body"]["data"][0]["embedding"] == [0.5, -1.0]


def changed(**more: Any) -> dict[str, Any]:
    return {**line(7), **more}


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b'{"custom_id": "\\ud800"}', "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        ({"method": "POST", "url": CHAT, "body": {}}, "missing_required_parameter", "custom_id"),
        (changed(custom_id=7), "invalid_type", "custom_id"),
        (changed(custom_id=""), "invalid_type", "custom_id"),
        (changed(custom_id="x" * 513), "invalid_type", "custom_id"),
        (changed(custom_id="r0"), "duplicate_custom_id", "custom_id"),
        (changed(method="GET"), "invalid_method", "method"),
        (changed(url="/v1/completions"), "mismatched_url", "url"),
        (changed(body=[]), "invalid_type", "body"),
        (changed(body={"messages": []}), "missing_required_parameter", "body.model"),
        (changed(body={"model": "m", "stream": True}), "invalid_value", "body.stream"),
        (changed(extra=1), "unknown_parameter", "extra"),
        (b'{"custom_id":"a","method":"POST","url":"%b","body":{"model":"m","a":%b%b}}'
         % (CHAT.encode(), b"[" * 500, b"]" * 500), "invalid_value", "body"),
    ],
)  # fmt: skip
def test_a_line_that_is_wrong_fails_the_batch(serving: Make, bad: Any, code: str, param: str | None) -> None:
    client = serving().client()
    data = jsonl([line(0)]) + b"\n" + (bad if isinstance(bad, bytes) else json.dumps(bad).encode()) + b"\n"
    batch = ended(client, start(client, data + jsonl([line(1)])).id)
    assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
    (error,) = batch.errors.data
    assert (error.code, error.line, error.param) == (code, 3, param) and error.message  # a blank line counts


def test_an_empty_file_and_many_mistakes(serving: Make) -> None:
    client = serving().client()
    assert ended(client, start(client, b"\n \n").id).errors.data[0].code == "empty_file"
    batch = ended(client, start(client, b"nothing\n" * 5_000).id)
    assert [error.line for error in batch.errors.data] == list(range(1, 101))


def test_every_repeated_id_is_named(serving: Make) -> None:
    client = serving().client()
    batch = ended(client, start(client, jsonl(line(n % 40) for n in range(50))).id)
    assert [error.line for error in batch.errors.data] == list(range(41, 51))
    assert {error.code for error in batch.errors.data} == {"duplicate_custom_id"}


def test_what_a_batch_must_say(serving: Make) -> None:
    made = serving()
    client = made.client()
    file = upload(client, jsonl([line(0)]))
    good: dict[str, Any] = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    for wrong, param in [
        ({"completion_window": "24"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"input_file_id": 3}, "input_file_id"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.create(**{**good, **wrong})
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError) as missing:
        client.batches.create(**{**good, "input_file_id": "file-none"})
    assert missing.value.param == "input_file_id"
    with Client(made.port) as raw:
        for body in (b"", b"[]", b"{", b'{"priority": 1}', b"{}"):
            status, _, answer = raw.ask(post(body, "/v1/batches"))
            assert status == 400 and answer["error"]["message"]
    assert not client.batches.list().data
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    with pytest.raises(openai.NotFoundError):
        client.batches.cancel("batch_none")


def test_results_are_no_input(serving: Make) -> None:
    client = serving().client()
    batch = ended(client, start(client, jsonl([line(0)])).id)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(input_file_id=batch.output_file_id, endpoint=CHAT, completion_window="24h")


def test_pages_of_batches(serving: Make) -> None:
    client = serving().client()
    made = [start(client, jsonl([line(0)])).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    page = client.batches.list(limit=2, after=made[3])
    assert [batch.id for batch in page.data] == [made[2], made[1]] and page.has_more


def test_cancelling_keeps_what_is_done(serving: Make, workspace: Workspace) -> None:
    client = serving(first_delay_s=0.02).client()
    made = start(client, jsonl(line(n) for n in range(2_000)))
    output = workspace.dir / "files"
    until(lambda: any(path.stat().st_size for path in output.iterdir() if path.name != made.input_file_id))
    with pytest.raises(openai.ConflictError, match=made.id):
        client.files.delete(made.input_file_id)
    assert client.batches.cancel(made.id).status in ("cancelling", "cancelled")
    batch = ended(client, made.id)
    assert batch.status == "cancelled" and batch.cancelling_at and batch.cancelled_at
    done = records(client.files.content(batch.output_file_id).read())
    assert 0 < len(done) == batch.request_counts.completed < 2_000
    assert client.batches.cancel(made.id).status == "cancelled"  # again says the same
    client.files.delete(made.input_file_id)


def test_a_batch_that_is_over_cannot_be_cancelled(serving: Make) -> None:
    client = serving().client()
    batch = ended(client, start(client, jsonl([line(0)])).id)
    with pytest.raises(openai.ConflictError, match="completed"):
        client.batches.cancel(batch.id)


def test_a_batch_that_expires_says_so_for_every_line_left(serving: Make, workspace: Workspace) -> None:
    late = [0.0]
    client = serving(clock=lambda: time.time() + late[0], first_delay_s=0.02).client()
    made = start(client, jsonl(line(n) for n in range(2_000)), completion_window="1h")
    until(lambda: client.batches.retrieve(made.id).request_counts.completed)
    late[0] = 3601.0
    batch = ended(client, made.id)
    assert batch.status == "expired" and batch.expired_at
    late[0] = 0.0
    done = records(client.files.content(batch.output_file_id).read())
    rest = records(client.files.content(batch.error_file_id).read())
    assert {one["error"]["code"] for one in rest} == {"batch_expired"}
    assert {one["custom_id"] for one in done + rest} == {f"r{n}" for n in range(2_000)}
    assert len(done) + len(rest) == 2_000


def test_only_so_many_at_once_and_others_are_answered_meanwhile(serving: Make) -> None:
    made = serving(first_delay_s=0.05)
    client = made.client()
    most = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            most[0] = max(most[0], made.gateway.metrics.of("m").in_flight)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    batch = start(client, jsonl(line(n) for n in range(100)))
    with Client(made.port) as other:
        for _ in range(5):
            assert other.ask(post(chat("between")))[0] == 200
    assert ended(client, batch.id).status == "completed"
    over.set()
    watcher.join()
    assert 2 <= most[0] <= 9  # batch.concurrency is 8, and the other one's


def test_refused_for_now_is_asked_again_when_the_gateway_said(serving: Make) -> None:
    made = serving()
    refused: list[float] = []

    def refuse(request: Any) -> tuple[int, bytes, bytes] | None:
        if request.path != CHAT.encode() or len(refused) >= 12:
            return None
        refused.append(time.monotonic())
        return (429 if len(refused) % 2 else 503, b"retry-after: 1\r\n", b'{"error": {"message": "busy"}}')

    made.refusing = refuse
    client = made.client()
    batch = ended(client, start(client, jsonl(line(n) for n in range(20))).id)
    assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    # Those that were in flight together are refused together; then all wait as long as they were told.
    assert refused[8] - refused[0] >= 1.0


def test_an_engine_that_fails_is_asked_three_times(serving: Make) -> None:
    made = serving()
    seen: list[bytes] = []

    def refuse(request: Any) -> tuple[int, bytes, bytes] | None:
        if request.path != CHAT.encode():
            return None
        seen.append(request.body)
        failing = b"say 1" in request.body or (b"say 2" in request.body and len(seen) < 5)
        return (502, b"", b'{"error": {"message": "it broke"}}') if failing else None

    made.refusing = refuse
    client = made.client()
    batch = ended(client, start(client, jsonl(line(n) for n in range(4))).id)
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 3, "failed": 1}
    assert sum(b"say 1" in body for body in seen) == 3
    (failed,) = records(client.files.content(batch.error_file_id).read())
    assert failed["response"]["status_code"] == 502 and failed["response"]["body"]["error"]["message"] == "it broke"


def test_a_spent_quota_is_not_waited_for(serving: Make) -> None:
    made = serving()
    spent = b'{"error": {"message": "spent", "code": "insufficient_quota"}}'
    made.refusing = lambda request: (429, b"", spent) if request.path == CHAT.encode() else None
    client = made.client()
    batch = ended(client, start(client, jsonl([line(0)])).id)
    assert batch.request_counts.failed == 1


def test_files_whose_days_are_over_are_removed(workspace: Workspace) -> None:
    late = [0.0]
    with Serving(workspace, clock=lambda: time.time() + late[0]) as first:
        file = upload(first.client(), b"{}")
        assert (workspace.dir / "files" / file).exists()
    late[0] = 31 * 86_400.0
    with Serving(workspace, clock=lambda: time.time() + late[0]):
        until(lambda: not (workspace.dir / "files" / file).exists())


def rows(workspace: Workspace) -> None:
    """What the rows of files and batches must do, on any database."""
    files = FileStore(workspace)
    batches = Batches(workspace, files)
    writer = files.writer()
    writer.write(b"{}")
    file = writer.commit("batch", "näme 😀", expires_s=3_600)
    assert files.get(file.id) == file and files.list(limit=1) == ([file], False)
    made = batches.put(
        endpoint=CHAT,
        input_file=file.id,
        window="24h",
        window_s=86_400,
        metadata={"a": "ü"},
        results_expire_s=None,
        now=1_800_000_000.25,
    )
    assert batches.get(made.id) == made and batches.unfinished() == [made]
    counts = Counts(completed=2, input_tokens=7)
    assert batches.move(made.id, [Status.VALIDATING], status=Status.IN_PROGRESS, counts=counts, total=3)
    assert not batches.move(made.id, [Status.VALIDATING], status=Status.FAILED)
    found = batches.get(made.id)
    assert (found.status, found.counts, found.total, found.metadata) == (Status.IN_PROGRESS, counts, 3, {"a": "ü"})
    files.path(found.output).write_bytes(b"result")
    result = files.measured(found.output, "batch_output", "out", expires_s=None)
    assert result is not None
    for _ in range(2):  # the second finds it over, and changes nothing
        batches.finish(made.id, [result], status=Status.COMPLETED, has_output=True, completed_at=1.5)
    assert batches.get(made.id).status is Status.COMPLETED and not batches.unfinished()
    assert [each.id for each in files.list(limit=9, newest_first=False)[0]] == [file.id, result.id]
    assert files.list(limit=9, purpose="batch_output")[0] == [result]
    files.delete(file.id)
    with pytest.raises(BatchError):
        files.delete(file.id)


def test_rows(workspace: Workspace) -> None:
    rows(workspace)


@pytest.mark.slow
def test_rows_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    with Workspace.open(tmp_path, environ={"PRESSROOM_DATABASE": postgres_url}) as workspace:
        rows(workspace)
