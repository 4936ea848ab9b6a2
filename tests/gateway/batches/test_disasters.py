"""Bad days of files and batches: killed servers, full disks, clients that leave."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from pressroom.gateway.batches import _files, _results, _runner
from pressroom.kernel import Workspace

from .serving import Client, Echoes, Serving, chat, ended, jsonl, line, post, records, route_to, start, until, upload

Make = Callable[..., Serving]
TESTS = Path(__file__).parents[2]


@contextmanager
def in_a_process(workspace: Workspace, engine: int) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    program = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from gateway.batches.serving import main; main()"
    command = [sys.executable, "-c", program, str(workspace.root), str(engine)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            yield process, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        finally:
            process.kill()


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was(workspace: Workspace, echo: Echoes) -> None:
    engine = echo(first_delay_s=0.02)
    count = 600
    with in_a_process(workspace, engine.port) as (process, client):
        batch_id = start(client, jsonl(line(n) for n in range(count))).id
        until(lambda: engine.requests > 50)
        process.kill()
        process.wait()
    asked = engine.requests
    for more in (150, 400):  # the second is killed, too; the third ends it
        with in_a_process(workspace, engine.port) as (process, client):
            until(lambda more=more: engine.requests > more)
            process.kill()
            process.wait()
    with in_a_process(workspace, engine.port) as (process, client):
        batch = ended(client, batch_id)
        assert batch.status == "completed"
        assert batch.request_counts.model_dump() == {"total": count, "completed": count, "failed": 0}
        done = records(client.files.content(batch.output_file_id).read())
    assert len(done) == count and {one["custom_id"] for one in done} == {f"r{n}" for n in range(count)}
    # What was in flight, or answered and not yet written, when a server was killed is all that was asked twice.
    assert asked < engine.requests <= count + 3 * (8 + 4 * 8)


def test_an_orderly_end_keeps_the_batch_for_the_next_server(workspace: Workspace, echo: Echoes) -> None:
    engine = echo(first_delay_s=0.02)
    with Serving(workspace, route_to(engine.port)) as first:
        batch_id = start(first.client(), jsonl(line(n) for n in range(300))).id
        until(lambda: engine.requests > 30)
    with Serving(workspace, route_to(engine.port)) as second:
        batch = ended(second.client(), batch_id)
        assert batch.request_counts.model_dump() == {"total": 300, "completed": 300, "failed": 0}
        done = records(second.client().files.content(batch.output_file_id).read())
    assert {one["custom_id"] for one in done} == {f"r{n}" for n in range(300)} and len(done) == 300


def test_what_a_killed_server_left_half_written_is_gone(workspace: Workspace) -> None:
    files = workspace.path("files")
    (files / "part-0123").write_bytes(b"half")
    (files / ("file-" + "0" * 32)).write_bytes(b"whole, and without a row")
    (files / "somebody-else.txt").write_bytes(b"not ours")
    with Serving(workspace) as serving:
        assert not list(serving.client().files.list())
    assert [path.name for path in files.iterdir()] == ["somebody-else.txt"]


def test_a_batch_does_not_hold_up_a_gateway_that_stops(serving: Make, echo: Echoes) -> None:
    made = serving(first_delay_s=600)
    batch_id = start(made.client(), jsonl(line(n) for n in range(20))).id
    series = made.gateway.metrics.of("m")
    until(lambda: series.in_flight == 8)
    made.door.leave()
    until(lambda: series.in_flight == 0)  # the engine was told, too: the connections are closed
    assert made.client().batches.retrieve(batch_id).status == "in_progress"


@pytest.mark.slow
def test_a_torn_result_is_asked_again(workspace: Workspace, echo: Echoes) -> None:
    engine = echo(first_delay_s=0.02)
    files = workspace.path("files")
    with in_a_process(workspace, engine.port) as (process, client):
        made = start(client, jsonl(line(n) for n in range(300)))
        until(
            lambda: any(path.stat().st_size > 5_000 for path in files.glob("file-*") if path.name != made.input_file_id)
        )
        process.kill()
        process.wait()
    (output,) = (path for path in files.glob("file-*") if path.name != made.input_file_id and path.stat().st_size)
    os.truncate(output, output.stat().st_size - 7)
    with Serving(workspace, route_to(engine.port)) as serving:
        batch = ended(serving.client(), made.id)
        done = records(serving.client().files.content(batch.output_file_id).read())
    assert {one["custom_id"] for one in done} == {f"r{n}" for n in range(300)} and len(done) == 300


def full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_upload_to_a_full_disk(serving: Make, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serving().client()
    with monkeypatch.context() as patched:
        patched.setattr(_files, "sync", full)
        with pytest.raises(openai.InternalServerError, match="no room") as caught:
            upload(client, b"x")
    assert caught.value.status_code == 507 and caught.value.code == "insufficient_storage"
    until(lambda: not list((workspace.dir / "files").iterdir()))
    assert not list(client.files.list())
    monkeypatch.setattr(_files, "_RESERVE", 1 << 60)  # no disk has so much
    with pytest.raises(openai.InternalServerError, match="there is no room"):
        upload(client, b"x")


def test_a_disk_that_fills_up_under_a_batch(serving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runner, "_AGAIN_S", 0.1)
    monkeypatch.setattr(_runner, "_LOOK_S", 0.1)
    made = serving()
    client = made.client()
    real, refused = os.pwrite, []

    def pwrite(fd: int, data: Any, at: int) -> int:
        if len(refused) < 3 and bytes(data[:10]) == b'{"id":"bat' and len(data) > 100:
            refused.append(at)
            real(fd, data[:50], at)  # a part of it still fits
            full()
        return real(fd, data, at)

    monkeypatch.setattr(_results.os, "pwrite", pwrite)
    batch = ended(client, start(client, jsonl(line(n) for n in range(50))).id)
    assert batch.status == "completed" and len(refused) == 3
    done = records(client.files.content(batch.output_file_id).read())
    assert {one["custom_id"] for one in done} == {f"r{n}" for n in range(50)} and len(done) == 50


def test_an_upload_that_is_cut_leaves_nothing(serving: Make, workspace: Workspace) -> None:
    made = serving()
    files = workspace.dir / "files"
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        'Content-Length: 1900000\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", made.port)) as raw:
            raw.sendall(head.encode() + b"x" * 1_500_000)
            until(lambda: list(files.glob("part-*")))
        until(lambda: not list(files.iterdir()))
    until(lambda: not made.door.running)
    assert not list(made.client().files.list())


def test_a_client_that_leaves_a_download(serving: Make) -> None:
    made = serving()
    file_id = upload(made.client(), b"x" * 1_900_000)
    for _ in range(5):
        with Client(made.port, receive_buffer=4_096) as client:
            client.send(f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            client.until(b"\r\n\r\n")
    until(lambda: not made.door.running)

    def open_still() -> list[str]:
        descriptors = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        return [name for name in descriptors if file_id in name]

    until(lambda: not open_still())  # a thread closes it


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_the_gateway_answers_while_many_files_come(serving: Make) -> None:
    made = serving()
    errors: list[BaseException] = []

    def send(n: int) -> None:
        try:
            client = made.client()
            file_id = upload(client, bytes([n]) * 1_000_000)
            assert client.files.content(file_id).read() == bytes([n]) * 1_000_000
        except BaseException as error:  # noqa: BLE001  looked at below
            errors.append(error)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    with Client(made.port) as other:
        while any(thread.is_alive() for thread in threads):
            assert other.ask(post(chat("between")))[0] == 200
    assert not errors


def test_an_input_that_disappears_fails_the_batch(serving: Make, workspace: Workspace) -> None:
    client = serving(first_delay_s=0.02).client()
    file_id = upload(client, jsonl([line(0)]))
    (workspace.dir / "files" / file_id).unlink()
    batch = client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    assert ended(client, batch.id).errors.data[0].code == "file_not_found"
    with pytest.raises(openai.NotFoundError, match="gone from the disk"):
        client.files.content(file_id)


def test_two_servers_of_one_workspace_run_a_batch_once(workspace: Workspace, echo: Echoes) -> None:
    engine = echo()
    with Serving(workspace, route_to(engine.port)) as first, Serving(workspace, route_to(engine.port)) as second:
        batch = start(second.client(), jsonl(line(n) for n in range(20)))
        assert ended(first.client(), batch.id).request_counts.completed == 20
        assert engine.requests == 20


def test_a_gateway_that_cannot_be_reached_is_waited_for(workspace: Workspace, echo: Echoes) -> None:
    """The runner outlives its gateway for a moment when a server stops: no line may fail for it."""
    engine = echo(first_delay_s=0.05)
    with Serving(workspace, route_to(engine.port)) as first:
        batch_id = start(first.client(), jsonl(line(n) for n in range(100))).id
        until(lambda: engine.requests > 10)
        first.refusing = lambda request: (
            502,
            b"",
            json.dumps({"error": {"message": "the gateway is stopping"}}).encode(),
        )
        time.sleep(0.1)
    with Serving(workspace, route_to(engine.port)) as second:
        assert ended(second.client(), batch_id).request_counts.model_dump() == {
            "total": 100,
            "completed": 100,
            "failed": 0,
        }
