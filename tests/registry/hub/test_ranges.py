"""Files over the wire: heads, ranges, conditions."""

from __future__ import annotations

import hashlib
from email import message_from_bytes
from pathlib import Path

import pytest
import requests

from .serving import HubServer, write
from .weights import noise_bytes

DATA = noise_bytes(3, 300_000)
SIZE = len(DATA)
ETAG = f'"{hashlib.sha256(DATA).hexdigest()}"'


@pytest.fixture(autouse=True)
def model(hub: HubServer, tmp_path: Path) -> None:
    hub.add("m", write(tmp_path / "m", {"model.safetensors": DATA, "empty.txt": b"", "page.html": b"<script>"}))


def get(hub: HubServer, path: str = "model.safetensors", **headers: str) -> requests.Response:
    return requests.get(f"{hub.url}/m/resolve/main/{path}", headers=headers, timeout=60)


def test_the_head_says_everything_and_sends_nothing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.registry.sha256(hub.registry.get("m").files[1].blob)
    monkeypatch.setattr(type(hub.registry.store), "open", lambda *_: pytest.fail("a head reads no bytes"))
    head = requests.head(f"{hub.url}/m/resolve/main/model.safetensors", timeout=60)
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == head.headers["x-linked-size"] == str(SIZE)
    assert head.headers["etag"] == head.headers["x-linked-etag"] == ETAG
    assert head.headers["x-repo-commit"] == hub.registry.get("m").digest[7:47]
    assert head.headers["accept-ranges"] == "bytes"


def test_a_page_is_no_page(hub: HubServer) -> None:
    answer = get(hub, "page.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    git = hashlib.sha1(b"blob 8\0<script>").hexdigest()
    assert answer.headers["etag"] == f'"{git}"' and "x-linked-etag" not in answer.headers


def test_an_empty_file(hub: HubServer) -> None:
    answer = get(hub, "empty.txt")
    assert answer.status_code == 200 and answer.content == b"" and answer.headers["content-length"] == "0"
    assert get(hub, "empty.txt", Range="bytes=0-").status_code == 416


@pytest.mark.parametrize(
    ("range_", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=250000-", 250_000, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        ("bytes=-999999999", 0, SIZE),
        ("bytes=5-999999999", 5, SIZE),
        ("BYTES = 1-2", 1, 3),
        ("bytes=1-2, 999999999-", 1, 3),
    ],
)
def test_a_range(hub: HubServer, range_: str, start: int, end: int) -> None:
    answer = get(hub, Range=range_)
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.content == DATA[start:end] and answer.headers["etag"] == ETAG


@pytest.mark.parametrize(
    "range_", ["bytes=", "bytes=-", "bytes=5-1", "lines=1-2", "bytes=a-b", "bytes=1", "1-2", "bytes=" + "9" * 40 + "-"]
)
def test_what_is_no_range_is_not_looked_at(hub: HubServer, range_: str) -> None:
    answer = get(hub, Range=range_)
    assert answer.status_code == 200 and answer.content == DATA


def test_a_range_behind_the_end(hub: HubServer) -> None:
    answer = get(hub, Range=f"bytes={SIZE}-")
    assert answer.status_code == 416 and answer.headers["content-range"] == f"bytes */{SIZE}"
    assert get(hub, Range="bytes=-0").status_code == 416


def test_many_ranges_at_once(hub: HubServer) -> None:
    answer = get(hub, Range="bytes=0-9, 100-109,-5")
    assert answer.status_code == 206
    lead = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(lead + answer.content).get_payload()
    assert isinstance(parts, list)
    assert [part["Content-Range"] for part in parts if not isinstance(part, str)] == [  # type: ignore[index]
        f"bytes 0-9/{SIZE}", f"bytes 100-109/{SIZE}", f"bytes {SIZE - 5}-{SIZE - 1}/{SIZE}",
    ]  # fmt: skip
    for piece in (DATA[:10], DATA[100:110], DATA[-5:]):
        assert b"\r\n\r\n" + piece + b"\r\n--" in answer.content


def test_too_many_ranges_are_the_file(hub: HubServer) -> None:
    assert get(hub, Range="bytes=" + ",".join(["0-0"] * 100)).status_code == 200
    assert get(hub, Range="bytes=0-,0-,0-").status_code == 200


def test_conditions(hub: HubServer) -> None:
    same = get(hub, **{"If-None-Match": f'"other", W/{ETAG}'})
    assert same.status_code == 304 and same.content == b"" and same.headers["etag"] == ETAG
    assert get(hub, **{"If-None-Match": '"other"'}).status_code == 200
    assert get(hub, **{"If-Range": ETAG, "Range": "bytes=0-3"}).status_code == 206
    assert get(hub, **{"If-Range": '"other"', "Range": "bytes=0-3"}).status_code == 200
    with requests.Session() as session:  # the connection goes on after it
        for _ in range(3):
            url = f"{hub.url}/m/resolve/main/model.safetensors"
            assert session.get(url, headers={"If-None-Match": ETAG}, timeout=60).status_code == 304
            assert session.get(url, headers={"Range": "bytes=0-1"}, timeout=60).content == DATA[:2]


def test_nothing_is_compressed(hub: HubServer) -> None:
    answer = get(hub, **{"Accept-Encoding": "gzip, br, zstd"})
    assert "content-encoding" not in answer.headers and answer.content == DATA


def test_other_methods_are_refused(hub: HubServer) -> None:
    answer = requests.put(f"{hub.url}/m/resolve/main/model.safetensors", data=b"x", timeout=60)
    assert answer.status_code == 405


def test_a_file_that_nobody_hashed_yet(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is done apart, and once for all who ask."""
    from concurrent.futures import ThreadPoolExecutor

    from pressroom.registry.hub import _files

    monkeypatch.setattr(_files, "_QUICK", 0)
    asked = []
    real = hub.registry.store.open
    monkeypatch.setattr(type(hub.registry.store), "open", lambda self, blob: (asked.append(blob), real(blob))[1])
    with ThreadPoolExecutor(6) as threads:
        url = f"{hub.url}/m/resolve/main/model.safetensors"
        heads = list(threads.map(lambda _: requests.head(url, timeout=60), range(6)))
    assert {head.headers["etag"] for head in heads} == {ETAG}
    assert len(asked) == 1
