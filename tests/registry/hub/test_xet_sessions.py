"""What a Xet client sends, made by hand: also what no client would send."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from pressroom.kernel import HubSettings, Workspace
from pressroom.registry.hub._xorbs import _SHARD_TAG

from .serving import HubServer, write
from .weights import noise_bytes
from .wire import HEADER, Wire, lines, until

XORB = "0" * 63 + "1"
DATA = noise_bytes(9, 300_000)
CHUNKS = [DATA[start : start + 60_000] for start in range(0, len(DATA), 60_000)]


def words(hexadecimal: str) -> tuple[int, ...]:
    return tuple(int(hexadecimal[start : start + 16], 16) for start in range(0, 64, 16))


def xorb(chunks: Sequence[bytes]) -> bytes:
    found = b""
    for each in chunks:
        length = len(each).to_bytes(3, "little")
        found += b"\0" + length + b"\0" + length + each
    return found


def shard(sha256: str, terms: Sequence[tuple[str, int, int, int]]) -> bytes:
    """One file, of `terms`: a xorb, a range of its chunks, their bytes."""
    body = _SHARD_TAG + struct.pack("<QQ", 2, 0)
    body += struct.pack("<4Q4I", 1, 2, 3, 4, 1 << 30, len(terms), 0, 0)
    for name, start, end, length in terms:
        body += struct.pack("<4Q4I", *words(name), 0, length, start, end)
    body += struct.pack("<4Q4I", *words(sha256), 0, 0, 0, 0)
    return body + struct.pack("<4Q4I", *(0xFFFFFFFFFFFFFFFF,) * 4, 0, 0, 0, 0)


class Session:
    """A key's session for the model `m`."""

    def __init__(self, hub: HubServer, key: str) -> None:
        self.hub, self.key = hub, key
        with Wire(hub) as wire:
            status, _, body = wire.ask("GET /api/models/m/xet-write-token/main", key=key)
            assert status == 200
        found = json.loads(body)
        self.path, self.token = found["casUrl"].partition("localhost")[2], found["accessToken"]

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        with Wire(self.hub) as wire:
            status, _, answer = wire.ask(f"POST {self.path}/{path}", body, self.token)
        return status, answer

    def commit(self, sha256: str, path: str = "model.safetensors") -> int:
        item = {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": sha256}}
        with Wire(self.hub) as wire:
            return wire.ask("POST /api/models/m/commit/main", lines(HEADER, item), self.key)[0]

    def folder(self) -> list[Path]:
        (found,) = (self.hub.workspace.dir / "tmp" / "hub").glob("xet-*")
        return list(found.iterdir())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def term(start: int, end: int) -> tuple[str, int, int, int]:
    return XORB, start, end, sum(map(len, CHUNKS[start:end]))


@pytest.fixture
def session(hub: HubServer) -> Session:
    secret = hub.key("write:m")
    hub.api(secret).create_repo("m")
    return Session(hub, secret)


def test_chunks_become_a_file_and_make_room(hub: HubServer, session: Session) -> None:
    assert session.post(f"v1/xorbs/default/{XORB}", xorb(CHUNKS)) == (200, b'{"was_inserted":true}')
    assert session.post(f"v1/xorbs/default/{XORB}", xorb(CHUNKS)) == (200, b'{"was_inserted":false}')
    assert len(session.folder()) == 1
    # Part of it first: the chunks stay until each of them is somewhere.
    some = b"".join(CHUNKS[1:3])
    assert session.post("v1/shards", shard(sha(some), [term(1, 3)]))[0] == 200
    assert len(session.folder()) == 1
    assert session.post("v1/shards", shard(sha(DATA), [term(0, len(CHUNKS))]))[0] == 200
    assert session.folder() == []
    assert {f"{sha(some)}.whole", f"{sha(DATA)}.whole"} <= set(hub.spooled())
    assert session.commit(sha(DATA)) == 200
    with hub.registry.store.open(hub.registry.get("m").files[0].blob) as file:
        assert file.read() == DATA
    # From the store and the spool, in another order.
    mixed = b"".join([CHUNKS[4], *CHUNKS[2:5], CHUNKS[0], CHUNKS[1]])
    terms = [term(4, 5), term(2, 5), term(0, 1), term(1, 2)]
    assert session.post("v1/shards", shard(sha(mixed), terms))[0] == 200
    whole = hub.workspace.dir / "tmp" / "hub" / f"{sha(mixed)}.whole"
    assert whole.read_bytes() == mixed


def test_a_file_that_is_not_what_it_says(hub: HubServer, session: Session) -> None:
    session.post(f"v1/xorbs/default/{XORB}", xorb(CHUNKS))
    before = hub.spooled()
    status, answer = session.post("v1/shards", shard("ab" * 32, [term(0, 2)]))
    assert status == 400 and b"was declared" in answer
    for wrong in ([(XORB, 0, 99, 60_000)], [(XORB, 0, 1, 5)], [(XORB, 4, 9, 60_000)]):
        assert session.post("v1/shards", shard(sha(CHUNKS[0]), wrong))[0] == 400
    assert hub.spooled() == before
    assert session.commit("ab" * 32) == 404


def test_a_client_that_counts_on_what_is_not_here_gets_a_new_session(hub: HubServer, session: Session) -> None:
    other = "f" * 64
    assert session.post("v1/shards", shard(sha(CHUNKS[0]), [(other, 0, 1, 60_000)]))[0] == 400
    assert session.post("v1/shards", shard(sha(CHUNKS[0]), [term(0, 1)]))[0] == 401
    assert not [name for name in hub.spooled() if name.startswith("xet-")]
    again = Session(hub, session.key)
    assert again.path != session.path
    # The same where the file that had the chunks was removed.
    again.post(f"v1/xorbs/default/{XORB}", xorb(CHUNKS))
    assert again.post("v1/shards", shard(sha(DATA), [term(0, len(CHUNKS))]))[0] == 200
    assert again.commit(sha(DATA)) == 200
    hub.registry.delete("m:1")
    assert again.post("v1/shards", shard(sha(CHUNKS[0]), [term(0, 1)]))[0] == 400
    assert Session(hub, session.key).path != again.path


def test_one_session_a_key_and_model(hub: HubServer, session: Session) -> None:
    assert Session(hub, session.key).path == session.path
    assert Session(hub, hub.key("write", name="other")).path != session.path


def test_a_hash_opens_nothing(hub: HubServer, session: Session, tmp_path: Path) -> None:
    """A shard that says: my chunks are that secret file. Then another one, that asks for these chunks."""
    secret = noise_bytes(1, 300_000)
    assert len(secret) == len(DATA)
    version = hub.add("secret", write(tmp_path / "s", {"model.safetensors": secret}))
    known = hub.registry.sha256(version.files[0].blob)
    session.post(f"v1/xorbs/default/{XORB}", xorb(CHUNKS))
    status, answer = session.post("v1/shards", shard(known, [term(0, len(CHUNKS))]))
    assert status == 400 and b"was declared" in answer
    assert session.post("v1/shards", shard(sha(secret[:60_000]), [term(0, 1)]))[0] == 400
    assert session.commit(known) == 404


def test_limits(workspace: Workspace) -> None:
    workspace.settings = dataclasses.replace(workspace.settings, hub=HubSettings(max_file_bytes=100_000))
    with HubServer(workspace) as hub:
        secret = hub.key()
        hub.api(secret).create_repo("m")
        session = Session(hub, secret)
        session.post(f"v1/xorbs/default/{XORB}", xorb(CHUNKS))
        assert session.post("v1/shards", shard(sha(DATA), [term(0, len(CHUNKS))]))[0] == 413
        with Wire(hub) as wire:
            wire.head(f"POST {session.path}/v1/xorbs/default/{XORB}", session.token, Content_Length="1000000000")
            wire.send(bytes(100_000))
        until(lambda: len(session.folder()) == 1)
