"""What strangers send, and what happens to half of a push: nothing is registered, nothing is left."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pressroom.kernel import HubSettings, Workspace

from .serving import HubServer
from .weights import SMOL, noise_bytes
from .wire import HEADER, Wire, lines, until

COMMIT = "POST /api/models/m/commit/main"
SHA = "ab" * 32


def clean(hub: HubServer) -> bool:
    """Nothing is under way and nothing is left."""
    door = hub.gateway._hub
    assert door is not None
    return not door.running and hub.spooled() == []


@pytest.fixture
def key(hub: HubServer) -> str:
    secret = hub.key()
    hub.api(secret).create_repo("m")
    return secret


def file(path: object, content: str = base64.b64encode(b"x").decode(), encoding: str = "base64") -> dict[str, object]:
    return {"key": "file", "value": {"path": path, "content": content, "encoding": encoding}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"nonsense",
        b'{"key": "header"}',
        b"[1]\n",
        b"\xff\xfe\n",
        b"[" * 100_000,
        b'{"key":"header","value":{"summary":"\\ud800"}}\n',
        lines(file("a.txt")),
        lines(HEADER, HEADER),
        lines(HEADER, {"key": "sabotage", "value": {}}),
        lines(HEADER, {"key": "file", "value": []}),
        lines(HEADER, file(7)),
        lines(HEADER, file("a.txt", "not base64!")),
        lines(HEADER, file("a.txt", "plain", "latin-1")),
        lines(HEADER, {"key": "file", "value": {"path": "a.txt", "content": "x", "encoding": ["base64"]}}),
        lines(HEADER, {"key": "file", "value": {"path": "a.txt", "content": "x", "encoding": None}}),
        lines(HEADER, {"key": "lfsFile", "value": {"path": "a", "algo": "md5", "oid": SHA}}),
        lines(HEADER, {"key": "lfsFile", "value": {"path": "a", "algo": "sha256", "oid": "../../etc/passwd"}}),
        lines({"key": "header", "value": {"summary": 3}}),
        lines({"key": "header", "value": {"summary": "s", "parentCommit": 5}}),
        lines(HEADER, file("x.txt"))[:-20],
    ],
)
def test_a_commit_that_is_none(hub: HubServer, key: str, body: bytes) -> None:
    with Wire(hub) as wire:
        status, _, answer = wire.ask(COMMIT, body, key)
    assert status == 400, answer
    assert json.loads(answer)["error"]
    assert hub.registry.list() == []
    until(lambda: clean(hub))


@pytest.mark.parametrize(
    "path",
    ["../up", "/etc/passwd", "a/../../b", "a//b", "./a", "a/", "..", ".", "", "a\x00b", "a\\b", "C:\\x", "a\nb"],
)
def test_paths_that_climb(hub: HubServer, key: str, path: str) -> None:
    with Wire(hub) as wire:
        assert wire.ask(COMMIT, lines(HEADER, file(path)), key)[0] == 400
        assert wire.ask(COMMIT, lines(HEADER, {"key": "lfsFile", "value": {"path": path, "oid": SHA}}), key)[0] == 400
    assert hub.registry.list() == []


def test_a_file_that_nobody_sent(hub: HubServer, key: str) -> None:
    body = lines(HEADER, file("a.txt"), {"key": "lfsFile", "value": {"path": "m.safetensors", "oid": SHA}})
    with Wire(hub) as wire:
        status, _, answer = wire.ask(COMMIT, body, key)
    assert status == 404 and b"was not uploaded" in answer
    until(lambda: clean(hub))
    assert hub.registry.list() == [] and hub.registry.loose() == []


def test_a_line_without_an_end(hub: HubServer, key: str) -> None:
    """It is refused long before it is all here, and is not kept in memory."""
    with Wire(hub) as wire:
        wire.head(COMMIT, key, Transfer_Encoding="chunked")
        wire.send(b"%x\r\n" % (1 << 30))
        try:
            for _ in range(64):
                wire.send(b"a" * (1 << 20))
        except OSError:
            return  # it hung up on us: that is right, too
        assert wire.answer()[0] == 413
    until(lambda: clean(hub))


def test_a_regular_file_that_is_too_long(hub: HubServer, key: str) -> None:
    body = lines(HEADER, file("a.txt", base64.b64encode(bytes((10 << 20) + 1)).decode()))
    with Wire(hub) as wire:
        assert wire.ask(COMMIT, body, key)[0] == 413
    until(lambda: clean(hub))


def batch(hub: HubServer, key: str, sha256: str, size: int, **more: object) -> tuple[int, dict[str, object]]:
    body = json.dumps({"operation": "upload", "objects": [{"oid": sha256, "size": size}], **more}).encode()
    with Wire(hub) as wire:
        status, _, answer = wire.ask("POST /local/m.git/info/lfs/objects/batch", body, key)
    return status, json.loads(answer)


def upload(hub: HubServer, key: str, sha256: str, size: int) -> str:
    """The path and query that a file is sent to."""
    _, answer = batch(hub, key, sha256, size)
    (found,) = answer["objects"]  # type: ignore[misc]
    return str(found["actions"]["upload"]["href"]).partition("localhost")[2]


def test_bytes_that_are_not_what_was_declared(hub: HubServer, key: str) -> None:
    data = noise_bytes(1, 3_000_000)
    sha256 = hashlib.sha256(data).hexdigest()
    for sent, status in ((b"x" + data[1:], 400), (data[:-1], 400), (data + b"x", 413), (data + bytes(9 << 20), 413)):
        with Wire(hub) as wire:
            found = wire.ask(f"PUT {upload(hub, key, sha256, len(data))}", sent)[0]
        assert found == status
        until(lambda: clean(hub))
    with Wire(hub) as wire:
        assert wire.ask(f"PUT {upload(hub, key, sha256, len(data))}", data)[0] == 200
        verify = json.dumps({"oid": sha256, "size": len(data)}).encode()
        assert wire.ask("POST /local/m.git/info/lfs/verify", verify, key)[0] == 200
        verify = json.dumps({"oid": sha256, "size": 1}).encode()
        assert wire.ask("POST /local/m.git/info/lfs/verify", verify, key)[0] == 404
    assert hub.spooled() == [f"{sha256}.whole"]


def test_a_file_without_an_address(hub: HubServer, key: str) -> None:
    good = upload(hub, key, SHA, 10)
    with Wire(hub) as wire:
        assert wire.ask("PUT /api/uploads/0?token=wrong", b"x")[0] == 404
    with Wire(hub) as wire:
        assert wire.ask("PUT /api/uploads/0", b"x")[0] == 404
    with Wire(hub) as wire:
        assert wire.ask("PUT " + good.replace("/0?", "/1?"), b"x")[0] == 404
    with Wire(hub) as wire:
        assert wire.ask("POST " + good.replace("/0?", "/complete?"), b"{}")[0] == 400


def test_uploads_that_are_cut(hub: HubServer, key: str) -> None:
    data = noise_bytes(2, 5_000_000)
    sha256 = hashlib.sha256(data).hexdigest()
    for cut in (0, 1, 70_000, 4_000_000):
        with Wire(hub) as wire:
            wire.head(f"PUT {upload(hub, key, sha256, len(data))}", Content_Length=str(len(data)))
            wire.send(data[:cut])
        until(lambda: clean(hub))
    with Wire(hub) as wire:
        wire.head(COMMIT, key, Content_Length="1000000")
        wire.send(lines(HEADER, file("a.txt")) * 1)
        until(lambda: hub.spooled() != [])
    until(lambda: clean(hub))
    with Wire(hub) as wire:
        wire.head(COMMIT, key, Transfer_Encoding="chunked")
        wire.send(b"zz not a chunk\r\n")
        assert wire.answer()[0] == 400
    until(lambda: clean(hub))
    assert hub.registry.list() == []


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b"{}",
        b'{"operation": "download", "objects": []}',
        b'{"operation": "upload", "objects": [1]}',
        b'{"operation": "upload", "objects": [{"oid": "../x", "size": 1}]}',
        b'{"operation": "upload", "objects": [{"oid": "' + SHA.encode() + b'", "size": -1}]}',
        b'{"operation": "upload", "objects": [{"oid": "' + SHA.encode() + b'", "size": true}]}',
        b'{"operation": "upload", "hash_algo": "md5", "objects": []}',
        json.dumps({"operation": "upload", "objects": [{"oid": SHA, "size": 1}] * 5_000}).encode(),
    ],
)
def test_batches_that_are_none(hub: HubServer, key: str, body: bytes) -> None:
    with Wire(hub) as wire:
        assert wire.ask("POST /local/m.git/info/lfs/objects/batch", body, key)[0] == 400


def test_files_beyond_the_limits(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.settings = dataclasses.replace(workspace.settings, hub=HubSettings(max_file_bytes=1_000))
    with HubServer(workspace) as hub:
        secret = hub.key()
        hub.api(secret).create_repo("m")
        _, answer = batch(hub, secret, SHA, 1_001)
        assert answer["objects"][0]["error"]["code"] == 413  # type: ignore[index]
        _, answer = batch(hub, secret, SHA, 1_000)
        assert "actions" in answer["objects"][0]  # type: ignore[index]
        real = shutil.disk_usage
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1_000))
        status, answer = batch(hub, secret, SHA, 999)
        assert status == 507 and "no room" in str(answer["error"])


@pytest.mark.parametrize(
    "target",
    [
        "/api/models/../../etc/passwd",
        "/api/models/%2e%2e/%2e%2e",
        "/api/models//",
        "/api/models/a%00b",
        "/api/models/m/tree/main/%2e%2e%2f%2e%2e",
        "/m/resolve/main/..%2f..%2fpressroom.db",
        "/m/resolve/main/../../pressroom.db",
        "/m/resolve/%2e%2e/x",
        "/m/resolve/main/",
        "/../resolve/main/x",
        "/api/xet/" + "0" * 32 + "/v1/shards",
        "/api/" + "x" * 9_000,
        "/api/models?limit=x",
        "/api/models/m/revision/" + "9" * 5_000,
        "/api/nothing/" + "%ff" * 10,
    ],
)
def test_targets_that_lead_nowhere(hub: HubServer, smol: Path, target: str) -> None:
    hub.add("m", smol)
    with Wire(hub) as wire:
        status, headers, body = wire.ask(f"GET {target}")
    assert status in (400, 401, 404), body
    assert json.loads(body)["error"] and headers["x-error-message"]
    assert b"SQLite" not in body


def test_headers_cannot_be_split(hub: HubServer, smol: Path) -> None:
    hub.add("m", smol)
    with Wire(hub) as wire:
        status, headers, _ = wire.ask("GET /m/resolve/main/x%0d%0aevil:%20yes")
        assert status == 404 and "evil" not in headers
        # The connection is where it should be.
        assert wire.ask("GET /api/models/m")[0] == 200


def test_pages_of_other_sites_change_nothing(hub: HubServer, key: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        with Wire(hub) as wire:
            status, _, _ = wire.ask(f"{method} /api/repos/create", b"{}", key, Origin="https://evil.example")
            assert status == 403
    with Wire(hub) as wire:
        wire.send(b"GET /api/models HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert wire.answer()[0] == 403


def test_a_refused_body_does_not_become_the_next_request(hub: HubServer) -> None:
    """What is not wanted is not read: the connection ends after the answer."""
    with Wire(hub) as wire:
        inner = b"GET /api/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
        wire.head(COMMIT, Content_Length="100000")
        status, headers, _ = wire.answer()
        assert status == 401 and headers["connection"] == "close"
        wire.send(inner)
        wire.socket.shutdown(1)
        assert wire.ended()


def test_requests_one_after_another_on_one_connection(hub: HubServer, key: str) -> None:
    create = json.dumps({"name": "n", "organization": None}).encode()
    with Wire(hub) as wire:
        for number in range(5):
            body = lines(HEADER, file("a.txt", base64.b64encode(str(number).encode()).decode()))
            assert wire.ask(COMMIT, body, key)[0] == 200
            assert wire.ask("GET /api/models/m")[0] == 200
        # All at once: each is answered in its turn.
        parts = []
        for number in range(5, 8):
            body = lines(HEADER, file("a.txt", base64.b64encode(str(number).encode()).decode()))
            head = f"{COMMIT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
            parts.append(head.replace("Host: x", "Host: localhost").encode() + body)
        parts.append(f"POST /api/repos/create HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n".encode())
        parts.append(f"Content-Length: {len(create)}\r\n\r\n".encode() + create)
        wire.send(b"".join(parts))
        assert [wire.answer()[0] for _ in range(4)] == [200] * 4
    assert [version.number for version in hub.registry.list("m")] == list(range(1, 9))


def test_xet_sessions_of_others_are_closed(hub: HubServer, key: str) -> None:
    with Wire(hub) as wire:
        status, headers, body = wire.ask("GET /api/models/m/xet-write-token/main", key=key)
        assert status == 200
        found = json.loads(body)
        path = found["casUrl"].partition("localhost")[2]
        assert headers["x-xet-access-token"] == found["accessToken"]
        token = found["accessToken"]
        assert wire.ask(f"POST {path}/v1/telemetry", b"{}", token)[0] == 200
        assert wire.ask(f"GET {path}/v1/chunks/default-merkledb/{SHA}", key=token)[0] == 404
        assert wire.ask(f"POST {path}/v1/shards", b"nonsense", token)[0] == 400
        assert wire.ask(f"POST {path}/v1/xorbs/default/{SHA}", b"nonsense", token)[0] == 400
    for secret in ("", "wrong", key):
        with Wire(hub) as wire:
            assert wire.ask(f"POST {path}/v1/shards", b"x", secret)[0] == 401
    with Wire(hub) as wire:
        assert wire.ask("GET /api/models/m/xet-write-token/main")[0] == 401


def test_content_that_only_looks_like_a_model(hub: HubServer, key: str) -> None:
    """A card that makes the parser work for ever, and a config that is not one."""
    bomb = b"---\na: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (n, n, *([n - 1] * 7)) for n in range(98, 110)
    )
    files = {**SMOL, "README.md": bomb + b"---\n", "config.json": b'{"architectures": 7}'}
    body = lines(HEADER, *(file(p, base64.b64encode(d).decode()) for p, d in files.items() if "safetensors" not in p))
    with Wire(hub) as wire:
        assert wire.ask(COMMIT, body, key)[0] == 200
        status, _, answer = wire.ask("GET /api/models/m")
        assert status == 200 and len(answer) < 10_000
