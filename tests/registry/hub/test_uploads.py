"""What is kept under a SHA-256 has that SHA-256, whoever sends what at the same time."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator

import pytest

from pressroom.kernel import DigestMismatchError, Workspace
from pressroom.registry.hub import _uploads
from pressroom.registry.hub._spool import Spool
from pressroom.registry.hub._uploads import Uploads
from pressroom.registry.hub.base import HubError

_PART = 1 << 20
GOOD = random.Random(1).randbytes(3 * _PART)
SHA = hashlib.sha256(GOOD).hexdigest()


@pytest.fixture
def spool(workspace: Workspace) -> Iterator[Spool]:
    spool = Spool(workspace)
    yield spool
    spool.close()


@pytest.fixture
def uploads(spool: Spool, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    monkeypatch.setattr(_uploads, "_PART", _PART)
    return Uploads(spool, workspace.settings.hub)


def begun(uploads: Uploads, content: bytes, *transfers: str) -> str:
    """The token of an upload that was asked for."""
    asked = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    body = json.dumps({"operation": "upload", "transfers": list(transfers), "objects": [asked]}).encode()
    answer = json.loads(uploads.batch(body, address="A", verify="V", held=lambda _: False).body)
    return str(answer["objects"][0]["actions"]["upload"]["href"].partition("token=")[2])


def sent(uploads: Uploads, token: str, number: int, data: bytes) -> dict[str, object]:
    sink = uploads.receive(token, number)
    sink.write(data)
    return {"partNumber": number, "etag": sink.finish().headers["etag"]}


def parts_sent(uploads: Uploads, token: str) -> list[dict[str, object]]:
    return [sent(uploads, token, n, GOOD[(n - 1) * _PART : n * _PART]) for n in (1, 2, 3)]


def complete(uploads: Uploads, token: str, parts: list[dict[str, object]]) -> bytes:
    return bytes(uploads.complete(token, json.dumps({"parts": parts}).encode()).body)


def test_a_part_that_is_sent_again_and_cut(uploads: Uploads, spool: Spool) -> None:
    token = begun(uploads, GOOD, "multipart")
    parts = parts_sent(uploads, token)
    again = uploads.receive(token, 1)
    again.write(b"EVIL" * 1000)
    again.abort()
    with pytest.raises(HubError, match="not every part"):
        complete(uploads, token, parts)
    assert spool.get(SHA) is None
    parts[0] = sent(uploads, token, 1, GOOD[:_PART])
    complete(uploads, token, parts)
    kept = spool.get(SHA)
    assert kept is not None and kept.read_bytes() == GOOD


def test_who_began_a_part_before_may_not_write_it_any_more(uploads: Uploads, spool: Spool) -> None:
    token = begun(uploads, GOOD, "multipart")
    slow = uploads.receive(token, 2)
    slow.write(b"EVIL")
    parts = parts_sent(uploads, token)
    with pytest.raises(HubError, match="sent anew"):
        slow.write(b"EVIL")
    complete(uploads, token, parts)
    with pytest.raises(HubError):
        slow.finish()
    slow.abort()
    kept = spool.get(SHA)
    assert kept is not None and kept.read_bytes() == GOOD


def test_nothing_is_written_once_the_file_is_complete(uploads: Uploads, spool: Spool) -> None:
    token = begun(uploads, GOOD, "multipart")
    parts = parts_sent(uploads, token)
    complete(uploads, token, parts)
    with pytest.raises(HubError, match="no such upload"):
        uploads.receive(token, 1)


def test_two_who_send_one_file_whole(uploads: Uploads, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bad one ends between the good one's check and its keeping."""
    content = b"good" * 1000
    token = begun(uploads, content)
    good, bad = uploads.receive(token, 0), uploads.receive(token, 0)
    good.write(content)
    bad.write(bytes(len(content)))
    keep = spool.keep

    def kept_late(part: object, sha256: str) -> None:
        with pytest.raises(DigestMismatchError):
            bad.finish()
        keep(part, sha256)  # type: ignore[arg-type]

    monkeypatch.setattr(spool, "keep", kept_late)
    good.finish()
    found = spool.get(hashlib.sha256(content).hexdigest())
    assert found is not None and found.read_bytes() == content
