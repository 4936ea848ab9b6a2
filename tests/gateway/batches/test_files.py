"""/v1/files as the official client uses it, and as others do."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable

import openai
import pytest

from pressroom.kernel import Workspace

from .serving import Client, Serving, post, until, upload

Make = Callable[..., Serving]
BOUNDARY = "----test"


def form(*parts: tuple[str, bytes], file: tuple[str, bytes] | None = None, first: bool = False) -> bytes:
    """A form; `first`: the file comes before the fields."""
    fields = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in parts
    )
    sent = b""
    if file is not None:
        disposition = f'Content-Disposition: form-data; name="file"; filename="{file[0]}"'
        sent = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: text/plain\r\n\r\n".encode() + file[1] + b"\r\n"
    return (sent + fields if first else fields + sent) + f"--{BOUNDARY}--\r\n".encode()


def send(port: int, body: bytes, path: str = "/v1/files") -> tuple[int, dict[str, object]]:
    with Client(port) as client:
        status, _, answer = client.ask(post(body, path, f"Content-Type: multipart/form-data; boundary={BOUNDARY}"))
    return status, answer


def test_a_file_goes_in_and_comes_out(serving: Make, workspace: Workspace) -> None:
    client = serving().client()
    data = bytes(range(256)) * 5_000
    made = client.files.create(file=("requests.jsonl", data), purpose="batch")
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(data), "requests.jsonl", "batch", "processed")
    assert made.model_extra is not None and made.model_extra["sha256"] == hashlib.sha256(data).hexdigest()
    assert abs(made.created_at - time.time()) < 60 and made.expires_at == made.created_at + 30 * 86_400
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == data
    assert (workspace.dir / "files" / made.id).read_bytes() == data
    deleted = client.files.delete(made.id)
    assert deleted.deleted and deleted.id == made.id
    assert not list((workspace.dir / "files").iterdir())
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            gone(made.id)


def test_pages(serving: Make) -> None:
    client = serving().client()
    made = [upload(client, b"{}\n", f"{n}.jsonl") for n in range(7)]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == made  # the client asks for page after page
    page = client.files.list(limit=3, after=made[5])
    assert [file.id for file in page.data] == [made[4], made[3], made[2]] and page.has_more
    assert [file.id for file in client.files.list(purpose="batch_output")] == []
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            client.files.list(**wrong)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-none")


def test_other_purposes_are_refused_with_those_that_are_not(serving: Make, workspace: Workspace) -> None:
    client = serving().client()
    with pytest.raises(openai.BadRequestError, match=r"fine-tune.*Allowed: 'batch'") as caught:
        client.files.create(file=("a", b"x"), purpose="fine-tune")
    assert caught.value.param == "purpose"
    assert not list((workspace.dir / "files").iterdir())


def test_when_a_file_ends(serving: Make, workspace: Workspace) -> None:
    now = [1_800_000_000.0]
    client = serving(clock=lambda: now[0]).client()
    short = client.files.create(
        file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    long = client.files.create(file=("b", b"y"), purpose="batch")
    assert short.expires_at == 1_800_003_600 and long.expires_at == 1_800_000_000 + 30 * 86_400
    now[0] += 3601
    assert [file.id for file in client.files.list()] == [long.id]
    with pytest.raises(openai.NotFoundError):
        client.files.content(short.id)
    for seconds in (3599, 2_592_001):
        with pytest.raises(openai.BadRequestError, match="3600 to 2592000"):
            client.files.create(
                file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": seconds}
            )


def test_a_file_over_the_limit(serving: Make, workspace: Workspace) -> None:
    port = serving().port
    status, answer = send(port, form(("purpose", b"batch"), file=("a", b"x" * 2_000_001)))
    assert status == 413 and "batch.max_file_bytes" in json.dumps(answer)
    status, answer = send(port, form(("purpose", b"batch"), file=("a", b"x" * 2_000_000)))
    assert status == 200 and answer["bytes"] == 2_000_000
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        "Content-Length: 99999999999\r\n\r\n"
    )
    with Client(port) as client:  # refused by its head
        assert client.ask(head.encode())[0] == 413
    until(lambda: len(list((workspace.dir / "files").iterdir())) == 1)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("prefix", ["", "/openai"])
def test_the_order_of_the_form_and_the_prefix(serving: Make, first: bool, prefix: str) -> None:
    port = serving().port
    status, answer = send(port, form(("purpose", b"batch"), file=("a", b"data"), first=first), f"{prefix}/v1/files")
    assert status == 200 and answer["bytes"] == 4
    with Client(port) as client:
        client.send(f"GET {prefix}/v1/files/{answer['id']}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.response()[2] == b"data"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "a\x00b", "x" * 5_000, "", "ein schönes 文件 😀", "a/b\\\\c"]
)
def test_names_are_words_and_not_paths(serving: Make, workspace: Workspace, name: str) -> None:
    status, answer = send(serving().port, form(("purpose", b"batch"), file=(name, b"x")))
    assert status == 200
    assert answer["filename"] == name.replace("\x00", "").replace("\\\\", "\\")[:255]
    assert [path.name for path in (workspace.dir / "files").iterdir()] == [answer["id"]]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "closing delimiter"),
        (form(("purpose", b"batch")), "'file'"),
        (form(file=("a", b"x")), "'purpose'"),
        (form(("purpose", b"batch"), ("purpose", b"batch"), file=("a", b"x")), "twice"),
        (form(("purpose", b"batch"), ("user", b"me"), file=("a", b"x")), "'user'"),
        (form(("purpose", b"b" * 5_000), file=("a", b"x")), "1024 bytes"),
        (form(("purpose", b"batch"), ("file", b"x")), "no filename"),
        (form(("purpose", b"batch"), file=("a", b"x"))[:-6], "closing delimiter"),
        (form(("expires_after[seconds]", b"-3"), ("purpose", b"batch"), file=("a", b"x")), "anchor"),
    ],
)
def test_forms_that_are_refused(serving: Make, workspace: Workspace, body: bytes, part: str) -> None:
    status, answer = send(serving().port, body)
    error = answer["error"]
    assert status == 400 and isinstance(error, dict) and part in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
    until(lambda: not list((workspace.dir / "files").iterdir()))


def test_requests_that_are_not_known(serving: Make) -> None:
    with Client(serving().port) as client:
        for method, path, status, allow in [
            ("PUT", "/v1/files", 405, "GET, HEAD, POST"),
            ("POST", "/v1/files/file-1", 405, "DELETE, GET, HEAD"),
            ("DELETE", "/v1/files/file-1/content", 405, "GET, HEAD"),
            ("GET", "/v1/batches/batch_1/cancel", 405, "POST"),
            ("DELETE", "/v1/batches/batch_1", 405, "GET, HEAD"),
            ("GET", "/v1/files/a/b/c", 404, None),
            ("GET", "/v1/files/" + "%2e%2e%2f" * 20 + "etc", 404, None),
            ("GET", "/v1/batches/%00%ff", 404, None),
        ]:
            client.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            found, headers, body = client.response()
            assert (found, headers.get("allow")) == (status, allow), (method, path)
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
        content_type = "Content-Type: application/json"
        assert client.ask(post(b"{}", "/v1/files", content_type))[0] == 415


def test_head_says_how_long_and_sends_nothing(serving: Make) -> None:
    made = serving()
    file_id = upload(made.client(), b"data")
    with Client(made.port) as client:
        client.send(f"HEAD /v1/files/{file_id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, headers, _ = client.response(body=False)
        assert (status, headers["content-length"]) == (200, "4")
        client.send(f"GET /v1/files/{file_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.response()[0] == 200
