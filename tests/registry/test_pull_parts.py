"""Large files in parts, several at once: every byte in its place, or none; fetched once, or not at all."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import DigestMismatchError, NetworkError, PressroomError, SourceError, Workspace
from pressroom.registry import Pulled, Registry, Version, pull

from .servers import File, Site, site
from .test_path_source import nothing_kept
from .weights import config_bytes, noise_bytes

ONE, OTHER = noise_bytes(1, 5 << 20), noise_bytes(2, 5 << 20)


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as running:
        yield running


def content(workspace: Workspace, version: Version) -> bytes:
    (entry,) = version.files
    with Registry(workspace).store.open(entry.blob) as file:
        return file.read()


def costs(workspace: Workspace) -> list[Pulled]:
    seen: list[Pulled] = []
    workspace.events.subscribe(Pulled, seen.append)
    return seen


def test_parts_come_at_once_and_each_once(workspace: Workspace, web: Site) -> None:
    web.files["/m.safetensors"] = File(ONE, slow=0.005)
    seen = costs(workspace)
    version = pull(workspace, f"{web.url}/m.safetensors")
    assert content(workspace, version) == ONE
    assert web.sent == len(ONE) == seen[0].fetched == seen[0].logical
    assert web.log.busiest > 1
    assert all(headers.get("if-range") == '"1"' for _, _, headers in web.asked[1:])


def test_one_connection_is_one(workspace: Workspace, web: Site) -> None:
    web.files["/m.safetensors"] = File(ONE)
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors", connections=1)) == ONE
    assert (web.log.busiest, web.sent) == (1, len(ONE))


def test_a_run_that_gave_up_left_every_part_where_it_was(workspace: Workspace, web: Site) -> None:
    file = web.files["/m.safetensors"] = File(ONE, cuts=[1 << 20, 100_000, 5, 77, 1 << 20] + [0] * 1000)
    with pytest.raises(NetworkError, match="cut"):
        # One connection: what others were about to bring would be lost, and fetched twice.
        pull(workspace, f"{web.url}/m.safetensors", connections=1)
    file.cuts.clear()
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors")) == ONE
    assert web.sent == len(ONE)


def test_servers_that_are_busy_now_and_then(workspace: Workspace, web: Site) -> None:
    web.files["/m.safetensors"] = File(ONE, statuses=[200, 503, 429, 500, 200, 503], headers={"Retry-After": "0"})
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors")) == ONE
    assert web.sent == len(ONE)


def test_servers_that_want_to_be_asked_later(workspace: Workspace, web: Site) -> None:
    web.files["/m.safetensors"] = File(ONE, status=503, headers={"Retry-After": "17"})
    with pytest.raises(NetworkError, match="asks to wait 17 s"):
        pull(workspace, f"{web.url}/m.safetensors")
    assert nothing_kept(workspace)


def test_rights_that_end_half_way_lose_nothing(workspace: Workspace, web: Site) -> None:
    file = web.files["/m.safetensors"] = File(ONE, statuses=[200], status=403)
    with pytest.raises(NetworkError, match="403") as caught:
        pull(workspace, f"{web.url}/m.safetensors", connections=1)
    assert "access" in caught.value.hint
    file.status = 200
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors")) == ONE
    assert web.sent == len(ONE)


def changing(file: File, *, after: int, to: bytes, etag: str | None) -> None:
    """The file becomes another once it was asked for so often."""
    lock, count = threading.Lock(), [0]

    def before(_: dict[str, str]) -> None:
        with lock:
            count[0] += 1
            if count[0] > after:
                file.content, file.etag = to, etag

    file.before = before


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_file_that_changes_meanwhile(workspace: Workspace, web: Site, after: int, trusting: bool) -> None:
    """Whether the server heeds If-Range or not: one file or the other."""
    file = web.files["/m.safetensors"] = File(ONE, trusting=trusting)
    changing(file, after=after, to=OTHER, etag='"2"')
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors")) == OTHER


def test_a_file_that_becomes_shorter(workspace: Workspace, web: Site) -> None:
    file = web.files["/m.safetensors"] = File(ONE)
    short = noise_bytes(3, 1 << 20)
    changing(file, after=1, to=short, etag='"2"')
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors")) == short


def test_a_file_that_changes_all_the_time(workspace: Workspace, web: Site) -> None:
    file = web.files["/m.safetensors"] = File(ONE)
    lock, count = threading.Lock(), [0]

    def before(_: dict[str, str]) -> None:
        with lock:
            count[0] += 1
            file.content, file.etag = (ONE, OTHER)[count[0] % 2], f'"{count[0]}"'

    file.before = before
    # A server that hands out a new mark each time cannot give parts: it is asked for all in one answer.
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors", connections=1)) in (ONE, OTHER)


@pytest.mark.parametrize(
    "file",
    [
        File(ONE, ranges=False),
        File(ONE, etag=None),
        File(ONE, etag='W/"1"'),
        File(ONE, etag="1"),
        File(ONE, etag=None, headers={"Last-Modified": "yesterday"}),
        File(ONE, lies=7),
        File(ONE, total="*"),
        File(ONE, total=len(ONE) - 1),
        File(ONE, length=False, ranges=False),
    ],
)
def test_servers_that_cannot_be_asked_for_parts(workspace: Workspace, web: Site, file: File) -> None:
    """All in one answer, and from the beginning again where that is cut."""
    web.files["/m.safetensors"] = file
    if file.total == len(ONE) - 1:
        # What it gives is not what it says: nothing is put together of it.
        with pytest.raises(PressroomError):
            pull(workspace, f"{web.url}/m.safetensors")
        assert nothing_kept(workspace)
        return
    if file.length:
        file.cuts = [1 << 20, 100_000] if file.ranges else [100_000]
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors")) == ONE


def test_a_date_is_a_mark_where_it_lies_in_the_past(workspace: Workspace, web: Site) -> None:
    past = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    file = web.files["/m.safetensors"] = File(ONE, etag=None, headers=past, trusting=True)
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors")) == ONE
    assert web.sent == len(ONE) and web.asked[1][2]["if-range"] == past["Last-Modified"]
    changing(file, after=2, to=OTHER, etag=None)
    del file.headers["Last-Modified"]
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors", name="again")) == OTHER


def test_a_server_that_packs_what_it_sends(workspace: Workspace, web: Site) -> None:
    web.files["/m.safetensors"] = File(ONE, headers={"Content-Encoding": "gzip"})
    with pytest.raises(SourceError, match="packed"):
        pull(workspace, f"{web.url}/m.safetensors")
    assert nothing_kept(workspace)


def test_what_is_here_is_not_fetched_again(workspace: Workspace, web: Site) -> None:
    """The same address, with the mark it had, brings the same: one byte is asked for, to see that."""
    file = web.files["/m.safetensors"] = File(ONE)
    first = pull(workspace, f"{web.url}/m.safetensors")
    sent = web.sent
    seen = costs(workspace)
    assert pull(workspace, f"{web.url}/m.safetensors") == first
    assert web.sent == sent + 1
    assert (seen[0].fetched, seen[0].held, seen[0].files) == (0, 1, 1)
    file.content, file.etag = OTHER, '"2"'
    assert pull(workspace, f"{web.url}/m.safetensors").number == 2


def test_what_is_here_but_damaged_is_fetched_again(workspace: Workspace, web: Site) -> None:
    web.files["/m.safetensors"] = File(ONE)
    version = pull(workspace, f"{web.url}/m.safetensors")
    registry = Registry(workspace)
    place = registry.store.path(version.files[0].blob)
    place.chmod(0o600)
    place.write_bytes(ONE[:-1] + b"x")
    assert pull(workspace, f"{web.url}/m.safetensors") == version
    assert content(workspace, version) == ONE
    registry.store.verify(version.files[0].blob)


def test_a_file_that_is_here_is_no_archive(workspace: Workspace, web: Site) -> None:
    web.files["/m.safetensors"] = File(ONE)
    pull(workspace, f"{web.url}/m.safetensors")
    with pytest.raises(SourceError, match="no archive"):
        pull(workspace, f"{web.url}/m.safetensors#inside.safetensors")


def test_a_digest_that_is_here_under_another_address(workspace: Workspace, web: Site) -> None:
    web.files["/a.safetensors"] = File(ONE)
    pull(workspace, f"{web.url}/a.safetensors")
    digest = hashlib.sha256(ONE).hexdigest()
    asked = len(web.asked)
    # Nobody has asked for its SHA-256 yet: the server says how long it is, and it is the only file of that length.
    web.files["/b.safetensors"] = File(ONE, ranges=False)
    seen = costs(workspace)
    assert pull(workspace, f"{web.url}/b.safetensors#sha256={digest}").name == "b"
    assert (len(web.asked), seen[0].fetched) == (asked + 1, 0)
    # Now it is known, and the server need not even be there.
    version = pull(workspace, f"{web.url}/elsewhere.safetensors#sha256={digest}")
    assert (version.name, version.files[0].path) == ("elsewhere", "elsewhere.safetensors")
    assert len(web.asked) == asked + 1


def test_a_hub_marks_files_by_their_digests(workspace: Workspace, web: Site, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(ONE)
    pull(workspace, str(tmp_path / "mine.safetensors"))
    web.files["/m.safetensors"] = File(ONE, etag=f'"{hashlib.sha256(ONE).hexdigest()}"')
    web.files["/n.safetensors"] = File(OTHER, etag=f'"{"0" * 64}"')
    seen = costs(workspace)
    assert content(workspace, pull(workspace, f"{web.url}/m.safetensors")) == ONE
    assert content(workspace, pull(workspace, f"{web.url}/n.safetensors")) == OTHER
    assert [cost.fetched for cost in seen] == [0, len(OTHER)]


def shards(tensors: dict[str, bytes]) -> dict[str, bytes]:
    """A model in shards of one tensor each, as it lies on a server."""
    files, weight_map = {}, {}
    for number, (name, body) in enumerate(tensors.items(), 1):
        file = f"model-{number:05}-of-{len(tensors):05}.safetensors"
        header = json.dumps({name: {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}}).encode()
        files[file] = len(header).to_bytes(8, "little") + header + body
        weight_map[name] = file
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files | {"config.json": config_bytes(), "tokenizer.json": b"{}"}


def test_an_index_brings_its_shards(workspace: Workspace, web: Site) -> None:
    files = shards({"a": bytes(1 << 20), "b": bytes(range(256)) * 100})
    web.files |= {f"/models/tiny/{name}": File(body, slow=0.005) for name, body in files.items()}
    web.files["/models/tiny/README.md"] = File(b"<!DOCTYPE html><html>not found</html>")
    version = pull(workspace, f"{web.url}/models/tiny/model.safetensors.index.json")
    assert (version.name, {entry.path for entry in version.files}) == ("tiny", set(files))
    assert version.metadata["parameters"] == (1 << 20) + 25600
    assert web.log.busiest > 1
    # One shard is another: the rest stays.
    web.files["/models/tiny/model-00002-of-00002.safetensors"] = File(
        shards({"a": b"", "b": bytes(25600)})["model-00002-of-00002.safetensors"], etag='"2"'
    )
    seen = costs(workspace)
    assert pull(workspace, f"{web.url}/models/tiny/model.safetensors.index.json").number == 2
    assert seen[0].fetched < 100_000 and seen[0].held == 4  # the index came again, and was here, too


@pytest.mark.parametrize(
    "index",
    [
        b"no json",
        b"[]",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": "../../other/model.safetensors"}}',
        b'{"weight_map": {"a": "https://example.org/model.safetensors"}}',
        b'{"weight_map": {"a": "model.bin"}}',
        b'{"weight_map": {"a": 1}}',
        b"[" * 100_000,
    ],
)
def test_an_index_that_is_none(workspace: Workspace, web: Site, index: bytes) -> None:
    web.files["/m/model.safetensors.index.json"] = File(index)
    with pytest.raises(SourceError) as caught:
        pull(workspace, f"{web.url}/m/model.safetensors.index.json")
    assert caught.value.hint and nothing_kept(workspace)
    assert {path for _, path, _ in web.asked} == {"/m/model.safetensors.index.json"}


def test_an_index_without_one_of_its_shards(workspace: Workspace, web: Site) -> None:
    files = shards({"a": bytes(100), "b": bytes(100)})
    del files["model-00002-of-00002.safetensors"]
    web.files |= {f"/m/{name}": File(body) for name, body in files.items()}
    with pytest.raises(SourceError, match=r"00002-of-00002\.safetensors answered 404"):
        pull(workspace, f"{web.url}/m/model.safetensors.index.json")
    assert nothing_kept(workspace)


def test_a_digest_of_an_index_says_nothing_of_its_shards(workspace: Workspace, web: Site) -> None:
    with pytest.raises(SourceError, match="index"):
        pull(workspace, f"{web.url}/m/model.safetensors.index.json#sha256={'0' * 64}")
    assert web.asked == []


def test_an_altered_file_is_refused_and_nothing_of_it_stays(workspace: Workspace, web: Site) -> None:
    file = web.files["/m.safetensors"] = File(ONE, cuts=[1 << 20, 1000] + [0] * 1000)
    digest = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(NetworkError):
        pull(workspace, f"{web.url}/m.safetensors#sha256={digest}")
    file.cuts.clear()
    with pytest.raises(DigestMismatchError, match="SHA-256"):
        pull(workspace, f"{web.url}/m.safetensors#sha256={digest}")
    assert nothing_kept(workspace)


def test_a_server_of_the_standard_library(workspace: Workspace, tmp_path: Path) -> None:
    """One that nobody wrote for these tests: it knows no ranges."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "m.safetensors").write_bytes(ONE)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "served"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            version = pull(workspace, f"http://127.0.0.1:{server.server_port}/m.safetensors")
        finally:
            server.shutdown()
            thread.join()
    assert content(workspace, version) == ONE
